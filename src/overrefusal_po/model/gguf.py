"""A GGUF file -> a model and a tokenizer that can be saved as safetensors.

    model, tokenizer = model_from_gguf(Path("model.gguf"), "bfloat16", ties=True)

It takes each architecture that transformers reads from GGUF. Quantised weights become plain ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Embedding, Linear
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
"""The names that GGUF has for the input and the output matrix."""

SAME_MATRIX = 0.99
"""From this cosine on, two matrices are roundings of one (Qwen's Q5_0 and Q8_0: .9993)."""

SAMPLED_ROWS = 16
"""The cosine is taken of each sixteenth row: all rows in float32 would need gigabytes."""


def model_from_gguf(
    source: Path, dtype: str, *, ties: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in `dtype`, tokenizer) of a GGUF file.

    Args:
        source: the file.
        dtype: of the weights, `float32` or `bfloat16`.
        ties: the original model has one matrix as embedding and head. A GGUF file may hold it
            twice, rounded in two ways; then the finer one becomes both.

    Raises:
        ValueError: the package gguf is missing, or `ties` is wrong for this file.
    """
    if find_spec("gguf") is None:
        raise ValueError(
            f"{source.name} is read with the Python package gguf, which is not installed. Run: "
            "pip install gguf"
        )
    from transformers import AutoTokenizer

    with without_advice():
        unpacked = unpacked_model(source, dtype)
    if ties and not unpacked.config.tie_word_embeddings:
        tie_head(unpacked, source)
    return plain_model(unpacked), AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name
    )


@contextmanager
def without_advice() -> Iterator[None]:
    """transformers advises float32 for GGUF weights that stay packed. Ours do not stay packed."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def unpacked_model(source: Path, dtype: str) -> PreTrainedModel:
    """The model of a GGUF file as transformers loads it: with plain weights, but not savable."""
    import torch
    import transformers

    # a GPU with the package kernels would keep the quantised blocks
    plain = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": plain(dequantize=True)} if plain else {}
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=getattr(torch, dtype), **options
    )
    return model


def tie_head(model: PreTrainedModel, source: Path) -> None:
    """Makes embedding and head one matrix: the one that has more bytes in the file.

    Raises ValueError if they are not roundings of one matrix.
    """
    embedding = cast("Embedding", model.get_input_embeddings())
    head = cast("Linear", model.get_output_embeddings())
    similarity = cosine(embedding.weight, head.weight)
    if similarity < SAME_MATRIX:
        raise ValueError(
            f"{source.name}: embedding and head cannot be tied, since they are two matrices "
            f"(cosine {similarity:.3f}; roundings of one have at least {SAME_MATRIX})."
        )
    sizes = matrix_bytes(source)
    finer = embedding.weight if sizes[EMBEDDING] >= sizes[HEAD] else head.weight
    embedding.weight = head.weight = finer
    model.config.tie_word_embeddings = True


def cosine(first: Tensor, second: Tensor) -> float:
    """The mean cosine of two matrices' rows, over each sixteenth row."""
    import torch

    with torch.inference_mode():
        one, other = first[::SAMPLED_ROWS].float(), second[::SAMPLED_ROWS].float()
        return float(torch.nn.functional.cosine_similarity(one, other, dim=1).mean())


def matrix_bytes(source: Path) -> dict[str, int]:
    """The bytes that a GGUF file spends on its input and output matrix."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    return {t.name: int(t.n_bytes) for t in reader.tensors if t.name in (EMBEDDING, HEAD)}


def plain_model(unpacked: PreTrainedModel) -> PreTrainedModel:
    """The same model without its past as a GGUF file, so that it can be saved.

    The weights are not copied.
    """
    import torch
    from transformers import AutoModelForCausalLM

    # a config that came from a GGUF carries its quantisation and cannot be saved
    kept = unpacked.config.to_dict()
    kept.pop("quantization_config", None)
    config = type(unpacked.config)(**kept)
    config.name_or_path = ""  # not the path of the package
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=unpacked.dtype)
    model.load_state_dict(unpacked.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = unpacked.generation_config
    return model
