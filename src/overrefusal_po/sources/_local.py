"""Rows of a local file: JSON Lines, a JSON list, CSV, TSV or Parquet; the file's ending says which.

    for place, row in local_rows("questions.csv"):
        ...

Values come unchanged from the file. In CSV and TSV they are text, and an empty cell is None.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from overrefusal_po.records import JsonObject, read_objects

Rows = Iterator[tuple[str, JsonObject]]

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
LONGEST_CELL = 2**24
"""Characters; csv's own limit of 131,072 is less than a long prompt with context."""


def local_rows(path: str) -> Rows:
    """(place, row) for every row. Raises ValueError with file and place if a file or a row
    cannot be read."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{file}: there is no such file. Give the path of a file that ends in one of "
            f"{', '.join(ENDINGS)}."
        )
    ending = file.suffix.lower()
    if ending in (".csv", ".tsv"):
        return csv_rows(file, "\t" if ending == ".tsv" else ",")
    if ending == ".parquet":
        return parquet_rows(file)
    if ending == ".json" and begins_a_list(file):
        return list_rows(file)
    return ((f"{path}, line {number}", row) for number, row in read_objects(path))


def csv_rows(file: Path, delimiter: str) -> Rows:
    """The rows under a header; a row with more or fewer cells than the header is an error, not a
    shift."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            cells = csv.reader(lines, delimiter=delimiter, strict=True)
            yield from under_header(file, cells)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: this is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    except csv.Error as error:
        raise ValueError(
            f"{file}: this is not CSV ({error}). Is a quotation mark left open?"
        ) from None


def under_header(file: Path, cells: Iterator[list[str]]) -> Rows:
    """(place, {column: cell or None}) for every row under the first; ValueError on rows of another
    length."""
    header = next(cells, [])
    if len(set(header)) != len(header):
        raise ValueError(
            f"{file}: two columns have one name: {', '.join(header)}. Rename one of them."
        )
    number = 0
    for row in cells:
        if not row:
            continue
        number += 1
        if len(row) != len(header):
            raise ValueError(
                f"{file}, row {number}: {len(row)} cells under {len(header)} columns "
                f"({', '.join(header)}). Put cells that hold a comma in quotation marks."
            )
        yield (
            f"{file}, row {number}",
            {name: cell or None for name, cell in zip(header, row, strict=True)},
        )
    if not number:
        raise ValueError(
            f"{file}: the file holds no rows. A header and at least one row are needed."
        )


def parquet_rows(file: Path) -> Rows:
    """The rows of a Parquet file; ValueError if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file}: this is not a Parquet file ({error}).") from None
    if not table.num_rows:
        raise ValueError(f"{file}: the file holds no rows.")
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{file}, row {number}", row


def begins_a_list(file: Path) -> bool:
    """Whether a `.json` file is one list; else its lines are read as JSON Lines."""
    with file.open("rb") as text:
        return text.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def list_rows(file: Path) -> Rows:
    """The objects of a JSON list."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: this is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {error.lineno}, column {error.colno}: this is not JSON ({error.msg})."
        ) from None
    if not values:
        raise ValueError(f"{file}: the file holds no rows. At least one JSON object is needed.")
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(
                f"{file}, row {number}: expected a JSON object ({{...}}), got "
                f"{type(value).__name__}."
            )
        yield f"{file}, row {number}", value
