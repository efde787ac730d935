"""The evaluations of a pipeline -> summary.json and a blinded sample for a person to label.

summary = make_summary("Demo", folder, runs, stages, outcomes)
write_blinded_sample(folder, outcomes)
# to_label.jsonl and to_label.key.jsonl
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from overrefusal_po.evaluate.comparisons import (
    ComparisonEntry,
    compare,
    judge_names,
    transitions,
)
from overrefusal_po.evaluate.entries import MeasuredEntry, MetricsEntry
from overrefusal_po.evaluate.first_token import CurveStepEntry, curve_steps
from overrefusal_po.evaluate.first_token_rows import read_first_tokens
from overrefusal_po.evaluate.labels import blinded_sample
from overrefusal_po.evaluate.measured_how import RECIPE_MARK, measured_how, settings_note
from overrefusal_po.evaluate.metrics import State
from overrefusal_po.evaluate.stale import fresh_metrics
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.panels import is_panel, panel_members
from overrefusal_po.recipe.report import PERPLEXITY_RATIO, Report
from overrefusal_po.recipe.rounds import Repeats
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, PipelineRecipe, TrainRecipe
from overrefusal_po.records import Kind, Outcome, read_jsonl, read_state, write_atomic
from overrefusal_po.report.hold_notes import hold_notes
from overrefusal_po.report.remedies_entry import (
    RemediesEntry,
    perplexity_ratio,
    remedies_entry,
)
from overrefusal_po.report.remedies_made import Stages
from overrefusal_po.report.rounds_part import round_entries
from overrefusal_po.report.samples import SampleEntry, sample_entries
from overrefusal_po.report.search_part import SearchEntry, search_entries
from overrefusal_po.report.waivers import waiver_notes
from overrefusal_po.run.environment import environment

StageRecipe = TrainRecipe | CurateRecipe | FitRecipe | EvaluateRecipe


class StageMetrics(MetricsEntry):
    """metrics.json of a stage, and the name of its folder."""

    folder: str


TransitionEntry = TypedDict(
    "TransitionEntry",
    {
        "from": str,
        "to": str,
        "kind": Kind,
        "category": str,
        "counts": dict[State, dict[State, int]],
    },
)
"""A transition in summary.json."""


class SummaryEntry(TypedDict):
    """summary.json."""

    title: str
    created: str
    runs: list[dict[str, object]]
    warnings: list[str]
    comparisons: list[ComparisonEntry]
    transitions: list[TransitionEntry]
    curves: list[CurveStepEntry]
    searches: list[SearchEntry]
    remedies: RemediesEntry | None
    samples: list[SampleEntry]
    measured: MeasuredEntry
    seconds: float
    versions: dict[str, str]
    hardware: str


def write_summary(
    body: PipelineRecipe,
    folder: Path,
    runs: Sequence[StageMetrics],
    *,
    stages: Mapping[str, StageRecipe],
    repeats: Repeats,
) -> None:
    """Writes summary.json and the blinded sample into a pipeline's folder."""
    outcomes = {
        run["name"]: read_jsonl(folder / run["folder"] / "outcomes.jsonl", Outcome) for run in runs
    }
    summary = make_summary(body.title, folder, runs, stages, outcomes, report=body.report)
    rounds = round_entries(folder, repeats)
    write_atomic(folder / "summary.json", json.dumps({**summary, "rounds": rounds}, indent=1))
    write_blinded_sample(folder, outcomes)


