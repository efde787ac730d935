"""Rows of a Parquet file, a few at a time, so that a small file cannot fill the memory.

for place, row in parquet_rows(Path("pairs.parquet"), Limits()):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.records import JsonObject
from overrefusal_po.sources._limits import MB, Limits

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_SIZE = 64 * MB
"""Bytes that a batch of rows may unpack to."""

UNREADABLE = (OverflowError, ValueError)
"""What pyarrow raises for a time or a time zone that Python does not know; its own errors too."""

VALUE_SIZE = 8
"""Bytes that a value takes at least, if it is null too."""


def parquet_rows(file: Path, limits: Limits) -> Iterator[tuple[str, JsonObject]]:
    """The rows of a Parquet file; ValueError if it is none, or unpacks to more than the limits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as content:
            check_content(content.metadata, str(file), limits)
            check_names(content.schema_arrow.names, str(file))
            yield from rows_in_batches(content, file, limits)
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: this is not a Parquet file ({words}).") from None


def check_names(names: Sequence[str], place: str) -> None:
    """Raises ValueError for two columns of one name: one of them would be lost."""
    if len(set(names)) != len(names):
        raise ValueError(
            f"{place}: two columns have one name: {', '.join(names)}. Rename one of them."
        )


def check_content(content: pq.FileMetaData, place: str, limits: Limits) -> None:
    """Raises ValueError for no row, and for what the file itself says is over a limit."""
    if not content.num_rows:
        raise ValueError(f"{place}: the file holds no rows.")
    limits.check_rows(place, content.num_rows)
    sizes = [max(size, values * VALUE_SIZE) for size, values in column_sizes(content)]
    limits.check_size(place, sum(sizes))


def column_sizes(content: pq.FileMetaData) -> Iterator[tuple[int, int]]:
    """(unpacked bytes, values) of each column in each group of rows."""
    for group in range(content.num_row_groups):
        part = content.row_group(group)
        for at in range(part.num_columns):
            column = part.column(at)
            yield column.total_uncompressed_size, column.num_values


def rows_in_batches(
    content: pq.ParquetFile, file: Path, limits: Limits
) -> Iterator[tuple[str, JsonObject]]:
    """The rows, read in batches that fit into memory.

    One text of a column may stand in all of its rows, and is packed once. So a batch has few rows
    if the column is large.
    """
    largest = max(size for size, _ in column_sizes(content.metadata))
    rows = max(1, min(1024, BATCH_SIZE // max(largest, 1)))
    size = 0
    for batch in content.iter_batches(batch_size=rows):  # before a row becomes Python's
        size += batch.nbytes
        limits.check_size(str(file), size)
    number = 0
    for batch in content.iter_batches(batch_size=rows):
        for at in range(batch.num_rows):
            number += 1
            place = f"{file}, row {number}"
            part = batch.slice(at, 1)
            if batch.nbytes > limits.row_size:
                limits.check_row(place, part.nbytes)
            yield place, row_values(part, place)


def row_values(part: pa.RecordBatch, place: str) -> JsonObject:
    """The values of a single row. A time that Python cannot hold is text; ValueError names a column
    that cannot be read at all."""
    try:
        return dict(part.to_pylist()[0])
    except UNREADABLE:
        pairs = zip(part.schema.names, part.columns, strict=True)
        return {name: one_value(column[0], f"{place}, column {name}") for name, column in pairs}


def one_value(value: pa.Scalar, place: str) -> object:
    """A value as Python has it, else as text; ValueError if it is neither."""
    import pyarrow as pa

    try:
        return value.as_py()
    except UNREADABLE:
        pass
    try:
        return value.cast(pa.string()).as_py()
    except (*UNREADABLE, NotImplementedError) as error:
        raise ValueError(
            f"{place}: this {value.type} cannot be read ({error}). Write the column as text, or "
            "delete it from the file."
        ) from None
