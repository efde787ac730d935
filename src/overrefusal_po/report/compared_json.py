"""A comparison of run folders -> what `overrefusal-po compare --json` prints.

entry = as_json(compare_folders(folders))
entry["comparisons"][0]["kinds"]["benign"]["difference"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from overrefusal_po.evaluate.comparisons import (
    EstimateEntry,
    OutcomePair,
    estimate_entry,
    judge_names,
)
from overrefusal_po.evaluate.metrics import State
from overrefusal_po.evaluate.side_by_side import KindSideBySide, Move, SideBySide
from overrefusal_po.records import Kind

if TYPE_CHECKING:
    from overrefusal_po.report.compare import ComparedFolders, ComparedRun


class PromptEntry(TypedDict):
    """A prompt of a change."""

    id: str
    sample: int
    category: str
    prompt: str


class MoveEntry(TypedDict):
    """The prompts of one kind whose responses went from one state to another."""

    kind: Kind
    before: State
    after: State
    prompts: list[PromptEntry]


class KindEntry(TypedDict):
    """One kind of prompts in two runs; see `side_by_side.KindSideBySide`."""

    before: float
    after: float
    difference: EstimateEntry
    n: int
    unscored: int
    only_before: int
    only_after: int
    p: float | None
    p_holm: float | None


class ComparisonEntry(TypedDict):
    """One run against the first."""

    before: str
    after: str
    sum_difference: EstimateEntry
    kinds: dict[Kind, KindEntry]
    transitions: list[MoveEntry]


class ComparedEntry(TypedDict):
    """What `overrefusal-po compare --json` prints."""

    runs: list[dict[str, str]]
    judge: str
    comparisons: list[ComparisonEntry]
    curves: list[dict[str, object]]
    """See `first_token_part.CurveStep`."""
    warning: str | None
    """The settings in which the runs differ, in words."""
    notes: list[str]
    remedies: dict[str, Any] | None  # Any: as summary.json of a pipeline holds it
    """The table of remedies; null if no run has one."""


def as_json(found: ComparedFolders) -> ComparedEntry:
    """The comparison as JSON holds it: shares from 0 to 1, all prompts of every change."""
    return {
        "runs": [run_entry(run) for run in found.runs],
        "judge": " and ".join(judge_names(found.runs[0].outcomes)),
        "comparisons": [comparison_entry(one) for one in found.comparisons],
        "curves": [step.model_dump(by_alias=True) for step in found.curves],
        "warning": found.warning,
        "notes": found.notes,
        "remedies": None if found.remedies is None else found.remedies.model_dump(mode="json"),
    }


def run_entry(run: ComparedRun) -> dict[str, str]:
    """A run; `remedy` is left out if its model has none."""
    known = {"name": run.name, "folder": str(run.folder), "model": run.metrics.model}
    return known if run.metrics.remedy is None else {**known, "remedy": run.metrics.remedy}


def comparison_entry(one: SideBySide) -> ComparisonEntry:
    """One run against the first."""
    return {
        "before": one.before,
        "after": one.after,
        "sum_difference": estimate_entry(one.total),
        "kinds": {kind: kind_entry(side) for kind, side in one.kinds.items()},
        "transitions": [move_entry(move) for move in one.moves],
    }


def kind_entry(side: KindSideBySide) -> KindEntry:
    """One kind of prompts."""
    return {
        "before": side.before,
        "after": side.after,
        "difference": estimate_entry(side.difference),
        "n": side.paired.n,
        "unscored": side.paired.unscored,
        "only_before": side.paired.only_from,
        "only_after": side.paired.only_to,
        "p": side.paired.p,
        "p_holm": side.p_holm,
    }


def move_entry(move: Move) -> MoveEntry:
    """The prompts of one change."""
    return {
        "kind": move.kind,
        "before": move.before,
        "after": move.after,
        "prompts": [prompt_entry(both) for both in move.outcomes],
    }


def prompt_entry(both: OutcomePair) -> PromptEntry:
    """One prompt of a change."""
    prompt = both[0].prompt
    return {
        "id": prompt.id,
        "sample": both[0].completion.sample,
        "category": prompt.category,
        "prompt": prompt.asked,
    }
