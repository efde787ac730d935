"""Attention of many pairs in one row: no token of padding, and causal kernels.

    mask = PairMask.of([Pair(first=5, tail=1, common=2)], device)
    # in place of an attention mask; query, key and value are (1, heads, 6, size)
    scaled_dot_product_attention(query, key, value, attn_mask=mask)

The row holds one pair after the other. A pair is all tokens of its first side, then the tail: the
tokens of the second side behind the beginning that both have in common. Linear layers see one long
row. Attention is computed pair by pair: the first side causally, then the tail over the common
beginning and over itself.

A model hands a mask of four dimensions to `scaled_dot_product_attention` unchanged. It does so
again when gradient checkpointing repeats a layer. PyTorch asks a tensor subclass what to do there,
as `torch.nn.attention.bias.CausalBias` shows. So the mask brings its own attention with it. Every
other use of the mask is an error: no other attention can read it as numbers.

Shapes: P pairs, N tokens of the whole row. This module imports torch at its top: import it inside a
function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

READ_ONLY_CALLS = ("__get__", "is_floating_point")
"""What a model may ask of a mask: shape, dtype and device. FSDP asks if it has to be cast."""


class Pair(NamedTuple):
    """Token counts: the first side, the second side's tail, and the beginning of both."""

    first: int
    tail: int
    common: int


class PairMask(Tensor):
    """A tensor (1, 1, 1, 1) in place of the attention mask (1, 1, N, N) of a row of pairs.

    >>> mask = PairMask.of([Pair(first=3, tail=2, common=1), Pair(2, 1, 2)], "cpu")
    >>> mask.shape
    torch.Size([1, 1, 1, 1])
    >>> mask.tails[0]   # two tokens of the tail; the common token and the tail itself
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """

    pairs: list[Pair]
    """In their order in the row."""
    tails: list[Tensor]
    """(tail, common + tail) of each pair: True if a token of the tail may see that token."""

    @staticmethod
    def of(pairs: Sequence[Pair], device: torch.device | str) -> PairMask:
        """The mask of pairs, given in their order in the row."""
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
        func: Callable[..., Any],  # Any: torch asks here for any of its functions
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The attention of the pairs, a moved mask, or a fact about the mask.

        Raises ValueError for any other function.
        """
        if func is scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name not in READ_ONLY_CALLS and name != "to":
            raise ValueError(
                f"The model's attention calls {name} on the mask of shared prefixes, which only "
                "scaled_dot_product_attention can read. Set shared_prefix to false to train on "
                "plain rows."
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        return PairMask.of(args[0].pairs, found.device) if name == "to" else found


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: PairMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(1, heads, N, size): what `scaled_dot_product_attention` gives with the mask (1, 1, N, N).

    Arguments are those of torch's function, in its order. `is_causal` is not read: the mask says
    what a token may see.

    >>> mask = PairMask.of([Pair(first=3, tail=1, common=2)], "cpu")
    >>> query = key = torch.zeros(1, 1, 4, 1)   # each token looks equally at all that it may see
    >>> value = torch.tensor([0.0, 2.0, 4.0, 7.0]).view(1, 1, 4, 1)
    >>> attend(query, key, value, mask).flatten()   # the last is the mean of 0, 2 and 7
    tensor([0., 1., 2., 3.])
    """
    attention = functools.partial(
        scaled_dot_product_attention, dropout_p=dropout_p, scale=scale, enable_gqa=enable_gqa
    )
    sizes = [size for pair in attn_mask.pairs for size in (pair.first, pair.tail)]  # 2P
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    found = []
    for at, (pair, mask) in enumerate(zip(attn_mask.pairs, attn_mask.tails, strict=True)):
        first, tail = 2 * at, 2 * at + 1
        # (1, heads, first, size)
        found.append(attention(queries[first], keys[first], values[first], is_causal=True))
        if pair.tail:
            # (1, heads, common + tail, size) each
            seen_keys = torch.cat([keys[first][:, :, : pair.common], keys[tail]], dim=2)
            seen_values = torch.cat([values[first][:, :, : pair.common], values[tail]], dim=2)
            # (1, heads, tail, size)
            found.append(attention(queries[tail], seen_keys, seen_values, attn_mask=mask))
    return torch.cat(found, dim=2)
