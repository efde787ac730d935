"""The copies of a tamper test that are to be made, and what is said of those that were.

plan = Plan(Tampering(tier=1, rows=10), rows)
known_attempt(file.rows, plan, made_of)       # its line of an earlier try, if it still holds
attempt_words(attempt)                        # for the log
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from overrefusal_po.evaluate.robustness import Attempt, Tampering
from overrefusal_po.records import Prompt
from overrefusal_po.report.numbers import rate_words


class Plan(NamedTuple):
    """A copy that is to be made: what is done to it, and the rows that it learns."""

    done: Tampering
    rows: Sequence[Prompt]

    @property
    def lacks_refusals(self) -> bool:
        """Whether its defence has nothing to mix in."""
        return self.done.defence == "refusals" and not self.done.refusals


def known_attempt(rows: Sequence[Attempt], plan: Plan, made_of: str) -> Attempt | None:
    """The line of an earlier try that is this copy; None if there is none. A copy that learned
    other rows, or that stands beside other verdicts, is made again."""
    same = [row for row in rows if row.done.key == plan.done.key and row.made_of in (None, made_of)]
    return same[-1] if same else None


def attempt_words(attempt: Attempt) -> str:
    """What a copy still does, in a line for the log."""
    if attempt.failed is not None:
        return f"{attempt.done}: {attempt.failed}"
    rates = [
        f"{name} {rate_words(attempt.rates[name])} (untampered "
        f"{rate_words(attempt.untampered[name])})"
        for name in ("harmful_refused", "benign_answered")
    ]
    return f"{attempt.done}, {attempt.steps} steps: {', '.join(rates)}"


def failure_notes(attempts: Sequence[Attempt]) -> Iterator[str]:
    """A sentence for each copy that could not be measured."""
    for attempt in attempts:
        if attempt.failed is not None:
            yield f"Tampering, {attempt.done}: no result ({attempt.failed})"
