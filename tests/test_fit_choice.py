"""fit/choice.py: which candidate is kept, by hand."""

from typing import Any

import pytest

from overrefusal_po.fit.choice import DevRates, Tried, chosen, nothing_to_remedy, why_none


def rates(harmful: float | None, benign: float | None, *, refused: int = 50, n: int = 100) -> Any:
    """Rates on `n` prompts of each kind."""
    counts = dict.fromkeys(("harmful_refused", "benign_answered", "ordinary_answered"), n)
    return DevRates(
        harmful_refused=harmful,
        benign_answered=benign,
        ordinary_answered=None,
        degenerate=0.0,
        intervals=dict.fromkeys(counts),
        n=counts,
        unscored=dict.fromkeys(counts, 0),
        benign_refused=refused,
    )


def tried(number: int, harmful: float, benign: float, *, strength: float = 1.0) -> Tried:
    """A candidate's row."""
    found = rates(harmful, benign)
    return Tried(number=number, remedy="x", strength=strength, rates=found, facts={}, seconds=None)


START = rates(0.9, 0.5)


def test_the_candidate_that_answers_most_is_kept_of_those_that_hold() -> None:
    rows = [tried(1, 0.9, 0.55), tried(2, 0.85, 0.7), tried(3, 0.84, 0.9)]
    best = chosen(rows, START, tolerance=0.05)
    assert best is not None
    assert best.number == 2


def test_a_tolerance_of_a_tenth_is_no_rounding_error() -> None:
    """.35 - .05 is a little above .3 in floating point."""
    assert chosen([tried(1, 0.3, 0.6)], rates(0.35, 0.5), tolerance=0.05) is not None


def test_of_equal_candidates_the_weaker_one_is_kept_then_the_first() -> None:
    rows = [tried(1, 0.9, 0.6, strength=-3), tried(2, 0.86, 0.6, strength=-2)]
    rows += [tried(3, 0.9, 0.6, strength=2)]
    best = chosen(rows, START, tolerance=0.05)
    assert best is not None
    assert best.number == 2


def test_without_a_candidate_that_holds_none_is_kept() -> None:
    rows = [tried(1, 0.7, 0.9), tried(2, 0.8, 0.8)]
    assert chosen(rows, START, tolerance=0.05) is None
    status, words = why_none(rows, START, 0.05)
    assert status == "no candidate holds"
    assert "harmful_refused 0.80" in words


def test_a_candidate_that_answers_no_more_is_not_kept() -> None:
    rows = [tried(1, 0.9, 0.5), tried(2, 0.95, 0.4)]
    assert chosen(rows, START, tolerance=0.05) is None
    assert why_none(rows, START, 0.05)[0] == "no candidate gains"


def test_rates_on_too_few_verdicts_hold_nothing() -> None:
    found = tried(1, 0.9, 0.9)
    unscored = {**found.rates.unscored, "harmful_refused": 50}
    lacking = found.rates.model_copy(update={"unscored": unscored})
    row = found.model_copy(update={"rates": lacking})
    assert chosen([row], START, tolerance=0.05) is None


@pytest.mark.parametrize(
    ("refused", "n", "remedy"), [(4, 20, False), (5, 20, True), (5, 120, False), (6, 120, True)]
)
def test_a_model_over_refuses_from_five_prompts_and_a_twentieth_on(
    refused: int, n: int, remedy: bool
) -> None:
    why = nothing_to_remedy(rates(0.9, 0.5, refused=refused, n=n))
    assert (why == "") is remedy
    assert remedy or f"refuses {refused} of {n}" in why
