"""JSON Lines files that grow row by row and survive `kill -9`.

with Appender(path, Verdict) as file:
    file.add(verdict)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from overrefusal_po.records import read_objects

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=BaseModel)


class Appender(Generic[R]):
    """A JSON Lines file of one kind of record. Opening it cuts off a torn last line.

    `rows` holds what is in the file. With `keep=False` it stays empty, for files that are larger
    than memory. There is no file before the first row.
    """

    def __init__(self, path: Path, record: type[R], *, keep: bool = True) -> None:
        self.path = path
        self.keep = keep
        self.rows: list[R] = []
        cut_torn_line(path)
        if keep and path.exists():
            self.rows += whole_records(path, record)
        self._file: TextIO | None = None

    def add(self, row: R) -> None:
        """Appends one row and hands it to the operating system."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(row.model_dump_json(exclude_defaults=True) + "\n")
        self._file.flush()
        if self.keep:
            self.rows.append(row)

    def __enter__(self) -> Appender[R]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def cut_torn_line(path: Path, *, block: int = 2**16) -> None:
    """Cuts off a torn last line, which a killed run was writing. The file may be of any size."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - block, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            logger.warning(
                "%s: the last line is torn (a killed run); it is cut off and made again", path
            )
            file.truncate(end)


def whole_records(path: Path, record: type[R]) -> Iterator[R]:
    """The rows of `path`, one after the other. ValueError for a line that is no `record`."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                fault = error.errors()[0]["msg"]
                raise ValueError(
                    f"{path}, line {number}: not a {record.__name__} ({fault}). A run wrote this "
                    "file, so it is damaged or was edited. Delete the line, and the same command "
                    "makes it again."
                ) from None


# Any: rows of several files and versions, read as plain JSON
def rows_if_any(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that may be empty or missing."""
    if path.is_file() and path.stat().st_size:
        yield from (row for _, row in read_objects(path))
