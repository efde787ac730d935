"""Rows that were made -> the rows that are kept, with counts for every filter. Pure.

    results = {"overrefusal": refused, "containment": contained}
    kept = filter_rows(results, faults, Quotas(max_rows=100), seed=0)
    kept.rows, kept.filters["containment"]

The filters, in their order: the rule, the linter, then the quotas. The quotas are a limit for each
category, as many rows of both sides at every length (`limits`), a limit for each rule, and a
share of harmful prompts. Each keeps what the ones before it reached. The seed decides which rows
are kept. Ordinary prompts and others are kept in the proportion in which rows were made of them;
within each, rows that only hold what is right already (`Result.held`) come last. A quota that is
not filled is reported, and never padded.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Generic, NamedTuple, TypedDict, TypeVar

from overrefusal_po.curate.limits import (
    LENGTH,
    Drawn,
    LeftRows,
    keep_harmful_share,
    limit_held,
    limit_rules,
)
from overrefusal_po.pairs.shortcuts import prompt_words
from overrefusal_po.prompts import row_prompt
from overrefusal_po.records import PreferencePair, Prompt, content_id

CuratedRow = TypeVar("CuratedRow", bound=PreferencePair | Prompt)
"""A pair, or a prompt of an SFT set with its answer as reference."""


class Result(NamedTuple, Generic[CuratedRow]):
    """The row that was made from a prompt, or None and the reason.

    `held`: the student gets the prompt right already, and the row only holds it there.
    """

    prompt: Prompt
    row: CuratedRow | None
    reason: str = ""
    held: bool = False


class Quotas(NamedTuple):
    """How many rows to keep; None: all. `harmful_share` is a share of all rows, 0-1.
    `held_per_wrong`: rows that only hold what is right, for each row that corrects.
    `length_ratio_max`: how many rows of a side stand in a stratum of prompt length for each row of
    the other side, at most; 1 or more."""

    max_per_category: int | None = None
    max_rows: int | None = None
    harmful_share: float | None = None
    held_per_wrong: float | None = None
    length_ratio_max: float | None = None


# the functional form, because "in" is a keyword
FilterCounts = TypedDict(
    "FilterCounts", {"filter": str, "in": int, "out": int, "why": dict[str, int]}
)
"""One filter: rows that came in and went out, and {reason: rows that it took}."""


class CategoryCounts(TypedDict):
    """The prompts of a category, the rows that were made of them, and the rows that were kept."""

    prompts: int
    made: int
    kept: int


class RuleCounts(CategoryCounts):
    """The same of a rule, and {reason: prompts that it left out}."""

    left_out: dict[str, int]


class UnfilledQuota(TypedDict, total=False):
    """A quota that was not reached."""

    quota: str
    rule: str
    category: str
    wanted: float
    kept: float


class Kept(NamedTuple, Generic[CuratedRow]):
    """The rows that are kept, in an order drawn by seed, and what every filter did."""

    rows: list[CuratedRow]
    filters: dict[str, list[FilterCounts]]
    """{rule: its filters}."""
    categories: dict[str, dict[str, CategoryCounts]]
    """{rule: {category: counts}}."""
    rules: dict[str, RuleCounts]
    unfilled: list[UnfilledQuota]
    corrects: dict[str, int]
    """{rule: kept rows of prompts that the student gets wrong}."""

    @property
    def summary(self) -> dict[str, object]:
        """These counts as summary.json has them."""
        return {
            "filters": self.filters,
            "categories": self.categories,
            **self.rules,
            "unfilled": self.unfilled,
        }


RowsByRule = dict[str, list[CuratedRow]]


class Step(NamedTuple, Generic[CuratedRow]):
    """What a filter after the rule leaves, and {rule: {reason: rows that it took}}."""

    name: str
    rows: RowsByRule[CuratedRow]
    why: Mapping[str, Mapping[str, int]]


def filter_counts(name: str, before: int, after: int, *, why: Mapping[str, int]) -> FilterCounts:
    """The counts of one filter."""
    return {"filter": name, "in": before, "out": after, "why": dict(why)}


def filter_rows(
    results: Mapping[str, Sequence[Result[CuratedRow]]],
    faults: Mapping[str, str],
    quotas: Quotas,
    *,
    seed: int,
) -> Kept[CuratedRow]:
    """The rows that linter and quotas leave of {rule: results}.

    `faults` is {id of a row that the linter stops: the name of its check}.
    """
    made = {rule: [r.row for r in found if r.row is not None] for rule, found in results.items()}
    held = {r.row.id for found in results.values() for r in found if r.row is not None and r.held}
    steps = filter_steps(made, faults, quotas, seed=seed, held=held)
    kept = steps[-1].rows
    filters: dict[str, list[FilterCounts]] = {}
    rules: dict[str, RuleCounts] = {}
    for rule, found in results.items():
        why = Counter(r.reason for r in found if r.row is None)
        lost = [step.why.get(rule, {}) for step in steps if step.name in ("linter", LENGTH)]
        rules[rule] = {
            "prompts": len(found),
            "made": len(made[rule]),
            "kept": len(kept[rule]),
            "left_out": dict(sum(map(Counter, lost), why)),
        }
        filters[rule] = [
            filter_counts("rule", len(found), len(made[rule]), why=why),
            *counts_after_rule(rule, len(made[rule]), steps),
        ]
    return Kept(
        in_seeded_order([row for rows in kept.values() for row in rows], seed),
        filters,
        {rule: category_counts(found, kept[rule]) for rule, found in results.items()},
        rules,
        unfilled_quotas(results, kept, quotas),
        {rule: sum(row.id not in held for row in found) for rule, found in kept.items()},
    )


def filter_steps(
    made: RowsByRule[CuratedRow],
    faults: Mapping[str, str],
    quotas: Quotas,
    *,
    seed: int,
    held: Set[str] = frozenset(),
) -> list[Step[CuratedRow]]:
    """The filters after the rule, in their order. Of each kind, rows whose id is in `held` are
    taken last."""
    linted = {rule: [r for r in rows if r.id not in faults] for rule, rows in made.items()}
    checks = {
        rule: Counter(f"linter: {faults[r.id]}" for r in rows if r.id in faults)
        for rule, rows in made.items()
    }
    capped = {
        rule: cap_categories(in_drawing_order(rows, seed, held), quotas.max_per_category)
        for rule, rows in linted.items()
    }
    over = {
        rule: {"over max_per_category": len(linted[rule]) - len(rows)}
        for rule, rows in capped.items()
    }
    steps = [Step("linter", linted, checks), Step("max_per_category", capped, over)]
    left = LeftRows(drawn_rows(capped, seed, held), quotas.length_ratio_max)
    for name, apply in (
        (LENGTH, LeftRows.match),
        ("max_pairs", partial(limit_rules, most=quotas.max_rows)),
        ("held_per_wrong", partial(limit_held, held_per_wrong=quotas.held_per_wrong)),
        ("harmful_share", partial(keep_harmful_share, share=quotas.harmful_share)),
    ):
        left.gone.clear()
        apply(left)
        ids = left.ids
        rows = {rule: [row for row in found if row.id in ids] for rule, found in capped.items()}
        steps.append(Step(name, rows, {rule: dict(why) for rule, why in left.gone.items()}))
    return steps


def drawn_rows(rows: RowsByRule[CuratedRow], seed: int, held: Set[str]) -> list[Drawn]:
    """All rows in drawing order, as limits see them."""
    rules = {row.id: rule for rule, found in rows.items() for row in found}
    everything = in_drawing_order([row for found in rows.values() for row in found], seed, held)
    return [
        Drawn(
            row.id,
            rules[row.id],
            prompt.kind == "harmful",
            words=prompt_words(prompt),
            held=row.id in held,
            ordinary=prompt.kind == "general",
        )
        for row, prompt in ((row, row_prompt(row)) for row in everything)
    ]


def counts_after_rule(
    rule: str, made: int, steps: Sequence[Step[CuratedRow]]
) -> list[FilterCounts]:
    """The counts of those filters after the rule that took something."""
    found, before = [], made
    for step in steps:
        after = len(step.rows[rule])
        if after < before:
            found.append(filter_counts(step.name, before, after, why=step.why[rule]))
        before = after
    return found


def cap_categories(rows: Sequence[CuratedRow], limit: int | None) -> list[CuratedRow]:
    """The first `limit` rows of each category."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row_category(row)] += 1
        if limit is None or seen[row_category(row)] <= limit:
            kept.append(row)
    return kept


