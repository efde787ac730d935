"""Rows of a local file: JSON Lines, JSON, CSV, TSV or Parquet; the file's ending says which.

    for place, row in local_rows("questions.csv"):
        ...

Values come unchanged from the file. In CSV and TSV they are text, and an empty cell is
None, as are `null`, `NaN`, `[]` and `{}`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from overrefusal_po.recipe.reading import FILE_ENDINGS
from overrefusal_po.records import JsonObject
from overrefusal_po.sources._json_rows import json_lines, json_rows
from overrefusal_po.sources._limits import LIMITS, Limits, Meter
from overrefusal_po.sources._parquet import check_names, parquet_rows

Rows = Iterator[tuple[str, JsonObject]]

ENDINGS = FILE_ENDINGS

SEMICOLONS = "The cells are parted by semicolons; save the file with commas between them."

NO_VALUE = ("", "null", "NULL", "nan", "NaN", "[]", "{}")
"""Cells of CSV and TSV that hold nothing."""


def local_rows(path: str, limits: Limits = LIMITS) -> Rows:
    """(place, row) for every row. Raises ValueError with file and place if a file or a row
    cannot be read, or is over a limit."""
    file = Path(path)
    limits.check_file(file)
    ending = file.suffix.lower()
    if ending in (".csv", ".tsv"):
        return csv_rows(file, "\t" if ending == ".tsv" else ",", limits)
    if ending == ".parquet":
        return parquet_rows(file, limits)
    return json_rows(file, limits) if ending == ".json" else json_lines(file, limits)


def csv_rows(file: Path, delimiter: str, limits: Limits = LIMITS) -> Rows:
    """The rows under a header; a row with more or fewer cells than the header is an error, not a
    shift."""
    csv.field_size_limit(limits.row_size)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            lines = bounded_lines(text, file, limits)
            cells = csv.reader(lines, delimiter=delimiter, strict=True)
            yield from under_header(file, cells, limits)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: this is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    except csv.Error as error:
        if "field limit" in str(error):
            limits.check_row(f"{file}, a cell", limits.row_size + 1)
        raise ValueError(f"{file}: this is not CSV ({error}). {csv_remedy(file)}") from None


def csv_remedy(file: Path) -> str:
    """What to do about a file that is not CSV: its header shows if semicolons part the cells."""
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        header = text.readline(10_000)
    return SEMICOLONS if header.count(";") > header.count(",") else "Is a quotation mark left open?"


def bounded_lines(text: TextIO, file: Path, limits: Limits) -> Iterator[str]:
    """The lines of a text; ValueError for one that is longer than a row may be."""
    number, longest = 0, limits.row_size
    while line := text.readline(longest + 1):
        number += 1
        if len(line) > longest:
            limits.check_row(f"{file}, line {number}", len(line))
        yield line


def under_header(file: Path, cells: Iterator[list[str]], limits: Limits) -> Rows:
    """(place, {column: cell or None}) for every row under the first; ValueError on rows of another
    length."""
    header = next(cells, [])
    check_names(header, str(file))
    meter = Meter(str(file), limits)
    for row in cells:
        if not row:
            continue
        place = f"{file}, row {meter.rows + 1}"
        meter.add(place, sum(map(len, row)))
        if len(row) != len(header):
            raise ValueError(
                f"{place}: {len(row)} cells under {len(header)} columns "
                f"({', '.join(header)}). {cells_remedy(header, len(row))}"
            )
        yield (
            place,
            {
                name: None if cell in NO_VALUE else cell
                for name, cell in zip(header, row, strict=True)
            },
        )
    if not meter.rows:
        raise ValueError(
            f"{file}: the file holds no rows. A header and at least one row are needed."
        )


def cells_remedy(header: Sequence[str], cells: int) -> str:
    """What to do about a row with another number of cells than its header."""
    if len(header) == 1 and ";" in header[0]:
        return SEMICOLONS
    if cells < len(header):
        return "Write the cells that are missing, or delete the row."
    return "Put cells that hold a comma in quotation marks."
