"""Counts -> shares and differences with 95 % intervals, for outcomes that come in clusters. Pure:
numbers in, numbers out.

    rate(9, 10)
    # Rate(value=0.9, low=0.596, high=0.982, n=10, unscored=0): Wilson
    rate_of([True, True, None], ["a", "a", "b"])  # two outcomes of one question, and one unscored
    bootstrap(statistic, cluster_sums(rows), resamples=2000, seed=0)

Outcomes of one question (attacks on it, samples, seeds, the same prompt put to several models) are
no independent evidence. They form a cluster, and clusters are what is weighed or redrawn.
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

CONFIDENCE = 0.95
NAN_RESAMPLES = 0.05  # ours: with more of them left out, the interval is one of luckier samples
# floats that the bootstrap holds at a time (16 MB), so that a large benchmark fits in memory
BATCH_NUMBERS = 2_000_000


class Rate(NamedTuple):
    """A share from 0 to 1 and its 95 % interval, None where `n` is 0. `unscored` outcomes stand
    outside `n`."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int


class Gain(NamedTuple):
    """A difference of two runs (of harmful_refused + benign_answered from -2 to 2, of F1 from -1 to
    1) and its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


def rate(hits: int, n: int, unscored: int = 0, *, effective: float | None = None) -> Rate:
    """`hits` of `n` with Wilson's 95 % interval, as wide as that of `effective` independent
    outcomes (None: `n`)."""
    assert 0 <= hits <= n, f"{hits} hits of {n}"
    if n == 0:
        return Rate(None, None, None, 0, unscored)
    return Rate(hits / n, *wilson(hits / n, n if effective is None else effective), n, unscored)


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen among `n` > 0 independent outcomes."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(value * n, n, alpha=1 - CONFIDENCE, method="wilson")
    # 0 of 7 has low = 3e-17 by rounding: an interval holds its value
    return min(float(low), value), max(float(high), value)


def effective_n(hits: Sequence[float], n: Sequence[float]) -> float:
    """How many independent outcomes clusters are worth that hold `hits[i]` of `n[i]` (outcomes, or
    their weights).

    p(1-p) / the ratio estimator's variance, k/(k-1) · Σ(hits - p·n)² / (Σn)² (Kish 1965, ch. 5): at
    most Σn, and exactly Σn where each cluster is one outcome. Where all hit or none does, nothing
    is seen of how alike a cluster's outcomes
    are: they are then taken to be the same, which is the careful side.
    """
    total = sum(n)
    if not total or all(abs(size - 1) < 1e-9 for size in n):
        return total
    value, clusters = sum(hits) / total, len(n)
    if min(value, 1 - value) * total < 1e-9 or clusters < 2:
        return total**2 / sum(size**2 for size in n)
    variance = (
        clusters
        / (clusters - 1)
        * sum((h - value * m) ** 2 for h, m in zip(hits, n, strict=True))
        / total**2
    )
    # where clusters agree better than chance would have it, independence stays the careful side
    return total if variance * total <= value * (1 - value) else value * (1 - value) / variance


def rate_of(flags: Iterable[bool | None], clusters: Iterable[str] | None = None) -> Rate:
    """The share of True; None is an unscored outcome. `clusters` names what each belongs to (None:
    all independent)."""
    flags = list(flags)
    names = map(str, count()) if clusters is None else clusters
    sums = cluster_sums(
        (name, (flag, 1)) for flag, name in zip(flags, names, strict=False) if flag is not None
    )
    hits, sizes = ([row[column] for row in sums] for column in (0, 1))
    n = int(sum(sizes))
    return rate(int(sum(hits)), n, len(flags) - n, effective=effective_n(hits, sizes))


def cluster_sums(rows: Iterable[tuple[str, Sequence[float]]]) -> list[list[float]]:
    """The columns of `rows` added up within each cluster; in order of size, so that the order of
    rows changes nothing."""
    sums: dict[str, list[float]] = {}
    for cluster, values in rows:
        sums[cluster] = [
            a + b for a, b in zip(sums.get(cluster, [0.0] * len(values)), values, strict=True)
        ]
    return sorted(sums.values())


def bootstrap(
    statistic: Callable[..., Floats], *tables: Sequence[Sequence[float]], resamples: int, seed: int
) -> Gain:
    """`statistic` of the column sums of each table and its 95 % percentile interval, clusters
    redrawn table by table.

    A table holds a row for each cluster (see `cluster_sums`); the statistic gets one array (...,
    columns) for each table and returns (...). Resamples in which it is nan are left out. All None
    where a table is empty or the statistic is nan; no interval where a table has a single cluster,
    which says nothing of its spread, or where more than one resample in twenty is nan.
    """
    import numpy as np
    from scipy import stats

    if not all(tables):
        return Gain(None, None, None)
    arrays = [np.asarray(table, dtype=float) for table in tables]
    value = float(statistic(*(array.sum(axis=0) for array in arrays)))
    if np.isnan(value) or min(map(len, arrays)) < 2:
        return Gain(None if np.isnan(value) else value, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", stats.DegenerateDataWarning
        )  # of nan, which is looked at below
        found = stats.bootstrap(
            [np.arange(len(array)) for array in arrays],
            lambda *drawn, axis: statistic(
                *(
                    array[rows.astype(int)].sum(axis=-2)
                    for array, rows in zip(arrays, drawn, strict=True)
                )
            ),
            n_resamples=resamples,
            batch=max(1, BATCH_NUMBERS // max(array.size for array in arrays)),
            vectorized=True,
            confidence_level=CONFIDENCE,
            # BCa, scipy's default, is undefined (and warns) where all values are equal
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).bootstrap_distribution
    if np.isnan(found).mean() > NAN_RESAMPLES:
        return Gain(value, None, None)
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Gain(value, float(low), float(high))
