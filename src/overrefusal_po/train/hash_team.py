"""The files of a checkpoint -> their hashes: each process of a training hashes some of them.

    team = HashTeam(accelerator, seconds=1800)      # in all processes
    team.work(lambda hashing: write_checkpoint_hashes(folder, hashing))

One process hashes a gigabyte in about a second, and a sharded checkpoint of 70 billion weights has
840 of them.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overrefusal_po.model.waits import gloo_group
from overrefusal_po.model.whole import Hashing, hashes_of
from overrefusal_po.run.os_faults import fault_words
from overrefusal_po.run.unscored import RunFailed

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

WRITER = re.compile(r"(?:^__|^rng_state_|zero_pp_rank_)(\d+)[_.]")
"""The rank in the names of the files that FSDP, transformers and DeepSpeed have each rank write."""

UNEVEN = 1.1
"""How much more than an even share a rank may hash of what it wrote itself."""


class Order(NamedTuple):
    """What the first process asks of all: the files (name: bytes) of a folder, to be hashed.

    `sign` is a file that it has just made there: who sees it sees the same folder.
    """

    folder: str
    sizes: dict[str, int]
    sign: str


class HashTeam:
    """The processes of a training that hash together; all make one at the same time.

    `seconds`: how long a process waits for the others.
    """

    def __init__(self, state: PartialState | Accelerator, seconds: float) -> None:
        self.rank, self.processes = state.process_index, state.num_processes
        self.group = gloo_group(self.processes, seconds)

    def work(self, do: Callable[[Hashing], None]) -> None:
        """Calls `do` in the first process, with a function that has all of them hash. All call this
        together, and it returns when `do` is done.

        With several processes, an OSError or ValueError becomes a RunFailed with the same words in
        all of them.
        """
        if self.processes == 1:
            do(hashes_of)
            return
        said: str | None = None
        if self.rank == 0:
            try:
                do(self.hashes)
            except (OSError, ValueError, RunFailed) as error:
                said = fault_words(error) or str(error)
            self.gather(said)
        else:
            while isinstance(order := self.gather(None)[0], Order):
                self.answers(order)
            said = order
        if said is not None:
            raise RunFailed(said)

    def hashes(self, folder: Path, names: Collection[str]) -> dict[str, str]:
        """`hashes_of` by all processes; the first one calls it."""
        sizes = {name: (folder / name).stat().st_size for name in names}
        with signed(folder) as sign:
            order = Order(str(folder), sizes, sign)
            self.gather(order)
            answers = self.answers(order)
        for _, fault in answers:
            if fault is not None:
                raise RunFailed(fault)
        found = {name: digest for part, _ in answers for name, digest in part.items()}
        return {name: found[name] for name in names}

    def answers(self, order: Order) -> list[tuple[dict[str, str], str | None]]:
        """Hashes this process's part; (hashes, fault) of each process."""
        mine = shares(order.sizes, self.gather(visible(order)))[self.rank]
        try:
            answer = hashes_of(Path(order.folder), mine), None
        except (OSError, RuntimeError) as error:  # the second: no thread can be started
            return self.gather(({}, fault_words(error) or str(error)))
        return self.gather(answer)

    # Any: an order, the names that are seen, hashes with a fault, or the end
    def gather(self, mine: object) -> list[Any]:
        """What each process gives, by rank."""
        from torch import distributed

        found: list[Any] = [None] * self.processes
        distributed.all_gather_object(found, mine, group=self.group)
        return found


@contextlib.contextmanager
def signed(folder: Path) -> Iterator[str]:
    """Within, `folder` holds a file of this name, which no other folder has."""
    file = folder / f".hashed-{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


def visible(order: Order) -> set[str]:
    """The files of an order that this process sees, at their full size."""
    folder, seen = Path(order.folder), set()
    with contextlib.suppress(OSError):
        (folder / order.sign).stat()  # a folder of the same name on another machine has none
        for name, size in order.sizes.items():
            with contextlib.suppress(OSError):
                if (folder / name).stat().st_size == size:
                    seen.add(name)
    return seen


def shares(sizes: Mapping[str, int], seen: Sequence[Collection[str]]) -> list[list[str]]:
    """The names of the files that each process hashes. All processes get the same.

    A rank takes what it wrote itself, which its machine may still hold in memory, up to about an
    even share. The rest goes, the largest first, to the one that has least to do.

    Args:
        sizes: {name: bytes}.
        seen: the names that each process sees. What nobody sees goes to the first.
    """
    parts: list[list[str]] = [[] for _ in seen]
    loads = [0] * len(seen)
    even = UNEVEN * max(sum(sizes.values()) / len(seen), *sizes.values(), 0)
    rest = []
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        found = WRITER.search(name.rpartition("/")[2])
        writer = int(found[1]) if found else len(seen)
        if writer < len(seen) and name in seen[writer] and loads[writer] + size <= even:
            parts[writer].append(name)
            loads[writer] += size
        else:
            rest.append(name)
    for name in rest:
        able = [rank for rank, names in enumerate(seen) if name in names] or [0]
        rank = min(able, key=loads.__getitem__)
        parts[rank].append(name)
        loads[rank] += sizes[name]
    return parts
