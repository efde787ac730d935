"""Numbers that are NaN or infinite are an error, exit code 1, wherever a model is used.

check_finite(model, "my/model")            # NotFiniteError names the first weight
watch = FiniteLogits("my/model")
model.generate(..., logits_processor=[watch])
watch.check()                              # NotFiniteError
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from overrefusal_po.exact.own_part import own_part

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class NotFiniteError(FloatingPointError):
    """A loss, a gradient, a weight or a logit is NaN or infinite."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are finite.

    A finite norm proves it, and a CPU computes that of squares fifteen times as fast as the largest
    size. Squares of finite values may overflow: then the largest size decides.
    """
    import torch

    local = [own_part(t) for t in tensors]
    # on the meta device stands what another process loads
    filled = [t.detach() for t in local if t.numel() and t.is_floating_point() and not t.is_meta]
    norms = (torch.nn.utils.get_total_norm(filled, norm_type=kind) for kind in (2.0, math.inf))
    return any(bool(torch.isfinite(norm)) for norm in norms)


def check_finite(model: Module, place: str) -> None:
    """Raises NotFiniteError if a weight of `model` is NaN or infinite; names the first one."""
    weights = readable_weights(model)
    if all_finite(weights.values()):
        return
    bad = [name for name, weight in weights.items() if not all_finite([weight])]
    raise NotFiniteError(
        f"{place}: {len(bad)} of {len(weights)} weights hold NaN or infinity (the first: "
        f"{bad[0] if bad else 'unknown'}). Train it again, or take another model."
    )


def readable_weights(model: Module) -> dict[str, Tensor]:
    """The parameters of a model whose values are numbers of their own.

    4-bit weights stored in bfloat16 (for FSDP) are bits of others: any of them may read as NaN.
    """
    quantised = getattr(model, "is_quantized", False)
    return {n: w for n, w in model.named_parameters() if w.requires_grad or not quantised}


class FiniteLogits:
    """A logits processor that changes nothing and notes logits that no text can be drawn from.

    It costs one pass over the logits of a step. The device is waited for in `check` alone.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores (B, V) unchanged."""
        # -inf forbids a token, which is allowed unless it forbids all of them
        highest = scores.amax(-1)  # (B,): NaN if one of its row is
        bad = ~highest.isfinite().all()
        self.bad = bad if self.bad is None else self.bad | bad
        return scores

    def check(self) -> None:
        """Raises NotFiniteError if logits were NaN or infinite."""
        if self.bad is not None and bool(self.bad):
            raise NotFiniteError(
                f"{self.name}: its logits are NaN or infinite, so its texts mean nothing. Load it "
                "in the number format that it was trained in (model.dtype: bfloat16 or float32)."
            )
