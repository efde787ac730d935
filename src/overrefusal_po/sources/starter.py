"""The starter set, written for this project: 320 benign prompts that sound dangerous, 320 harmful,
200 ordinary.

    prompts = prompts(Settings(), split="test")

Half of the harmful prompts are contrasts: they stand in one topic with benign ones and use the same
words. A topic stands in one split only (train / dev / test, about 40 / 25 / 35 %). Every prompt
carries a reference response; benign ones also carry the refusal that an over-cautious model would
give.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import Prompt, Split
from overrefusal_po.sources._shipped import row_prompt, shipped_rows


class Settings(BaseModel):
    """The starter set has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts of one split (None: of all)."""
    return [row_prompt(row, "starter") for row in shipped_rows("starter", split)]
