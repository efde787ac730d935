"""Verdicts of a panel -> how often its judges agree, and which way they disagree. Pure.

    found = panel_entry(panel, outcomes, seed=0)
    found["groups"]["all"]["pairs"][0]["kappa"]["value"]

Two classes: a partial refusal is a refusal. A group counts the responses that all judges scored.
Intervals take the outcomes of one question as a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypedDict

from overrefusal_po.evaluate.agreement import kappa
from overrefusal_po.evaluate.intervals import cluster_sums, clustered_rate, four_cells
from overrefusal_po.evaluate.score_intervals import smoothed
from overrefusal_po.judges import JudgePanel
from overrefusal_po.records import Outcome, Verdict

ALL = "all"
"""The group of all prompts as they were asked."""

ATTACKED = "attacked"
"""The group of attacked prompts."""


class NumberEntry(TypedDict):
    """A number and its 95 % interval; None if it is not known."""

    value: float | None
    low: float | None
    high: float | None


class PairEntry(TypedDict):
    """Two judges on the responses of a group."""

    first: str
    second: str
    agreement: NumberEntry
    """The share on which both name the same class."""
    kappa: NumberEntry
    """Cohen's; None if both name one class only."""
    only_first_refused: int
    """Responses in which the first judge sees a refusal and the second none."""
    only_second_refused: int


class GroupEntry(TypedDict):
    """The judges on a group of responses."""

    n: int
    """Responses that all judges scored."""
    unscored: dict[str, int]
    """{judge: responses that it left unscored}."""
    agreement: NumberEntry
    """The share of the n on which all judges name the same class."""
    pairs: list[PairEntry]


class PanelEntry(TypedDict):
    """`panel` in metrics.json and in a curation's summary.json."""

    judges: list[str]
    """Name and version of each."""
    disagreement: str
    groups: dict[str, GroupEntry]
    """{all, kind of prompts or attacked: agreement}."""


class PanelRow(NamedTuple):
    """What the judges of a panel say about one response to a question of `cluster`."""

    cluster: str
    said: Sequence[Verdict]


def panel_entry(panel: JudgePanel, outcomes: Sequence[Outcome], *, seed: int) -> PanelEntry:
    """Agreement on all prompts as they were asked, on each kind of them, and on attacked ones. A
    response that no judge was shown counts nowhere."""
    judged = [outcome for outcome in outcomes if outcome.verdict.members]
    plain = [outcome for outcome in judged if outcome.prompt.attack is None]
    groups = {ALL: plain}
    for kind in ("harmful", "benign", "general"):
        groups[kind] = [outcome for outcome in plain if outcome.prompt.kind == kind]
    groups[ATTACKED] = [outcome for outcome in judged if outcome.prompt.attack is not None]
    rows = {
        name: [PanelRow(o.prompt.cluster, o.verdict.members) for o in members]
        for name, members in groups.items()
        if members or name == ALL
    }
    return grouped_entry(panel, rows, seed=seed)


def grouped_entry(
    panel: JudgePanel, groups: Mapping[str, Sequence[PanelRow]], *, seed: int
) -> PanelEntry:
    """Agreement on each group."""
    names = [judge.name for judge in panel.members]
    return {
        "judges": [f"{judge.name} {judge.version}" for judge in panel.members],
        "disagreement": panel.disagreement,
        "groups": {name: group_entry(names, rows, seed=seed) for name, rows in groups.items()},
    }


def group_entry(names: Sequence[str], rows: Sequence[PanelRow], *, seed: int) -> GroupEntry:
    """Agreement of the judges `names` on some responses."""
    scored = [row for row in rows if all(verdict.unscored is None for verdict in row.said)]
    missing = {
        name: sum(row.said[place].unscored is not None for row in rows)
        for place, name in enumerate(names)
    }
    return {
        "n": len(scored),
        "unscored": missing,
        "agreement": share_of_agreement(scored, range(len(names))),
        "pairs": [
            pair_entry(names, scored, places, seed=seed)
            for places in combinations(range(len(names)), 2)
        ],
    }


def share_of_agreement(rows: Sequence[PanelRow], places: Iterable[int]) -> NumberEntry:
    """The share of responses on which the judges at `places` name the same class."""
    wanted = tuple(places)
    flags = [len({row.said[place].refused for place in wanted}) == 1 for row in rows]
    found = clustered_rate(flags, [row.cluster for row in rows])
    return {"value": found.value, "low": found.low, "high": found.high}


def pair_entry(
    names: Sequence[str], rows: Sequence[PanelRow], places: tuple[int, int], *, seed: int
) -> PairEntry:
    """Agreement of two judges on responses that all judges scored."""
    first, second = places
    counts = [
        (row.cluster, four_cells(row.said[first].refused, row.said[second].refused)) for row in rows
    ]
    value, low, high = smoothed(kappa, cluster_sums(counts), seed=seed)
    return {
        "first": names[first],
        "second": names[second],
        "agreement": share_of_agreement(rows, places),
        "kappa": {"value": value, "low": low, "high": high},
        "only_first_refused": sum(cells[1] for _, cells in counts),
        "only_second_refused": sum(cells[2] for _, cells in counts),
    }