def make_summary(
    title: str,
    folder: Path,
    runs: Sequence[StageMetrics],
    stages: Mapping[str, StageRecipe],
    outcomes: Mapping[str, list[Outcome]],
    *,
    report: Report | None = None,
) -> SummaryEntry:
    """summary.json of at least one run: the runs, comparisons of neighbours (and of first and
    last), transitions, threshold curves and samples.

    `outcomes` are all of each run, by its name. The samples are about 50 prompts and a few of each
    attack. With `report`, each run is compared with the untouched model instead. A run whose
    outcomes were judged again has its rates of these.
    """
    known_runs = [fresh_metrics(run, outcomes[run["name"]]) for run in runs]
    runs = [cast("StageMetrics", found.metrics) for found in known_runs]
    again = [found.note for found in known_runs if found.note]
    plain = {name: [o for o in rows if o.prompt.attack is None] for name, rows in outcomes.items()}
    first_tokens = {
        run["name"]: read_first_tokens(folder / run["folder"], outcomes[run["name"]])
        for run in runs
    }
    remedies = None
    if report is not None:
        remedies = remedies_entry(
            report,
            Stages(folder, stages),
            runs,
            outcomes=plain,
            first_tokens=first_tokens,
        )
    steps = comparable_steps(plain) if remedies is None else remedy_steps(remedies)
    notes = [*reader_notes(runs, stages), *waiver_notes(folder)]
    folders = {run["name"]: folder / run["folder"] for run in runs}
    known = environment()
    status_files = folder.glob("*/status.json")
    return {
        "title": title,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runs": [run_entry(run) for run in runs],
        "warnings": [
            *again,
            *hold_notes(folder),
            *(drift_notes(runs, steps) if remedies is None else ()),
            *unlike_notes(folders, plain, rivals=bool(remedies)),
        ],
        "comparisons": [compare(plain[a], plain[b]).as_dict(a, b) for a, b in steps],
        "transitions": [row for a, b in steps for row in step_transitions(a, b, plain)],
        "curves": curve_steps(plain, first_tokens),
        "searches": search_entries(folder),
        "remedies": remedies,
        "samples": sample_entries(outcomes),
        "measured": {**runs[-1]["measured"], "notes": notes},
        "seconds": sum(read_state(file).get("seconds", 0) for file in status_files),
        "versions": known["versions"],
        "hardware": known["hardware"],
    }


def run_entry(run: StageMetrics) -> dict[str, object]:
    """A run in summary.json: its metrics, and of their description only the model's form."""
    kept = {key: value for key, value in run.items() if key != "measured"}
    return {**kept, "model_form": run["measured"]["model_form"]}


def is_other_summary(folder: Path, runs: Sequence[StageMetrics]) -> bool:
    """Whether a pipeline's summary.json was made from other metrics or verdicts than its runs have
    now: a stage was measured or judged again since. False if outcomes are gone, without which none
    can be made."""
    file, rows = folder / "summary.json", [folder / r["folder"] / "outcomes.jsonl" for r in runs]
    if not (runs and all(place.is_file() for place in (file, *rows))):
        return False
    known = [
        fresh_metrics(run, read_jsonl(place, Outcome)).metrics
        for run, place in zip(runs, rows, strict=True)
    ]
    now = [run_entry(cast("StageMetrics", metrics)) for metrics in known]
    return bool(read_state(file).get("runs") != json.loads(json.dumps(now)))


def step_transitions(
    before: str, after: str, outcomes: Mapping[str, Sequence[Outcome]]
) -> list[TransitionEntry]:
    """What became of each response from one run to another."""
    return [
        {
            "from": before,
            "to": after,
            "kind": row["kind"],
            "category": row["category"],
            "counts": without_unscored(row["counts"]),
        }
        for row in transitions(outcomes[before], outcomes[after])
    ]


def without_unscored(
    counts: Mapping[State, Mapping[State, int]],
) -> dict[State, dict[State, int]]:
    """A transition's counts without unscored outcomes, which the runs' own table counts."""
    return {
        before: {after: n for after, n in row.items() if after != "unscored"}
        for before, row in counts.items()
        if before != "unscored"
    }


