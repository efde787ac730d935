"""Alpaca-cleaned (Taori et al., 2023, cleaned by G. Ruebsamen and others): 51,760 ordinary
instructions with answers.

    {name: alpaca_cleaned}                     # only a train split
    {name: alpaca_cleaned, paths: [alpaca_data_cleaned.json]}

An instruction and its input are one prompt, with an empty line between. Written by language models
and not screened for
harm: `kind` is general by assumption. From the hub: yahma/alpaca-cleaned, CC-BY-4.0 there (the
original Alpaca is CC-BY-NC-4.0), not gated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

logger = logging.getLogger(__name__)
FORMS = (Form("instruction", None, ("input", "output")),)

REVISION = "12567cabf869d7c92e573c7c783905fc160e9639"
"""The head of the hub's main branch since April 2023."""


class Settings(BaseModel):
    """`paths`: local files instead of the hub. `repo`, `revision`: the hub data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: tuple[str, ...] = ()
    repo: str = "yahma/alpaca-cleaned"
    revision: str | None = REVISION


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """All instructions that have an answer; none outside the train split."""
    return [] if split in ("dev", "test") else list(answered(settings))


def answered(settings: Settings) -> Iterator[Prompt]:
    """The rows as prompts; rows without an answer are left out and counted in the log."""
    empty = 0
    for item in set_items(
        settings.paths, HubSet(settings.repo, None, "train", settings.revision), FORMS
    ):
        given, answer = (str(item.row[column] or "").strip() for column in ("input", "output"))
        if not answer:
            empty += 1
            continue
        text = f"{item.text}\n\n{given}" if given else item.text
        yield Prompt.of(
            text,
            kind="general",
            source="alpaca_cleaned",
            split="train",
            reference=answer,
            origin=item.origin,
        )
    if empty:
        logger.info("alpaca_cleaned: %d rows without an answer are left out", empty)
