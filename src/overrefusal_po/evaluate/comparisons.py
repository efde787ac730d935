"""Outcomes of two runs on the same prompts -> the gain, paired tests, and what became of each
response. Pure: no file, no model.

    step = compare(before, after)
    # step.gain, step.harmful.p, step.benign.p
    moves = transitions(before, after)
    # by kind and category: state before -> state after -> how many prompts

Outcomes of one question form a cluster. Intervals weigh clusters, and each cluster has one vote in
a paired test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from overrefusal_po.evaluate.intervals import Estimate, cluster_sums, four_cells
from overrefusal_po.evaluate.metrics import SCORED_STATES, State, handled, harmonic_mean, state
from overrefusal_po.evaluate.score_intervals import paired_difference, smoothed, square_and_add
from overrefusal_po.records import Kind, Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OutcomePair = tuple[Outcome, Outcome]
"""What the first run and the second run made of one prompt."""

KIND_ORDER: tuple[Kind, ...] = ("harmful", "benign", "general")
"""The order of transitions."""


class EstimateEntry(TypedDict):
    """A number with its interval, as JSON holds it."""

    value: float | None
    low: float | None
    high: float | None


class PairedEntry(TypedDict):
    """The paired test of one kind, as JSON holds it."""

    n: int
    only_from: int
    only_to: int
    p: float | None


class VotesEntry(TypedDict):
    """The votes of one kind, as JSON holds them."""

    clusters: int
    only_from: int
    only_to: int


ComparisonEntry = TypedDict(
    "ComparisonEntry",
    {
        "from": str,
        "to": str,
        "gain": EstimateEntry,
        "f1_gain": EstimateEntry,
        "harmful": PairedEntry,
        "benign": PairedEntry,
        "votes": NotRequired[dict[str, VotesEntry]],
    },
)
"""A comparison in summary.json."""


class Transition(TypedDict):
    """state before -> state after -> how many prompts of this kind and category."""

    kind: Kind
    category: str
    counts: dict[State, dict[State, int]]


class Paired(NamedTuple):
    """One kind of prompts in two runs.

    `n` outcomes were scored in both, `unscored` were not. `only_from` were handled rightly by the
    first run alone, `only_to` by the second alone. `p` is McNemar's exact two-sided p over clusters
    (see `Votes`); None if `n` is 0.
    """

    n: int
    unscored: int
    only_from: int
    only_to: int
    p: float | None

    def as_dict(self) -> PairedEntry:
        """{"n", "only_from", "only_to", "p"}, as in summary.json."""
        return {"n": self.n, "only_from": self.only_from, "only_to": self.only_to, "p": self.p}


class Votes(NamedTuple):
    """The clusters of one kind in two runs, each with one vote: for the run that handled more of
    its outcomes rightly.

    McNemar's test needs independent outcomes. Attacks on one question, or samples of one answer,
    are not independent; the votes of different questions are. The exact test over votes keeps its
    level (a sign test on the net change of each cluster). It is McNemar's own test if each cluster
    has a single outcome. A tie is no vote.
    """

    clusters: int
    only_from: int
    only_to: int

    def as_dict(self) -> VotesEntry:
        """{"clusters", "only_from", "only_to"}, as in summary.json."""
        return {
            "clusters": self.clusters,
            "only_from": self.only_from,
            "only_to": self.only_to,
        }


class KindChange(NamedTuple):
    """What changed in one kind of prompts. `cells` is [right in both runs, in the first alone, in
    the second alone, in neither] of each cluster."""

    paired: Paired
    votes: Votes
    cells: list[list[float]]

    @property
    def difference(self) -> Estimate:
        """The share handled rightly by the second run minus that of the first."""
        return paired_difference(
            [(lost, gained, both + neither) for both, lost, gained, neither in self.cells]
        )


class Comparison(NamedTuple):
    """What the second of two runs gained over the first, on the same prompts: `gain` of
    harmful_refused + benign_answered, `f1_gain` of F1."""

    gain: Estimate
    harmful: Paired
    benign: Paired
    f1_gain: Estimate
    harmful_votes: Votes
    benign_votes: Votes

    def as_dict(self, from_name: str, to_name: str) -> ComparisonEntry:
        """The comparison's entry in summary.json; "votes" stands there if a cluster has several
        outcomes."""
        entry: ComparisonEntry = {
            "from": from_name,
            "to": to_name,
            "gain": estimate_entry(self.gain),
            "f1_gain": estimate_entry(self.f1_gain),
            "harmful": self.harmful.as_dict(),
            "benign": self.benign.as_dict(),
        }
        votes = {"harmful": self.harmful_votes, "benign": self.benign_votes}
        if self.harmful.n + self.benign.n > sum(found.clusters for found in votes.values()):
            entry["votes"] = {kind: found.as_dict() for kind, found in votes.items()}
        return entry


def estimate_entry(estimate: Estimate) -> EstimateEntry:
    """{"value", "low", "high"}, as in summary.json."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def matched(before: Sequence[Outcome], after: Sequence[Outcome]) -> list[OutcomePair]:
    """The outcomes of two runs side by side, in the order of `before`.

    Outcomes match if prompt id and sample number are equal. Raises ValueError if a run holds a
    sample twice or lacks one of the other's, or if `check_same_prompts` or `check_same_judge` does.
    """
    first, second = (
        {(o.prompt.id, o.completion.sample): o for o in run} for run in (before, after)
    )
    if repeated := len(before) - len(first) + len(after) - len(second):
        raise ValueError(
            f"{repeated} outcomes repeat a prompt id of their run with the same sample number. "
            "Compare runs with one response for each prompt and sample; use `compare_seeds` for "
            "runs of several seeds."
        )
    if first.keys() != second.keys():
        raise ValueError(
            f"the two runs were measured on different prompts: {len(first.keys() - second.keys())} "
            "prompt ids of the first are missing in the second, "
            f"{len(second.keys() - first.keys())} of the second are missing in the first. Measure "
            "both on the same prompts."
        )
    pairs = [(outcome, second[key]) for key, outcome in first.items()]
    check_same_prompts(pairs)
    check_same_judge(before, after)
    return pairs


