"""Rendered texts -> token ids padded on the left, and a pass that ends at their last tokens.

inputs = left_padded(tokenizer, ["<user>Hi<assistant>"])      # ids and mask (B, T)
read_texts(model, tokenizer, texts)                           # for hooks that look at position -1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


def left_padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> BatchEncoding:
    """The texts as token ids (B, T) with their mask. No special tokens are added: a rendered text
    has its own."""
    found: BatchEncoding = tokenizer(
        list(texts),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_token_type_ids=False,
    )
    return found


def read_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> None:
    """One pass over the texts, for what hooks see of it. Their last tokens are at position -1."""
    inputs = left_padded(tokenizer, texts).to(model.device)
    places = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    model(**inputs, position_ids=places, use_cache=False, logits_to_keep=1)


def plain_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS with which the tokenizer begins plain text; "" if it begins none so."""
    bos = tokenizer.bos_token_id
    plain: list[int] = [] if bos is None else tokenizer("Hello")["input_ids"]
    return str(tokenizer.bos_token) if plain[:1] == [bos] else ""


def give_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """The end of text pads if a tokenizer has no pad token; ValueError if it has neither."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} has neither a pad token nor an eos "
            "token, so texts of several lengths cannot stand in one batch. Write one of them into "
            "its tokenizer_config.json (eos_token: what ends a turn), or set it in Python."
        )
    tokenizer.pad_token = tokenizer.eos_token
