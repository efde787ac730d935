"""The trials of a search: what each measured, which one is kept and why.

    row = measured_trial(1, {"trainer.beta": 0.3}, hold, of=Hold(), seconds=312.0)
    best = kept_trial(rows)
    print(why_kept(rows, of=Hold()))

The score of a trial that holds is what its `hold.aim` asks for: the share of benign prompts that it
answers, for `both` with the share of harmful prompts that it refuses, less the share of responses
that became degenerate (a refusal that loops is no use). A trial that does not hold
has minus what its worst set refuses too little: below every trial that holds. Of equal scores, the
trial is kept that refuses more, then the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from overrefusal_po.recipe.search import settings_words
from overrefusal_po.recipe.two_sided import Hold, start_of
from overrefusal_po.records import Record
from overrefusal_po.report.hold_notes import broken_more
from overrefusal_po.train.held import Rates
from overrefusal_po.train.hold_result import HoldEntry, together, worst_miss


class Trial(Record):
    """A line of search.jsonl.

    Rates are those of the saved model over all sets together, and `start` those of the start policy
    [refused, answered]. `missed` is what the worst set refuses too little. `fault` says why a trial
    has no numbers: then the others are None.
    """

    number: int
    # Any: the values of a recipe
    settings: dict[str, Any]
    held: bool
    score: float | None
    missed: float | None
    harmful_refused: float | None
    benign_answered: float | None
    start: Rates | None
    bias: float | None
    first_token_auc: float | None
    seconds: float
    fault: str


def measured_trial(
    number: int, settings: Mapping[str, Any], found: HoldEntry, *, of: Hold, seconds: float
) -> Trial:
    """The row of a trial that has ended."""
    rates = together(found["sets"], "held")
    missed = worst_miss(found["sets"], of.refused_drop_max, of.kept_min)
    return Trial(
        number=number,
        settings=dict(settings),
        held=found["held"],
        score=worth(rates, of) - broken_more(found) if found["held"] else -missed,
        missed=missed,
        harmful_refused=rates.harmful_refused,
        benign_answered=rates.benign_answered,
        start=together(found["sets"], "start"),
        bias=found["bias"],
        first_token_auc=found["first_token_auc"],
        seconds=seconds,
        fault="",
    )


def failed_trial(number: int, settings: Mapping[str, Any], fault: str, seconds: float) -> Trial:
    """The row of a trial whose numbers were not finite."""
    return Trial(
        number=number,
        settings=dict(settings),
        held=False,
        score=None,
        missed=None,
        harmful_refused=None,
        benign_answered=None,
        start=None,
        bias=None,
        first_token_auc=None,
        seconds=seconds,
        fault=fault,
    )


def worth(rates: Rates, of: Hold) -> float:
    """What a model that holds is worth."""
    refused, answered = (rate or 0.0 for rate in rates)
    return answered + (refused if of.aim == "both" else 0.0)


def kept_trial(rows: Sequence[Trial]) -> Trial | None:
    """The best trial so far; None if none has numbers."""
    best: tuple[float, float, int] | None = None
    kept = None
    for row in rows:
        if row.score is None:
            continue
        rank = (round(row.score, 9), row.harmful_refused or 0.0, -row.number)
        if best is None or rank > best:
            best, kept = rank, row
    return kept


def why_kept(rows: Sequence[Trial], *, of: Hold) -> str:
    """A sentence: which trial is kept, and by which rule."""
    kept = kept_trial(rows)
    assert kept is not None, "a trial has numbers"
    name = f"Trial {kept.number} of {len(rows)} is kept"
    if not kept.held:
        return (
            f"NO TRIAL HOLDS the stated safety. {name}: its worst set misses it least, by "
            f"{kept.missed:.2f}"
        )
    most = "has the greatest sum of both rates" if of.aim == "both" else "answers most"
    held = sum(row.held for row in rows)
    return f"{name}: of the {held} that hold the stated safety, it {most}"


def brings_nothing(kept: Trial) -> bool:
    """Whether the start policy answers as many benign prompts as the trial that is kept."""
    before = kept.start.benign_answered if kept.start is not None else None
    return before is not None and (kept.benign_answered or 0.0) <= before


def trial_words(row: Trial) -> str:
    """What a trial measured, in a line."""
    if row.score is None:
        return f"no numbers: {row.fault} ({row.seconds:.0f} s)"
    held = "holds" if row.held else f"DOES NOT HOLD (misses by {row.missed:.2f})"
    auc = "" if row.first_token_auc is None else f", first-token AUC {row.first_token_auc:.2f}"
    return (
        f"{held}, harmful refused {share(row.harmful_refused)}, benign answered "
        f"{share(row.benign_answered)}, bias {row.bias:+.2f}{auc} ({row.seconds:.0f} s)"
    )


def table_lines(rows: Sequence[Trial], *, of: Hold) -> Iterator[str]:
    """The start policy that counts and all trials, a line each, the best first."""
    start = next((row.start for row in rows if row.start is not None), None)
    if start is not None:
        whose, refused, answered = start_of(of.start), *map(share, start)
        yield f"start policy{whose}: harmful refused {refused}, benign answered {answered}"
    left = list(rows)
    while (best := kept_trial(left)) is not None:
        yield f"trial {best.number}: {settings_words(best.settings)}: {trial_words(best)}"
        left.remove(best)
    for row in left:
        yield f"trial {row.number}: {settings_words(row.settings)}: {trial_words(row)}"


def share(value: float | None) -> str:
    """A share with two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"
