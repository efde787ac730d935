"""What a file's rows are: pairs, labelled responses, or prompts; and columns that look like sides.

rows_form(local_rows("x.jsonl"), settings, "x.jsonl")       # "prompts"
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from overrefusal_po.identity import spoken_words
from overrefusal_po.sources._conversations import CONVERSATION_COLUMNS, SIDES
from overrefusal_po.sources._local import Rows
from overrefusal_po.sources._row_source import PROMPT_FIELDS, RowSettings

Form = Literal["pairs", "responses", "prompts"]

SIDE_NAME = re.compile(
    r"(best|better|worst|worse|good|bad|win\w*|los[es]\w*|(dis)?prefer\w*|accept\w*|reject\w*"
    r"|positive|negative|pos|neg|chosen\w*)(_\w+)?"
    r"|(response|answer|output|completion|reply|model|assistant)[ _-]?([a-z]|\d+)",
    re.IGNORECASE,
)
"""How others call the sides of a pair."""

LONG_TEXT = 5
"""Words from which an unknown text may be a response."""


def rows_form(rows: Rows, settings: RowSettings, name: str) -> Form:
    """What the rows are, by the columns of all of them.

    ValueError for prompts with two texts that look like sides and are not read.
    """
    columns: Counter[str] = Counter()
    sides: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    for _, row in rows:
        columns.update(map(str, row))
        for column, value in row.items():
            if isinstance(value, str) and value.strip():
                sides[column] += SIDE_NAME.fullmatch(column.strip()) is not None
                texts[column] += len(spoken_words(value)) >= LONG_TEXT
    known = {*columns, *settings.columns}
    if any(side in known for side in SIDES):
        return "pairs"
    if "completion" in known and "label" in known:
        return "responses"
    read = {*CONVERSATION_COLUMNS, *PROMPT_FIELDS, *settings.columns.values()}
    read |= {*settings.where, *settings.ignore}
    named = [column for column in columns if sides[column] and column not in read]
    long = [column for column in columns if 2 * texts[column] > columns[column]]
    check_sides_named(named, name)
    check_sides_named([column for column in long if column not in read], name)
    return "prompts"


def check_sides_named(found: list[str], name: str) -> None:
    """Raises ValueError if two columns of texts are not read: they may be the sides of pairs."""
    if len(found) < 2:
        return
    one, other = found[:2]
    raise ValueError(
        f"{name}: the columns {one!r} and {other!r} look like the two sides of a pair, and are not "
        f"read. Name them (data.columns: {{chosen: {one}, rejected: {other}}}; for `check FILE`: "
        f"--data.columns.chosen={one} --data.columns.rejected={other}), or leave them out on "
        f"purpose (data.ignore: [{one}, {other}])."
    )
