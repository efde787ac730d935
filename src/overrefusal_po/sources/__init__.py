"""Sources: public data sets and files -> prompts, pairs, triples and responses. A file's name here
is its name in a recipe.

This file says what a file of this room defines. It imports records alone, so that any room may name
this type.
"""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel

from overrefusal_po.records import LabelledResponse, PreferencePair, Prompt, Split, Triple

SHIPPED_SETS = ("starter", "contrasts")
"""The sources whose prompts this package ships, in `data/<name>.jsonl`."""


class SourcePlug(Protocol):
    """What a file of this room defines: `Settings`, and at least one of `prompts`, `triples`,
    `pairs` and `responses`. It may also define `unpaired`, `measures`
    and `note`.

    A split is train, dev or test; None gives all. Each function raises ValueError if the source
    cannot be read.
    """

    Settings: type[BaseModel]
    """The recipe keys of the source."""

    # Any in what follows: each file takes the Settings that it defines itself

    def prompts(self, settings: Any, split: Split | None) -> list[Prompt]:
        """The prompts of a split."""

    def triples(self, settings: Any, split: Split | None) -> list[Triple]:
        """The triples of a split, for DeRTa."""

    def pairs(self, settings: Any, split: Split | None) -> list[PreferencePair]:
        """The preference pairs of a split."""

    def responses(self, settings: Any, split: Split | None) -> list[LabelledResponse]:
        """The labelled responses of a split, for KTO."""

    def unpaired(self, settings: Any) -> bool:
        """Whether KTO reads `responses` and not `pairs`; never, if this is missing."""

    def measures(self, settings: Any, split: Split | None) -> bool:
        """Whether what it gives for a split is there to measure on, and so is never trained on;
        not so, if this is missing."""

    def note(self, settings: Any) -> str | None:
        """What a reader of a number from this source has to know; None if there is nothing."""
