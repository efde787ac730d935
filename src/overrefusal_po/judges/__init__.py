"""Completions in, verdicts out: one file per judge, and the file's name is the judge's name in a
recipe.

This file says what a judge is, and what a file of this room defines. It imports records alone, so
that any room may name these types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from overrefusal_po.records import Completion, Prompt, Verdict


class Judge(Protocol):
    """Something that scores completions.

    A judge may also have:
        check(): raises ValueError if something that scoring needs is missing, such as a key.
        keep_every: verdicts between two writes. A judge that has it is slow, and its verdicts are
            kept in a file.
        asked_again: how `unscored` begins if another try may give a verdict.
        answered: whether its server has ever replied.
        says_refusals: False if it never says what refuses (a guard of harm, a reward model). Then
            it cannot be a recipe's `judge`.
    """

    @property
    def name(self) -> str:
        """Who judges, as verdicts say it."""

    @property
    def version(self) -> str:
        """Changes whenever a verdict can change."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict for each completion, in their order; ValueError if a completion's prompt is
        not given."""


class JudgePlug(Protocol):
    """What a file of this room defines."""

    Settings: type[BaseModel]
    """The recipe keys of the judge."""

    # Any: each file takes the Settings that it defines itself
    def judge(self, settings: Any) -> Judge:
        """The judge; ValueError if the settings cannot work. No weights are loaded."""
