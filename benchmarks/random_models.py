"""Models with random weights in the shapes of published ones: speed and memory are theirs, and
nothing is downloaded.

    make_model("8b", folder, section, tiny=False, seed=0)
    # then models.load_model(folder, dtype="bfloat16")

A model is quantised as it is made, on the GPU where there is one, so that the disk gets 6 GB of an
8B and not 16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TOKENIZER = "bundled:smollm2-135m-instruct"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY |= {"num_key_value_heads": 2, "vocab_size": 49152}  # the bundled tokenizer's


class Random(NamedTuple):
    """A model with random weights in the shape that a published config.json gives."""

    config: str
    shape: Mapping[str, Any]
    nf4: bool = False


MODELS = {
    "8b": Random(
        "LlamaConfig",  # meta-llama/Llama-3.1-8B
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        }
        | {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072}
        | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": False,
        },
        nf4=True,
    ),
    "1.5b": Random(
        "Qwen2Config",  # Qwen/Qwen2.5-1.5B
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
        }
        | {"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072}
        | {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
        },
    ),
}


def config_of(name: str, tiny: bool) -> Any:
    """The config of a random model."""
    import transformers

    config = getattr(transformers, MODELS[name].config)
    return config(**{**MODELS[name].shape, **(TINY if tiny else {})})


def make_model(
    name: str, folder: Path, section: Mapping[str, Any], *, tiny: bool, seed: int
) -> None:
    """Writes a model to `folder`, quantised if and as the recipe's `model:` section says, with the
    bundled tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from overrefusal_po.model import load as models

    config, device = config_of(name, tiny), "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(seed)
    made = type(empty).from_pretrained(
        None,
        config=config,
        state_dict={key: weight(key, meta.shape, device) for key, meta in kept(empty)},
        dtype=torch.bfloat16,
        quantization_config=models.model_options(section)["quantization_config"],
    )
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    made.save_pretrained(beside)
    models.load_tokenizer(TOKENIZER).save_pretrained(beside)
    beside.rename(folder)


def kept(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights of a checkpoint: without a head that is the embedding."""
    tied = model.config.tie_word_embeddings
    return (
        (key, value)
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    )


def weight(name: str, shape: Any, device: str) -> Any:
    """Random bfloat16 matrices as a new model has them (deviation 0.02); norms are ones and biases
    zeros."""
    import torch

    if len(shape) == 1:
        return torch.full(shape, float("norm" in name), device=device, dtype=torch.bfloat16)
    return torch.empty(shape, device=device, dtype=torch.bfloat16).normal_(std=0.02)
