"""What this process holds of a weight that several processes share.

own_part(weight)        # under ZeRO-3 and FSDP 2 a part, else the weight
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def own_part(weight: Tensor) -> Tensor:
    """A part under ZeRO-3 (which leaves an empty tensor with its shard beside it) and FSDP 2, else
    all of it.

    ZeRO-3 pads the last parts with numbers of no meaning, which are left out.
    """
    shard: Tensor | None = getattr(weight, "ds_tensor", None)
    if shard is not None:
        import torch

        begin = torch.distributed.get_rank() * shard.numel()
        return shard[: max(0, weight.ds_numel - begin)]  # type: ignore[attr-defined]
    if not hasattr(weight, "to_local"):
        return weight
    part: Tensor = weight.to_local()
    return part
