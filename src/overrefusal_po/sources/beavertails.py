"""BeaverTails (Ji et al., NeurIPS 2023, arXiv 2307.04657): people's labels of answers to red-team
prompts; for training.

    {name: beavertails}
    # triples for DeRTa, or harmful prompts: 30k answers to 7,766 prompts
    {name: beavertails, part: 330k, per_prompt: 4}
    {name: beavertails, paths: [train.jsonl]}

Its safe answers are mostly no refusals with an opener of their own (DeRTa: `data.safe_lead`). Every
answer of the 330k stands there at least three times, by other labellers, who disagree about a
quarter of them: the majority decides. There is no split to measure on: the hub's test rows share
over 99 % of their prompts with the train rows (a public audit of the pinned revision; not repeated
here). From the hub: PKU-Alignment/BeaverTails, CC-BY-NC-4.0 (research only), not gated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import Prompt, Split, Triple
from overrefusal_po.sources._answers import (
    Answer,
    Asked,
    answer_triples,
    answered_prompts,
    by_prompt,
    first_harm,
    label_truth,
)
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, set_items

FORMS = (
    Form("prompt", None, ("response", "is_safe", "category")),
    Form("prompt", None, ("response", "is_safe")),
)

REVISION = "8401fe609d288129cc684a9b3be6a93e41cfe678"
"""The head of the hub's main branch since October 2023."""


class Settings(BaseModel):
    """`part`: the smaller or the larger set. `per_prompt`: triples of one prompt. `paths`: local
    files of its columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    part: Literal["30k", "330k"] = "30k"
    per_prompt: int = Field(default=1, gt=0)
    paths: tuple[str, ...] = ()
    repo: str = "PKU-Alignment/BeaverTails"
    revision: str | None = REVISION


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts to which an answer is unsafe, with a safe answer as reference; none outside the
    train split."""
    return (
        []
        if split in ("dev", "test")
        else list(answered_prompts(asked(settings), source="beavertails", split="train"))
    )


def triples(settings: Settings, split: Split | None) -> list[Triple]:
    """Prompts with a safe and an unsafe answer; none outside the train split."""
    if split in ("dev", "test"):
        return []
    found = answer_triples(
        asked(settings), source="beavertails", split="train", per_prompt=settings.per_prompt
    )
    return list(found)


def asked(settings: Settings) -> dict[str, Asked]:
    """All answers of the train rows by prompt."""
    return by_prompt(answers(settings))


def answers(settings: Settings) -> Iterator[Answer]:
    """The rows of the hub's train split, or of local files."""
    wanted = HubSet(settings.repo, None, f"{settings.part}_train", settings.revision)
    for item in set_items(settings.paths, wanted, FORMS):
        safe = label_truth(item.row["is_safe"], "is_safe", item.place)
        yield Answer(
            item.text, str(item.row["response"] or ""), safe, first_harm(item.row.get("category"))
        )
