"""What the first token of a response decides: log-odds, AUC, and the curve of a threshold on it.

    entry = first_token_entry(prompts, FirstTokens(log_odds), openers, refused)
    # `first_token` in metrics.json
    steps = curve_steps(outcomes, {name: read_first_tokens(folder) for ...})
    # later runs against the curve of the first

A curve of first tokens takes each response that opens with a refusal for one, and no other. The
exact curve also knows what the model says after the other decision (`FirstTokens.decided`): that is
what a bias on its openers does. `measured_model` measures both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from pydantic import FiniteFloat

from overrefusal_po.evaluate.comparisons import EstimateEntry, estimate_entry, judge_names
from overrefusal_po.evaluate.metrics import handled
from overrefusal_po.evaluate.threshold_curve import (
    CurveGain,
    CurvePoint,
    FirstDecision,
    Scores,
    auc,
    auc_difference,
    by_first_token,
    curve_gain,
    kept_points,
    place_at,
    threshold_curve,
)
from overrefusal_po.plugins import split_spec
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import (
    Completion,
    Kind,
    Outcome,
    Prompt,
    Record,
    Verdict,
    read_jsonl,
)
from overrefusal_po.run.complete import in_process
from overrefusal_po.run.openers import Openers, OpenersEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE, TEXTS_FILE = "first_token.jsonl", "first_token_texts.jsonl"
KINDS: tuple[Kind, ...] = ("harmful", "benign")

LogOdds = Mapping[str, float]
"""{prompt id: first-token refusal log-odds}."""


class FirstToken(Record):
    """A row of first_token.jsonl: the log-odds that the response to a prompt opens with one of the
    tokens `openers` (ids). `margin`: by how many logits the best of them lies above the best other
    token; the response opens so if it is above 0."""

    prompt_id: str
    log_odds: FiniteFloat
    openers: tuple[int, ...]
    margin: FiniteFloat | None = None


class Decided(Record):
    """A row of first_token_texts.jsonl: whether a prompt is handled rightly (refused if it is
    harmful, answered if it is benign) when its response opens with an opener, and when it may not.
    None if the judge scored no such response.

    One of both is the model's own response. `completion` is the other one.
    """

    prompt_id: str
    margin: FiniteFloat
    opened: bool | None
    barred: bool | None
    completion: Completion
    verdict: Verdict


class FirstTokens(NamedTuple):
    """What is known of the first tokens of a run, by prompt id; `decided` is empty without
    texts."""

    log_odds: LogOdds
    decided: Mapping[str, Decided] = {}

    @property
    def exact(self) -> bool:
        """Whether its curve is that of texts."""
        return bool(self.decided)

    def decision(self, prompt: Prompt) -> FirstDecision | None:
        """What a threshold does to a prompt; None if that is not known."""
        harmful = prompt.kind == "harmful"
        if not self.exact:
            odds = self.log_odds.get(prompt.id)
            return None if odds is None else by_first_token(odds, harmful=harmful)
        row = self.decided.get(prompt.id)
        if row is None or row.opened is None or row.barred is None:
            return None
        return FirstDecision(row.margin, harmful, row.opened, row.barred)


class CurvePointEntry(TypedDict):
    """What the rule "open with a refusal from this score on" does; threshold None: no response
    does."""

    threshold: float | None
    harmful_refused: float
    benign_answered: float


class FirstTokenEntry(TypedDict):
    """`first_token` in metrics.json. `at_own` is the point of the curve that refuses as many
    harmful prompts as the model does. `exact`: the curve is that of texts, and a threshold on it is
    a margin in logits; else it is a log-odds."""

    auc: EstimateEntry
    exact: bool
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


def scored_prompts(outcomes: Sequence[Outcome]) -> list[Prompt]:
    """The harmful and benign prompts, as they were asked, that have a response."""
    return [
        o.prompt
        for o in outcomes
        if o.prompt.attack is None and o.prompt.kind in KINDS and o.completion.error is None
    ]


def read_first_tokens(folder: Path) -> FirstTokens:
    """What a run folder holds of first tokens; empty if they were not measured."""
    file, texts = folder / FILE, folder / TEXTS_FILE
    rows = read_jsonl(file, FirstToken) if file.is_file() else []
    decided = read_jsonl(texts, Decided) if texts.is_file() else []
    return FirstTokens(
        {row.prompt_id: row.log_odds for row in rows}, {row.prompt_id: row for row in decided}
    )


def first_token_entry(
    prompts: Sequence[Prompt],
    found: FirstTokens,
    openers: Openers,
    harmful_refused: float | None,
) -> FirstTokenEntry:
    """The entry of metrics.json. `harmful_refused` is the model's own."""
    scores = kind_scores(prompts, found.log_odds)
    rows = [row for p in prompts if (row := found.decision(p)) is not None]
    curve = threshold_curve(rows) if len({row.harmful for row in rows}) == 2 else None
    own = None
    if curve is not None and harmful_refused is not None:
        own = point_entry(curve.point(place_at(curve, harmful_refused)))
    return {
        "auc": estimate_entry(auc(scores)),
        "exact": found.exact,
        "n": {kind: len(side) for kind, side in zip(KINDS, scores, strict=True)},
        "openers": openers.as_dict(),
        "at_own": own,
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
    both = [
        (row, right)
        for o in outcomes
        if (row := known.decision(o.prompt)) is not None and (right := handled(o)) is not None
    ]
    return curve_gain([row for row, _ in both], [right for _, right in both])


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
