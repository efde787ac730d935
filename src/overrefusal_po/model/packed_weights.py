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
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

from overrefusal_po.model.hardware import free_memory

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

WORTH = 150
"""Steps of decoding that save about as much as packing costs."""

LEAST = 2**14
"""Numbers that a weight must have; the small ones of adapters gain nothing."""

ROWS = 32
"""Rows (a batch at a decoding step) for which oneDNN chooses the order; others work, too."""

ROOM = 2
"""How often the packed weights must fit into the free memory: texts need some, too."""


@contextlib.contextmanager
def packed_weights(model: Module, *, steps: int) -> Iterator[None]:
    """Within, the linear layers of `model` multiply by packed weights where that can be done: on
    CPUs, weights of 32 bits or bfloat16, layers whose `forward` is torch's own, and only if there
    is room for a second copy of them. The layers' own weights stay as they are.

    Args:
        steps: forward passes that will be made; few are not worth the packing.
    """
    import torch

    packed: list[Linear] = []
    try:
        if steps >= WORTH and torch.backends.mkldnn.is_available():
            layers = [one for one in model.modules() if packable(one)]
            if ROOM * sum(layer.weight.nbytes for layer in layers) <= free_memory():
                pack(layers, packed)
        yield
    finally:
        for layer in packed:
            del vars(layer)["forward"]


def pack(layers: list[Linear], packed: list[Linear]) -> None:
    """Packs layers; each one is noted in `packed` before the next one is touched."""
    for layer in layers:
        try:
            weight = reordered(layer.weight)
        except (RuntimeError, AttributeError):  # this machine, or this torch, cannot
            return
        packed.append(layer)
        vars(layer)["forward"] = Product(layer, weight)


def packable(layer: Module) -> TypeGuard[Linear]:
    """Whether a layer holds its own plain weight, and torch's own `forward` reads it."""
    import torch

    return (
        type(layer) is torch.nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in (torch.float32, torch.bfloat16)
        and layer.weight.layout == torch.strided
        and type(layer.weight) is torch.nn.Parameter
        and layer.weight.numel() >= LEAST
        and "forward" not in vars(layer)
        and not hasattr(layer, "parametrizations")
    )


class Product:
    """x -> x W^T + b of a layer whose weight is packed, as its `forward`."""

    def __init__(self, layer: Linear, weight: Tensor) -> None:
        self.layer, self.weight = layer, weight

    def __call__(self, x: Tensor) -> Tensor:
        """(..., out) of (..., in)."""
        import torch

        weight, bias = self.layer.weight, self.layer.bias
        # the packed product has no gradient
        other = torch.is_grad_enabled() or x.dtype != weight.dtype or x.device != weight.device
        if other or not x.numel():
            return torch.nn.functional.linear(x, weight, bias)
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