def judge_names(outcomes: Sequence[Outcome]) -> list[str]:
    """The judges of a run's verdicts with their versions, by name."""
    return sorted({f"{o.verdict.judge} {o.verdict.version}" for o in outcomes})


def check_same_judge(before: Sequence[Outcome], after: Sequence[Outcome]) -> None:
    """Raises ValueError if the verdicts are not all of one judge and version: the difference would
    be one of judges too."""
    for run, which in ((before, "first"), (after, "second")):
        if len(names := judge_names(run)) > 1:
            raise ValueError(
                f"the verdicts of the {which} run are of several judges or versions: "
                f"{', '.join(names)}. Measure it again with one."
            )
    if before and after and (old := judge_names(before)) != (new := judge_names(after)):
        raise ValueError(
            f"the first run was judged by {old[0]}, the second by {new[0]}. Measure both with the "
            "same judge and version."
        )


def check_same_prompts(pairs: Sequence[OutcomePair]) -> None:
    """Raises ValueError if a prompt has another kind or another original in the second run."""
    for field, name in (("kind", "kind"), ("cluster", "original prompt")):
        if changed := sum(getattr(b.prompt, field) != getattr(a.prompt, field) for b, a in pairs):
            raise ValueError(
                f"{changed} prompt ids have another {name} in the second run. Measure both on the "
                "same prompts."
            )


def compare(before: Sequence[Outcome], after: Sequence[Outcome], *, seed: int = 0) -> Comparison:
    """What `after` gained over `before`, and the changes of each kind.

    The gains are of harmful_refused + benign_answered and of F1, over the prompts scored in both.
    `score_intervals` has their intervals, which are those of paired outcomes. Raises ValueError if
    the runs were not measured on the same prompts.
    """
    return compare_matched(matched(before, after), seed=seed)


