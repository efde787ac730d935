"""Rows in drawing order -> the rows that limits leave, with both sides alike at every length. Pure.

    rows = [Drawn("a", "containment", True, words=9, held=False), ...]
    left = LeftRows(rows, ratio_max=1.0)
    left.match()
    limit_rules(left, 300)
    left.ids, left.gone["containment"]

If harmless prompts are long and harmful ones short, a model learns the length in place of the
prompts (benchmarks/RESULTS.md). So in each stratum of length neither side keeps more than
`ratio_max` times the rows of the other. Limits that come later keep that as it is.

Ordinary prompts are mostly answered, so their rows mostly only hold. If rows that correct came
first among all, a student that refuses a lot would keep no ordinary row. Without them ordinary
answers fall. So each limit keeps ordinary rows in their proportion.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

STRATA = 5
"""Strata of prompt length (ours). With as many rows of both sides in each, Cliff's delta of the
lengths is at most the chance that two rows share a stratum: .2 if all hold as many, which is below
the .33 of the linter's warning."""

LENGTH = "length_ratio_max"
"""The name of the filter, and of its key."""


class Drawn(NamedTuple):
    """A row as limits see it. `words`: of its prompt. `held`: it only holds what is right.
    `ordinary`: its prompt is of the kind general."""

    id: str
    rule: str
    harmful: bool
    words: int
    held: bool
    ordinary: bool = False


class Pile(NamedTuple):
    """Which rows stand together: those of a stratum, of a side, of a rule, and ordinary or not."""

    stratum: int
    harmful: bool
    rule: str
    ordinary: bool


Place = tuple[int, Drawn]
"""A row and its place in the drawing order; the last one goes first."""


Parts = dict[bool, int]
"""How many ordinary rows (True) and how many others (False)."""


