"""Preference training on how responses begin: both sides of a pair cut after their first tokens.

    cut_sides(table, 8)      # without an end of turn, unless a side is shorter

A model decides whether to refuse in the first tokens of a response (Qi et al., arXiv 2406.05946,
section 2). In DPO's sum over whole responses they are a few of many. The words of the answers say
nothing about refusing, but they soon make the margin and take away the gradient. On openings the
model learns the decision, in a fraction of the time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SIDE_COLUMNS = ("chosen_ids", "rejected_ids")


def cut_sides(table: pa.Table, tokens: int | None) -> pa.Table:
    """`table` with the first `tokens` ids of both sides (None: all of them)."""
    import pyarrow.compute as pc

    for name in SIDE_COLUMNS if tokens is not None else ():
        column = pc.list_slice(table[name].combine_chunks(), 0, tokens)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def equal_places(table: pa.Table) -> list[int]:
    """The places of pairs whose sides have the same tokens."""
    sides = zip(*(table[name].to_pylist() for name in SIDE_COLUMNS), strict=True)
    return [at for at, (chosen, rejected) in enumerate(sides) if chosen == rejected]


def without_equal(table: pa.Table, tokens: int) -> tuple[pa.Table, list[int]]:
    """The pairs whose cut sides differ, and their places; the others are counted in a warning.

    Raises ValueError if none is left.
    """
    equal = set(equal_places(table))
    kept = [at for at in range(len(table)) if at not in equal]
    if not kept:
        raise ValueError(
            f"The sides of all {len(table)} pairs begin with the same {tokens} tokens. Raise "
            "data.opening."
        )
    if len(kept) < len(table):
        logger.warning(
            "%d of %d pairs begin with the same tokens on both sides and are left out",
            len(table) - len(kept),
            len(table),
        )
    return table.take(kept), kept
