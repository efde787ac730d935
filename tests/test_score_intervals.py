"""score_intervals.py: values by hand and by search, and coverage by simulation."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from overrefusal_po.evaluate.intervals import Estimate, effective_n, effective_total, wilson_rate
from overrefusal_po.evaluate.score_intervals import (
    paired_difference,
    smoothed,
    square_and_add,
    tango,
    tango_score,
)

Z2 = stats.norm.ppf(0.975) ** 2


def cells(*counts: int) -> list[list[float]]:
    """A row for each outcome, as many in each cell as counted."""
    size = range(len(counts))
    return [[float(i == cell) for i in size] for cell in size for _ in range(counts[cell])]


# --- paired differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 20, 1000])
def test_no_change_among_n_pairs_is_z_squared_over_n_plus_z_squared(n: int) -> None:
    """b = c = 0: the score is -nΔ / sqrt(nΔ(1 - Δ)), which is -z at Δ = z² / (n + z²)."""
    half = Z2 / (n + Z2)
    found = paired_difference(cells(0, 0, n))
    assert found == (0.0, pytest.approx(-half), pytest.approx(half))


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(3, 1, 20), (0, 4, 9), (5, 5, 10), (7, 0, 8), (30, 12, 100)]
)
def test_the_ends_are_where_the_score_is_z(gained: int, lost: int, n: int) -> None:
    for end, sign in zip(tango(gained, lost, n), (1, -1), strict=True):
        assert tango_score(end, gained, lost, n=n) == pytest.approx(sign * Z2**0.5, abs=1e-6)


def test_the_score_has_the_greatest_likelihood_under_the_difference() -> None:
    """The share of lost pairs that the score takes, against a search on a grid."""
    gained, lost, n, difference = 6, 3, 25, 0.05
    share = np.linspace(1e-6, (1 - difference) / 2 - 1e-6, 200_001)
    likelihood = (
        gained * np.log(share + difference)
        + lost * np.log(share)
        + (n - gained - lost) * np.log(1 - 2 * share - difference)
    )
    best = share[likelihood.argmax()]
    variance = n * (2 * best + difference - difference**2)
    score = (gained - lost - n * difference) / variance**0.5
    assert tango_score(difference, gained, lost, n=n) == pytest.approx(score, abs=1e-4)


def test_a_swap_of_the_runs_changes_the_signs() -> None:
    for gained in range(6):
        for lost in range(6 - gained):
            low, high = tango(gained, lost, 5)
            assert tango(lost, gained, 5) == (pytest.approx(-high), pytest.approx(-low))
            assert -1 <= low <= (gained - lost) / 5 <= high <= 1 and low < high


def test_every_pair_changed_leaves_the_outer_end_at_1() -> None:
    low, high = tango(5, 0, 5)
    assert high == 1.0 and 0 < low < 0.6


def test_copies_of_a_pair_say_nothing_new() -> None:
    """Five samples of each prompt that all did the same are worth one each."""
    few, many = paired_difference(cells(0, 0, 9)), paired_difference([[0, 0, 5]] * 9)
    assert few == pytest.approx(many)
    moved = paired_difference([[0, 5, 0]] * 40 + [[0, 0, 5]] * 60)
    alone = paired_difference(cells(0, 40, 60))
    assert moved == pytest.approx(alone, abs=2e-3)


def test_nothing_has_no_interval() -> None:
    assert paired_difference([]) == (None, None, None)
    assert square_and_add([Estimate(0.1, 0.0, 0.2), Estimate(None, None, None)]).value is None
    assert square_and_add([Estimate(0.1, 0.0, 0.2), Estimate(0.3, None, None)]).low is None


def test_a_sum_adds_the_squares_of_the_distances() -> None:
    found = square_and_add([Estimate(0.5, 0.2, 0.6), Estimate(0.1, -0.3, 0.3)])
    assert found == (
        pytest.approx(0.6),
        pytest.approx(0.6 - 0.5),
        pytest.approx(0.6 + 0.05**0.5),
    )


# --- any statistic --------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 20), (10, 20), (20, 20), (1, 1), (37, 400)])
def test_one_share_has_jeffreys_interval(hits: int, n: int) -> None:
    found = smoothed(lambda shares: shares[..., 0], cells(hits, n - hits), seed=0)
    low, high = stats.beta(hits + 0.5, n - hits + 0.5).ppf([0.025, 0.975])
    expected = (0.0 if hits == 0 else low, 1.0 if hits == n else high)
    assert found[1:] == pytest.approx(expected, abs=0.01)


def test_half_of_four_cells_has_jeffreys_interval() -> None:
    """The rate of the first of two runs, from cells of pairs."""
    found = smoothed(lambda s: s[..., 0] + s[..., 1], cells(3, 2, 4, 11), seed=0)
    assert found[1:] == pytest.approx(stats.beta(5.5, 15.5).ppf([0.025, 0.975]), abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    table = cells(3, 4)
    first, again, other = (smoothed(lambda s: s[..., 0], table, seed=n) for n in (1, 1, 2))
    assert first == again != other


def test_a_statistic_that_is_not_known_has_no_interval() -> None:
    assert smoothed(lambda s: s[..., 0] * np.nan, cells(1, 1), seed=0) == (None, None, None)
    assert smoothed(lambda a, b: a[..., 0], cells(1, 1), [], seed=0) == (None, None, None)


# --- clusters -------------------------------------------------------------------------------------


def test_two_cells_are_worth_what_a_share_is() -> None:
    hits, sizes = [2, 2, 0, 1], [2, 3, 2, 4]
    rows = [(h, n - h) for h, n in zip(hits, sizes, strict=True)]
    assert effective_total(rows) == pytest.approx(effective_n(hits, sizes))
    assert effective_total(rows, (1, 0)) == pytest.approx(effective_n(hits, sizes))


def test_a_cell_that_nobody_is_in_changes_nothing() -> None:
    rows = [(2, 1), (0, 3), (3, 0), (1, 2)]
    assert effective_total([(*row, 0) for row in rows]) == pytest.approx(effective_total(rows))


def test_the_worth_of_a_mean_is_that_of_its_own_variance() -> None:
    """Each cluster gains one and loses one: the difference is known as if from many, the cells are
    not."""
    rows = [(1, 1, 0)] * 3 + [(0, 0, 2)] * 3
    assert effective_total(rows, (-1, 1, 0)) == 12
    assert effective_total(rows) < 12


@pytest.mark.parametrize("value", [-1e-17, 1 + 1e-15])
def test_a_share_beyond_0_or_1_by_rounding_is_clamped(value: float) -> None:
    from overrefusal_po.evaluate.intervals import wilson

    low, high = wilson(value, 7)
    assert 0 <= low < high <= 1


# --- coverage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/interval_coverage.py, which is no part of the package."""
    path = Path(__file__).parents[1] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["interval_coverage"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
def test_the_intervals_hold_the_truth(benchmark: ModuleType, n: int, rate: float) -> None:
    """Near 95 of 100 times; Wilson's of a rate of .02 at n = 5 holds in .98⁵ = 90."""
    rng = np.random.default_rng(0)
    found = benchmark.coverages(benchmark.World(n, rate, rate), 200, rng)
    del found["F1, bootstrap"]
    assert min(found.values()) > 0.87, found


def test_the_benchmark_sees_an_interval_that_collapses(benchmark: ModuleType) -> None:
    rng = np.random.default_rng(0)
    found = benchmark.coverages(benchmark.World(20, 0.02, 0.02), 200, rng)
    assert found["F1, bootstrap"] < 0.3


def test_wilson_never_claims_certainty() -> None:
    for n in range(1, 60):
        for hits in (0, n):
            found = wilson_rate(hits, n)
            assert found.low is not None and found.high is not None
            assert found.high - found.low >= Z2 / (n + Z2) - 1e-9
