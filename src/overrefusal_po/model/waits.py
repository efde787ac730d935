"""How long launched processes wait for each other: `trainer.ddp_timeout` seconds, in every group.

state = PartialState(timeout=limit_waits(30))
group = gloo_group(2, 30)        # for what needs no GPU
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def limit_waits(seconds: float) -> timedelta:
    """`seconds` as a timedelta. From now on a group of processes waits that long in a call, unless
    its maker says otherwise.

    torch passes no timeout on from one group to the next: without this a group waits 30 minutes,
    and 10 with NCCL. DeepSpeed computes in a group of its own, which it makes without a timeout.
    """
    import torch

    limit = timedelta(seconds=seconds)
    if torch.distributed.is_available():
        from torch.distributed import distributed_c10d

        vars(distributed_c10d).update(default_pg_timeout=limit, default_pg_nccl_timeout=limit)
    return limit


def gloo_group(processes: int, seconds: float) -> ProcessGroup | None:
    """A group of all processes over gloo, so that no GPU has to wait for it; None if there is one
    process. A call waits at most `seconds`. All processes make it together."""
    if processes == 1:
        return None
    from torch import distributed

    found: ProcessGroup = distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    return found
