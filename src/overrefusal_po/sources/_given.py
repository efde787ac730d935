"""Data that Python code gives -> (place, row): a list of rows, a `datasets.Dataset`, or a file.

    for place, row in given_rows([{"prompt": "How?", "chosen": "So.", "rejected": "No."}], "pairs"):
        ...                                  # ("pairs, row 1", {...})

Another form is an error that names what was given, before anything is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from overrefusal_po.records import JsonObject
from overrefusal_po.sources._local import ENDINGS, Rows, local_rows

ALLOWED = (
    "a list of rows (dicts), a list of our records, a datasets.Dataset, or the path of a file "
    f"({', '.join(ENDINGS)})"
)


def given_rows(data: object, name: str) -> Rows:
    """(place, row) for every row. TypeError or ValueError names `name` and what was given."""
    if isinstance(data, str | Path):
        return file_rows(str(data), name)
    if is_hub_type(data, "Dataset"):
        rows: Iterable[object] = data.with_format(None)  # type: ignore[attr-defined]
        return dict_rows(map(without_nulls, rows), name)
    if isinstance(data, Mapping):
        raise TypeError(f"{name} is {mapping_words(data)} Allowed is {ALLOWED}.")
    if not isinstance(data, Sequence):
        hint = (
            " Load the stream as a whole, or take its first rows: list(stream.take(1000))."
            if is_hub_type(data, "IterableDataset")
            else ""
        )
        raise TypeError(f"{name} is a {type(data).__name__}; allowed is {ALLOWED}.{hint}")
    return dict_rows(data, name)


def file_rows(path: str, name: str) -> Rows:
    """The rows of a file; ValueError for a text that is no path of a file of rows."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(
            f"{name} is the text {path[:80]!r}, and its ending is not one of a file of rows. "
            f"Allowed is {ALLOWED}."
        )
    return local_rows(path)


def dict_rows(rows: Iterable[object], name: str) -> Iterator[tuple[str, JsonObject]]:
    """(place, row); TypeError for a row that is no dict."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise TypeError(
                f"{name}, row {number}: got {type(row).__name__} ({str(row)[:60]!r}). A row is a "
                'dict such as {"prompt": ..., "chosen": ..., "rejected": ...}; all rows have one '
                "form."
            )
        yield f"{name}, row {number}", dict(row)


def is_hub_type(data: object, name: str) -> bool:
    """Whether `data` is of a class of the package datasets, which is not imported for this."""
    known = getattr(sys.modules.get("datasets"), name, None)
    return known is not None and isinstance(data, known)


def mapping_words(data: Mapping[object, object]) -> str:
    """What a mapping is in place of rows, and the way out."""
    keys = ", ".join(map(str, data))[:120]
    if any(is_hub_type(value, "Dataset") for value in data.values()):
        return f"a mapping of splits ({keys}). Give one of them: data[{next(iter(data))!r}]."
    return f"one mapping ({keys}). Put a row into a list: [row]."


def without_nulls(value: object) -> object:
    """A row of a table without null, also inside of messages and records.

    Arrow gives all rows and all messages the same fields, and fills in null.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
