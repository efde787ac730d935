"""Contrasts, written for this project in ten hands: 997 benign prompts that sound dangerous or
look like harmful ones, and 955 harmful ones.

    prompts = prompts(Settings(), split="train")
    prompts = prompts(Settings(hands=(6,)), split=None)    # the prompts of one hand

A hand is one writer's style. In hands 1 to 6 a topic has two to four prompts, benign and harmful
ones in the same words. Hands 7 to 9 have short prompts of 3 to 12 words, with forms matched on both
sides: length, question mark, first word and pronouns do not tell the kind. Hand 10 is a hold-out:
it stands in dev only and is never trained on. Some topics of hands 7 to 10 are one plain prompt,
harmful or not.

A topic stands in one split only (train / dev, about 85 / 15 % of the topics of hands 1 to 9).
There is no test split: measure on the starter set's. Every prompt carries a reference response;
benign ones also carry the refusal that an over-cautious model would give.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._shipped import row_prompt, shipped_rows


class Settings(BaseModel):
    """`hands`: the hands whose prompts are read; each is one writer's style."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hands: tuple[Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], ...] = Field(
        default=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), min_length=1
    )


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts of one split (None: of all); none in the split test."""
    rows = shipped_rows("contrasts", split)
    return [row_prompt(row, "contrasts") for row in rows if row["hand"] in settings.hands]
