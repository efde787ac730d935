"""Attention of many pairs laid out one behind the other, without a token of padding and with causal
kernels.

    mask = PairMask.of([Pair(first=5, tail=1, common=2)], device)
    # in place of an attention mask
    scaled_dot_product_attention(query, key, value, attn_mask=mask)    # (1, heads, 6, size) each

A pair is the tokens of its first side, then those of the second one behind their `common`
beginning. Linear layers see one long row; attention is computed pair by pair: the first side
causally, then the tail over the common beginning and itself.

A model hands its attention mask down to `scaled_dot_product_attention` as it is where it has four
dimensions, also when gradient checkpointing calls a layer again. PyTorch asks a tensor of a class
of its own what to do there (as `torch.nn.attention.bias.CausalBias` uses it), so the mask brings
its attention with it. What else is done with it is an error: no other attention can take it for
numbers.

This module imports torch at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HARMLESS = ("__get__", "is_floating_point")
"""What may be asked of a mask beside moving it: shape, dtype, device, and by FSDP whether it is to
be cast."""


class Pair(NamedTuple):
    """Tokens of the first side, of the second behind the common beginning, and of that
    beginning."""

    first: int
    tail: int
    common: int


class PairMask(Tensor):
    """Stands for the attention mask (1, 1, 1, 1) of one row with all pairs in it."""

    pairs: list[Pair]
    tails: list[Tensor]
    """(tail, common + tail) of each pair: True where a token of the tail may look."""

    @staticmethod
    def of(pairs: Sequence[Pair], device: Any) -> PairMask:
        """The mask of pairs in the order in which they lie in the row."""
        mask: PairMask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device).as_subclass(
            PairMask
        )
        mask.pairs = list(pairs)
        mask.tails = [
            torch.ones(p.tail, p.common + p.tail, dtype=torch.bool, device=device).tril(p.common)
            for p in pairs
        ]
        return mask

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name not in HARMLESS and name != "to":
            raise ValueError(
                f"The model's attention calls {name} on the mask of shared prefixes, which only "
                "scaled_dot_product_attention can read. Set shared_prefix to false to train on "
                "plain rows."
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        return PairMask.of(args[0].pairs, found.device) if name == "to" else found


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: PairMask, **options: Any
) -> Tensor:
    """(1, heads, tokens, size): what `scaled_dot_product_attention` would give with the whole row's
    mask."""
    options = {**options, "is_causal": False}
    sizes = [size for pair in attn_mask.pairs for size in (pair.first, pair.tail)]
    parts = list(zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True))
    found = []
    for pair, mask, first, tail in zip(
        attn_mask.pairs, attn_mask.tails, parts[::2], parts[1::2], strict=True
    ):
        found.append(scaled_dot_product_attention(*first, **{**options, "is_causal": True}))
        if pair.tail:
            keys, values = (
                torch.cat([a[:, :, : pair.common], b], dim=2)
                for a, b in zip(first[1:], tail[1:], strict=True)
            )
            found.append(
                scaled_dot_product_attention(tail[0], keys, values, attn_mask=mask, **options)
            )
    return torch.cat(found, dim=2)
