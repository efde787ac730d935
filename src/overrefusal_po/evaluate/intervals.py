"""Counts -> shares and differences with 95 % intervals, for outcomes that come in clusters.

    wilson_rate(9, 10)
    # Rate(value=0.9, low=0.596, high=0.982, n=10, unscored=0)
    clustered_rate([True, True, None], ["a", "a", "b"])
    # two outcomes of one question, and one unscored
    bootstrap(statistic, cluster_sums(rows), resamples=2000, seed=0)
    # for numbers that are no counts; `score_intervals` has the intervals of counts

Pure: numbers in, numbers out. Outcomes of one question (attacks on it, samples, seeds, several
models) are no independent evidence. They form a cluster, and clusters are weighed or redrawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ROUNDING = 1e-9
"""How far two equal shares may be apart: what .35 - .05 may be above .3."""

CONFIDENCE = 0.95
NAN_RESAMPLES_MAX = 0.05
"""Ours: if more resamples are nan and left out, the interval is one of luckier samples."""
BATCH_NUMBERS = 2_000_000
"""Floats that the bootstrap holds at a time (16 MB), so that a large benchmark fits in memory."""


class Rate(NamedTuple):
    """A share from 0 to 1 and its 95 % interval, None if `n` is 0. `unscored` outcomes are not in
    `n`."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


class Estimate(NamedTuple):
    """A number (a difference of two runs, say) and its 95 % interval; None if it is not known."""

    value: float | None
    low: float | None
    high: float | None


