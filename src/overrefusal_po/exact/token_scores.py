"""Log-probs of labels and TRL's metrics from hidden states, in tiles that stay in a CPU's cache.

    head = own_head(model, expected)     # None: TRL's own head stays
    output = head(model, hidden, labels, None)    # what TRL's fused head returns, (1, S) each

TRL's fused head computes tiles of 32,768 columns. On a GPU one kernel folds such a tile; on a CPU
each operation on it goes through memory. A tile here has about as many logits as a core's cache
holds, so that all operations together cost a few percent of the product. Logits are kept for the
backward pass if they are few, else computed again. Metrics are sums over a tile that is in the
cache already.

Shapes: S scored tokens, H hidden, V vocabulary, C columns of a tile, K tiles. This module imports
torch at its top: import it inside a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module
from torch.nn.functional import linear

TILE = 1 << 18
"""Logits of a tile (ours): 1 MB in float32, the second cache of many cores."""

NARROWEST = 256
"""Columns of a tile at least: narrower products are slower."""

KEPT = 1 << 27
"""Logits that are kept for the backward pass, at most: 512 MB in float32."""

METRICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""Fields of TRL's `FusedCausalLMOutput` that `token_scores` computes besides `log_probs`."""


class OwnHead(NamedTuple):
    """In place of TRL's fused head: the class of its output, and the metrics that it was asked
    for."""

    output: type[Any]  # Any: TRL's class, known by its fields alone
    metrics: tuple[str, ...]

    def __call__(
        self, model: Module, hidden: Tensor, labels: Tensor, items: Tensor | int | None
    ) -> Any:
        """TRL's output with fields (1, S).

        Args:
            model: a causal language model.
            hidden: (S, H), of the positions that are scored.
            labels: (S,), none of them -100.
            items: what the loss is divided by; None for S.
        """
        weight = model.get_output_embeddings().weight  # type: ignore[operator]  # transformers'
        if hasattr(weight, "full_tensor"):  # sharded by FSDP 2
            weight = weight.full_tensor()
        found = token_scores(hidden, weight, labels, self.metrics)
        return self.output(
            loss=-found["log_probs"].sum() / (max(len(labels), 1) if items is None else items),
            label_mask=torch.ones_like(labels, dtype=torch.bool)[None],
            **{name: value[None] for name, value in found.items()},
        )


def own_head(model: Module, expected: Any) -> OwnHead | None:
    """The head that gives the fields of `expected`, an output of TRL's fused head.

    None if TRL's is faster (on a GPU), or if it has what this one does not: a bias, other fields.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]  # transformers'
    asked = {name for name, value in expected.items() if value is not None}
    asked -= {"loss", "log_probs", "label_mask"}
    if expected.log_probs.device.type != "cpu" or head.bias is not None or asked - set(METRICS):
        return None
    return OwnHead(type(expected), tuple(name for name in METRICS if name in asked))


def token_scores(
    hidden: Tensor, weight: Tensor, labels: Tensor, metrics: tuple[str, ...]
) -> dict[str, Tensor]:
    """{"log_probs": (S,), and each metric: (S,)}; only log-probs have a gradient.

    Args:
        hidden: (S, H), in the dtype of the model.
        weight: (V, H), of the output layer.
        labels: (S,), each in [0, V).
        metrics: names of METRICS.

    >>> found = token_scores(torch.eye(2), torch.eye(2), torch.tensor([0, 0]), ("is_top1",))
    >>> found["log_probs"]     # the logits of the first token are 1 and 0
    tensor([-0.3133, -1.3133])
    >>> found["is_top1"]
    tensor([ True, False])
    """
    keep = torch.is_grad_enabled() and len(labels) * len(weight) <= KEPT
    apply: Callable[..., tuple[Tensor, ...]] = TokenScores.apply  # torch gives it no types
    found = apply(hidden, weight, labels, metrics, keep)
    return dict(zip(("log_probs", *metrics), found, strict=True))


class TokenScores(torch.autograd.Function):
    """`token_scores` with a gradient for `hidden` and `weight`."""

    @staticmethod
    def forward(  # Any: torch's context
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        metrics: tuple[str, ...],
        keep: bool,
    ) -> tuple[Tensor, ...]:
        device = hidden.device.type
        cast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if cast else hidden.dtype
        tiles, ctx.kept = [], []
        for start, columns in split(weight, len(labels)):
            logits = product(hidden, columns, ctx.dtype)  # (S, C)
            tiles.append(fold(logits, labels - start, metrics))
            if keep:
                ctx.kept.append(logits)
        log_z, found = merge(tiles, len(weight), metrics)
        ctx.save_for_backward(hidden, weight, labels, log_z)
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # Any: as above
        hidden, weight, labels, log_z = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, []  # they are overwritten; another backward computes them again
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        # sums over tiles are in float32, whatever the inputs are
        of_hidden = torch.zeros(hidden.shape, device=hidden.device) if to_hidden else None
        of_weight = torch.empty(weight.shape, device=weight.device) if to_weight else None
        for at, (start, columns) in enumerate(split(weight, len(labels))):
            logits = kept[at] if kept else product(hidden, columns, ctx.dtype)
            of_logits = logits.sub_(log_z[:, None]).exp_().mul_(-grad[:, None])  # (S, C)
            rows, local = inside(labels - start, len(columns))
            of_logits[rows, local] += grad[rows]
            of_logits = of_logits.to(ctx.dtype).float()  # rounded as TRL does
            if of_hidden is not None:
                of_hidden.addmm_(of_logits, columns.to(ctx.dtype).float())
            if of_weight is not None:
                given = hidden.to(ctx.dtype).float()
                torch.mm(of_logits.t(), given, out=of_weight[start : start + len(columns)])
        return (
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            *(None, None, None),
        )


def split(weight: Tensor, tokens: int) -> Iterator[tuple[int, Tensor]]:
    """(first column, weights (C, H)) of each tile."""
    width = max(TILE // max(tokens, 1), NARROWEST)
    for start in range(0, len(weight), width):
        yield start, weight[start : start + width]


def product(hidden: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits (S, C) in float32, computed in `dtype`."""
    return linear(hidden.to(dtype), columns.to(dtype)).float()


