"""Contrasts, written for this project in six hands: 558 benign prompts that sound dangerous, and
516 harmful ones in the same words.

    prompts = prompts(Settings(), split="train")
    prompts = prompts(Settings(hands=(6,)), split=None)    # the prompts of one hand

A hand is one writer's style. A topic has two to four prompts of one hand, benign and harmful ones.
It stands in one split only (train / dev, about 85 / 15 % of the topics of each hand). There is no
test split: measure on the starter set's. Every prompt carries a reference response; benign ones
also carry the refusal that an over-cautious model would give.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._shipped import row_prompt, shipped_rows


class Settings(BaseModel):
    """`hands`: the hands whose prompts are read; each is one writer's style."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hands: tuple[Literal[1, 2, 3, 4, 5, 6], ...] = Field(default=(1, 2, 3, 4, 5, 6), min_length=1)


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts of one split (None: of all); none in the split test."""
    rows = shipped_rows("contrasts", split)
    return [row_prompt(row, "contrasts") for row in rows if row["hand"] in settings.hands]
