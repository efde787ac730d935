"""The weights of linear layers in the order in which a CPU multiplies them, while texts are made.

    with packed_weights(model, steps=432):
        model.generate(...)

oneDNN, which multiplies for torch on CPUs, wants a weight in an order of its own. torch puts it
into that order at every product, which for the few rows of a decoding step takes about as long as
the product. In 16 bits the products are equal to the last bit; in 32 bits they differ by rounding,
since torch multiplies with another library there.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

WORTH = 150
"""Steps of decoding that save about as much as packing and unpacking cost."""

LEAST = 2**14
"""Numbers that a weight must have; the small ones of adapters gain nothing."""

ROWS = 32
"""Rows (a batch at a decoding step) for which oneDNN chooses the order; others work, too."""


class Packed(NamedTuple):
    """A layer, its weight (out, in) in oneDNN's order, and whether the layer's own is away."""

    layer: Linear
    weight: Tensor
    moved: bool


@contextlib.contextmanager
def packed_weights(model: Module, *, steps: int) -> Iterator[None]:
    """Within, the linear layers of `model` multiply by packed weights where that can be done: on
    CPUs, weights of 32 bits or bfloat16 that no other class and no hook of others computes.

    The layer's own weight is empty meanwhile, so nothing takes twice the memory; one that another
    module reads too (a tied embedding) stays. Afterwards all are what they were, to the last bit.

    Args:
        steps: forward passes that will be made; few are not worth the packing.
    """
    import torch

    packed: list[Packed] = []
    try:
        if steps >= WORTH:
            with torch.inference_mode(False):  # a caller's mode would mark the weights for good
                pack(model, packed)
        yield
    finally:
        with torch.inference_mode(False):
            for one in packed:
                unpack(one)


def pack(model: Module, packed: list[Packed]) -> None:
    """Packs what can be packed; each layer is noted in `packed` before the next one is touched."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return
    owners = Counter(id(w) for one in model.modules() for w in one.parameters(recurse=False))
    for layer in model.modules():
        if type(layer) is torch.nn.Linear and packable(layer):
            try:
                weight = reordered(layer.weight)
            except (RuntimeError, AttributeError):  # this machine, or this torch, cannot
                return
            alone = owners[id(layer.weight)] == 1
            packed.append(Packed(layer, weight, alone))
            vars(layer)["forward"] = Product(layer, weight)
            if alone:
                layer.weight.data = layer.weight.new_empty(0)


def packable(layer: Linear) -> bool:
    """Whether a layer holds its own plain weight, and torch's own `forward` reads it."""
    import torch

    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.layout == torch.strided
        and type(weight) is torch.nn.Parameter
        and weight.numel() >= LEAST
        and "forward" not in vars(layer)
        and not hasattr(layer, "parametrizations")
    )


def unpack(one: Packed) -> None:
    """Gives a layer its own weight back."""
    del vars(one.layer)["forward"]
    if one.moved:
        one.layer.weight.data = one.weight.to_dense()


class Product:
    """x -> x W^T + b of a layer whose weight is packed, as its `forward`."""

    def __init__(self, layer: Linear, weight: Tensor) -> None:
        self.layer, self.weight = layer, weight

    def __call__(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in)."""
        import torch

        bias = self.layer.bias
        plain = torch.is_grad_enabled() or x.dtype != self.weight.dtype or not x.numel()
        if plain or x.device.type != "cpu":
            return torch.nn.functional.linear(x, self.weight.to_dense(), bias)
        return product(x, self.weight, bias)


# torch has no public names for these; its compiler uses them when weights are frozen


def reordered(weight: Tensor) -> Tensor:
    """A weight (out, in) in oneDNN's order. RuntimeError if it does not do that here."""
    import torch

    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return found


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN, with a weight in its order."""
    import torch

    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
