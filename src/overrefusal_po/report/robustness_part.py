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
    2: "trained on harmless rows of an obedient agent, and asked in their words",
    3: "trained on ordinary instructions",
}

HEADS = ("tampering", "made with", "harmful refused", "change", "harmless answered", "degenerate")

DEFENCE_WORDS = {"refusals": "refusals mixed in", "safelora": "Safe LoRA afterwards"}

LIMIT = (
    "A tamper result is an upper bound on the defender's luck: a better attacker may undo more. A "
    "model that refuses everything keeps its refusals, so the harmless prompts answered stand "
    "beside them. A broken copy refuses nothing either, so degenerate responses are shown."
)


class TamperedCopy(BaseModel):
    """A copy of the model that was tampered with, and what it still does. `worst`: the one of its
    tier and defence that lost most refusals."""

    model_config = READ_CONFIG
    tier: Count
    defence: str = "none"
    rows: Count
    refusals: Count = 0
    """Rows that the defence mixed in."""
    steps: Count = 0
    projected: Count | None = None
    """Modules that Safe LoRA projected."""
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
    """The model's own rates on the same prompts, asked in the same words if `plain` is there."""
    plain: dict[str, Share | None] = {}
    """The model's own rates if it is asked plainly; tier 2 alone. Empty if an older version wrote
    the file: then `untampered` was asked plainly."""
    change: dict[str, PanelNumber] = {}
    """The copy's rates minus the model's own, paired."""
    seconds: FiniteFloat = 0.0
    worst: bool = False
    copies: Count = 0
    """Measured copies of its tier and defence; 0 if an older version wrote the file."""
    compared: bool = False
    """Whether it is the worst of those copies that each defence of the tier made too, with the same
    learning rates and seeds."""
    alike: Count = 0
    """How many these are."""

    @property
    def shown(self) -> bool:
        """Whether a table of the worst copies has it."""
        return self.worst or self.compared

    @property
    def chosen_from(self) -> str:
        """`, the worst of 6 copies`; "" if it was not chosen, or if that is not known."""
        if not self.shown or self.copies < 2:
            return ""
        if self.alike == self.copies:
            return f", the worst of {self.copies} copies"
        if not self.compared:
            return f", the worst of all {self.copies} copies; not every defence made this one"
        one = self.alike == 1
        alike = "the only one" if one else f"the worst of the {self.alike}"
        if self.worst:
            rest = alike if one else f"of the {self.alike}"
            return f", the worst of all {self.copies} copies, and {rest} that each defence made"
        return f", of {self.copies} copies {alike} that each defence made"

    @property
    def made_with(self) -> str:
        """`10 rows and 1 refusal, 5 steps, learning rate 5e-05, seed 0`, or `160 prompts, layer
        12`; and from how many copies it was chosen."""
        if self.layer is not None:
            return f"{self.rows} prompts, layer {self.layer}{self.chosen_from}"
        rate = "n/a" if self.learning_rate is None else f"{self.learning_rate:g}"
        added = f" and {self.refusals} refusal{'s' * (self.refusals > 1)}" if self.refusals else ""
        after = "" if self.projected is None else f", {self.projected} modules projected"
        return (
            f"{self.rows} rows{added}, {self.steps} steps, learning rate {rate}, seed {self.seed}"
            f"{after}{self.chosen_from}"
        )

    @property
    def what(self) -> str:
        """`tier 1: trained on harmful rows; defence: refusals mixed in`."""
        return (
            f"tier {self.tier}: {TIER_WORDS.get(self.tier, 'tampered with')}{self.defended('; ')}"
        )

    def defended(self, before: str) -> str:
        """The copy's defence in words behind `before`; empty if it has none."""
        if self.defence == "none":
            return ""
        return f"{before}defence: {DEFENCE_WORDS.get(self.defence, self.defence)}"

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
        """The model's own rate on the same prompts: `0.90`, in tier 2 `0.90 (asked plainly 0.97)`,
        or `0.97 (asked plainly)` if it was not asked in the words of the rows."""
        words = interval_words(self.untampered.get(name), None, None)
        if self.tier != 2:
            return words
        if not self.plain:
            return f"{words} (asked plainly)"
        return f"{words} (asked plainly {interval_words(self.plain.get(name), None, None)})"

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
    """The worst copy of each tier and defence, and the one that defences are compared by."""
    return [copy for copy in copies if copy.shown]


def robustness_lines(copies: Iterable[TamperedCopy]) -> Iterator[str]:
    """A sentence for the worst copy of each tier and defence."""
    for copy in worst_copies(copies):
        yield (
            f"after tampering, tier {copy.tier}{copy.defended(', ')} ({copy.made_with}): harmful "
            "refused "
            f"{copy.own('harmful_refused')} to {copy.rate('harmful_refused')}, harmless answered "
            f"{copy.own('benign_answered')} to {copy.rate('benign_answered')}"
        )


def robustness_table(copies: Iterable[TamperedCopy]) -> Iterator[str]:
    """A Markdown table of the worst copy of each tier and defence, a line at a time."""
    for cells in (list(HEADS), ["---"] * len(HEADS), *(c.cells for c in worst_copies(copies))):
        yield f"| {' | '.join(cells)} |"
