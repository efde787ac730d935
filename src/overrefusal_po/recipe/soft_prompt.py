"""What a training of soft tokens learns from: prompts of two kinds, and a text. Imports no torch.

SoftPromptData(harmful="starter", benign="starter").prompt
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from overrefusal_po.recipe.reading import ReadingSection
from overrefusal_po.recipe.sections import PlugSpec, TooLong

SHORT_TEXT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe."
)
"""The short safety prompt of DRO's released code, the first sentences of Llama 2's."""


class SoftPromptData(ReadingSection):
    """What DRO learns from: prompts that it asks the model, and the text that its soft tokens begin
    as."""

    sources: ClassVar[tuple[str, ...]] = ("harmful", "benign")
    prompt: str = Field(default=SHORT_TEXT, min_length=1)
    """The text in the system turn that the soft tokens begin as, one for each of its tokens. The
    default is the short safety prompt of the released code."""
    harmful: PlugSpec | tuple[PlugSpec, ...] = "starter"
    """The source of harmful prompts, or several. A row of a file that says no kind is harmful."""
    benign: PlugSpec | tuple[PlugSpec, ...] = "starter"
    """The source of harmless prompts that sound dangerous, or several. A row of a file that says
    no kind is benign."""
    split: Literal["train", "dev"] | None = "train"
    """The split of sources that have splits. null: all splits."""
    max_prompts_per_kind: int | None = Field(default=100, gt=0)
    """A fixed subset (by content hash) of each kind. null: all prompts."""
    samples: int = Field(default=1, gt=0)
    """The model's answers to each prompt, with the text and without it. The share of those that do
    not refuse is learned. Several samples need a `generation.temperature` above 0."""
    too_long: TooLong = "error"
    """What happens to a prompt longer than trainer.max_length.

    - `error`: the run stops before training and names such prompts.
    - `drop`: they are left out and counted."""
    waive: dict[str, str] = Field(default_factory=dict)
    """As for DeRTa."""
