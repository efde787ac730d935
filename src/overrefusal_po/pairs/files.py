"""A file of preference pairs -> PreferencePair: our own rows, or a public set's, which have no
rule.

    read_pairs("pairs.jsonl")

docs/files.md lists the forms that are read. A row in another form is a ValueError.
"""

from __future__ import annotations

from pathlib import Path

from overrefusal_po.records import JsonObject, PreferencePair
from overrefusal_po.sources import file
from overrefusal_po.sources._pairs import row_to_pair
from overrefusal_po.sources._prompt_rows import known_kind
from overrefusal_po.sources._turns import Unread


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """The pairs of a file (JSON Lines, JSON, CSV, TSV, Parquet): our own rows, or others'.

    An empty side is read, so that the linter can name the row. Columns that are not read are
    counted in the log. ValueError names the line that is no pair.
    """
    return file.pairs(file.Settings(path=str(path)), None)


def read_row(row: JsonObject, place: str, unread: Unread) -> PreferencePair:
    """One row as a pair; its kind from `kind` or `label` (safe, unsafe), else general."""
    kind = known_kind(row.get("label"))
    known = ("label",) if kind else ()  # a label of another kind is counted as not read
    return row_to_pair(row, place, unread, kind=kind or "general", read=known)
