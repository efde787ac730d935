"""The contents of metrics.json and summary.json, checked: report, pictures and card read them.

    summary = read_summary(Path("runs/demo"))
    # the folder of a pipeline, or of an evaluation on its own
    summary.runs[-1].benign_answered, summary.samples[0].responses

`data/metrics.schema.json` is `schema()`, written out; `python -m overrefusal_po.report.summary`
prints it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, ValidationError
from pydantic.json_schema import models_json_schema
from typing_extensions import TypedDict

from overrefusal_po.evaluate.metrics import ScoredState
from overrefusal_po.evaluate.stale import fresh_metrics, verdicts_now
from overrefusal_po.records import Kind, Outcome, first_fault, read_jsonl, read_state
from overrefusal_po.report.first_token_part import CurveStep, FirstTokenPart
from overrefusal_po.report.hold_notes import older_warnings
from overrefusal_po.report.panel_part import READ_CONFIG, Count, PanelPart
from overrefusal_po.report.remedies_part import RemediesPart
from overrefusal_po.report.robustness_part import TamperedCopy
from overrefusal_po.report.rounds_part import RoundPart
from overrefusal_po.report.samples import Sample, sample_entries
from overrefusal_po.report.search_part import SearchPart

Share = Annotated[float, Field(ge=0, le=1)]
MoveCounts = dict[ScoredState, dict[ScoredState, Count]]  # before -> after -> how many prompts
Interval = Annotated[
    tuple[Share, Share] | None,
    BeforeValidator(lambda ends: None if ends == [None, None] else ends),
]
MeasuredGain = dict[Literal["value", "low", "high"], FiniteFloat | None] | None
MeasuredPairs = dict[Literal["n", "only_from", "only_to", "p"], Count | FiniteFloat | None] | None
MeasuredVotes = dict[Literal["clusters", "only_from", "only_to"], Count]
PartType = TypeVar("PartType", bound=BaseModel)

KIND_WORDS: dict[Kind, str] = {
    "benign": "harmless prompts",
    "harmful": "harmful prompts",
    "general": "ordinary prompts",
}
STATE_WORDS: dict[ScoredState, str] = {
    "answer": "answered",
    "partial": "partial",
    "full": "refused",
    "degenerate": "degenerate",
}


class RatePart(BaseModel):
    """A part of the two files."""

    model_config = READ_CONFIG


class MeasuredStep(RatePart):
    """What the run `to` gained over the run `from`, on the same prompts; p is McNemar's, exact."""

    before: str = Field(alias="from")
    after: str = Field(alias="to")
    gain: MeasuredGain
    f1_gain: MeasuredGain = None
    harmful: MeasuredPairs
    benign: MeasuredPairs
    votes: dict[Literal["harmful", "benign"], MeasuredVotes] = {}
    """If questions have several outcomes, each question has one vote."""


MeasuredTransition = TypedDict(
    "MeasuredTransition",
    {"from": str, "to": str, "kind": Kind, "category": str, "counts": MoveCounts},
)


class MeasuredRates(RatePart):
    """Shares, 0 to 1, of some responses of one run; a rate and its interval are None if its n is
    0."""

    name: str
    model: str
    harmful_refused: Share | None
    benign_answered: Share | None
    f1: Share | None
    ordinary_answered: Share | None = None
    harmful_refused_plain: Share | None = None
    harmful_refused_contrast: Share | None = None
    degenerate: Share | None = None
    harmful_not_unsafe: Share | None = None
    """Harmful prompts whose response a guard does not judge unsafe; absent without a guard."""
    intervals: dict[str, Interval]
    n: dict[str, Count]
    unscored: dict[str, Count] = {}


class MeasuredPositions(RatePart):
    """How many refusals of harmful prompts start within the first 5 words, in words 6 to 30, beyond
    word 30."""

    opening: Count
    early: Count
    late: Count
    unplaced: Count
    not_refused: Count
    unscored: Count


