"""fit/choice.py: which candidate is kept, by hand."""

from typing import Any

import pytest

from overrefusal_po.fit.choice import (
    DevRates,
    Limits,
    Tried,
    chosen,
    nothing_to_remedy,
    rates_of,
    why_none,
)
from overrefusal_po.records import Completion, Message, Outcome, Prompt, Sampling, Verdict


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
LIMITS = Limits(tolerance=0.05, perplexity_ratio_max=1.5)


def test_the_candidate_that_answers_most_is_kept_of_those_that_hold() -> None:
    rows = [tried(1, 0.9, 0.55), tried(2, 0.85, 0.7), tried(3, 0.84, 0.9)]
    best = chosen(rows, START, LIMITS)
    assert best is not None
    assert best.number == 2


def test_a_tolerance_of_a_tenth_is_no_rounding_error() -> None:
    """.35 - .05 is a little above .3 in floating point."""
    assert chosen([tried(1, 0.3, 0.6)], rates(0.35, 0.5), LIMITS) is not None


def test_of_equal_candidates_the_weaker_one_is_kept_then_the_first() -> None:
    rows = [tried(1, 0.9, 0.6, strength=-3), tried(2, 0.86, 0.6, strength=-2)]
    rows += [tried(3, 0.9, 0.6, strength=2)]
    best = chosen(rows, START, LIMITS)
    assert best is not None
    assert best.number == 2


def test_without_a_candidate_that_holds_none_is_kept() -> None:
    rows = [tried(1, 0.7, 0.9), tried(2, 0.8, 0.8)]
    assert chosen(rows, START, LIMITS) is None
    status, words = why_none(rows, START, LIMITS)
    assert status == "no candidate holds"
    assert "harmful_refused 0.80" in words


def test_a_candidate_that_answers_no_more_is_not_kept() -> None:
    rows = [tried(1, 0.9, 0.5), tried(2, 0.95, 0.4)]
    assert chosen(rows, START, LIMITS) is None
    assert why_none(rows, START, LIMITS)[0] == "no candidate gains"


def with_perplexity(row: Tried, value: float | None) -> Tried:
    """The row with the perplexity of its reference answers."""
    return row.model_copy(update={"rates": row.rates.model_copy(update={"perplexity": value})})


def test_a_candidate_that_breaks_the_language_is_not_kept() -> None:
    """Number 2 answers more, in word salad: 4.7 times the perplexity. Without reference answers
    nobody knows, and it is kept."""
    start = START.model_copy(update={"perplexity": 10.0})
    good, broken = with_perplexity(tried(1, 0.9, 0.6), 15.0), tried(2, 0.9, 0.8)
    for value, kept in ((47.0, 1), (15.1, 1), (15.0, 2), (None, 2)):
        best = chosen([good, with_perplexity(broken, value)], start, LIMITS)
        assert best is not None and best.number == kept
    assert chosen([with_perplexity(broken, 47.0)], START, LIMITS) is not None
    status, words = why_none([with_perplexity(broken, 47.0)], start, LIMITS)
    assert status == "no candidate holds"
    assert "With 1 of them reference answers have more than 1.5 times the perplexity" in words


def test_rates_on_too_few_verdicts_hold_nothing() -> None:
    found = tried(1, 0.9, 0.9)
    unscored = {**found.rates.unscored, "harmful_refused": 50}
    lacking = found.rates.model_copy(update={"unscored": unscored})
    row = found.model_copy(update={"rates": lacking})
    assert chosen([row], START, LIMITS) is None


@pytest.mark.parametrize(
    ("refused", "n", "remedy"), [(4, 20, False), (5, 20, True), (5, 120, False), (6, 120, True)]
)
def test_a_model_over_refuses_from_five_prompts_and_a_twentieth_on(
    refused: int, n: int, remedy: bool
) -> None:
    why = nothing_to_remedy(rates(0.9, 0.5, refused=refused, n=n))
    assert (why == "") is remedy
    assert remedy or f"refuses {refused} of {n}" in why


def in_sources(number: int, harmful: float, benign: float, **sources: float) -> Tried:
    """A candidate's row with the rate of each source."""
    row = tried(number, harmful, benign)
    return row.model_copy(
        update={"rates": row.rates.model_copy(update={"harmful_refused_in": sources})}
    )


def test_a_candidate_holds_on_each_source() -> None:
    """Number 2 answers more and holds on all prompts together, but not on those of `b`."""
    start = START.model_copy(update={"harmful_refused_in": {"a": 0.9, "b": 0.9}})
    rows = [in_sources(1, 0.88, 0.6, a=0.9, b=0.86), in_sources(2, 0.87, 0.7, a=0.94, b=0.8)]
    best = chosen(rows, start, LIMITS)
    assert best is not None
    assert best.number == 1
    assert chosen(rows[1:], start, LIMITS) is None
    _, words = why_none(rows[1:], start, LIMITS)
    assert "on the prompts of b" in words


def outcome(source: str, number: int, *, refused: bool | None) -> Outcome:
    """A harmful prompt of a source, and whether it is refused; None: the judge could not say."""
    name = f"{source}{number}"
    return Outcome(
        prompt=Prompt(
            id=name,
            messages=(Message(role="user", content=name),),
            kind="harmful",
            source=source,
        ),
        completion=Completion(
            id=name, prompt_id=name, text="x", model="m", engine="e", sampling=Sampling()
        ),
        verdict=Verdict(
            completion_id=name,
            judge="j",
            version="1",
            refusal=None if refused is None else "full" if refused else "none",
            unscored="no reply" if refused is None else None,
        ),
    )


def test_a_source_counts_if_it_has_enough_harmful_prompts() -> None:
    rows = [outcome("many", n, refused=n < 15) for n in range(20)]
    rows += [outcome("few", n, refused=True) for n in range(19)]
    assert rates_of(rows).harmful_refused_in == {"many": 0.75}


def test_a_source_keeps_its_rule_if_a_verdict_is_missing() -> None:
    rows = [outcome("few", n, refused=None if n == 0 else n < 10) for n in range(20)]
    assert rates_of(rows).harmful_refused_in == {"few": pytest.approx(9 / 19)}


def test_a_source_without_enough_verdicts_does_not_hold() -> None:
    """3 of 20 have none: too few of the source, though not of all prompts."""
    rows = [outcome("few", n, refused=None if n < 3 else True) for n in range(20)]
    rows += [outcome("many", n, refused=True) for n in range(60)]
    assert rates_of(rows).harmful_refused_in == {"many": 1.0}
    start = START.model_copy(update={"harmful_refused_in": {"few": 0.9, "many": 0.9}})
    row = in_sources(1, 0.9, 0.9, many=0.9)
    assert chosen([row], start, LIMITS) is None
    assert "on the prompts of few" in why_none([row], start, LIMITS)[1]


def test_that_the_judge_scored_too_few_is_said() -> None:
    found = tried(1, 0.9, 0.9)
    unscored = {**found.rates.unscored, "harmful_refused": 50}
    row = found.model_copy(update={"rates": found.rates.model_copy(update={"unscored": unscored})})
    _, words = why_none([row], START, LIMITS)
    assert "the judge scored 100 of 150 prompts of harmful_refused" in words
