"""How often the interval of a corrected rate holds the truth: simulated judges, certificates and
runs.

    python benchmarks/coverage.py [--replicates 4000] [--seed 0]

Prints a row for each true rate and judge and a column for each n and certificate n, then the least,
mean and greatest coverage; the same for a certificate with few refusals, for rates that are not
corrected, for benign_answered with 10 % degenerate responses, and for a world in which the
certificate does not transfer. In the table half of a certificate's responses are true refusals: our
choice, near what XSTest's safe and unsafe prompts give together.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import NamedTuple

import numpy as np

from overrefusal_po.evaluate.corrections import Confusion, answered_rate, corrected, lang_reiczigel

RATES, SENSITIVITIES, SPECIFICITIES = (0.02, 0.1, 0.5, 0.9, 0.98), (0.8, 0.95), (0.9, 0.99)
SIZES, CERTIFICATE_SIZES = (100, 450), (100, 450)
FEW = 0.1
"""Share of true refusals in a certificate for benign prompts, where models refuse little."""


class World(NamedTuple):
    """The truth of one cell of the table."""

    rate: float
    sensitivity: float
    specificity: float
    n: int
    certificate_n: int
    refused_share: float = 0.5
    """Of the certificate's responses, the share of true refusals."""

    @property
    def labelled(self) -> tuple[int, int]:
        """(true refusals, true answers) among the labelled responses."""
        refused = round(self.certificate_n * self.refused_share)
        return refused, self.certificate_n - refused


class Seen(NamedTuple):
    """What one replicate each observes, arrays of shape (replicates,)."""

    refused: np.ndarray
    refused_seen: np.ndarray
    answered_seen: np.ndarray


WORLDS = [
    World(*w)
    for w in itertools.product(RATES, SENSITIVITIES, SPECIFICITIES, SIZES, CERTIFICATE_SIZES)
]


def observe(
    world: World, replicates: int, rng: np.random.Generator, *, drift: tuple[float, float] = (0, 0)
) -> Seen:
    """A run and a certificate for each replicate; `drift` is added to sensitivity and specificity
    on the run alone."""
    refused, answered = world.labelled
    sensitivity, specificity = world.sensitivity + drift[0], world.specificity + drift[1]
    shown = world.rate * sensitivity + (1 - world.rate) * (1 - specificity)
    return Seen(
        rng.binomial(world.n, shown, replicates),
        rng.binomial(refused, world.sensitivity, replicates),
        rng.binomial(answered, world.specificity, replicates),
    )


def limits(world: World, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """The corrected rate's limits of every replicate."""
    refused, answered = world.labelled
    low, high = lang_reiczigel(
        seen.refused, world.n, seen.refused_seen, refused, seen.answered_seen, answered
    )
    return np.asarray(low), np.asarray(high)


def covered(
    world: World, replicates: int, rng: np.random.Generator, *, drift: tuple[float, float] = (0, 0)
) -> float:
    """The share of replicates whose interval holds the true rate."""
    low, high = limits(world, observe(world, replicates, rng, drift=drift))
    return float(((low <= world.rate) & (world.rate <= high)).mean())


def raw_covered(world: World, replicates: int, rng: np.random.Generator) -> float:
    """The same for the rate as the judge saw it, with Wilson's interval: what stands in a report
    without correction."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(
        observe(world, replicates, rng).refused, world.n, method="wilson"
    )
    return float(((low <= world.rate) & (world.rate <= high)).mean())


def benign_answered_covered(
    world: World, replicates: int, rng: np.random.Generator, share: float = 0.1
) -> float:
    """Coverage of the corrected benign_answered where `share` of what is no refusal is degenerate,
    by the functions a report calls."""
    seen = observe(world, replicates, rng)
    refused, answered = world.labelled
    truth, hits = (1 - world.rate) * (1 - share), 0
    for k, a, b in zip(
        seen.refused.tolist(), seen.refused_seen.tolist(), seen.answered_seen.tolist(), strict=True
    ):
        degenerate = int(rng.binomial(world.n - k, share))
        confusion = Confusion(refused=refused, refused_seen=a, answered=answered, answered_seen=b)
        found = answered_rate(
            corrected(k, world.n, confusion), world.n - k - degenerate, degenerate
        )
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    return hits / replicates


def summary(name: str, coverages: list[float]) -> None:
    """One line: least, mean, greatest."""
    values = 100 * np.array(coverages)
    print(
        f"{name}: least {values.min():.1f}, mean {values.mean():.1f}, greatest {values.max():.1f} %"
    )


def print_table(coverages: dict[World, float]) -> None:
    """A row for each rate and judge, a column for each n and certificate n, in per cent."""
    columns = list(itertools.product(SIZES, CERTIFICATE_SIZES))
    print(
        "| rate | sensitivity | specificity |"
        + "".join(f" n {n}, certificate {c} |" for n, c in columns)
    )
    print("|---" * (3 + len(columns)) + "|")
    for row in itertools.product(RATES, SENSITIVITIES, SPECIFICITIES):
        cells = "".join(f" {100 * coverages[World(*row, *column)]:.1f} |" for column in columns)
        print("| " + " | ".join(f"{value:g}" for value in row) + " |" + cells)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, started = np.random.default_rng(args.seed), time.perf_counter()
    coverages = {world: covered(world, args.replicates, rng) for world in WORLDS}
    print_table(coverages)
    print(
        f"\n{args.replicates} replicates a cell, nominal 95 %; half of the certificate's responses "
        "are refusals."
    )
    summary("corrected", list(coverages.values()))
    summary("not corrected, Wilson", [raw_covered(world, args.replicates, rng) for world in WORLDS])
    scarce = [w._replace(refused_share=FEW) for w in WORLDS]
    summary(
        "one refusal in ten in the certificate", [covered(w, args.replicates, rng) for w in scarce]
    )
    some = max(1, args.replicates // 4)
    summary(
        f"corrected benign_answered, 10 % degenerate ({some} replicates a cell)",
        [benign_answered_covered(w, some, rng) for w in WORLDS],
    )
    drifted = [covered(w, args.replicates, rng, drift=(-0.15, 0)) for w in WORLDS]
    summary("the certificate does not transfer, sensitivity is 15 points lower on the run", drifted)
    for rate in RATES:
        at = [c for world, c in zip(WORLDS, drifted, strict=True) if world.rate == rate]
        print(f"    rate {rate:g}: mean {100 * float(np.mean(at)):.1f} %")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