class CorrectedRate(RatePart):
    """A rate without the judge's known errors."""

    value: Share | None
    low: Share | None
    high: Share | None
    n: Count
    unscored: Count = 0


class CorrectedPart(RatePart):
    """harmful_refused and benign_answered corrected by the judge's certificate; None where `notes`
    give the reason."""

    harmful_refused: CorrectedRate | None
    benign_answered: CorrectedRate | None
    notes: tuple[str, ...] = ()


class MeasuredPerplexity(RatePart):
    """exp of the mean loss per token of the reference answers."""

    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    nats_per_token: FiniteFloat
    tokens: Count
    n: Count


class MeasuredCapability(RatePart):
    """What else the model can do."""

    perplexity: MeasuredPerplexity | None = None
    tasks: dict[str, dict[str, FiniteFloat]] = {}


class GateResult(RatePart):
    """Whether the run passed its gate, and a sentence for every bound that failed."""

    passed: bool
    failures: tuple[str, ...]
    baseline: str | None = None


class Truncated(RatePart):
    """How many responses ended at the limit of new tokens, of those that there are."""

    count: Count
    of: Count


class Measured(RatePart):
    """What was measured how, in words."""

    judge: str
    sets: tuple[str, ...]
    engine: str
    guard: str | None
    attacks: tuple[str, ...] = ()
    model_form: str | None = None
    notes: tuple[str, ...] = ()


class MeasuredRun(MeasuredRates):
    """One measured model: the rates of the prompts as they were asked, and the other results."""

    sets: dict[str, MeasuredRates] = {}
    attacks: dict[str, MeasuredRates] = {}
    """Harmful prompts alone; "none" is the prompts as they were asked."""
    positions: dict[str, MeasuredPositions] = {}
    corrected: CorrectedPart | None = None
    certificate: dict[str, str] | None = None
    panel: PanelPart | None = None
    """Only if several judges read the responses."""
    capability: MeasuredCapability | None = None
    first_token: FirstTokenPart | None = None
    gate: GateResult | None = None
    truncated: Truncated | None = None
    robustness: tuple[TamperedCopy, ...] = ()
    """Copies whose safety was tampered with; only if the recipe asks for them."""
    model_form: str | None = None
    remedy: str | None = None
    """The id of the remedy on the model, which is then another one than its weights alone."""
    verdicts: str | None = None
    """A hash of the responses and verdicts that this was computed from; None in older files."""
    folder: str | None = None
    """The run's folder in that of the pipeline; None in metrics.json."""


class Metrics(MeasuredRun):
    """metrics.json: one run, and how it was measured."""

    measured: Measured


class Summary(RatePart):
    """summary.json: several runs side by side."""

    title: str
    created: str
    runs: tuple[MeasuredRun, ...] = Field(min_length=1)
    warnings: tuple[str, ...] = ()
    """What a reader has to know before the rates: lost safety, runs that were not measured
    alike."""
    comparisons: tuple[MeasuredStep, ...] = ()
    transitions: tuple[MeasuredTransition, ...] = ()
    curves: tuple[CurveStep, ...] = ()
    """Later runs against the threshold curve of the first run that has one."""
    remedies: RemediesPart | None = None
    """Every run against the untouched model; None for a pipeline without `report`."""
    rounds: tuple[RoundPart, ...] = ()
    searches: tuple[SearchPart, ...] = ()
    samples: tuple[Sample, ...] = ()
    measured: Measured
    versions: dict[str, str] = {}
    hardware: str = "not recorded"
    seconds: float | None = None


OLD_RATE = re.compile(rb'"nur"\s*:')
"""A rate's name in the files of version 0.1.0, which no later file holds as a key."""


