"""Mean states of prompts -> directions in the residual stream, and the prompts that they are of.

    over_refused(subject, benign)              # those with a refusal score above 0
    answered(subject, ordinary)                # those with one below 0
    unit(tensor([2.0, -3.0]))                  # (.555, -.832)
    without(w, r, 1.0)                         # w, orthogonal to r
    divergence(before, after)                  # (N,) nats

The refusal score is log P - log(1 - P), in nats, P the probability that the response opens as the
model's own refusals do. All is float32 on the CPU, whatever the model is loaded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overrefusal_po.model.ablation import unit as unit
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import Subject

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 16
"""Of fewer prompts no mean state is made."""


def over_refused(subject: Subject, benign: Sequence[Prompt]) -> list[Prompt]:
    """The benign prompts with a refusal score above 0; all of them if those are fewer than
    `FEWEST`."""
    kept = subject.opener_log_odds(benign) > 0
    found = [prompt for prompt, keep in zip(benign, kept.tolist(), strict=True) if keep]
    return found if len(found) >= FEWEST else list(benign)


def answered(subject: Subject, ordinary: Sequence[Prompt]) -> list[Prompt]:
    """The ordinary prompts with a refusal score below 0, at least the `FEWEST` of the lowest.

    A model that refuses nearly everything refuses ordinary prompts too. Their mean state would be
    one of refusal, and the step between it and that of harmful prompts mostly noise.
    """
    scores = subject.opener_log_odds(ordinary).tolist()
    lowest = sorted(range(len(scores)), key=lambda at: (scores[at], at))
    number = max(FEWEST, sum(score < 0 for score in scores))
    return [ordinary[at] for at in sorted(lowest[:number])]


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
