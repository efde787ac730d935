"""A launched process that died or hangs -> a sentence in the others, and exit code 1.

    with lost_ranks_named(processes=8, seconds=1800):
        trainer.train()

Within `trainer.ddp_timeout` seconds gloo and NCCL end a wait for a process that does not answer, in
every group of processes (`model/waits.py`). A process that died closes its connections at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overrefusal_po.run.unscored import RunFailed

SIGNS = (
    *("gloo", "nccl", "connection closed by peer", "connection reset by peer"),
    *("timed out wait", "pair closure"),
)
"""Words of the messages of torch, gloo and NCCL (torch 2.13), in lower case."""

SETUP = ("invalid usage", "invalid argument")
"""Words of NCCL's faults of a set-up: one GPU for two processes, for example. Nobody is lost."""

SHOWN = 200
"""Characters of the message of torch in the sentence."""


@contextmanager
def lost_ranks_named(*, processes: int, seconds: float) -> Iterator[None]:
    """Within, the fault of a connection to another process becomes RunFailed with a sentence.

    `seconds`: how long a process waits for the others.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not is_lost(error):
            raise
        raise RunFailed(
            "another process of this training has ended, or did not answer within "
            f"{seconds:g} seconds (trainer.ddp_timeout). What it said, or a kill for memory in the "
            "system's log, tells why. If the first process was still at work for the others (the "
            "data, a look of select, hold, a push), set a longer trainer.ddp_timeout. The same "
            "command goes on from the last checkpoint. "
            f"(torch: {' '.join(str(error).split())[:SHOWN]})"
        ) from error


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is about the connection to another process."""
    from torch import distributed

    kinds = (distributed.DistNetworkError, distributed.DistBackendError)
    said = str(error).lower()
    if any(sign in said for sign in SETUP):
        return False
    return isinstance(error, kinds) or any(sign in said for sign in SIGNS)
