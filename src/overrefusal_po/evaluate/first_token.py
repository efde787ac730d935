"""How far the first token alone separates harmful from benign prompts: log-odds, AUC and curve.

    entry = first_token_entry(prompts, log_odds, openers, refused)
    # `first_token` in metrics.json
    steps = curve_steps(outcomes, log_odds)
    # later runs against the curve of the first

`measured_model` measures the log-odds. They are kept in first_token.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from pydantic import FiniteFloat

from overrefusal_po.evaluate.comparisons import EstimateEntry, estimate_entry, judge_names
from overrefusal_po.evaluate.metrics import handled
from overrefusal_po.evaluate.threshold_curve import (
    CurveGain,
    HandledScore,
    Scores,
    auc,
    auc_difference,
    curve_gain,
    point_at,
    threshold_curve,
)
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Kind, Outcome, Prompt, Record, read_jsonl
from overrefusal_po.run.complete import in_process
from overrefusal_po.run.openers import Openers, OpenersEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "first_token.jsonl"
KINDS: tuple[Kind, ...] = ("harmful", "benign")

LogOdds = Mapping[str, float]
"""{prompt id: first-token refusal log-odds}."""


class FirstToken(Record):
    """A row of first_token.jsonl: the log-odds that the response to a prompt opens with one of the
    tokens `openers` (ids)."""

    prompt_id: str
    log_odds: FiniteFloat
    openers: tuple[int, ...]


class CurvePointEntry(TypedDict):
    """What the rule "refuse from this log-odds on" does; threshold None refuses nothing."""

    threshold: float | None
    harmful_refused: float
    benign_answered: float


class FirstTokenEntry(TypedDict):
    """`first_token` in metrics.json. `at_own` is the point of the curve that refuses as many
    harmful prompts as the model does."""

    auc: EstimateEntry
    n: dict[str, int]
    openers: OpenersEntry
    at_own: CurvePointEntry | None
    curve: list[CurvePointEntry]


CurveStepEntry = TypedDict(
    "CurveStepEntry",
    {
        "from": str,
        "to": str,
        "n": int,
        "harmful_refused": float,
        "benign_answered": float,
        "threshold_answers": float,
        "gain": EstimateEntry,
        "auc_difference": NotRequired[EstimateEntry],
    },
)
"""The run `to` against the curve of the run `from`; see `threshold_curve.CurveGain`.
`auc_difference` is there if both have log-odds."""


def wants_first_token(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> bool:
    """Whether the first token is measured. If the recipe leaves that open: if it can be.

    Raises ValueError if the recipe asks for it and it cannot be.
    """
    if recipe.first_token is False:
        return False
    here = in_process(recipe.engine)
    if recipe.first_token and not here:
        raise ValueError(
            "first_token needs the model in process, and the engine is a server. Measure it in a "
            "recipe of its own with engine: transformers, or leave the key out."
        )
    missing = [kind for kind in KINDS if not any(p.kind == kind for p in prompts)]
    if recipe.first_token and missing:
        raise ValueError(
            f"first_token needs harmful and benign prompts; none of the {len(prompts)} prompts is "
            f"{missing[0]}. Name a set that has both (starter), or leave the key out."
        )
    return here and not missing


def scored_prompts(outcomes: Sequence[Outcome]) -> list[Prompt]:
    """The harmful and benign prompts, as they were asked, that have a response."""
    return [
        o.prompt
        for o in outcomes
        if o.prompt.attack is None and o.prompt.kind in KINDS and o.completion.error is None
    ]


def read_log_odds(folder: Path) -> dict[str, float]:
    """The log-odds in a run folder; empty if they were not measured."""
    file = folder / FILE
    rows = read_jsonl(file, FirstToken) if file.is_file() else []
    return {row.prompt_id: row.log_odds for row in rows}


def first_token_entry(
    prompts: Sequence[Prompt],
    log_odds: LogOdds,
    openers: Openers,
    harmful_refused: float | None,
) -> FirstTokenEntry:
    """The entry of metrics.json. `harmful_refused` is the model's own."""
    scores = kind_scores(prompts, log_odds)
    own = None if harmful_refused is None else point_at(scores, harmful_refused)
    return {
        "auc": estimate_entry(auc(scores)),
        "n": {kind: len(side) for kind, side in zip(KINDS, scores, strict=True)},
        "openers": openers.as_dict(),
        "at_own": None if own is None else point_entry(*own),
        "curve": [point_entry(*point) for point in threshold_curve(scores)],
    }


def point_entry(
    threshold: float | None, harmful_refused: float, benign_answered: float
) -> CurvePointEntry:
    """A point of the curve in metrics.json."""
    return {
        "threshold": threshold,
        "harmful_refused": harmful_refused,
        "benign_answered": benign_answered,
    }


def kind_scores(prompts: Sequence[Prompt], log_odds: LogOdds) -> Scores:
    """The log-odds of the harmful and of the benign prompts that have some."""
    import numpy as np

    sides: list[NDArray[np.float64]] = [
        np.array([log_odds[p.id] for p in prompts if p.kind == kind and p.id in log_odds])
        for kind in KINDS
    ]
    return Scores(*sides)


def curve_steps(
    outcomes: Mapping[str, Sequence[Outcome]], log_odds: Mapping[str, LogOdds]
) -> list[CurveStepEntry]:
    """Every later run against the curve of the first run that has one, as summary.json has it.

    Runs on other prompts or by another judge are left out. `outcomes` are the plain ones of each
    run, by its name.
    """
    names = list(outcomes)
    first = next((name for name in names if log_odds.get(name)), None)
    if first is None:
        return []
    later = names[names.index(first) + 1 :]
    same = [name for name in later if measured_alike(outcomes[first], outcomes[name])]
    steps = [
        curve_step(first, name, outcomes[name], (log_odds[first], log_odds.get(name, {})))
        for name in same
    ]
    return [step for step in steps if step is not None]


def measured_alike(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    """Whether two runs have the same prompts and the same judge."""
    ids = [{o.prompt.id for o in run} for run in (one, other)]
    return ids[0] == ids[1] and judge_names(one) == judge_names(other)


def curve_of(outcomes: Sequence[Outcome], log_odds: LogOdds) -> CurveGain | None:
    """A run against the threshold curve of the run with these log-odds; None if no prompt of a
    kind was scored."""
    return curve_gain(
        [
            HandledScore(log_odds[o.prompt.id], o.prompt.kind == "harmful", right)
            for o in outcomes
            if o.prompt.id in log_odds and (right := handled(o)) is not None
        ]
    )


def curve_step(
    before: str, after: str, outcomes: Sequence[Outcome], log_odds: tuple[LogOdds, LogOdds]
) -> CurveStepEntry | None:
    """The run `after`, with its outcomes, against the curve of the run `before`.

    `log_odds` are those of both. None if no prompt of a kind was scored.
    """
    theirs, own = log_odds
    found = curve_of(outcomes, theirs)
    if found is None:
        return None
    entry: CurveStepEntry = {
        "from": before,
        "to": after,
        "n": found.n,
        "harmful_refused": found.harmful_refused,
        "benign_answered": found.benign_answered,
        "threshold_answers": found.threshold_answers,
        "gain": estimate_entry(found.gain),
    }
    both = [o.prompt for o in outcomes if o.prompt.id in theirs and o.prompt.id in own]
    if all(any(p.kind == kind for p in both) for kind in KINDS):
        difference = auc_difference(kind_scores(both, theirs), kind_scores(both, own))
        entry["auc_difference"] = estimate_entry(difference)
    return entry
