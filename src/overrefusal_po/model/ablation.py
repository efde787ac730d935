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

from typing import TYPE_CHECKING, cast

from overrefusal_po.model.blocks import model_of_config, writers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PretrainedConfig, PreTrainedModel


def direction(first: Tensor, second: Tensor) -> Tensor:
    """(D,) the mean of `first` (N, D) minus the mean of `second` (M, D), in float32, of length 1.

    Raises ValueError if the two means are equal.
    """
    return unit(first.float().mean(0) - second.float().mean(0))


def unit(vector: Tensor) -> Tensor:
    """The vector in float32, of length 1. ValueError for a vector of zeros."""
    length = float(vector.float().norm())
    if not length > 0:
        raise ValueError(
            "Two sets of prompts have the same mean state, so there is no direction between them. "
            "Give sets that differ."
        )
    return vector.float() / length


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
        for path in writers(model):
            writer = cast("Linear", model.get_submodule(path))
            # weight (D, F): its columns are what it writes
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


def check_ablation(config: PretrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Raises ValueError if `ablate_` does not know a model of this config. Reads no weights."""
    writers(model_of_config(config, trust_remote_code=trust_remote_code))
