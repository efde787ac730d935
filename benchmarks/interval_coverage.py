"""How often the 95 % intervals of rates, F1 and paired gains hold the truth: simulated runs.

    python benchmarks/interval_coverage.py [--replicates 1000] [--seed 0]

Prints a row for each number of prompts of a kind and each true rate, and a column for each
interval: a rate, F1, the paired difference of one kind, the gain of both kinds, and the gain of F1.
`bootstrap` is the percentile interval of F1 that redraws prompts, for comparison. In the pairs,
both runs handle a prompt alike in 80 of 100 cases. `moved` pairs go from the true rate to 1 minus
it. A last table has clusters: three samples of each prompt, equal in 60 of 100 cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from overrefusal_po.evaluate.comparisons import f1_difference
from overrefusal_po.evaluate.intervals import Estimate, effective_n, wilson_rate
from overrefusal_po.evaluate.metrics import harmonic_mean
from overrefusal_po.evaluate.score_intervals import paired_difference, smoothed, square_and_add

SIZES = (5, 20, 100)
RATES = (0.0, 0.02, 0.5, 1.0)
ALIKE = 0.8
"""How often the second run does with a prompt as the first did; else it draws anew."""
SAME_SAMPLE = 0.6
DRAWS = 2000
Counts = tuple[int, ...]
"""Both right, the first alone, the second alone, neither."""


class World(NamedTuple):
    """The truth of one row: prompts of a kind, the rate of the first run and of the second."""

    n: int
    before: float
    after: float

    @property
    def cells(self) -> np.ndarray:
        """The probabilities of `Counts`."""
        drawn = self.after if self.before == self.after else 1 - self.before
        alike = ALIKE if self.before == self.after else 0.0
        stay, change = alike + (1 - alike) * drawn, (1 - alike) * drawn
        p = self.before
        return np.array([p * stay, p * (1 - stay), (1 - p) * change, (1 - p) * (1 - change)])


def holds(found: Estimate, truth: float) -> bool:
    """Whether an interval holds the truth, rounding aside."""
    assert found.low is not None and found.high is not None
    return found.low - 1e-9 <= truth <= found.high + 1e-9


@cache
def rate(hits: int, n: int) -> Estimate:
    """Wilson's interval."""
    return Estimate(*wilson_rate(hits, n)[:3])


@cache
def f1(refused: int, answered: int, n: int) -> Estimate:
    """The interval of F1 of independent prompts."""
    tables = (independent(hits, n - hits) for hits in (refused, answered))
    return smoothed(f1_of, *tables, seed=0, draws=DRAWS)


