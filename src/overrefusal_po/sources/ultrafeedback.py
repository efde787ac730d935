"""UltraFeedback, binarised (Cui et al., ICML 2024, arXiv 2310.01377; Zephyr's version): 61,135
prompts, two answers each.

    {name: ultrafeedback}
    # prompts, the better answer as reference; or preference pairs
    {name: ultrafeedback, paths: [train_prefs.parquet]}

As pairs they have no rule: they keep a model useful beside the pairs that `curate` makes, and hold
no safety by themselves. GPT-4 scored the answers; the prompts are not screened for harm, and their
kind is general by assumption. From the hub: HuggingFaceH4/ultrafeedback_binarized, MIT, not gated.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from overrefusal_po.records import PreferencePair, Prompt, Split, content_id
from overrefusal_po.sources._conversations import SIDES, row_pair
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, Item, hub_parts, set_items

logger = logging.getLogger(__name__)
FORMS = (Form("prompt", None, SIDES),)

REVISION = "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"
"""The revision that most public code pins."""


class Settings(BaseModel):
    """`paths`: local files of one split instead of the hub. `repo`, `revision`: the hub data
    set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: tuple[str, ...] = ()
    repo: str = "HuggingFaceH4/ultrafeedback_binarized"
    revision: str | None = REVISION


class AnsweredPrompt(NamedTuple):
    """The prompt with the better answer as its reference, and the worse answer ("" if there is
    none)."""

    prompt: Prompt
    rejected: str


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts with the better answer as reference."""
    return [row.prompt for row in rows(settings, split)]


def pairs(settings: Settings, split: Split | None) -> list[PreferencePair]:
    """The better answer over the worse one. Rows whose answers are equal, or whose worse one is
    empty, are left out."""
    found, left_out = [], 0
    for prompt, rejected in rows(settings, split):
        chosen = str(prompt.reference)
        if not rejected or rejected == chosen:
            left_out += 1
            continue
        key = content_id(prompt.id, chosen, rejected)
        found.append(
            PreferencePair(
                id=key,
                prompt=prompt,
                chosen=chosen,
                rejected=rejected,
                reason="ultrafeedback",
                origin=prompt.origin,
            )
        )
    logger.info(
        "ultrafeedback: %d pairs; %d rows with equal or empty answers are left out",
        len(found),
        left_out,
    )
    return found


def rows(settings: Settings, split: Split | None) -> Iterator[AnsweredPrompt]:
    """The rows that have an answer to learn from."""
    for part in hub_parts(split, settings.paths):
        wanted = HubSet(settings.repo, None, f"{part}_prefs", settings.revision)
        for item in set_items(settings.paths, wanted, FORMS):
            chosen, rejected = (
                last_said(item.row[side], f"{item.place}, column {side}") for side in SIDES
            )
            if chosen:
                prompt = Prompt.of(
                    item.text,
                    kind="general",
                    source="ultrafeedback",
                    split=part,
                    reference=chosen,
                    origin=item.origin,
                )
                yield AnsweredPrompt(with_earlier_turns(prompt, item), rejected)


def with_earlier_turns(prompt: Prompt, item: Item) -> Prompt:
    """The prompt behind the turns that both answers begin with, if there are any; ValueError if
    they begin differently, or do not end with the prompt."""
    if all(len(item.row[side]) <= 2 for side in SIDES):
        return prompt
    sides = {side: item.row[side] for side in SIDES}
    turns = row_pair({"prompt": item.text, **sides}, item.place, Counter()).turns
    key = content_id(prompt.kind, [(turn.role, turn.content) for turn in turns])
    return prompt.model_copy(update={"id": key, "messages": turns})


def last_said(turns: object, place: str) -> str:
    """What the assistant says last in [{role, content}]; ValueError if there are no turns."""
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and "content" in turn for turn in turns
    ):
        raise ValueError(
            f"{place}: expected turns ([{{role, content}}, ...]), got {str(turns)[:80]!r}."
        )
    return str(turns[-1]["content"] or "").strip() if turns else ""
