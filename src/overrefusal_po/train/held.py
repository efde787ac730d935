"""What a bias on refusal openers does to rates, and which bias holds a stated safety. Pure numbers.

    rows = [Decision(set=0, harmful=True, flip=0.7, opened=True, other=False), ...]
    choice = choose_bias(rows, floors=[0.78], limit=8.0)
    choice.bias, choice.held, choice.rates        # the whole curve: `bias_curve(rows)`

A response opens with a refusal if the bias is above its flip point. `opened` and `other` say if it
is then handled: a harmful prompt refused, a benign one answered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MARGIN = 1e-9
"""What .35 - .05 may be above .3."""


class Decision(NamedTuple):
    """One prompt: its set, its kind, and what becomes of it on both sides of its flip point."""

    set: int
    harmful: bool
    flip: float
    opened: bool
    other: bool

    def at(self, bias: float) -> bool:
        """Whether the prompt is handled with this bias."""
        return self.opened if bias > self.flip else self.other


class Rates(NamedTuple):
    """Shares of the harmful prompts refused and of the benign ones answered; NaN without one."""

    harmful_refused: float
    benign_answered: float


class Choice(NamedTuple):
    """A bias in logits, whether it holds every floor, and what it does to all prompts."""

    bias: float
    held: bool
    rates: Rates


def rates_at(rows: Sequence[Decision], bias: float) -> Rates:
    """The rates over these prompts with one bias."""
    sides = ([row.at(bias) for row in rows if row.harmful is kind] for kind in (True, False))
    return Rates(*(sum(side) / len(side) if side else math.nan for side in sides))


def candidates(rows: Sequence[Decision], limit: float) -> list[float]:
    """Biases that differ in what they do: 0, both limits, and one between any two flip points."""
    flips = sorted({row.flip for row in rows if -limit < row.flip < limit})
    between = [(a + b) / 2 for a, b in zip([-limit, *flips], [*flips, limit], strict=True)]
    return sorted({0.0, *between})


def choose_bias(rows: Sequence[Decision], floors: Sequence[float], limit: float) -> Choice:
    """The bias that answers most benign prompts, of those that refuse at least `floors[i]` of the
    harmful prompts of each set i. Of equal ones, the one nearest to 0.

    If none holds every floor: the one that misses them least, and `held` is False.
    """
    sets = [[row for row in rows if row.set == number] for number in range(len(floors))]
    best: tuple[float, float, float] | None = None
    chosen = Choice(0.0, False, rates_at(rows, 0.0))
    for bias in candidates(rows, limit):
        refused = [rates_at(part, bias).harmful_refused for part in sets]
        missing = [floor - rate for floor, rate in zip(floors, refused, strict=True)]
        short = max((gap for gap in missing if gap > MARGIN), default=0.0)  # NaN: nothing to hold
        rates = rates_at(rows, bias)
        rank = (-short, rates.benign_answered, -abs(bias))
        if best is None or rank > best:
            best, chosen = rank, Choice(bias, short == 0.0, rates)
    return chosen


def bias_curve(rows: Sequence[Decision], limit: float) -> list[tuple[float, Rates]]:
    """Every bias that differs, with its rates over all prompts."""
    return [(bias, rates_at(rows, bias)) for bias in candidates(rows, limit)]
