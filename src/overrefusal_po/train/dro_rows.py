"""Prompts of two kinds -> the rows that DRO trains on: three renderings, and what the model said.

    asked = both_ways(prompts, text)                      # what the model is asked: without, with
    prepared = prepared_anchors(prompts, soft, template, text=text, shares=shares(said))

A row has the prompt without a system text (`plain_ids`), with the text (`text_ids`) and with the
soft tokens in its place (`input_ids`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.soft_tokens import SoftPrompt, with_text
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import Message, Prompt, Verdict, content_id
from overrefusal_po.train.data import Prepared, as_column, as_dataset, check_rendered, used_records

if TYPE_CHECKING:
    from torch import Tensor

RENDERINGS = ("plain", "text")
"""The renderings whose answers and states are known: without a system text, and with it."""

Shares = Mapping[str, float]
"""{id of a prompt that was asked: the share of its scored answers that do not refuse, or NaN}."""


def both_ways(prompts: Sequence[Prompt], text: str) -> list[Prompt]:
    """The prompts, and then each with `text` in its system turn, under an id of its own."""
    return [*prompts, *(asked_with(prompt, text) for prompt in prompts)]


def asked_with(prompt: Prompt, text: str) -> Prompt:
    """A prompt with `text` in its system turn."""
    messages = with_text(prompt.messages, text.strip())
    named = content_id(prompt.id, "system text", text.strip())
    return prompt.model_copy(update={"id": named, "messages": messages})


def shares(judged: Iterable[tuple[Prompt, Verdict]]) -> dict[str, float]:
    """{prompt's id: the share of its scored answers that do not refuse}; NaN if none is scored."""
    said: dict[str, list[bool]] = defaultdict(list)
    for prompt, verdict in judged:
        known = said[prompt.id]
        if verdict.refusal is not None:
            known.append(not verdict.refused)
    return {name: sum(rows) / len(rows) if rows else math.nan for name, rows in said.items()}


def check_anchors(prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for prompts of one side alone, and for those that cannot be rendered."""
    harmful = sum(prompt.kind == "harmful" for prompt in prompts)
    if not harmful or harmful == len(prompts):
        count = f"{harmful} and {len(prompts) - harmful}" if prompts else "none"
        raise ValueError(
            f"DRO needs at least one harmful and one harmless prompt; got {count}. Name sources "
            "that have both (data.harmful, data.benign)."
        )
    check_rendered(prompts, begun=False)


def check_shares(found: Shares) -> None:
    """Raises ValueError if the answers show no difference that could be learned."""
    scored = [share for share in found.values() if not math.isnan(share)]
    if not scored:
        raise ValueError(
            f"The judge scored none of the answers to the {len(found)} prompts. Choose another "
            "judge."
        )
    for share, word, what in ((1.0, "refuses", "refusals"), (0.0, "answers", "answers")):
        if all(one == share for one in scored):
            raise ValueError(
                f"The model {word} none of the {len(scored)} prompts that it was asked, with the "
                f"text and without it. DRO learns where {what} differ from the rest, so there is "
                "nothing to learn. Give other prompts (data.harmful, data.benign), or draw several "
                "answers (data.samples with a generation.temperature above 0)."
            )


def prepared_anchors(
    prompts: Sequence[Prompt],
    soft: SoftPrompt,
    template: ChatTemplate,
    *,
    text: str,
    shares: Shares | None,
    max_length: int | None,
    too_long: TooLong = "error",
) -> Prepared:
    """The rows of prompts; without `shares` everything but the rows.

    Raises ValueError for what `check_anchors`, `check_shares` and `lengths.fit` refuse.
    """
    check_anchors(prompts)
    ids = {
        "plain_ids": rendered_ids([p.messages for p in prompts], template),
        "text_ids": rendered_ids([with_text(p.messages, text.strip()) for p in prompts], template),
        "input_ids": rendered_ids([p.messages for p in prompts], soft.template),
    }
    lengths = [max(map(len, three)) for three in zip(*ids.values(), strict=True)]
    used = used_records(prompts, lengths, max_length=max_length, too_long=too_long)
    kept = used.taken(prompts)
    check_anchors(kept)
    found = Prepared(
        None,
        kept,
        lengths=as_column(used.taken(lengths)),
        line=f"{len(kept)} prompts, {len(soft.ids)} soft tokens{used.fitting}",
        left_out=used.fitting.note,
        added=len(soft.ids),
    )
    if shares is None:
        return found
    asked = both_ways(kept, text)
    answered = [shares[prompt.id] for prompt in asked]
    check_shares({prompt.id: share for prompt, share in zip(asked, answered, strict=True)})
    columns: dict[str, Any] = {name: used.taken(rows) for name, rows in ids.items()}
    columns["harmless"] = [float(prompt.kind != "harmful") for prompt in kept]
    columns["plain_answered"] = answered[: len(kept)]
    columns["text_answered"] = answered[len(kept) :]
    mean = sum(s for s in answered if not math.isnan(s)) / sum(not math.isnan(s) for s in answered)
    line = f"{found.line}, {mean:.0%} of the answers to them do not refuse"
    return found._replace(rows=as_dataset(pa.table(columns)), line=line)


def rendered_ids(
    conversations: Sequence[Sequence[Message]], template: ChatTemplate
) -> list[list[int]]:
    """The token ids of conversations, each up to where the assistant writes."""
    texts = [template.prompt_text(messages) for messages in conversations]
    found: list[list[int]] = template.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


class AnchorCollator:
    """Rows -> a batch padded on the left, so that the last token of each prompt stands last.

    Args:
        pad_token_id: id for padding (attention mask 0).

    >>> collator = AnchorCollator(pad_token_id=0)
    >>> rows = [
    ...     {"input_ids": [7, 8, 9], "harmless": 1.0, "text_state": [0.5, 0.0]},
    ...     {"input_ids": [9], "harmless": 0.0, "text_state": [0.0, 1.0]},
    ... ]
    >>> batch = collator(rows)
    >>> batch["input_ids"]
    tensor([[7, 8, 9],
            [0, 0, 9]])
    >>> batch["attention_mask"]
    tensor([[1, 1, 1],
            [0, 0, 1]])
    >>> batch["position_ids"]
    tensor([[0, 1, 2],
            [0, 0, 0]])
    >>> batch["harmless"]
    tensor([1., 0.])
    """

    def __init__(self, *, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    # Any: a row's columns are lists and numbers
    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, attention_mask and position_ids (B, T), harmless (B,), text_state (B, D)."""
        import torch

        batch = self.padded([row["input_ids"] for row in rows])
        batch["harmless"] = torch.tensor([row["harmless"] for row in rows])
        batch["text_state"] = torch.tensor([row["text_state"] for row in rows])
        return batch

    def padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """input_ids, attention_mask and position_ids, (B, T) each."""
        import torch

        width = max(map(len, ids))  # T
        gaps = [width - len(row) for row in ids]
        padded = [[self.pad_token_id] * gap + list(row) for gap, row in zip(gaps, ids, strict=True)]
        mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        return {
            "input_ids": torch.tensor(padded),
            "attention_mask": mask,
            "position_ids": places,
        }