def category_counts(
    results: Sequence[Result[CuratedRow]], kept: Sequence[CuratedRow]
) -> dict[str, CategoryCounts]:
    """{category: counts}, in alphabetical order."""
    counts: dict[str, CategoryCounts] = defaultdict(lambda: {"prompts": 0, "made": 0, "kept": 0})
    for result in results:
        counts[result.prompt.category]["prompts"] += 1
        counts[result.prompt.category]["made"] += result.row is not None
    for row in kept:
        counts[row_category(row)]["kept"] += 1
    return dict(sorted(counts.items()))


def unfilled_quotas(
    results: Mapping[str, Sequence[Result[CuratedRow]]],
    kept: RowsByRule[CuratedRow],
    quotas: Quotas,
) -> list[UnfilledQuota]:
    """The quotas that were not reached."""
    found: list[UnfilledQuota] = []
    for rule, rows in kept.items():
        if quotas.max_rows is not None and len(rows) < quotas.max_rows:
            found.append(
                {"quota": "max_pairs", "rule": rule, "wanted": quotas.max_rows, "kept": len(rows)}
            )
        categories = {result.prompt.category for result in results[rule]}
        found += unfilled_categories(rule, rows, categories, limit=quotas.max_per_category or 0)
    share = harmful_share([row for rows in kept.values() for row in rows], quotas.harmful_share)
    return found if share is None else [*found, share]


