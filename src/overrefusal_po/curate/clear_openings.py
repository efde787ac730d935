"""Pairs for a training on openings -> those whose sides open as they should, cut sides marked.

    results = clear_openings(curation, results)

Such a training sees the first tokens alone. A late refusal then looks like an answer, and "As an
AI, I cannot judge ..." like a refusal, whatever the judge says about the whole text. A pair with
such a side teaches the wrong thing, so it is left out. Sides that end inside a sentence are
`unfinished`: whoever trains on the file, no end of turn is learned behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

from overrefusal_po.curate.overgenerate import Curation
from overrefusal_po.curate.quotas import Result
from overrefusal_po.pairs.make import ends_whole
from overrefusal_po.records import PreferencePair
from overrefusal_po.run.openers import opens_with

REFUSAL_SIDE = "the refusal does not open like one"
ANSWER_SIDE = "the answer opens like a refusal"


def clear_openings(
    curation: Curation, results: Sequence[Result[PreferencePair]]
) -> list[Result[PreferencePair]]:
    """The results, cut sides marked; none for a pair of which a side opens unlike what it is, if
    openers are known. As they are if the recipe's pairs are not for openings."""
    if not curation.recipe.data.openings:
        return list(results)
    marked = [r if r.row is None else r._replace(row=with_cut_sides(r.row)) for r in results]
    return opening_right(curation, marked) if curation.suppressed else marked


def with_cut_sides(pair: PreferencePair) -> PreferencePair:
    """The pair; sides that end inside a sentence are `unfinished`."""
    sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
    cut = tuple(side for side, text in sides if not ends_whole(text))
    return pair.model_copy(update={"unfinished": cut})


def opening_right(
    curation: Curation, results: Sequence[Result[PreferencePair]]
) -> list[Result[PreferencePair]]:
    """The results; none for a pair of which a side opens unlike what it is."""
    template = curation.models.student.template
    assert template is not None, "openers are found in the responses of a model in process"
    pairs = [result.row for result in results if result.row is not None]
    refusals, answers = (
        opens_with(template, texts, curation.suppressed)
        for texts in ([refusal_of(p) for p in pairs], [answer_of(p) for p in pairs])
    )
    why_not = {
        pair.id: ANSWER_SIDE if answer else REFUSAL_SIDE
        for pair, refusal, answer in zip(pairs, refusals, answers, strict=True)
        if answer or not refusal
    }
    return [
        result._replace(row=None, reason=why_not[result.row.id])
        if result.row is not None and result.row.id in why_not
        else result
        for result in results
    ]


def refusal_of(pair: PreferencePair) -> str:
    """The side that refuses: the chosen one on a harmful prompt."""
    return pair.chosen if pair.rule == "containment" else pair.rejected


def answer_of(pair: PreferencePair) -> str:
    """The side that answers."""
    return pair.rejected if pair.rule == "containment" else pair.chosen
