"""Numbers with their intervals, in words: for terminal, page, card and compare.

interval_words(0.62, 0.53, 0.71)              # "0.62 [0.53, 0.71]"
interval_words(0.1, 0.02, 0.18, sign="+")     # "+0.10 [+0.02, +0.18]"
"""

from __future__ import annotations

from typing import Literal, Protocol


class Estimated(Protocol):
    """A number and its 95 % interval; None if it is not known."""

    @property
    def value(self) -> float | None:
        """The number."""

    @property
    def low(self) -> float | None:
        """The lower end."""

    @property
    def high(self) -> float | None:
        """The upper end."""


def interval_words(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    sign: Literal["", "+"] = "",
    missing: str = "n/a",
) -> str:
    """The value with two digits and its interval, if there is one; `missing` without a value. With
    `sign` "+", positive numbers have one."""
    if value is None:
        return missing
    if low is None or high is None:
        return f"{value:{sign}.2f}"
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def rate_words(rate: float | None) -> str:
    """`0.62`, or n/a."""
    return "n/a" if rate is None else f"{rate:.2f}"


def estimate_words(estimate: Estimated) -> str:
    """`0.74 [0.69, 0.79]`, or n/a."""
    return interval_words(estimate.value, estimate.low, estimate.high)


def signed(estimate: Estimated) -> str:
    """`+0.12 [-0.01, +0.25]`, or n/a."""
    return interval_words(estimate.value, estimate.low, estimate.high, sign="+")