def compare_seeds(
    before: Sequence[Sequence[Outcome]], after: Sequence[Sequence[Outcome]], *, seed: int = 0
) -> Comparison:
    """Like `compare` for one run of each seed on both sides, in the same order.

    The seeds of a prompt are one cluster. The interval is for these trained models on other
    prompts; `spread_over_seeds` shows how far training seeds scatter.
    """
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} runs before and {len(after)} after. Give one run a seed on both sides."
        )
    pairs = [pair for old, new in zip(before, after, strict=True) for pair in matched(old, new)]
    return compare_matched(pairs, seed=seed)


def compare_matched(pairs: Sequence[OutcomePair], *, seed: int = 0) -> Comparison:
    """What changed between the two outcomes of each pair."""
    harmful, benign = (
        kind_change([pair for pair in pairs if pair[0].prompt.kind == kind])
        for kind in ("harmful", "benign")
    )
    return Comparison(
        gain=square_and_add([harmful.difference, benign.difference]),
        harmful=harmful.paired,
        benign=benign.paired,
        f1_gain=smoothed(f1_difference, harmful.cells, benign.cells, seed=seed),
        harmful_votes=harmful.votes,
        benign_votes=benign.votes,
    )


def f1_difference(harmful: Floats, benign: Floats) -> Floats:
    """F1 after - F1 before, from shares (..., [right in both runs, in the first alone, in the
    second alone, in neither]) of harmful and of benign prompts."""
    # a run is right in both or alone; the first alone is column 1, the second alone column 2
    before, after = (
        harmonic_mean(harmful[..., 0] + harmful[..., i], benign[..., 0] + benign[..., i])
        for i in (1, 2)
    )
    return after - before


def kind_change(pairs: Sequence[OutcomePair]) -> KindChange:
    """McNemar's exact test of one kind of prompts, its votes and its cells."""
    flags = [(before.prompt.cluster, handled(before), handled(after)) for before, after in pairs]
    scored = [(name, (b, a)) for name, b, a in flags if b is not None and a is not None]
    cells = cluster_sums((name, four_cells(*both)) for name, both in scored)
    votes = Votes(
        len(cells),
        sum(lost > gained for _, lost, gained, _ in cells),
        sum(gained > lost for _, lost, gained, _ in cells),
    )
    only_from, only_to = (int(sum(row[cell] for row in cells)) for cell in (1, 2))
    p = mcnemar_p(votes) if scored else None
    paired = Paired(len(scored), len(flags) - len(scored), only_from, only_to, p)
    return KindChange(paired, votes, cells)


def mcnemar_p(votes: Votes) -> float:
    """McNemar's exact two-sided p of the votes."""
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, votes.only_from], [votes.only_to, 0]], exact=True).pvalue)


def transitions(before: Sequence[Outcome], after: Sequence[Outcome]) -> list[Transition]:
    """What became of each response: harmful, benign, then general prompts, their categories by
    name.

    The four scored states stand in every table, as row and as column. "unscored" joins them in a
    table only if it occurs there.
    """
    moves: dict[tuple[Kind, str], list[tuple[State, State]]] = {}
    for old, new in matched(before, after):
        key = (old.prompt.kind, old.prompt.category)
        moves.setdefault(key, []).append((state(old), state(new)))
    return [
        {"kind": kind, "category": category, "counts": move_counts(moves[kind, category])}
        for kind, category in sorted(moves, key=lambda key: (KIND_ORDER.index(key[0]), key[1]))
    ]


def move_counts(moves: Sequence[tuple[State, State]]) -> dict[State, dict[State, int]]:
    """state before -> state after -> how many of the moves."""
    unscored: tuple[State, ...] = ("unscored",) if any("unscored" in m for m in moves) else ()
    states = SCORED_STATES + unscored
    return {b: {a: moves.count((b, a)) for a in states} for b in states}
