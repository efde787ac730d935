"""Counts of clusters -> differences, F1 and the like, with 95 % intervals that have a width for any
sample.

    paired_difference([(0, 2, 18)])
    # 20 prompts: 0 lost, 2 gained, 18 unchanged
    square_and_add([harmful, benign])
    # the sum of two independent estimates
    smoothed(statistic, table, seed=0)
    # any statistic of shares

Pure: numbers in, numbers out. A bootstrap redraws what was seen. If all 20 prompts did the same, it
says [1, 1], as if nothing else could ever happen. These intervals know how little 20 prompts show.
RESULTS.md has their coverage, from `benchmarks/interval_coverage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from overrefusal_po.evaluate.intervals import CONFIDENCE, Estimate, effective_total

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
DRAWS = 20_000
PRIOR = 1.0
"""Outcomes that the prior adds, the same share to each cell (Perks 1947). Half of the cells then
have Jeffreys' prior for one share, half an outcome on each side."""
STEPS = (-1.0, 1.0, 0.0)
"""What [lost, gained, unchanged] adds to the difference."""


def paired_difference(rows: Sequence[Sequence[float]]) -> Estimate:
    """(gained - lost) / all, with Tango's score interval.

    A row holds [lost, gained, unchanged] of one cluster. Tango, Equivalence test and confidence
    interval for the difference in proportions for the paired-sample design, Statistics in Medicine
    17 (1998) 891-908. Clusters of several outcomes count as what they are worth. All is None
    without an outcome.
    """
    lost, gained, same = (sum(row[cell] for row in rows) for cell in range(3))
    n = lost + gained + same
    if not n:
        return Estimate(None, None, None)
    value, worth = (gained - lost) / n, effective_total(rows, STEPS) / n
    low, high = tango(gained * worth, lost * worth, n * worth)
    return Estimate(value, min(low, value), max(high, value))


def tango(gained: float, lost: float, n: float) -> tuple[float, float]:
    """The differences whose score is between -z and z."""
    value = (gained - lost) / n
    return -tango_end(-value, lost, gained, n=n), tango_end(value, gained, lost, n=n)


def tango_end(value: float, gained: float, lost: float, *, n: float) -> float:
    """The greatest difference whose score is at least -z; 1 if nothing but gains was seen."""
    from scipy.optimize import brentq

    edge = 1 - 1e-12
    if value >= edge or tango_score(edge, gained, lost, n=n) >= -Z:
        return 1.0
    start = max(-edge, value)
    found = brentq(lambda end: tango_score(end, gained, lost, n=n) + Z, start, edge)
    return float(found)


def tango_score(difference: float, gained: float, lost: float, *, n: float) -> float:
    """How far the counts are from `difference`, in standard errors under that difference.

    The share of lost outcomes has its greatest likelihood under the difference.
    """
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * share_lost + difference * (1 - difference))
    return (gained - lost - n * difference) / math.sqrt(max(variance, 1e-300))


def square_and_add(estimates: Sequence[Estimate]) -> Estimate:
    """The sum of independent estimates; None if one is not known.

    Its limits are those of MOVER: Zou and Donner, Statistics in Medicine 27 (2008) 1693-1702.
    """
    if any(one.value is None for one in estimates):
        return Estimate(None, None, None)
    value = sum(one.value for one in estimates if one.value is not None)
    below, above = [], []
    for one in estimates:
        if one.value is None or one.low is None or one.high is None:
            return Estimate(value, None, None)
        below.append(one.value - one.low)
        above.append(one.high - one.value)
    return Estimate(value, value - math.hypot(*below), value + math.hypot(*above))


def smoothed(
    statistic: Callable[..., Floats],
    *tables: Sequence[Sequence[float]],
    seed: int,
    draws: int = DRAWS,
) -> Estimate:
    """`statistic` of the shares of each table's cells, and its 95 % interval.

    A table holds a row of counts for each cluster. The statistic gets one array (..., cells) of
    shares for each table and returns (...). The interval is that of shares drawn from their
    posterior: Dirichlet, with `PRIOR`. For one share it is Jeffreys' interval (Brown, Cai and
    DasGupta, Statistical Science 16, 2001, section 4.3). It is stretched to hold the value, as
    theirs is at 0 and 1. All is None if a table is empty or the statistic is nan.
    """
    import numpy as np

    if not all(tables):
        return Estimate(None, None, None)
    sums = [np.asarray(table, dtype=float).sum(axis=0) for table in tables]
    value = float(statistic(*(one / one.sum() for one in sums)))
    if np.isnan(value):
        return Estimate(None, None, None)
    generator = np.random.default_rng(seed)
    drawn = [
        generator.dirichlet(one * (effective_total(table) / one.sum()) + PRIOR / len(one), draws)
        for one, table in zip(sums, tables, strict=True)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(*drawn), [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))
