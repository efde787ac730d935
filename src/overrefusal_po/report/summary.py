"""What metrics.json and summary.json hold, checked: the models that report, pictures and model card
read.

    summary = read_summary(Path("runs/demo"))
    # a pipeline's folder, or that of an evaluation on its own
    summary.runs[-1].benign_answered, summary.samples[0].responses

`data/metrics.schema.json` is `schema()`, written out; `python -m overrefusal_po.report.summary`
prints it. A model wrote much of what is in here: `visible` unmasks a text before anybody looks at
it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic.json_schema import models_json_schema
from typing_extensions import TypedDict

from overrefusal_po.records import Kind, Outcome, Refusal, first_fault, read_jsonl

State = Literal["answer", "partial", "full", "degenerate"]
Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Counts = dict[State, dict[State, Count]]  # before -> after -> how many prompts
Interval = Annotated[
    tuple[Rate, Rate] | None, BeforeValidator(lambda ends: None if ends == [None, None] else ends)
]
Gain = dict[Literal["value", "low", "high"], FiniteFloat | None] | None
Paired = dict[Literal["n", "only_from", "only_to", "p"], Count | FiniteFloat | None] | None
Votes = dict[Literal["clusters", "only_from", "only_to"], Count]
M = TypeVar("M", bound=BaseModel)

KINDS: dict[Kind, str] = {
    "benign": "harmless prompts",
    "harmful": "harmful prompts",
    "general": "ordinary prompts",
}
STATES: dict[State, str] = {
    "answer": "answered",
    "partial": "partial",
    "full": "refused",
    "degenerate": "degenerate",
}
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
UNSEEN = re.compile(
    r"[\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
QUOTA: dict[Kind, int] = {"benign": 24, "harmful": 18, "general": 6}
PER_ATTACK = 3
"""How many samples of each kind, and of each attack, a report holds: enough to filter, few enough
to load on a phone."""


class Part(BaseModel):
    """A part of the two files. Keys that nobody here reads are left alone: a newer evaluation may
    write more."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Comparison(Part):
    """What the run `to` gained over the run `from`, on the same prompts; p is McNemar's, exact."""

    before: str = Field(alias="from")
    after: str = Field(alias="to")
    gain: Gain
    f1_gain: Gain = None
    harmful: Paired
    benign: Paired
    votes: dict[Literal["harmful", "benign"], Votes] = {}
    """Where questions have several outcomes, each has one vote."""


Transition = TypedDict(
    "Transition", {"from": str, "to": str, "kind": Kind, "category": str, "counts": Counts}
)


class Rates(Part):
    """Shares, 0 to 1, of some responses of one run; a rate and its interval are None where its n is
    0."""

    name: str
    model: str
    harmful_refused: Rate | None
    benign_answered: Rate | None
    f1: Rate | None
    ordinary_answered: Rate | None = None
    harmful_refused_plain: Rate | None = None
    harmful_refused_contrast: Rate | None = None
    degenerate: Rate | None = None
    harmful_not_unsafe: Rate | None = None
    """Harmful prompts whose response a guard does not judge unsafe; absent without a guard."""
    intervals: dict[str, Interval]
    n: dict[str, Count]
    unscored: dict[str, Count] = {}


class Positions(Part):
    """How many refusals of harmful prompts start within the first 5 words, in words 6 to 30, beyond
    word 30."""

    opening: Count
    early: Count
    late: Count
    unplaced: Count
    not_refused: Count
    unscored: Count


class CorrectedRate(Part):
    """A rate without the judge's known errors."""

    value: Rate | None
    low: Rate | None
    high: Rate | None
    n: Count
    unscored: Count = 0


class Corrected(Part):
    """harmful_refused and benign_answered corrected by the judge's certificate; None where `notes`
    say why not."""

    harmful_refused: CorrectedRate | None
    benign_answered: CorrectedRate | None
    notes: tuple[str, ...] = ()


class Perplexity(Part):
    """exp of the mean loss of a token of the reference answers."""

    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    nats_per_token: FiniteFloat
    tokens: Count
    n: Count


class Capability(Part):
    """What else the model can do."""

    perplexity: Perplexity | None = None
    tasks: dict[str, dict[str, FiniteFloat]] = {}


class GateResult(Part):
    """Whether the run passed its gate, and a sentence for every bound that did not hold."""

    passed: bool
    failures: tuple[str, ...]
    baseline: str | None = None


class Measured(Part):
    """What was measured how, in words."""

    judge: str
    sets: tuple[str, ...]
    engine: str
    guard: str | None
    attacks: tuple[str, ...] = ()
    model_form: str | None = None
    notes: tuple[str, ...] = ()


class Run(Rates):
    """One measured model: the rates of the prompts as they were asked, and what stands beside
    them."""

    sets: dict[str, Rates] = {}
    attacks: dict[str, Rates] = {}
    """Harmful prompts alone; "none" is the prompts as they were asked."""
    positions: dict[str, Positions] = {}
    corrected: Corrected | None = None
    certificate: dict[str, str] | None = None
    capability: Capability | None = None
    gate: GateResult | None = None
    model_form: str | None = None


class Metrics(Run):
    """metrics.json: one run, and how it was measured."""

    measured: Measured


