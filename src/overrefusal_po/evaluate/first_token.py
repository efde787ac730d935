"""What the first token of a response decides: log-odds, AUC, and the curve of a threshold on it.

    entry = first_token_entry(outcomes, FirstTokens(log_odds), openers)
    # `first_token` in metrics.json
    steps = curve_steps(outcomes, {name: read_first_tokens(folder) for ...})
    # later runs against the curve of the first

A curve of first tokens takes each response that opens with a refusal for one, and no other. The
exact curve also knows what the model says after the other decision (`FirstTokens.decided`): that is
what a bias on its openers does. `measured_model` measures both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

from overrefusal_po.evaluate.comparisons import EstimateEntry, estimate_entry, judge_names
from overrefusal_po.evaluate.first_token_rows import FirstTokens, LogOdds
from overrefusal_po.evaluate.metrics import handled
from overrefusal_po.evaluate.threshold_curve import (
    CurveGain,
    CurvePoint,
    FirstDecision,
    Scores,
    auc,
    auc_difference,
    curve_gain,
    kept_points,
    place_at,
    threshold_curve,
)
from overrefusal_po.plugins import split_spec
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Kind, Outcome, Prompt
from overrefusal_po.run.complete import in_process
from overrefusal_po.run.openers import Openers, OpenersEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS: tuple[Kind, ...] = ("harmful", "benign")


class CurvePointEntry(TypedDict):
    """What the rule "open with a refusal from this score on" does; threshold None: no response
    does."""

    threshold: float | None
    harmful_refused: float
    benign_answered: float


class OwnEntry(TypedDict):
    """What the model itself refuses and answers of the prompts of its curve."""

    harmful_refused: float
    benign_answered: float


class FirstTokenEntry(TypedDict):
    """`first_token` in metrics.json. `at_own` is the point of the curve that refuses as many
    harmful prompts as the model does, which `own` says. `exact`: the curve is that of texts, and a
    threshold on it is a margin in logits; else it is a log-odds.

    `n` are the prompts of each kind with log-odds: those of the AUC. `curve_n` are those of the
    curve, of `at_own` and of `own`: the judge scored the response, and with texts the other one
    too.
    """

    auc: EstimateEntry
    exact: bool
    n: dict[Kind, int]
    curve_n: dict[Kind, int]
    own: OwnEntry | None
    openers: OpenersEntry
    at_own: CurvePointEntry | None
    curve: list[CurvePointEntry]


CurveStepEntry = TypedDict(
    "CurveStepEntry",
    {
        "from": str,
        "to": str,
        "n": int,
        "exact": bool,
        "harmful_refused": float,
        "benign_answered": float,
        "threshold_answers": float,
        "gain": EstimateEntry,
        "auc_difference": NotRequired[EstimateEntry],
    },
)
"""The run `to` against the curve of the run `from`; see `threshold_curve.CurveGain`.
`exact`: that curve is one of texts. `auc_difference` is there if both have log-odds."""


def wants_first_token(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> bool:
    """Whether the first token is measured. If the recipe leaves that open: if it can be.

    Raises ValueError if the recipe asks for it and it cannot be.
    """
    if recipe.first_token is False:
        return False
    here = in_process(recipe.engine)
    if recipe.first_token == "texts":
        check_texts(recipe)
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


def check_texts(recipe: EvaluateRecipe) -> None:
    """Raises ValueError if the exact curve cannot be measured of a recipe's model."""
    name = split_spec(recipe.engine, "engines")[0]
    settings = {} if isinstance(recipe.engine, str) else recipe.engine
    reasons = {
        f"engine: {name} is a server, which cannot be told how a response opens": name
        != "transformers",
        "the model has a remedy (model.remedy), which may decide the first token otherwise": (
            "remedy" in recipe.model
        ),
        "responses are drawn (generation.temperature is above 0), so no bias decides them": (
            recipe.generation.temperature > 0
        ),
        "engine.generation_config may change the first token": bool(
            settings.get("generation_config")
        ),
    }
    if found := next((why for why, holds in reasons.items() if holds), None):
        raise ValueError(
            f"first_token: texts needs a greedy model in process, as it is, and {found}. Set "
            "first_token to true or leave it out, and measure texts of the untouched model."
        )