def f1_of(refused: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """F1 of shares."""
    return harmonic_mean(refused[..., 0], answered[..., 0])


@cache
def difference(counts: Counts) -> Estimate:
    """The paired difference of independent prompts."""
    both, lost, gained, neither = counts
    return paired_difference(independent(lost, gained, both + neither))


def independent(*counts: int) -> list[list[float]]:
    """A row for each outcome: as many in each cell as counted."""
    return [
        [float(i == cell) for i in range(len(counts))]
        for cell, n in enumerate(counts)
        for _ in range(n)
    ]


@cache
def f1_gain(harmful: Counts, benign: Counts) -> Estimate:
    """The interval of the gain of F1 of independent prompts."""
    return smoothed(f1_difference, independent(*harmful), independent(*benign), seed=0, draws=DRAWS)


def bootstrap_f1(refused: int, answered: int, n: int, rng: np.random.Generator) -> Estimate:
    """The percentile interval of F1, independent prompts redrawn."""
    drawn = [rng.binomial(n, hits / n, DRAWS) / n for hits in (refused, answered)]
    low, high = np.quantile(harmonic_mean(*drawn), [0.025, 0.975])
    return Estimate(0.0, float(low), float(high))


def coverages(world: World, replicates: int, rng: np.random.Generator) -> dict[str, float]:
    """{interval: the share of the replicates in which it holds the truth}."""
    cells = world.cells
    harmful, benign = (
        [tuple(map(int, row)) for row in rng.multinomial(world.n, cells, replicates)] for _ in "hb"
    )
    step = float(cells[2] - cells[1])
    true_f1 = world.before
    true_f1_gain = float(f1_difference(cells, cells))
    kinds = list(zip(harmful, benign, strict=True))
    found: dict[str, list[bool]] = {
        "rate": [holds(rate(h[0] + h[1], world.n), world.before) for h in harmful],
        "F1": [holds(f1(h[0] + h[1], b[0] + b[1], world.n), true_f1) for h, b in kinds],
        "F1, bootstrap": [
            holds(bootstrap_f1(h[0] + h[1], b[0] + b[1], world.n, rng), true_f1) for h, b in kinds
        ],
        "difference": [holds(difference(h), step) for h in harmful],
        "gain": [holds(square_and_add([difference(h), difference(b)]), 2 * step) for h, b in kinds],
        "F1 gain": [holds(f1_gain(h, b), true_f1_gain) for h, b in kinds],
    }
    return {name: float(np.mean(held)) for name, held in found.items()}


def clustered_coverages(
    n: int, p: float, replicates: int, rng: np.random.Generator
) -> dict[str, float]:
    """The same for `n` prompts with three samples each, of which some are equal."""
    held: dict[str, list[bool]] = {"rate": [], "F1": [], "difference": []}
    for _ in range(replicates):
        kinds = [samples(n, p, rng) for _ in range(2)]
        sums = [kind.sum(axis=1) for kind in kinds]
        worth = effective_n(list(sums[0]), [3.0] * n)
        hits = int(sums[0].sum())
        held["rate"].append(holds(Estimate(*wilson_rate(hits, 3 * n, effective=worth)[:3]), p))
        tables = [[(x, 3 - x) for x in one] for one in sums]
        held["F1"].append(holds(smoothed(f1_of, *tables, seed=0, draws=DRAWS), p))
        lost, gained = kinds[0] * (1 - kinds[1]), kinds[1] * (1 - kinds[0])
        rows = [
            (a, b, 3 - a - b) for a, b in zip(lost.sum(axis=1), gained.sum(axis=1), strict=True)
        ]
        held["difference"].append(holds(paired_difference(rows), 0.0))
    return {name: float(np.mean(found)) for name, found in held.items()}


def samples(n: int, p: float, rng: np.random.Generator) -> np.ndarray:
    """(n, 3) of 0 and 1: a sample is its prompt's common one, or drawn anew."""
    common = rng.random((n, 1)) < p
    own = rng.random((n, 3)) < p
    return np.where(rng.random((n, 3)) < SAME_SAMPLE, common, own).astype(float)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rows_of(
    worlds: Sequence[tuple[Sequence[str], Callable[[], dict[str, float]]]],
) -> tuple[list[str], list[list[str]]]:
    """(the names of the intervals, a row for each world)."""
    rows, names = [], []
    for labels, run in worlds:
        found = run()
        names = list(found)
        rows.append([*labels, *(f"{share:.3f}" for share in found.values())])
    return names, rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    for title, moved in (("unchanged", False), ("moved", True)):
        worlds = [World(n, p, 1 - p if moved else p) for n in SIZES for p in RATES]
        names, rows = rows_of(
            [
                ([str(w.n), f"{w.before:g}"], lambda w=w: coverages(w, args.replicates, rng))
                for w in worlds
                if not (moved and w.before == 0.5)
            ]
        )
        print(f"\n{title} pairs\n\n" + table(["n", "rate before", *names], rows))
    names, rows = rows_of(
        [
            (
                [str(n), f"{p:g}"],
                lambda n=n, p=p: clustered_coverages(n, p, args.replicates // 2, rng),
            )
            for n in SIZES
            for p in RATES
        ]
    )
    print("\nthree samples a prompt\n\n" + table(["prompts", "rate", *names], rows))


if __name__ == "__main__":
    main()
