"""The blocks of a decoder and what they write: paths, and states at the last token of a prompt.

    found = blocks(model)                             # [(path, module), ...]
    states = last_states(model, template, texts)      # (N, layers, D), float32, on the CPU

This is the one place that knows how decoders are built. It reads names alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.model.padded import read_texts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WRITERS = (
    ("self_attn.o_proj", "attn.c_proj", "self_attn.dense", "attention.dense"),
    ("mlp.down_proj", "mlp.fc2", "mlp.dense_4h_to_h", "mlp.c_proj"),
)
"""Where a block keeps the two matrices that write into the residual stream."""

NORMS_BEHIND = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "post_self_attn_layernorm",
)
"""Norms on what a matrix writes. They turn it, so the matrix alone decides no direction."""


class UnfitModel(ValueError):
    """What is asked cannot be done on this model, whatever a recipe says; the message says why.
    Where a model is only tried, as a fit does, it is a result."""


def model_of_config(
    config: PretrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of a config, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code
        )
    return model


def blocks(model: PreTrainedModel) -> list[tuple[str, Module]]:
    """The path and the module of each block, in order. UnfitModel if they cannot be found."""
    inner = model.base_model
    found = getattr(inner, "layers", None) or getattr(inner, "h", None)
    if not found:
        raise UnfitModel(
            f"The blocks of a {type(model).__name__} cannot be found (known are .layers and .h), "
            "so no remedy can be fitted on it or put on it."
        )
    paths = {module: path for path, module in model.named_modules()}
    return [(paths[block], block) for block in found]


def writers(model: PreTrainedModel) -> list[str]:
    """The paths of the linear modules that write into the residual stream, block by block.

    UnfitModel for a block that is built otherwise.
    """
    modules = dict(model.named_modules())
    found = []
    for path, block in blocks(model):
        if behind := next((name for name in NORMS_BEHIND if hasattr(block, name)), None):
            raise UnfitModel(
                f"{type(block).__name__} has {behind} between its matrices and its stream, so a "
                "direction cannot be taken out of the weights."
            )
        for names in WRITERS:
            own = next((n for n in names if f"{path}.{n}" in modules), None)
            if own is None or not hasattr(modules[f"{path}.{own}"], "in_features"):
                raise UnfitModel(
                    f"{type(block).__name__} writes into its stream in a way that is not known "
                    f"here (known are linear {', '.join(names)}), so its weights cannot be edited."
                )
            found.append(f"{path}.{own}")
    return found


# Any: a block returns a tensor, or in some models a tuple that begins with it
def stream(output: Any) -> Tensor:
    """The residual stream (B, T, D) of what a block returned."""
    return cast("Tensor", output[0] if isinstance(output, tuple) else output)


def with_stream(output: Any, states: Tensor) -> Any:
    """What a block returned, with another residual stream."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


@contextmanager
def kept_streams(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within it, {layer: its stream (B, D) at the last position} of the latest forward pass."""
    found: dict[int, Tensor] = {}
    every, handles = blocks(model), []
    for layer in layers:

        def keep(_: Module, __: object, output: object, layer: int = layer) -> None:
            found[layer] = stream(output)[:, -1].detach()

        handles.append(every[layer][1].register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def last_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
) -> Tensor:
    """(N, layers, D): the residual stream behind each block at the last token of each rendered
    text, in float32 on the CPU."""
    import torch

    model.eval()
    depth = len(blocks(model))
    found: list[Tensor | None] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    with torch.inference_mode(), kept_streams(model, range(depth)) as kept:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            read_texts(model, tokenizer, [texts[i] for i in batch])
            rows = torch.stack([kept[layer] for layer in range(depth)], 1).float().cpu()
            for i, row in zip(batch, rows, strict=True):
                found[i] = row
    return torch.stack(cast("list[Tensor]", found))
