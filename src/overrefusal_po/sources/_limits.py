"""How much of a file is read, at most: its rows, the size of one row, and the size of all of them.

    limits = Limits(rows=2_000_000)
    limits.check_file(Path("pairs.jsonl"))       # its kind and its size, before anything is read
    meter = Meter("pairs.jsonl", limits)         # while it is read: meter.add(place, size)

A tiny Parquet file can unpack to more than any memory holds, and a device never ends. Each limit
has a key of its own (`data.limit_rows`, ...), and its error names the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from overrefusal_po.records import check_regular

MB = 2**20
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
"""How packed files begin."""


class Limits(NamedTuple):
    """The limits of one file, or of one set of the hub."""

    rows: int = 1_000_000
    row_mb: float = 16
    mb: float = 1024

    @property
    def row_size(self) -> int:
        """Bytes of one row, at most."""
        return int(self.row_mb * MB)

    def check_file(self, file: Path) -> None:
        """Raises ValueError for what is no file of rows, or a file over `mb`."""
        endings = "a file of rows (.jsonl, .json, .csv, .tsv or .parquet)"
        check_regular(file, endings)
        with file.open("rb") as content:
            begin = content.read(4)
        for mark, name in PACKED.items():
            if begin.startswith(mark):
                raise ValueError(f"{file}: the file is packed ({name}). Unpack it first.")
        self.check_size(str(file), file.stat().st_size)

    def check_size(self, place: str, size: float) -> None:
        """Raises ValueError if `size` bytes are more than `mb`."""
        if size > self.mb * MB:
            raise ValueError(
                f"{place}: it holds {in_mb(size)}, more than limit_mb {self.mb:g}. {way_out('mb')}"
            )

    def check_rows(self, place: str, rows: int) -> None:
        """Raises ValueError for more rows than `rows`."""
        if rows > self.rows:
            raise ValueError(
                f"{place}: more rows than limit_rows {self.rows} are there. {way_out('rows')}"
            )

    def check_row(self, place: str, size: float) -> None:
        """Raises ValueError for a row of more than `row_mb`."""
        if size > self.row_size:
            raise ValueError(
                f"{place}: the row is longer than limit_row_mb {self.row_mb:g} MB. "
                f"{way_out('row_mb')}"
            )


LIMITS = Limits()
"""What is read without a word in the recipe."""


class Meter:
    """Counts what was read of one file, and stops at its limits."""

    def __init__(self, place: str, limits: Limits) -> None:
        self.place, self.limits = place, limits
        self.rows, self.size = 0, 0.0

    def add(self, place: str, size: float = 0) -> None:
        """Counts a row of `size` bytes at `place`; ValueError if it is over a limit."""
        self.rows += 1
        self.size += size
        self.limits.check_row(place, size)
        self.limits.check_rows(self.place, self.rows)
        self.limits.check_size(self.place, self.size)


def way_out(limit: str) -> str:
    """What to do at a limit."""
    return (
        f"Take fewer, or raise data.limit_{limit} (`limit_{limit}` of a source; for `check FILE`: "
        f"--data.limit_{limit}=...)."
    )


def in_mb(size: float) -> str:
    """`2,048 MB`: bytes in words."""
    return f"{size / MB:,.0f} MB"
