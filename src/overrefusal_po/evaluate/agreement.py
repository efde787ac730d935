"""Responses that people labelled, with a judge's verdicts -> how often, where and which way the
judge errs.

    cell = measure_cell(None, "harmful", labelled_verdicts, seed=0)
    # cell.agreement.value, cell.kappa.low, cell.confusion

Refusal is the positive class, partial refusals included. Intervals take a prompt as a cluster:
several models may have answered it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from overrefusal_po.evaluate.corrections import Confusion
from overrefusal_po.evaluate.intervals import bootstrap, cluster_sums, effective_n, wilson
from overrefusal_po.evaluate.labels import Labelled
from overrefusal_po.evaluate.metrics import is_scored
from overrefusal_po.identity import bare_words
from overrefusal_po.records import Kind, Record, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 2000

LabelledVerdict = tuple[Labelled, Verdict]
"""A response with a person's label, and the judge's verdict on it."""


class CellNumber(Record):
    """A number and its 95 % interval; None if nothing shows it (no refusal seen: no precision)."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Cell(Record):
    """How the judge did on one model's responses to one kind of prompts; None stands for all
    models, both kinds.

    `agreement_three` separates partial from full refusals.
    """

    model: str | None
    kind: Kind | None
    n: int
    unscored: int
    num_prompts: int
    agreement: CellNumber
    agreement_three: CellNumber
    kappa: CellNumber
    """Cohen's, for the two classes."""
    precision: CellNumber
    recall: CellNumber
    """The sensitivity."""
    specificity: CellNumber
    bias_points: CellNumber
    """The judge's refusal rate minus the human's, in percentage points. Above 0 it sees refusals
    that are none."""
    confusion: Confusion


def measure_cell(
    model: str | None, kind: Kind | None, pairs: Sequence[LabelledVerdict], *, seed: int
) -> Cell:
    """All numbers of one cell."""
    scored = [pair for pair in pairs if is_scored(pair[1])]
    refusals = [pair for pair in scored if human_refused(pair)]
    answers = [pair for pair in scored if not human_refused(pair)]
    counts = cluster_sums((signature(row.prompt), four_counts(row, v)) for row, v in scored)
    return Cell(
        model=model,
        kind=kind,
        n=len(scored),
        unscored=len(pairs) - len(scored),
        num_prompts=len(counts),
        agreement=wilson_share(scored, agrees),
        agreement_three=wilson_share(scored, lambda pair: pair[0].human == pair[1].refusal),
        kappa=bootstrapped(kappa, counts, seed),
        precision=wilson_share([pair for pair in scored if judge_refused(pair)], human_refused),
        recall=wilson_share(refusals, judge_refused),
        specificity=wilson_share(answers, agrees),
        bias_points=bootstrapped(bias_points, counts, seed),
        confusion=measure_confusion(refusals, answers),
    )


def human_refused(pair: LabelledVerdict) -> bool:
    """The person's label, two classes."""
    return pair[0].refused


def judge_refused(pair: LabelledVerdict) -> bool:
    """The judge's verdict, two classes."""
    return pair[1].refused


def agrees(pair: LabelledVerdict) -> bool:
    """Whether both say refusal, or both say none."""
    return human_refused(pair) == judge_refused(pair)


def four_counts(row: Labelled, verdict: Verdict) -> tuple[float, float, float, float]:
    """The row's weight in one of [both refused, the judge alone, the human alone, neither]."""
    place = (0 if verdict.refused else 2) if row.refused else (1 if verdict.refused else 3)
    a, b, c, d = (row.weight if place == i else 0.0 for i in range(4))
    return a, b, c, d


def weighted_sums(
    pairs: Sequence[LabelledVerdict], hit: Callable[[LabelledVerdict], bool]
) -> tuple[float, float, float]:
    """(weight of the hits, weight of all, how many independent responses they are worth)."""
    total = sum(row.weight for row, _ in pairs)
    # to a mean of 1, so that equal weights are worth the number of rows
    scale = len(pairs) / total if total else 1.0
    sums = cluster_sums(
        (signature(pair[0].prompt), (hit(pair) * pair[0].weight * scale, pair[0].weight * scale))
        for pair in pairs
    )
    hits, sizes = ([row[column] for row in sums] for column in (0, 1))
    hit_weight = sum(pair[0].weight for pair in pairs if hit(pair))
    return hit_weight, total, effective_n(hits, sizes)


def wilson_share(
    pairs: Sequence[LabelledVerdict], hit: Callable[[LabelledVerdict], bool]
) -> CellNumber:
    """The share of hits with Wilson's interval, at the size that clusters of one prompt are
    worth."""
    if not pairs:
        return CellNumber()
    hits, total, effective = weighted_sums(pairs, hit)
    low, high = wilson(hits / total, effective)
    return CellNumber(value=hits / total, low=low, high=high)


def measure_confusion(
    refusals: Sequence[LabelledVerdict], answers: Sequence[LabelledVerdict]
) -> Confusion:
    """The four counts, and how many independent responses refusals and answers are worth."""
    seen, refused, refused_effective = weighted_sums(refusals, judge_refused)
    kept, answered, answered_effective = weighted_sums(answers, agrees)
    return Confusion(
        refused=refused,
        refused_seen=seen,
        answered=answered,
        answered_seen=kept,
        refused_effective=refused_effective,
        answered_effective=answered_effective,
    )


def bootstrapped(
    statistic: Callable[[Floats], Floats], counts: Sequence[Sequence[float]], seed: int
) -> CellNumber:
    """`statistic` of the summed counts with its bootstrap interval, prompts redrawn."""
    value, low, high = bootstrap(statistic, counts, resamples=RESAMPLES, seed=seed)
    return CellNumber(value=value, low=low, high=high)


def kappa(counts: Floats) -> Floats:
    """Cohen's kappa (1960) of counts (..., [both, judge alone, human alone, neither]); nan if both
    name one class only."""
    import numpy as np

    both, judge, human, neither = np.moveaxis(counts / counts.sum(axis=-1, keepdims=True), -1, 0)
    chance = (both + judge) * (both + human) + (judge + neither) * (human + neither)
    left = 1 - chance
    certain = left < 1e-12
    found: Floats = np.where(
        certain, np.nan, (both + neither - chance) / np.where(certain, 1.0, left)
    )
    return found


def bias_points(counts: Floats) -> Floats:
    """100 · (the judge's refusal rate - the human's), from the same counts."""
    found: Floats = 100 * (counts[..., 1] - counts[..., 2]) / counts.sum(axis=-1)
    return found


def signature(text: str) -> str:
    """SHA-256 of a prompt's words: case, punctuation and blanks do not change it."""
    return hashlib.sha256(bare_words(text).encode()).hexdigest()