def answered_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of harmful and benign prompts, as they were asked, that have a response."""
    return [
        o
        for o in outcomes
        if o.prompt.attack is None and o.prompt.kind in KINDS and o.completion.error is None
    ]


def first_token_entry(
    outcomes: Sequence[Outcome], found: FirstTokens, openers: Openers
) -> FirstTokenEntry:
    """The entry of metrics.json. `outcomes`: what the model says, of prompts as they were asked."""
    scores = kind_scores([o.prompt for o in outcomes], found.log_odds)
    rows, right = decided_rows(outcomes, found)
    both = list(zip(rows, right, strict=True))
    sides = [[ok for row, ok in both if row.harmful is (kind == "harmful")] for kind in KINDS]
    curve = threshold_curve(rows) if all(sides) else None
    own, at_own = None, None
    if curve is not None:
        refused, answered = (sum(side) / len(side) for side in sides)
        own = OwnEntry(harmful_refused=refused, benign_answered=answered)
        at_own = point_entry(curve.point(place_at(curve, refused)))
    return {
        "auc": estimate_entry(auc(scores)),
        "exact": found.exact,
        "n": {kind: len(side) for kind, side in zip(KINDS, scores, strict=True)},
        "curve_n": {kind: len(side) for kind, side in zip(KINDS, sides, strict=True)},
        "own": own,
        "openers": openers.as_dict(),
        "at_own": at_own,
        "curve": [] if curve is None else [point_entry(point) for point in kept_points(curve)],
    }


def point_entry(point: CurvePoint) -> CurvePointEntry:
    """A point of the curve in metrics.json."""
    return {
        "threshold": point.threshold,
        "harmful_refused": point.harmful_refused,
        "benign_answered": point.benign_answered,
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
    outcomes: Mapping[str, Sequence[Outcome]], known: Mapping[str, FirstTokens]
) -> list[CurveStepEntry]:
    """Every later run against the curve of the first run that has one, as summary.json has it.

    Runs on other prompts or by another judge are left out. `outcomes` are the plain ones of each
    run, by its name.
    """
    names = list(outcomes)
    measured = {name: found for name, found in known.items() if found.log_odds}
    first = next((name for name in names if name in measured), None)
    if first is None:
        return []
    later = names[names.index(first) + 1 :]
    same = [name for name in later if measured_alike(outcomes[first], outcomes[name])]
    steps = [
        curve_step(first, name, outcomes[name], (known[first], known.get(name, FirstTokens({}))))
        for name in same
    ]
    return [step for step in steps if step is not None]


def measured_alike(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    """Whether two runs have the same prompts and the same judge."""
    ids = [{o.prompt.id for o in run} for run in (one, other)]
    return ids[0] == ids[1] and judge_names(one) == judge_names(other)


def curve_of(outcomes: Sequence[Outcome], known: FirstTokens) -> CurveGain | None:
    """A run against the threshold curve of the run with these first tokens; None if no prompt of a
    kind was scored."""
    return curve_gain(*decided_rows(outcomes, known))


def decided_rows(
    outcomes: Sequence[Outcome], known: FirstTokens
) -> tuple[list[FirstDecision], list[bool]]:
    """What a threshold on the run with these first tokens does to each prompt, and whether the run
    of the outcomes handled it rightly. Prompts of which both are known."""
    both = [
        (row, right)
        for o in outcomes
        if (row := known.decision(o.prompt)) is not None and (right := handled(o)) is not None
    ]
    return [row for row, _ in both], [right for _, right in both]


def curve_step(
    before: str, after: str, outcomes: Sequence[Outcome], known: tuple[FirstTokens, FirstTokens]
) -> CurveStepEntry | None:
    """The run `after`, with its outcomes, against the curve of the run `before`.

    `known` are the first tokens of both. None if no prompt of a kind was scored.
    """
    theirs, own = (found.log_odds for found in known)
    found = curve_of(outcomes, known[0])
    if found is None:
        return None
    entry: CurveStepEntry = {
        "from": before,
        "to": after,
        "n": found.n,
        "exact": known[0].exact,
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
