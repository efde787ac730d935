"""Changes of several clients -> one: mean by counts, median, trimmed mean, Krum.

    mean([a, b], counts=[1, 3])                 # exact, ranks add up
    by_entry([a, b, c], median_of, rank=32)     # (change, the share that rank 32 leaves out)
    krum([a, b, c, d, e])                       # the place of the one that is nearest to the others

Each client's change is W += B A. The rules work on B A itself. To average the As and the Bs apart
gives another matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from overrefusal_po.model.remedy import Deltas
from overrefusal_po.remedies._adapters import inner, joined, matrix

if TYPE_CHECKING:
    from torch import Tensor

FAULTY = 1
"""Clients that a robust rule expects to be hostile or broken."""

ROUNDS = 6
"""Power iterations of the low-rank factors: more than enough for entries that fall off slowly."""


def mean(changes: Sequence[Deltas], counts: Sequence[float]) -> Deltas:
    """The mean, each change weighted by its count: of 1 and 4 with counts 1 and 3, it is 3.25."""
    total = sum(counts)
    return joined([(n / total, change) for n, change in zip(counts, changes, strict=True)])


def median_of(values: Tensor) -> Tensor:
    """The median over the first dimension; of an even number the mean of the middle two."""
    ordered = values.sort(0).values
    middle = len(values) // 2
    upper = ordered[middle]
    return upper if len(values) % 2 else (ordered[middle - 1] + upper) / 2


def trimmed_of(values: Tensor) -> Tensor:
    """The mean over the first dimension without its least and its greatest value."""
    return values.sort(0).values[FAULTY:-FAULTY].mean(0)


def by_entry(
    changes: Sequence[Deltas], rule: Callable[[Tensor], Tensor], rank: int
) -> tuple[Deltas, float]:
    """A rule applied to each entry of the changes' matrices, module by module, as factors of a
    rank. Beside it the share of the result's norm that the factors leave out.

    A client without a module has zeros there. All clients' matrices of one module are in memory at
    a time.
    """
    import torch

    down, up = {}, {}
    left, whole = 0.0, 0.0
    for path in sorted({path for change in changes for path in change.down}):
        have = [matrix(change, path) for change in changes if path in change.down]
        zeros = [torch.zeros_like(have[0])] * (len(changes) - len(have))
        wanted = rule(torch.stack([*have, *zeros]))
        up[path], down[path] = factors(wanted, rank)
        left += float((wanted - up[path] @ down[path]).square().sum())
        whole += float(wanted.square().sum())
    return Deltas(down, up), (left / whole) ** 0.5 if whole else 0.0


def factors(wanted: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (outputs, rank) and A (rank, inputs) whose product is near a matrix; the same every
    time."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # svd_lowrank begins with random vectors
        u, s, v = torch.svd_lowrank(wanted, q=min(rank, *wanted.shape), niter=ROUNDS)
    return u * s, v.T.contiguous()


def krum(changes: Sequence[Deltas]) -> int:
    """The place of the change whose squared distances to its n - f - 2 nearest others have the
    least sum (Blanchard et al. 2017, arXiv 1703.02757), f hostile ones expected.

    ValueError with fewer than 2 f + 3 changes: the rule protects nobody then.
    """
    n = len(changes)
    if n < 2 * FAULTY + 3:
        raise ValueError(
            f"rule is krum and there are {n} adapters; krum needs at least {2 * FAULTY + 3}. Give "
            "more, or take rule: median."
        )
    products = [[inner(a, b) for b in changes] for a in changes]
    sums = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        apart = sorted(products[i][i] + products[j][j] - 2 * products[i][j] for j in others)
        sums.append(sum(apart[: n - FAULTY - 2]))
    return sums.index(min(sums))
