"""Mean states of prompts -> directions in the residual stream.

    unit(tensor([2.0, -3.0]))                  # (.555, -.832)
    without(w, r, 1.0)                         # w, orthogonal to r
    divergence(before, after)                  # (N,) nats

All is float32 on the CPU, whatever the model is loaded in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from overrefusal_po.model.ablation import unit as unit

if TYPE_CHECKING:
    from torch import Tensor


def mean_step(first: Tensor, second: Tensor) -> Tensor:
    """(layers, D): the mean of `first` (N, layers, D) minus the mean of `second` (M, layers, D)."""
    return first.float().mean(0) - second.float().mean(0)


def without(vector: Tensor, other: Tensor, share: float) -> Tensor:
    """(D,) `vector` minus `share` times its part along `other`. With share 1 it is orthogonal to
    `other`."""
    return vector - share * (vector @ other) / (other @ other) * other


def cosine(one: Tensor, other: Tensor) -> float:
    """The cosine between two vectors (D,)."""
    return float(unit(one) @ unit(other))


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """(N,) KL(before || after) in nats, of two tensors of log-probabilities (N, V)."""
    # a token that the model never says has probability 0 and no share in the sum
    terms = before.exp() * (before - after)
    return terms.nan_to_num(nan=0.0).sum(-1)
