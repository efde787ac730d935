"""Completions in, verdicts out: one file per judge, and the file's name is the judge's name in a
recipe."""

from collections.abc import Sequence
from typing import Protocol

from overrefusal_po.records import Completion, Prompt, Verdict


class Judge(Protocol):
    """What a judge file's `judge(settings)` returns."""

    name: str
    """Stands in its verdicts."""
    version: str
    """Another version may give another verdict on the same response."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """A verdict for each completion, in their order."""