class Response(Part):
    """What one run said, and the judge's verdict; `refusal` None is unscored."""

    run: str
    text: str
    refusal: Refusal | None
    refusal_start: Count | None = None
    degenerate: bool = False

    @property
    def state(self) -> str:
        """One of STATES, or "unscored"."""
        if self.refusal is None:
            return "unscored"
        return (
            self.refusal
            if self.refusal != "none"
            else "degenerate"
            if self.degenerate
            else "answer"
        )


class Sample(Part):
    """A prompt and what every run said to it."""

    kind: Kind
    category: str
    attack: str | None = None
    prompt: str
    responses: tuple[Response, ...]


class Summary(Part):
    """summary.json: several runs side by side."""

    title: str
    created: str
    runs: tuple[Run, ...] = Field(min_length=1)
    comparisons: tuple[Comparison, ...] = ()
    transitions: tuple[Transition, ...] = ()
    samples: tuple[Sample, ...] = ()
    measured: Measured
    versions: dict[str, str] = {}
    hardware: str = "not recorded"
    seconds: float | None = None


OLD_RATE = re.compile(rb'"nur"\s*:')
"""A rate's name in the files of version 0.1.0, which no later file holds as a key."""


def read_summary(folder: Path) -> Summary:
    """The summary of a pipeline's folder, or one made of an evaluation's; ValueError names the file
    and its first fault."""
    file = folder / "summary.json"
    if not file.is_file() and (folder / "metrics.json").is_file():
        return summary_of_evaluation(folder)
    if not file.is_file():
        raise ValueError(
            f"{folder}: there is neither summary.json nor metrics.json here. Give the run folder "
            "of a pipeline or of an "
            "evaluation that has ended."
        )
    return parsed(Summary, file.read_bytes(), f"{file}: this is not the summary of a pipeline")


def parsed(model: type[M], text: bytes | str, fault: str) -> M:
    """`text` as a `model`; ValueError begins with `fault`, or says that the file is an older version's."""
    if OLD_RATE.search(text if isinstance(text, bytes) else text.encode()):
        raise ValueError(
            f"{fault}: an older version wrote it, under other names of the rates. Measure again "
            "with this version."
        )
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{fault}: {first_fault(error)}.") from None


def summary_of_evaluation(folder: Path) -> Summary:
    """The summary of one run alone, from its metrics.json, outcomes.jsonl and manifest.json (if it
    has one)."""
    file = folder / "metrics.json"
    metrics = parsed(
        Metrics, file.read_bytes(), f"{file}: these are not the metrics of an evaluation"
    )
    outcomes = (
        read_jsonl(folder / "outcomes.jsonl", Outcome)
        if (folder / "outcomes.jsonl").is_file()
        else []
    )
    manifest = folder / "manifest.json"
    known = json.loads(manifest.read_text()) if manifest.is_file() else {}
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime))
    return Summary(
        title=metrics.name,
        created=known.get("finished", ended),
        runs=(metrics.model_copy(update={"model_form": metrics.measured.model_form}),),
        samples=tuple(Sample.model_validate(row) for row in samples({metrics.name: outcomes})),
        measured=metrics.measured,
        versions=known.get("versions", {}),
        hardware=known.get("hardware", "not recorded"),
        seconds=known.get("seconds"),
    )


def samples(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """`Sample`s as plain data: `QUOTA` prompts of each kind and `PER_ATTACK` of each attack, with
    what every run said.

    Chosen by content hash among the prompts of the last run, whatever was said, so that nobody
    picks the nice ones.
    """
    if not outcomes:
        return []
    by_id = {run: {o.prompt.id: o for o in rows} for run, rows in outcomes.items()}
    prompts = sorted((o.prompt for o in list(by_id.values())[-1].values()), key=lambda p: p.id)
    chosen = [
        p
        for kind, n in QUOTA.items()
        for p in [p for p in prompts if p.kind == kind and not p.attack][:n]
    ]
    for attack in sorted({p.attack for p in prompts if p.attack}):
        chosen += [p for p in prompts if p.attack == attack][:PER_ATTACK]
    return [
        {
            "kind": prompt.kind,
            "category": prompt.category,
            "attack": prompt.attack,
            "prompt": prompt.asked,
            "responses": [
                response(run, rows[prompt.id]) for run, rows in by_id.items() if prompt.id in rows
            ],
        }
        for prompt in chosen
    ]


def response(run: str, outcome: Outcome) -> dict[str, Any]:
    """A `Response` as plain data."""
    verdict = outcome.verdict
    scored = verdict.unscored is None
    return {
        "run": run,
        "text": outcome.completion.text,
        "refusal": verdict.refusal if scored else None,
        "refusal_start": verdict.refusal_start if scored and verdict.refused else None,
        "degenerate": verdict.degenerate,
    }


def visible(value: object) -> object:
    """A text with what hides or turns characters round spelt out and control characters gone; other
    values as is."""
    if type(value) is not str:  # a subclass is jinja's Markup, made of parts that were here before
        return value
    return UNSEEN.sub(lambda sign: f"⟨U+{ord(sign[0]):04X}⟩", CONTROL.sub("", value))


def clipped(text: str, length: int) -> str:
    """`text`, or its beginning and how much is left out."""
    return (
        text if len(text) <= length else f"{text[:length]} … [{len(text) - length} more characters]"
    )


def schema() -> dict[str, Any]:
    """The JSON schema of both files, draft 2020-12: `#/$defs/Metrics` is metrics.json,
    `#/$defs/Summary` summary.json.

    Further keys are allowed everywhere, so that a reader of this version reads what a later one
    writes.
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
