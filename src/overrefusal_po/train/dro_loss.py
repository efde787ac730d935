"""DRO's directions and loss (arXiv 2401.18018, sections 3 and 4). Pure tensors, no model.

    found = directions(states, answered, harmless, dimensions=4)
    loss = dro_terms(moved, harmless, found).loss(harm_weight=0.01, rest_weight=0.001)

Both probes are linear, and the loss reads differences of their values. So neither their intercepts
nor the mean state enter it.

Shapes: N states, B rows of a batch, D width of a state, m dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

PENALTY = 1.0
"""C of the probes: the weight of one row against half the squared norm of the coefficients (ours).
The released code stops early instead."""


class Directions(NamedTuple):
    """Where the answers and the harm of prompts show in the states.

    Attributes:
        basis: (D, m) orthonormal columns: the first principal components of the states.
        answers: (m,) coefficients of the probe that says how probably a prompt is answered.
        harmless: (m,) coefficients of the probe that says how probably a prompt is harmless.
        fits: the share of states for which each probe says the more frequent side.
        kept: the share of the states' variance within the basis.
    """

    basis: Tensor
    answers: Tensor
    harmless: Tensor
    fits: tuple[float, float]
    kept: float


class Terms(NamedTuple):
    """The three terms of the loss, each a number: how far answers and harm are from their targets,
    and how far the states moved outside of the basis."""

    answers: Tensor
    harm: Tensor
    rest: Tensor

    def loss(self, *, harm_weight: float, rest_weight: float) -> Tensor:
        """The weighted sum; the term of the answers has weight 1."""
        return self.answers + harm_weight * self.harm + rest_weight * self.rest


def directions(
    states: Tensor, answered: Tensor, harmless: Tensor, *, dimensions: int
) -> Directions:
    """The directions of states (N, D).

    Args:
        states: the last hidden states at the last tokens of rendered prompts.
        answered: (N,) shares of answers that do not refuse; NaN if no answer was scored.
        harmless: (N,) 1 for harmless prompts, 0 for harmful ones.
        dimensions: m, less than N and D.

    Raises ValueError if there are too few states or too narrow ones.
    """
    import torch

    states = states.double().cpu()
    if dimensions >= min(states.shape):
        raise ValueError(
            f"trainer.dimensions is {dimensions}, and there are {len(states)} states of width "
            f"{states.shape[1]}. Give fewer dimensions than both, or more prompts."
        )
    centred = states - states.mean(0)
    _, sizes, rows = torch.linalg.svd(centred, full_matrices=False)
    basis = rows[:dimensions].T.contiguous()  # (D, m)
    inside = centred @ basis  # (N, m)
    scored = answered.isfinite()
    probes = [
        probe(inside[scored], answered[scored].double()),
        probe(inside, harmless.double().cpu()),
    ]
    return Directions(
        basis.float(),
        probes[0].weights.float(),
        probes[1].weights.float(),
        (probes[0].fits, probes[1].fits),
        float(sizes[:dimensions].square().sum() / sizes.square().sum()),
    )


class Probe(NamedTuple):
    """A logistic regression: (m,) coefficients, and the share of rows whose side it says."""

    weights: Tensor
    fits: float


def probe(inside: Tensor, target: Tensor) -> Probe:
    """A logistic regression of shares (N,) on coordinates (N, m).

    On standardised coordinates it minimises |w|^2 / 2 + C sum BCE(w.x + b, target). The
    coefficients are those of the coordinates as they are.
    """
    import numpy as np
    import torch
    from scipy.optimize import minimize

    scale = inside.std(0, unbiased=False).clamp(min=1e-12)
    x, y = (inside / scale).numpy(), target.numpy()

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w[:-1] + w[-1]
        value = w[:-1] @ w[:-1] / 2 + PENALTY * (np.logaddexp(0, z) - y * z).sum()
        slope = PENALTY * (np.exp(-np.logaddexp(0, -z)) - y)
        return float(value), np.append(w[:-1] + x.T @ slope, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
    fits = float(((x @ found[:-1] + found[-1] > 0) == (y > 0.5)).mean())
    return Probe(torch.from_numpy(found[:-1]) / scale, fits)


def dro_terms(moved: Tensor, harmless: Tensor, found: Directions) -> Terms:
    """The terms of a batch; each is a mean over its rows.

    Args:
        moved: (B, D) how far the states are from those under the text.
        harmless: (B,) the target: 1 for harmless prompts, 0 for harmful ones.
        found: the directions, on the device of `moved`.

    The released code completes the basis and takes the mean square of the other D - m coordinates.
    What is left of `moved` without its part in the basis has the same square.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    inside = moved @ found.basis  # (B, m)
    outside = moved - inside @ found.basis.T  # (B, D)
    others = moved.shape[1] - inside.shape[1]
    return Terms(
        bce(inside @ found.answers, harmless),
        bce(inside @ found.harmless, harmless),
        outside.square().sum(1).mean() / others,
    )