def wilson_rate(hits: int, n: int, unscored: int = 0, *, effective: float | None = None) -> Rate:
    """`hits` of `n` with Wilson's 95 % interval, as wide as that of `effective` independent
    outcomes (None: `n`)."""
    assert 0 <= hits <= n, f"{hits} hits of {n}"
    if n == 0:
        return Rate(None, None, None, 0, unscored)
    ends = wilson(hits / n, n if effective is None else effective)
    return Rate(hits / n, *ends, n, unscored)


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen among `n` > 0 independent outcomes."""
    from statsmodels.stats.proportion import proportion_confint

    value = min(1.0, max(0.0, value))
    low, high = proportion_confint(value * n, n, alpha=1 - CONFIDENCE, method="wilson")
    # 0 of 7 has low = 3e-17 by rounding: an interval holds its value
    return max(0.0, min(float(low), value)), min(1.0, max(float(high), value))


def effective_n(hits: Sequence[float], n: Sequence[float]) -> float:
    """How many independent outcomes the clusters are worth. Cluster i holds `hits[i]` of `n[i]`
    (outcomes, or their weights)."""
    rows = [(hit, size - hit) for hit, size in zip(hits, n, strict=True)]
    return effective_total(rows)


def effective_total(
    rows: Sequence[Sequence[float]], scores: Sequence[float] | None = None
) -> float:
    """How many independent outcomes the clusters are worth, if each outcome falls in one cell.

    A row holds the counts (or weights) of one cluster, cell by cell. The result is the variance
    among independent outcomes / the variance of the ratio estimator, which is, for one share,
    k/(k-1) · Σ(hits - p·n)² / (Σn)² (Kish 1965, ch. 5). Both variances are summed over the cells
    (Rao and Scott 1981), or they are of the mean of `scores`, one for each cell. The result is at
    most the number of outcomes, and exactly that if each cluster is one outcome. If all fall in
    one cell, the data do not show how similar the outcomes of a cluster are. They then count as
    the same, which is the careful side.
    """
    sizes = [sum(row) for row in rows]
    total = sum(sizes)
    if not total or all(abs(size - 1) < 1e-9 for size in sizes):
        return total
    cells = range(len(rows[0]))
    shares = [sum(row[cell] for row in rows) / total for cell in cells]
    wanted = [scores] if scores else [[float(cell == one) for cell in cells] for one in cells]
    spread = residuals = 0.0
    for weights in wanted:
        mean = dot(weights, shares)
        spread += dot([weight**2 for weight in weights], shares) - mean**2
        pairs = zip(rows, sizes, strict=True)
        residuals += sum((dot(weights, row) - mean * size) ** 2 for row, size in pairs)
    if spread * total < 1e-9 or len(rows) < 2:
        return total**2 / sum(size**2 for size in sizes)
    variance = len(rows) / (len(rows) - 1) * residuals / total**2
    # clusters may agree better than chance: independence stays the careful side
    return total if variance * total <= spread else spread / variance


def dot(weights: Sequence[float], numbers: Sequence[float]) -> float:
    """The sum of the products."""
    return sum(weight * number for weight, number in zip(weights, numbers, strict=True))


def clustered_rate(flags: Iterable[bool | None], clusters: Iterable[str] | None = None) -> Rate:
    """The share of True; None is an unscored outcome. `clusters` names the cluster of each flag
    (None: all independent)."""
    flags = list(flags)
    names = map(str, count()) if clusters is None else clusters
    sums = cluster_sums(
        (name, (flag, 1)) for flag, name in zip(flags, names, strict=False) if flag is not None
    )
    hits, sizes = ([row[column] for row in sums] for column in (0, 1))
    n = int(sum(sizes))
    return wilson_rate(int(sum(hits)), n, len(flags) - n, effective=effective_n(hits, sizes))


def cluster_sums(rows: Iterable[tuple[str, Sequence[float]]]) -> list[list[float]]:
    """The columns of `rows` (cluster, values) added up within each cluster.

    The sums come in order of size, so that the order of rows changes nothing.
    """
    sums: dict[str, list[float]] = {}
    for cluster, values in rows:
        known = sums.get(cluster, [0.0] * len(values))
        sums[cluster] = [a + b for a, b in zip(known, values, strict=True)]
    return sorted(sums.values())


def four_cells(first: bool, second: bool) -> tuple[bool, bool, bool, bool]:
    """True in one of [both, the first alone, the second alone, neither]."""
    return first and second, first and not second, second and not first, not (first or second)


def bootstrap(
    statistic: Callable[..., Floats], *tables: Sequence[Sequence[float]], resamples: int, seed: int
) -> Estimate:
    """`statistic` of the column sums of each table and its 95 % percentile interval.

    A table holds a row for each cluster (see `cluster_sums`), and clusters are redrawn table by
    table. The statistic gets one array (..., columns) for each table and returns (...). All is None
    if a table is empty or the statistic is nan. A table with a single cluster does not show its
    spread: there is no interval. Resamples with nan are left out; there is no interval either if
    they are more than one in twenty.
    """
    import numpy as np

    if not all(tables):
        return Estimate(None, None, None)
    arrays = [np.asarray(table, dtype=float) for table in tables]
    value = float(statistic(*(array.sum(axis=0) for array in arrays)))
    if np.isnan(value) or min(map(len, arrays)) < 2:
        return Estimate(None if np.isnan(value) else value, None, None)
    found = resampled(statistic, arrays, resamples, seed)
    if np.isnan(found).mean() > NAN_RESAMPLES_MAX:
        return Estimate(value, None, None)
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))


def resampled(
    statistic: Callable[..., Floats], arrays: Sequence[Floats], resamples: int, seed: int
) -> Floats:
    """(resamples,): `statistic` of each resample, the rows of every array redrawn on their own."""
    import numpy as np
    from scipy import stats

    def drawn_statistic(*drawn: Floats, axis: int) -> Floats:
        pairs = zip(arrays, drawn, strict=True)
        return statistic(*(array[rows.astype(int)].sum(axis=-2) for array, rows in pairs))

    with warnings.catch_warnings():
        # scipy warns of nan, which `bootstrap` looks at
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            [np.arange(len(array)) for array in arrays],
            drawn_statistic,
            n_resamples=resamples,
            batch=max(1, BATCH_NUMBERS // max(array.size for array in arrays)),
            vectorized=True,
            confidence_level=CONFIDENCE,
            # BCa, scipy's default, is undefined (and warns) if all values are equal
            method="percentile",
            random_state=np.random.default_rng(seed),
        )
    found: Floats = drawn.bootstrap_distribution
    return found
