"""A direction taken out of all that a model writes into its residual stream, as plain weights.

    v = direction(states_of_harmful, states_of_ordinary)    # (D,), of length 1
    ablated(h, v)                                           # h without its part along v
    untie(model)                                            # an output head of its own
    ablate_(model, v)                                       # the same in the weights, in place

The residual stream is the sum of what the embedding, each attention output (`o_proj`) and each MLP
output (`down_proj`) write into it. If none of them writes along v, the stream has nothing there. So
the edit of the weights computes what a hook behind every layer would compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PretrainedConfig, PreTrainedModel

WRITERS = ("o_proj", "down_proj")
"""The names of the matrices that write into the residual stream: one of attention, one of an
MLP."""

NORMS_BEHIND = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "post_self_attn_layernorm",
)
"""Norms on what a matrix writes: they turn it, so the matrix alone decides nothing."""


def direction(first: Tensor, second: Tensor) -> Tensor:
    """(D,) the mean of `first` (N, D) minus the mean of `second` (M, D), in float32, of length 1.

    Raises ValueError if the two means are equal.
    """
    difference = first.float().mean(0) - second.float().mean(0)
    if not float(difference.norm()) > 0:
        raise ValueError(
            "The two sets have the same mean state, so there is no direction between them. Give "
            "prompts that differ."
        )
    return unit(difference)


def unit(v: Tensor) -> Tensor:
    """The vector in float32, of length 1."""
    found: Tensor = v.float() / v.float().norm()
    return found


def ablated(x: Tensor, v: Tensor, strength: float = 1.0) -> Tensor:
    """x - strength * (x.v) v for the last dimension of `x`, v of length 1 whatever is given."""
    u = unit(v).to(x.device)
    found = x.float() - strength * (x.float() @ u)[..., None] * u
    return found.to(x.dtype)


def ablate_(model: PreTrainedModel, v: Tensor, strength: float = 1.0) -> None:
    """Takes the direction out of the embedding and of every matrix that writes into the residual
    stream, in place.

    Raises ValueError for a model that is built otherwise, or whose embedding is tied to its output
    head (`untie`): the edit of one would change the other.
    """
    import torch

    if is_tied(model):
        raise ValueError(
            "The embedding is tied to the output head, so an edit of one changes the other. Untie "
            "them first (model.ablation.untie)."
        )
    with torch.no_grad():
        embedding = cast("Linear", model.get_input_embeddings()).weight  # (V, D)
        embedding.copy_(ablated(embedding, v, strength))
        for writer in writers(model):  # weight (D, F): its columns are what it writes
            writer.weight.copy_(ablated(writer.weight.T, v, strength).T)
            if writer.bias is not None:
                writer.bias.copy_(ablated(writer.bias, v, strength))


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and output head are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untie(model: PreTrainedModel) -> None:
    """Gives the output head a matrix of its own, equal to the embedding. It computes the same."""
    import torch

    if not is_tied(model):
        return
    head = cast("Linear", model.get_output_embeddings())
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def writers(model: PreTrainedModel) -> list[Linear]:
    """The matrices of all layers that write into the residual stream.

    It reads names and classes alone, so a model without weights will do. ValueError for a model
    that is built otherwise.
    """
    import torch

    found: list[Linear] = []
    layers = layers_of(model)
    for layer in layers:
        named = dict(layer.named_modules())
        blocked = [name for name in NORMS_BEHIND if name in named]
        ends = {name.rpartition(".")[2]: m for name, m in named.items()}
        missing = [name for name in WRITERS if not isinstance(ends.get(name), torch.nn.Linear)]
        if blocked or missing:
            why = f"its layers have {blocked[0]}" if blocked else f"a layer has no {missing[0]}"
            raise unknown_build(model, why)
        found += [
            m
            for name, m in named.items()
            if name.rpartition(".")[2] in WRITERS and isinstance(m, torch.nn.Linear)
        ]
    if not layers:
        raise unknown_build(model, "its layers are not found")
    return found


def layers_of(model: PreTrainedModel) -> Sequence[Module]:
    """The decoder's layers; none if they are kept elsewhere."""
    return cast("Sequence[Module]", getattr(model.base_model, "layers", None) or ())


def unknown_build(model: PreTrainedModel, why: str) -> ValueError:
    """The error for a model whose writing matrices are not known."""
    return ValueError(
        f"No direction can be taken out of a {type(model).__name__}: {why}. Known are models whose "
        f"layers write with {' and '.join(WRITERS)} alone (Llama, Qwen2, Mistral and those built "
        "like them)."
    )


def check_ablation(config: PretrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Raises ValueError if `ablate_` does not know a model of this config. Reads no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        writers(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))


@contextlib.contextmanager
def behind_layers(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What comes out of each layer in a pass, in their order: (B, T, D) each."""
    seen: list[Tensor] = []

    def keep(_layer: object, _inputs: object, output: object) -> None:
        # a layer gives a tensor, in older code a tuple that begins with it
        seen.append(cast("Tensor", output[0] if isinstance(output, tuple) else output).detach())

    handles = [layer.register_forward_hook(keep) for layer in layers_of(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def last_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int
) -> Tensor:
    """(N, L, D) what the stream holds behind each layer at the last token of each row of ids, in
    float32 on the CPU, in order of `rows`."""
    import torch

    found: dict[int, Tensor] = {}
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    with torch.inference_mode(), behind_layers(model) as seen:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(rows[at]) for at in chosen)
            # padded on the right: positions are those of the row alone
            ids = [[*rows[at], *[0] * (width - len(rows[at]))] for at in chosen]
            mask = [[1] * len(rows[at]) + [0] * (width - len(rows[at])) for at in chosen]
            last = torch.tensor([len(rows[at]) - 1 for at in chosen])
            model.base_model(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                use_cache=False,
            )
            at_last = [states[torch.arange(len(chosen)), last].float().cpu() for states in seen]
            found |= dict(zip(chosen, torch.stack(at_last, 1), strict=True))
            seen.clear()
    return torch.stack([found[at] for at in range(len(rows))])
