"""Rows that were made -> those that are kept, and what every filter let through and why not the
rest. Pure.

    found = keep({"overrefusal": results, "containment": results}, faults, Quotas(max_rows=100), seed=0)
    found.rows, found.summary["filters"]["containment"]

Filters, in their order: the rule, the linter, then the quotas: so many of each category, so many of
each rule, and a share of rows on harmful prompts. Who is kept is drawn by seed. A quota that is not
filled is reported and never padded.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from overrefusal_po.records import PreferencePair, Prompt, content_id

Row = TypeVar("Row", PreferencePair, Prompt)


class Result(NamedTuple):
    """What became of a prompt: a row, or None and the reason."""

    prompt: Prompt
    row: Any
    """PreferencePair, Prompt or None."""
    reason: str = ""


class Quotas(NamedTuple):
    """How many rows are kept; None: all. `harmful_share` is a share of all rows, 0-1."""

    max_per_category: int | None = None
    max_rows: int | None = None
    harmful_share: float | None = None


class Kept(NamedTuple):
    """The rows in an order drawn by seed, and {rule: counts, "filters": ..., "categories": ...,
    "unfilled": ...}."""

    rows: list[Any]
    summary: dict[str, Any]


def sieve(name: str, before: int, after: int, why: Mapping[str, int]) -> dict[str, Any]:
    """One filter in a summary: how many came in, how many went out, and why not the others."""
    return {"filter": name, "in": before, "out": after, "why": dict(why)}


def keep(
    results: Mapping[str, Sequence[Result]], faults: Mapping[str, str], quotas: Quotas, seed: int
) -> Kept:
    """What is kept of {rule: results}. `faults`: {id of a row that the linter stops: its check}."""
    steps = []
    made = {rule: [r.row for r in found if r.row is not None] for rule, found in results.items()}
    steps.append(
        ("linter", {rule: [r for r in rows if r.id not in faults] for rule, rows in made.items()})
    )
    drawn = {rule: by_seed(rows, seed) for rule, rows in steps[-1][1].items()}
    steps.append(
        (
            "max_per_category",
            {r: capped(rows, quotas.max_per_category) for r, rows in drawn.items()},
        )
    )
    steps.append(
        ("max_pairs", {rule: rows[: quotas.max_rows] for rule, rows in steps[-1][1].items()})
    )
    steps.append(("harmful_share", shared(steps[-1][1], quotas.harmful_share, seed)))
    kept = steps[-1][1]
    summary: dict[str, Any] = {"filters": {}, "categories": {}}
    for rule, found in results.items():
        why = Counter(r.reason for r in found if r.row is None)
        checks = Counter(f"linter: {faults[row.id]}" for row in made[rule] if row.id in faults)
        counts = {"prompts": len(found), "made": len(made[rule]), "kept": len(kept[rule])}
        summary[rule] = {**counts, "left_out": dict(why + checks)}
        summary["filters"][rule] = [
            sieve("rule", len(found), len(made[rule]), why),
            *sieves(rule, made, steps, checks),
        ]
        summary["categories"][rule] = by_category(found, kept[rule])
    summary["unfilled"] = unfilled(results, kept, quotas)
    return Kept(by_seed([row for rows in kept.values() for row in rows], seed), summary)


def sieves(
    rule: str,
    made: Mapping[str, list[Any]],
    steps: Sequence[tuple[str, dict[str, list[Any]]]],
    checks: Counter[str],
) -> list[dict[str, Any]]:
    """The filters behind the rule that took something, in their order."""
    found, before = [], len(made[rule])
    for name, rows in steps:
        after = len(rows[rule])
        if after < before:
            found.append(
                sieve(
                    name,
                    before,
                    after,
                    checks if name == "linter" else {f"over {name}": before - after},
                )
            )
        before = after
    return found


def capped(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """The first `limit` rows of each category."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[category(row)] += 1
        if limit is None or seen[category(row)] <= limit:
            kept.append(row)
    return kept


def shared(rows: Mapping[str, list[Any]], share: float | None, seed: int) -> dict[str, list[Any]]:
    """The rows with as many taken from one side as makes `share` of them harmful, at least one of
    each side left."""
    everything = by_seed([row for found in rows.values() for row in found], seed)
    harmful = [row.id for row in everything if prompt_of(row).kind == "harmful"]
    harmless = [row.id for row in everything if prompt_of(row).kind != "harmful"]
    if share is None or not harmful or not harmless:
        return dict(rows)
    # a hair more, since 2 * 0.6 / (1 - 0.6) is 2.9999...
    most_harmful = max(1, int(len(harmless) * share / (1 - share) + 1e-9))
    most_harmless = max(1, int(len(harmful) * (1 - share) / share + 1e-9))
    stay = {*harmful[:most_harmful], *harmless[:most_harmless]}
    return {rule: [row for row in found if row.id in stay] for rule, found in rows.items()}


def by_category(found: Sequence[Result], kept: Sequence[Any]) -> dict[str, dict[str, int]]:
    """{category: {"prompts", "made", "kept"}}, in the order of the alphabet."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"prompts": 0, "made": 0, "kept": 0})
    for result in found:
        counts[result.prompt.category]["prompts"] += 1
        counts[result.prompt.category]["made"] += result.row is not None
    for row in kept:
        counts[category(row)]["kept"] += 1
    return dict(sorted(counts.items()))


def unfilled(
    results: Mapping[str, Sequence[Result]], kept: Mapping[str, Sequence[Any]], quotas: Quotas
) -> list[dict[str, Any]]:
    """A row for each quota that was not reached."""
    found: list[dict[str, Any]] = []
    for rule, rows in kept.items():
        if quotas.max_rows is not None and len(rows) < quotas.max_rows:
            found.append(
                {"quota": "max_pairs", "rule": rule, "wanted": quotas.max_rows, "kept": len(rows)}
            )
        counts = Counter(map(category, rows))
        limit = quotas.max_per_category or 0
        names = sorted({r.prompt.category for r in results[rule]})
        found += [
            {
                "quota": "max_per_category",
                "rule": rule,
                "category": name,
                "wanted": limit,
                "kept": counts[name],
            }
            for name in names
            if counts[name] < limit
        ]
    rows = [row for group in kept.values() for row in group]
    harmful = sum(prompt_of(row).kind == "harmful" for row in rows)
    if (
        quotas.harmful_share is not None
        and rows
        and abs(harmful - quotas.harmful_share * len(rows)) >= 1
    ):
        share = round(harmful / len(rows), 3)
        found.append({"quota": "harmful_share", "wanted": quotas.harmful_share, "kept": share})
    return found


def prompt_of(row: PreferencePair | Prompt) -> Prompt:
    """The prompt of a row, which may be the row itself."""
    return row if isinstance(row, Prompt) else row.prompt


def category(row: PreferencePair | Prompt) -> str:
    """The category of a row's prompt."""
    return prompt_of(row).category


def by_seed(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows in an order that follows from seed and ids alone."""
    key = {row.id: random.Random(content_id(seed, row.id)).random() for row in rows}
    return sorted(rows, key=lambda row: key[row.id])