def shares(counts: Mapping[bool, int], most: int) -> Parts:
    """`most` in the proportion of these counts, rounded down, at most as many as there are:
    `shares({False: 8, True: 2}, 6)` is `{False: 4, True: 1}`."""
    total = sum(counts.values())
    return {
        part: min(count, count * most // total) if total else 0
        for part in (False, True)
        for count in (counts.get(part, 0),)
    }


def upper_ends(words: Sequence[int], strata: int = STRATA) -> list[int]:
    """The longest length of each stratum but the last, in growing order: equal parts of all rows,
    cut so that equal lengths share one. `upper_ends([1, 2, 3, 4, 5, 6], 3)` is `[2, 4]`."""
    ordered = sorted(words)
    places = [math.ceil(part * len(ordered) / strata) - 1 for part in range(1, strata)]
    return sorted({ordered[max(0, at)] for at in places}) if ordered else []


class LeftRows:
    """The rows that are left, while one limit after the other takes some of them.

    `rows` stand in drawing order. `ratio_max` is 1 or more. If it is None, or if all rows are of
    one side, lengths do not matter.
    """

    def __init__(self, rows: Sequence[Drawn], ratio_max: float | None) -> None:
        both = len({row.harmful for row in rows}) == 2
        self.ratio_max = ratio_max if both else None
        self.stood = Counter((row.rule, row.harmful, row.ordinary) for row in rows)
        """The rows before any limit."""
        ends = [] if self.ratio_max is None else upper_ends([row.words for row in rows])
        self.piles: dict[Pile, list[Place]] = defaultdict(list)
        for at, row in enumerate(rows):
            pile = Pile(bisect_left(ends, row.words), row.harmful, row.rule, row.ordinary)
            self.piles[pile].append((at, row))
        self.sides = Counter(pile[:2] for pile, rows in self.piles.items() for _ in rows)
        self.gone: dict[str, Counter[str]] = defaultdict(Counter)
        """{rule: {reason: rows that the last step took}}."""

    @property
    def ids(self) -> Set[str]:
        """The ids of the rows that are left."""
        return {row.id for rows in self.piles.values() for _, row in rows}

    def chosen(self, rule: str | None, harmful: bool | None) -> list[Pile]:
        """The piles with rows of a rule and of a side; None: of any."""
        return [
            pile
            for pile, rows in self.piles.items()
            if rows and rule in (None, pile.rule) and harmful in (None, pile.harmful)
        ]

    def count(self, *, rule: str | None = None, harmful: bool | None = None) -> int:
        """The rows of a rule and of a side; None: of any."""
        return sum(len(self.piles[pile]) for pile in self.chosen(rule, harmful))

    @property
    def rules(self) -> list[str]:
        """The rules, in alphabetical order."""
        return sorted({pile.rule for pile in self.piles})

    @property
    def wrong(self) -> int:
        """The rows that correct the student, of the rule with most of them."""
        counts: Counter[str] = Counter()
        for pile, rows in self.piles.items():
            counts[pile.rule] += sum(not row.held for _, row in rows)
        return max(counts.values(), default=0)

    def match(self) -> None:
        """Takes what is over `ratio_max`, the last of the drawing order first.

        In a stratum that one side has no row in, nothing can be matched, and the rows of the other
        go: they are the ones whose length gives the side away. They are counted by themselves.
        """
        for stratum, harmful in sorted({(pile.stratum, pile.harmful) for pile in self.piles}):
            other = self.sides[stratum, not harmful]
            side = "harmless" if harmful else "harmful"
            why = f"over {LENGTH}" if other else f"{LENGTH}: no {side} row of like length"
            for pile, _ in self.over(stratum, harmful, self.most_beside(other)):
                self.take(pile, why)

    def limit(
        self,
        name: str,
        most: int,
        *,
        rule: str | None = None,
        harmful: bool | None = None,
        alone: bool = False,
        parts: Parts | None = None,
    ) -> None:
        """Takes rows of a rule or of a side until at most so many are left. `name`: of the limit.
        `alone`: only rows that take no other with them. `parts`: how many ordinary rows and how
        many others it leaves at least; None: `parts_of_all`.

        A row goes only from a part that has more. Of these rows the one goes that takes fewest
        others with it (those that it leaves over `ratio_max`); of these one that only holds; then
        one of a stratum where its side has most for each row of the other side; then the last of
        the drawing order.
        """
        if parts is None:
            parts = self.parts_of_all(most, rule=rule, harmful=harmful)
        while self.count(rule=rule, harmful=harmful) > most:
            chosen = self.chosen(rule, harmful)
            counts: Counter[bool] = Counter()
            for pile in chosen:
                counts[pile.ordinary] += len(self.piles[pile])
            over = [pile for pile in chosen if counts[pile.ordinary] > parts[pile.ordinary]]
            pile = min(over, key=self.cost)
            if alone and self.cost(pile)[0] > 1:
                return
            self.take(pile, f"over {name}")
            beside = self.most_beside(self.sides[pile[:2]])
            for other, _ in self.over(pile.stratum, not pile.harmful, beside):
                self.take(other, f"over {LENGTH}")

    def parts_of_all(
        self, most: int, *, rule: str | None = None, harmful: bool | None = None
    ) -> Parts:
        """The part of ordinary rows and that of the others in `most` rows of a rule or of a side:
        in the proportion in which they stood before any limit, rounded down."""
        stood: Counter[bool] = Counter()
        for (of_rule, of_side, ordinary), rows in self.stood.items():
            if rule in (None, of_rule) and harmful in (None, of_side):
                stood[ordinary] += rows
        return shares(stood, most)

    def parts_of_held(self, most: int, rule: str) -> Parts:
        """The parts of `most` rows of a rule if every row that corrects stays, and those that only
        hold share the rest in proportion."""
        wrong: Counter[bool] = Counter()
        held: Counter[bool] = Counter()
        for pile in self.chosen(rule, None):
            for _, row in self.piles[pile]:
                (held if row.held else wrong)[row.ordinary] += 1
        room = shares(held, max(0, most - wrong.total()))
        return {part: wrong[part] + room[part] for part in room}

    def cost(self, pile: Pile) -> tuple[int, int, float, int]:
        """What it costs to take the last row of a pile: rows, rows of them that correct, and two
        numbers that order the rest. An ordinary row that goes with it counts as one that corrects:
        else ordinary rows would draw the limit of the other side to their lengths."""
        own, other = self.sides[pile[:2]], self.sides[pile.stratum, not pile.harmful]
        place, row = self.piles[pile][-1]
        followers = self.over(pile.stratum, not pile.harmful, self.most_beside(own - 1))
        follow = [one for _, (_, one) in followers]
        wrong = (not row.held) + sum(not one.held or one.ordinary for one in follow)
        return 1 + len(follow), wrong, -own / max(other, 1), -place

    def most_beside(self, rows: int) -> float:
        """How many rows of a side may stand in a stratum with so many of the other."""
        # a tiny bit more, since 1.15 * 20 is 22.9999...
        return math.inf if self.ratio_max is None else math.floor(self.ratio_max * rows + 1e-9)

    def over(self, stratum: int, harmful: bool, most: float) -> list[tuple[Pile, Place]]:
        """(pile, row) of the rows of a side that are over so many, the last one first."""
        side = stratum, harmful
        if self.sides[side] <= most:
            return []
        over = self.sides[side] - int(most)
        piles = [pile for pile in self.piles if pile[:2] == side]
        ends = [(pile, place) for pile in piles for place in self.piles[pile][-over:]]
        return sorted(ends, key=lambda one: -one[1][0])[:over]

    def take(self, pile: Pile, why: str) -> None:
        """Takes the last row of a pile."""
        self.piles[pile].pop()
        self.sides[pile[:2]] -= 1
        self.gone[pile.rule][why] += 1


def limit_rules(left: LeftRows, most: int | None) -> None:
    """Takes the rows of each rule that are over so many."""
    if most is not None:
        for rule in left.rules:
            left.limit("max_pairs", most, rule=rule)


def limit_held(left: LeftRows, held_per_wrong: float | None) -> None:
    """Takes as many rows that only hold as leaves this many of them for each other one. Every rule
    gets as many rows as the one with most wrong prompts: else a training would push one way. Of the
    rows that hold, ordinary ones keep their proportion."""
    before = None
    while held_per_wrong is not None and left.wrong != before:
        before = left.wrong
        for rule in left.rules:
            most = before + round(before * held_per_wrong)
            parts = left.parts_of_held(most, rule)
            left.limit("held_per_wrong", most, rule=rule, parts=parts)


def keep_harmful_share(left: LeftRows, share: float | None) -> None:
    """Takes as many rows of the side with too many as makes `share` of all harmful. Each side keeps
    at least one."""
    if share is None or not (left.count(harmful=True) and left.count(harmful=False)):
        return
    sides = left.count(harmful=True), left.count(harmful=False)
    most = most_of_each(*sides, share)
    at = 0 if most[0] < sides[0] else 1
    left.limit("harmful_share", most[at], harmful=at == 0, alone=True)
    sides = left.count(harmful=True), left.count(harmful=False)
    # a row that takes others with it hardly moves the share, so here it may miss by less than a row
    while sides[at] > 1 and abs(sides[0] - share * sum(sides)) >= 1:
        left.limit("harmful_share", sides[at] - 1, harmful=at == 0)
        sides = left.count(harmful=True), left.count(harmful=False)


def most_of_each(harmful: int, harmless: int, share: float) -> tuple[int, int]:
    """How many of so many harmful and harmless rows may stay, so that `share` of them is harmful.
    Each side keeps at least one."""
    # a tiny bit more, since 2 * 0.6 / (1 - 0.6) is 2.9999...
    most_harmful = max(1, int(harmless * share / (1 - share) + 1e-9))
    most_harmless = max(1, int(harmful * (1 - share) / share + 1e-9))
    return min(harmful, most_harmful), min(harmless, most_harmless)