def reader_notes(runs: Sequence[StageMetrics], stages: Mapping[str, StageRecipe]) -> list[str]:
    """Every run's notes, and a sentence if the judge also chose the training data."""
    found = list(dict.fromkeys(note for run in runs for note in run["measured"]["notes"]))
    chose = judges_named(body for body in stages.values() if isinstance(body, CurateRecipe))
    measured = judges_named(body for body in stages.values() if isinstance(body, EvaluateRecipe))
    if both := sorted(chose & measured):
        found.append(
            f"The judge that measured ({', '.join(both)}) also chose the training pairs: its blind "
            "spots are in both."
        )
    return found


def judges_named(bodies: Iterable[CurateRecipe | EvaluateRecipe]) -> set[str]:
    """The judges of some stages as their recipes name them; of a panel, its members."""
    specs = [body.judge for body in bodies]
    members = [member for spec in specs for _, member in panel_members(spec)]
    return {str(spec) for spec in [*specs, *members] if not is_panel(spec)}


def comparable_steps(outcomes: Mapping[str, Sequence[Outcome]]) -> list[tuple[str, str]]:
    """Neighbouring runs on the same prompts by the same judge, and the first and last if there are
    more than two."""
    steps = []
    for names in compared_groups(outcomes):
        steps += list(itertools.pairwise(names))
        if len(names) > 2:
            steps.append((names[0], names[-1]))
    return steps


def remedy_steps(remedies: RemediesEntry) -> list[tuple[str, str]]:
    """The untouched model and each run, in the order of the table."""
    return [(remedies["baseline"], row["run"]) for row in remedies["rows"]]


def compared_groups(outcomes: Mapping[str, Sequence[Outcome]]) -> list[list[str]]:
    """The names of the runs, those on the same prompts by the same judge together."""
    groups: dict[tuple[frozenset[str], tuple[str, ...]], list[str]] = {}
    for name, rows in outcomes.items():
        measured = frozenset(o.prompt.id for o in rows), tuple(judge_names(rows))
        groups.setdefault(measured, []).append(name)
    return list(groups.values())


def unlike_notes(
    folders: Mapping[str, Path], outcomes: Mapping[str, Sequence[Outcome]], *, rivals: bool = False
) -> Iterator[str]:
    """A sentence for each group of compared runs that were not measured alike, and one if runs on
    the same prompts are not compared because of their judges. With `rivals`, another system prompt
    is what is compared."""
    prompted = {RECIPE_MARK: "any"} if rivals else {}
    for names in compared_groups(outcomes):
        hows = {name: measured_how(folders[name], outcomes[name]) | prompted for name in names}
        if note := settings_note(hows):
            yield note
    judges: dict[frozenset[str], dict[str, list[str]]] = {}
    for name, rows in outcomes.items():
        by_judge = judges.setdefault(frozenset(o.prompt.id for o in rows), {})
        by_judge.setdefault(" and ".join(judge_names(rows)), []).append(name)
    for by_judge in judges.values():
        if len(by_judge) > 1:
            said = "; ".join(f"{' and '.join(runs)} by {judge}" for judge, runs in by_judge.items())
            yield f"NOT COMPARED: these runs were judged differently ({said})."


def drift_notes(runs: Sequence[StageMetrics], steps: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A sentence for each step after which reference answers are far less probable: the model may
    answer worse, and no rate of refusals shows that."""
    by_name = {run["name"]: run for run in runs}
    for before, after in steps:
        times = perplexity_ratio(by_name[before], by_name[after])
        if times is not None and times > PERPLEXITY_RATIO:
            yield (
                f"{after} may answer worse than {before}: the perplexity of reference answers is x "
                f"{times:.2f}. Read some answers. A lower trainer.learning_rate or fewer epochs "
                "may help."
            )


def write_blinded_sample(folder: Path, outcomes: Mapping[str, list[Outcome]]) -> None:
    """Writes to_label.jsonl, 50 responses for a person to label, and its key.

    A file that is already there stays unchanged: somebody may have labelled it.
    """
    sample = blinded_sample(outcomes)
    for name, lines in (("to_label.jsonl", sample.rows), ("to_label.key.jsonl", sample.key)):
        if not (folder / name).exists():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomic(folder / name, text)
