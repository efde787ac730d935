"""Our scores of tokens are those of full logits, and of TRL's fused head, with their gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from overrefusal_po.exact.token_scores import METRICS, TILE, TokenScores, split, token_scores

TOKENS, VOCABULARY, HIDDEN = 700, 1000, 16
"""Tiles of 374 columns: three, the last one narrower."""


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, weight, labels, the gradient of log-probs)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(size, HIDDEN, generator=generator).to(dtype).requires_grad_()
        for size in (TOKENS, VOCABULARY)
    )
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    labels[:300] = (hidden @ weight.T).argmax(-1)[:300]
    return hidden, weight, labels, torch.randn(TOKENS, generator=generator)


def gradients(log_probs: Tensor, grad: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(log_probs, of, grad, retain_graph=True)


def test_these_inputs_have_several_tiles() -> None:
    widths = [len(columns) for _, columns in split(inputs()[1], TOKENS)]
    assert widths == [TILE // TOKENS] * 2 + [VOCABULARY - 2 * (TILE // TOKENS)]


@pytest.mark.parametrize("keep", [True, False])
def test_they_are_those_of_full_logits(keep: bool) -> None:
    hidden, weight, labels, grad = inputs()
    found = TokenScores.apply(hidden, weight, labels, METRICS, keep)
    wide, wide_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = wide @ wide_weight.T
    every = logits.log_softmax(-1)
    log_probs = every.gather(1, labels[:, None])[:, 0]
    expected = (
        log_probs,
        -(every.exp() * every).sum(-1),
        (2 * every).logsumexp(-1),
        logits.mean(-1),
    )
    for ours, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert found[4].equal(logits.argmax(-1) == labels) and 300 <= found[4].sum() < TOKENS
    theirs = gradients(log_probs, grad.double(), wide, wide_weight)
    for _ in range(2):  # logits that were kept are gone in the second backward pass
        for one, other in zip(gradients(found[0], grad, hidden, weight), theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_those_of_trls_head(dtype: torch.dtype, cast: torch.dtype | None) -> None:
    hidden, weight, labels, grad = inputs(dtype)
    outputs = ("log_probs", *METRICS)
    with torch.autocast("cpu", dtype=cast, enabled=cast is not None):
        found = token_scores(hidden, weight, labels, METRICS)
        theirs = ChunkedLogProbFunction.apply(
            hidden, weight, None, labels, 1.0, 32768, None, 1.0, outputs
        )
    for name, other in zip(outputs, theirs, strict=True):
        torch.testing.assert_close(found[name], other, rtol=1e-5, atol=1e-5)
    ours = gradients(found["log_probs"], grad, hidden, weight)
    allowed = 1e-5 if dtype == torch.float32 and cast is None else 2e-2  # a step of bfloat16
    for one, other in zip(ours, gradients(theirs[0], grad, hidden, weight), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=allowed, atol=allowed)


def test_the_first_of_equal_logits_is_the_top_one() -> None:
    """Equal logits in one tile, and in two."""
    width = TILE // TOKENS
    weight = torch.zeros(VOCABULARY, 1)
    weight[[5, 7, width + 2]] = 1
    labels = torch.tensor([5, 7, width + 2, 6] * (TOKENS // 4))
    (found,) = (token_scores(torch.ones(TOKENS, 1), weight, labels, ("is_top1",))["is_top1"],)
    assert found[:4].tolist() == [True, False, False, False]


def test_a_frozen_weight_has_no_gradient_and_no_token_is_allowed() -> None:
    hidden, weight, labels, grad = inputs()
    found = token_scores(hidden, weight.detach(), labels, ())
    found["log_probs"].backward(grad)
    assert hidden.grad is not None and weight.grad is None
    none: dict[str, Any] = token_scores(hidden[:0], weight, labels[:0], METRICS)
    none["log_probs"].sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    assert all(value.shape == (0,) for value in none.values())


def test_values_that_are_not_finite_stay_visible() -> None:
    hidden, weight, labels, _ = inputs()
    broken = hidden.detach().clone()
    broken[3, 0] = math.inf
    found = token_scores(broken, weight, labels, ())["log_probs"]
    assert not found[3].isfinite() and found[:3].isfinite().all()