def unfilled_categories(
    rule: str, rows: Sequence[CuratedRow], categories: set[str], *, limit: int
) -> list[UnfilledQuota]:
    """The categories of a rule with fewer rows than `limit`."""
    counts = Counter(map(row_category, rows))
    return [
        {
            "quota": "max_per_category",
            "rule": rule,
            "category": name,
            "wanted": limit,
            "kept": counts[name],
        }
        for name in sorted(categories)
        if counts[name] < limit
    ]


def harmful_share(rows: Sequence[CuratedRow], wanted: float | None) -> UnfilledQuota | None:
    """The share of harmful prompts, if it misses `wanted` by a row or more."""
    harmful = sum(row_prompt(row).kind == "harmful" for row in rows)
    if wanted is None or not rows or abs(harmful - wanted * len(rows)) < 1:
        return None
    return {"quota": "harmful_share", "wanted": wanted, "kept": round(harmful / len(rows), 3)}


def row_category(row: PreferencePair | Prompt) -> str:
    """The category of a row's prompt."""
    return row_prompt(row).category


def in_seeded_order(rows: Sequence[CuratedRow], seed: int) -> list[CuratedRow]:
    """The rows in an order that follows from seed and ids alone."""
    key = {row.id: random.Random(content_id(seed, row.id)).random() for row in rows}
    return sorted(rows, key=lambda row: key[row.id])


def in_drawing_order(rows: Sequence[CuratedRow], seed: int, held: Set[str]) -> list[CuratedRow]:
    """The rows in the order in which quotas take them: each kind by seed, those in `held` last, and
    the kinds spread over the whole, so that every first part of it has them in proportion."""
    kinds: dict[str, list[CuratedRow]] = defaultdict(list)
    for row in sorted(in_seeded_order(rows, seed), key=lambda row: row.id in held):
        kinds[row_prompt(row).kind].append(row)
    places = [
        ((at + 0.5) / len(found), row) for found in kinds.values() for at, row in enumerate(found)
    ]
    return [row for _, row in sorted(places, key=lambda place: place[0])]
