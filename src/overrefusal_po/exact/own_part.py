"""What this process holds of a weight that several processes share.

own_part(weight)        # under ZeRO-3 and FSDP 2 a part, else the weight
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def own_part(weight: Tensor) -> Tensor:
    """A part under ZeRO-3 (which leaves an empty tensor with its shard beside it) and FSDP 2, else
    all of it."""
    local: Tensor = getattr(weight, "ds_tensor", weight)
    if not hasattr(local, "to_local"):
        return local
    part: Tensor = local.to_local()
    return part