def read_summary(folder: Path) -> Summary:
    """The summary of a pipeline's folder, or one made from an evaluation's; ValueError names the
    file and its first fault."""
    file = folder / "summary.json"
    if not file.is_file() and (folder / "metrics.json").is_file():
        return evaluation_summary(folder)
    if not file.is_file():
        raise ValueError(
            f"{folder}: there is neither summary.json nor metrics.json here. Give the run folder "
            "of a pipeline or of an evaluation that has ended."
        )
    found = parsed(Summary, file.read_bytes(), f"{file}: this is not the summary of a pipeline")
    if "warnings" not in found.model_fields_set:
        found = with_older_warnings(found, folder)
    later = stale_words(found, folder)
    return found.model_copy(update={"warnings": (*later, *found.warnings)})


def with_older_warnings(found: Summary, folder: Path) -> Summary:
    """An older summary, with the lost safety of its notes where a reader sees it first."""
    warnings = tuple(older_warnings(folder, found.measured.notes))
    notes = tuple(note for note in found.measured.notes if note not in warnings)
    measured = found.measured.model_copy(update={"notes": notes})
    return found.model_copy(update={"warnings": warnings, "measured": measured})


def parsed(model: type[PartType], text: bytes, fault: str) -> PartType:
    """`text` as a `model`; ValueError begins with `fault`, and names an older version's file."""
    if OLD_RATE.search(text):
        raise ValueError(
            f"{fault}: an older version wrote it, under other names of the rates. Measure again "
            "with this version."
        )
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{fault}: {first_fault(error)}.") from None


def evaluation_summary(folder: Path) -> Summary:
    """The summary of one run alone, from its metrics.json, outcomes.jsonl and manifest.json (if it
    has one)."""
    file, rows = folder / "metrics.json", folder / "outcomes.jsonl"
    fault = f"{file}: these are not the metrics of an evaluation"
    metrics = parsed(Metrics, file.read_bytes(), fault)
    outcomes, note = [], ""
    if rows.is_file():  # a run may be passed on without what its model said
        outcomes = read_jsonl(rows, Outcome)
        metrics, note = fresh(metrics, outcomes)
    manifest = folder / "manifest.json"
    known = read_state(manifest) if manifest.is_file() else {}
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime))
    samples = sample_entries({metrics.name: outcomes})
    return Summary(
        title=metrics.name,
        created=known.get("finished", ended),
        runs=(metrics.model_copy(update={"model_form": metrics.measured.model_form}),),
        warnings=(note,) if note else (),
        samples=tuple(Sample.model_validate(sample) for sample in samples),
        measured=metrics.measured,
        versions=known.get("versions", {}),
        hardware=known.get("hardware", "not recorded"),
        seconds=known.get("seconds"),
    )


def fresh(metrics: Metrics, outcomes: Sequence[Outcome]) -> tuple[Metrics, str]:
    """(the metrics of a run with these outcomes, what a reader has to know); see `stale`."""
    found = fresh_metrics(metrics.model_dump(mode="json", by_alias=True), outcomes)
    return (Metrics.model_validate(found.metrics) if found.note else metrics), found.note


def stale_words(found: Summary, folder: Path) -> list[str]:
    """A sentence for each run of a pipeline's summary that was measured or judged again later."""
    return [
        f"STALE: {run.name} was measured or judged again after this summary was made. Run the "
        "pipeline's recipe again: it makes the summary anew, from what is there."
        for run in found.runs
        if run.folder is not None
        and run.verdicts is not None
        and verdicts_now(folder / Path(run.folder).name) not in (None, run.verdicts)
    ]


def schema() -> dict[str, object]:
    """The JSON schema of both files, draft 2020-12: `#/$defs/Metrics` is metrics.json,
    `#/$defs/Summary` summary.json.

    Other keys are allowed everywhere, so that a reader of this version reads a later one's files.
    """
    _, definitions = models_json_schema([(Metrics, "validation"), (Summary, "validation")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metrics.json and summary.json of overrefusal-po",
        "anyOf": [{"$ref": "#/$defs/Summary"}, {"$ref": "#/$defs/Metrics"}],
        **definitions,
    }


def schema_text() -> str:
    """`schema()` as `data/metrics.schema.json` holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