def inside(local: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(the tokens, the columns) of the labels that lie in a tile; `local` (S,) counts from it."""
    rows = ((local >= 0) & (local < width)).nonzero()[:, 0]
    return rows, local[rows]


def fold(logits: Tensor, local: Tensor, metrics: tuple[str, ...]) -> dict[str, Tensor]:
    """Sums over the columns of a tile (S, C), (S,) each; labels (S,) count from its first column.

    `odds` are exp(logit - peak), `own` is the label's logit, 0 if it is in another tile, and each
    metric is what `merge` makes it from.
    """
    peak = logits.amax(-1)
    odds = (logits - peak[:, None]).exp_()
    rows, columns = inside(local, logits.shape[1])
    own = torch.zeros_like(peak)
    own[rows] = logits[rows, columns]
    tile = {"peak": peak, "odds": odds.sum(-1), "own": own}
    if "log_sum_sq_probs" in metrics:
        tile["log_sum_sq_probs"] = odds.square().sum(-1)
    if "entropy" in metrics:
        tile["entropy"] = odds.mul_(logits).sum(-1)
    if "mean_logits" in metrics:
        tile["mean_logits"] = logits.sum(-1)
    if "is_top1" in metrics:
        tile["is_top1"] = before_labels(logits, local, peak)
    return tile


def before_labels(logits: Tensor, local: Tensor, peak: Tensor) -> Tensor:
    """(S,): the highest logit of a tile's columns before the label; -inf without one.

    `argmax` takes the first of equal logits: a label that comes later is not the top one.
    """
    before = peak.where(local >= logits.shape[1], -math.inf)  # all columns come before the label
    rows, columns = inside(local, logits.shape[1])
    behind = torch.arange(logits.shape[1], device=logits.device) >= columns[:, None]
    before[rows] = logits[rows].masked_fill(behind, -math.inf).amax(-1)
    return before


def merge(
    tiles: list[dict[str, Tensor]], vocabulary: int, metrics: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(log of the sum of exp(logit), (log-probs, and each of `metrics`)), (S,) each."""
    every = {name: torch.stack([tile[name] for tile in tiles]) for name in tiles[0]}  # (K, S)
    peak, own = every["peak"].amax(0), every["own"].sum(0)
    shift = (every["peak"] - peak).exp()  # (K, S)
    odds = (every["odds"] * shift).sum(0)
    log_z = peak + odds.log()
    found = [own - log_z]
    for name in metrics:
        sums = every[name]
        if name == "entropy":
            found.append(log_z - (sums * shift).sum(0) / odds)
        elif name == "log_sum_sq_probs":
            found.append((sums * shift.square()).sum(0).log() - 2 * odds.log())
        elif name == "mean_logits":
            found.append(sums.sum(0) / vocabulary)
        else:  # nothing is more likely than the label, and nothing before it as likely
            found.append((own >= peak) & (own > sums.amax(0)))
    return log_z, tuple(found)
