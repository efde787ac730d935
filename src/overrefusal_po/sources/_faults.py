"""Rows that cannot be read: counted over the whole file, the first ones named; or left out.

records = read_each(rows, read, "pairs.jsonl", "error")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from overrefusal_po.json_files import half_words
from overrefusal_po.recipe.reading import BadRows
from overrefusal_po.records import JsonObject

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHOWN = 3
"""Bad rows that a message names."""


def read_each(
    rows: Iterable[tuple[str, JsonObject]],
    read: Callable[[JsonObject, str], T | None],
    name: str,
    bad_rows: BadRows = "error",
) -> list[T]:
    """What `read` makes of (row, place), without None.

    ValueError for the rows that it cannot read, all of them counted. With "drop" they are left
    out, unless no row is left.
    """
    found: list[T] = []
    faults: list[tuple[str, str]] = []
    number = bad = 0
    for place, row in rows:
        number += 1
        try:
            item = read(row, place)
        except ValueError as error:
            bad += 1
            faults += [(place, fault_words(error, place))] if bad <= SHOWN else []
            continue
        if item is not None:
            found.append(item)
    if bad and (bad_rows == "error" or bad == number):
        raise ValueError(fault_text(faults, bad, number))
    if bad:
        logger.warning(
            "%s: %d of %d rows cannot be read and are left out (bad_rows: drop). The first: %s",
            name,
            bad,
            number,
            " ".join(words for _, words in faults),
        )
    return found


def fault_words(error: ValueError, place: str) -> str:
    """What is wrong with a row, in words."""
    if isinstance(error, UnicodeEncodeError):
        return half_words(error, place)
    return str(error)


def fault_text(faults: list[tuple[str, str]], bad: int, number: int) -> str:
    """The first fault in full, how many rows have one, and the way out. `faults` are (place,
    words); of the same words again the place is enough."""
    first, text = faults[0]
    if bad > 1:
        same = text.removeprefix(first)
        others = [
            f"{place}: the same." if words == place + same else words for place, words in faults[1:]
        ]
        text += f" {bad} of {number} rows cannot be read. The next: {' '.join(others)}"
    if bad < number:
        text += " To leave such rows out, counted: data.bad_rows: drop."
    return text
