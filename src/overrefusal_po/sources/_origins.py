"""A row of a file -> where it stands, its own id, and the columns that nobody reads.

    row_origin(row, "x.jsonl, line 3", ("prompt", "id"), Counter())
    # Origin(id="q7", file="x.jsonl", line=3, meta={"annotator": "ann"})

`meta` is bounded. A column that is too large for it is counted as not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

from pydantic import ValidationError

from overrefusal_po.identity import conversation_key
from overrefusal_po.records import JsonObject, Origin, Prompt
from overrefusal_po.sources._conversations import is_read
from overrefusal_po.sources._turns import Unread, is_blank, short

ID_COLUMNS = ("id", "uid", "prompt_id")
"""Columns that hold a row's own id; the first that is filled counts."""

PROMPT_ID_COLUMNS = ("prompt_id", "id", "uid")
"""The same for the prompt of a pair, of which there may be several rows."""

MOST_COLUMNS = 32
LONGEST_VALUE = 2000
"""Characters of a column's value as JSON."""

PLACE = re.compile(r"(?P<file>.+), (?:line|row) (?P<line>\d+)", re.DOTALL)


def given_id(row: JsonObject, columns: Iterable[str] = ID_COLUMNS) -> str | None:
    """The row's own id as text, None if it has none."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, str | int | float) and not is_blank(value):
            return str(value)
    return None


def row_origin(
    row: JsonObject, place: str, read: Collection[str], unread: Unread, *, own_id: str | None = None
) -> Origin:
    """The origin of a row. `read` are the columns that have a meaning, of which none is kept in
    `meta`. Values that are too large are counted in `unread`."""
    known = known_origin(row.get("origin"))
    own = own_id or given_id(row)
    found = PLACE.fullmatch(place)
    assert found is not None, "every reader of files says file and line"
    meta: JsonObject = {} if known is None else dict(known.meta)
    for name, value in row.items():
        # of several columns with ids, one is read
        kept = known is None if name == "origin" else name in ID_COLUMNS and str(value) != own
        if is_blank(value) or (is_read(row, name, read) and not kept):
            continue
        text = json.dumps(value, ensure_ascii=False, default=str)
        if len(meta) < MOST_COLUMNS and len(text) <= LONGEST_VALUE:
            meta[name] = json.loads(text)
        else:
            unread[f"{name}, too large to keep"] += 1
    own = own if known is None else known.id or own
    return Origin(id=own, file=found["file"], line=int(found["line"]), meta=meta)


def known_origin(value: object) -> Origin | None:
    """The origin that a row of our own carries; None if it has none."""
    try:
        return None if value is None else Origin.model_validate(value)
    except ValidationError:
        return None


def check_ids(prompts: Iterable[Prompt]) -> None:
    """Raises ValueError if one id of a file stands for two prompts; it names both rows."""
    first: dict[tuple[str, str], Prompt] = {}
    for prompt in prompts:
        origin = prompt.origin
        if origin is None or origin.id is None:
            continue
        other = first.setdefault((origin.file, origin.id), prompt)
        same = other is prompt or conversation_key(other) == conversation_key(prompt)
        if not same and other.origin is not None:
            raise ValueError(
                f"{origin.place}: the id {short(origin.id)} is that of line {other.origin.line} "
                "too, and the two rows are different prompts. Give each its own id."
            )
