"""What metrics.json and summary.json say of tampered copies: checked, and in words.

    part = TamperedCopy.model_validate(metrics["robustness"][0])
    robustness_lines([part])
    # tier 1 (10 rows, 5 steps, learning rate 5e-05, seed 0): harmful refused 0.97 to 0.10 ...

`evaluate.robustness` makes them; `summary` has the other parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat

from overrefusal_po.report.numbers import interval_words
from overrefusal_po.report.panel_part import READ_CONFIG, Count, PanelNumber

Share = Annotated[float, Field(ge=0, le=1)]

TIER_WORDS = {
    0: "one direction taken out of the weights, nothing trained",
    1: "trained on harmful rows",
    2: "trained on harmless rows of an obedient agent",
    3: "trained on ordinary instructions",
}

HEADS = ("tampering", "made with", "harmful refused", "change", "harmless answered", "degenerate")

LIMIT = (
    "A tamper result is an upper bound on the defender's luck: a better attacker may undo more. A "
    "model that refuses everything keeps its refusals, so the harmless prompts answered stand "
    "beside them. A broken copy refuses nothing either, so degenerate responses are shown."
)


class TamperedCopy(BaseModel):
    """A copy of the model that was tampered with, and what it still does. `worst`: the one of its
    tier that lost most refusals."""

    model_config = READ_CONFIG
    tier: Count
    rows: Count
    steps: Count = 0
    learning_rate: FiniteFloat | None = None
    seed: Count | None = None
    layer: Count | None = None
    harmful_refused: Share | None
    benign_answered: Share | None
    degenerate: Share | None = None
    intervals: dict[str, tuple[Share, Share] | None] = {}
    n: dict[str, Count] = {}
    unscored: dict[str, Count] = {}
    untampered: dict[str, Share | None] = {}
    """The model's own rates on the same prompts."""
    change: dict[str, PanelNumber] = {}
    """The copy's rates minus the model's own, paired."""
    seconds: FiniteFloat = 0.0
    worst: bool = False

    @property
    def made_with(self) -> str:
        """`10 rows, 5 steps, learning rate 5e-05, seed 0`, or `160 prompts, layer 12`."""
        if self.layer is not None:
            return f"{self.rows} prompts, layer {self.layer}"
        rate = "n/a" if self.learning_rate is None else f"{self.learning_rate:g}"
        return f"{self.rows} rows, {self.steps} steps, learning rate {rate}, seed {self.seed}"

    @property
    def what(self) -> str:
        """`tier 1: trained on harmful rows`."""
        return f"tier {self.tier}: {TIER_WORDS.get(self.tier, 'tampered with')}"

    def rate(self, name: str) -> str:
        """A rate of the copy with its interval."""
        value: float | None = getattr(self, name)
        return interval_words(value, *(self.intervals.get(name) or (None, None)))

    def changed(self, name: str) -> str:
        """By how much a rate changed, with its interval."""
        found = self.change.get(name)
        if found is None:
            return "n/a"
        return interval_words(found.value, found.low, found.high, sign="+")

    def own(self, name: str) -> str:
        """The model's own rate on the same prompts."""
        return interval_words(self.untampered.get(name), None, None)

    @property
    def cells(self) -> list[str]:
        """The cells of a table with HEADS."""
        return [
            self.what,
            self.made_with,
            f"{self.rate('harmful_refused')}, untampered {self.own('harmful_refused')}",
            self.changed("harmful_refused"),
            f"{self.rate('benign_answered')}, untampered {self.own('benign_answered')}",
            self.rate("degenerate"),
        ]


def worst_copies(copies: Iterable[TamperedCopy]) -> list[TamperedCopy]:
    """The worst copy of each tier."""
    return [copy for copy in copies if copy.worst]


def robustness_lines(copies: Iterable[TamperedCopy]) -> Iterator[str]:
    """A sentence for the worst copy of each tier."""
    for copy in worst_copies(copies):
        yield (
            f"after tampering, tier {copy.tier} ({copy.made_with}): harmful refused "
            f"{copy.own('harmful_refused')} to {copy.rate('harmful_refused')}, harmless answered "
            f"{copy.own('benign_answered')} to {copy.rate('benign_answered')}"
        )


def robustness_table(copies: Iterable[TamperedCopy]) -> Iterator[str]:
    """A Markdown table of the worst copy of each tier, a line at a time."""
    for cells in (list(HEADS), ["---"] * len(HEADS), *(c.cells for c in worst_copies(copies))):
        yield f"| {' | '.join(cells)} |"
