"""Rows of a JSON file, read piece by piece: JSON Lines, a list of objects, or {"data": [...]}.

    for place, row in json_rows(Path("pairs.json"), Limits()):
        ...

No more than a row and a piece are in memory. A row over its limit, and JSON that is nested too
deep, is a ValueError with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NoReturn, TextIO

from overrefusal_po.json_files import without_doubles
from overrefusal_po.records import JsonObject, json_object
from overrefusal_po.sources._limits import Limits, Meter

LIST_KEYS = ("data", "rows", "examples", "instances", "items", "pairs", "prompts")
"""Keys under which a JSON object holds its rows."""

PIECE = 2**16
"""Characters that are read at a time."""

FORM = 'A .json file is a list of objects, one object a line, or {"data": [...]}.'


def json_lines(file: Path, limits: Limits) -> Iterator[tuple[str, JsonObject]]:
    """The objects of JSON Lines; blank lines are left out."""
    meter = Meter(str(file), limits)
    with file.open("rb") as lines:
        for number in count(1):
            raw = lines.readline(limits.row_size + 1)
            if not raw:
                break
            place = f"{file}, line {number}"
            limits.check_row(place, len(raw))
            row = json_object(raw, file, number)
            if row is not None:
                meter.add(place, len(raw))
                yield place, row
    if not meter.rows:
        raise ValueError(f"{file}: the file holds no rows. At least one JSON object is needed.")


def json_rows(file: Path, limits: Limits) -> Iterator[tuple[str, JsonObject]]:
    """The objects of a `.json` file, whatever of the three forms it has."""
    if is_lines(file, limits):
        yield from json_lines(file, limits)
        return
    meter = Meter(str(file), limits)
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for row, size in JsonText(file, lines, limits).rows():
                place = f"{file}, row {meter.rows + 1}"
                meter.add(place, size)
                if not isinstance(row, dict):
                    raise ValueError(
                        f"{place}: expected a JSON object ({{...}}), got {type(row).__name__}."
                    )
                yield place, row
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: this is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    if not meter.rows:
        raise ValueError(f"{file}: the file holds no rows. At least one JSON object is needed.")


def is_lines(file: Path, limits: Limits) -> bool:
    """Whether a file is JSON Lines: its first line is an object, and holds no list of rows."""
    with file.open("rb") as lines:
        first = b""
        while not first.strip():
            first = lines.readline(limits.row_size)
            if not first:
                return True
        first = first.removeprefix(b"\xef\xbb\xbf").lstrip()
        if first[:1] == b"[":
            return False
        try:
            value = json.loads(first)
        except json.JSONDecodeError as error:
            return not is_cut(error, len(first.decode(errors="replace").rstrip()))
        except (ValueError, RecursionError):
            return True
        alone = not any(line.strip() for line in iter(lambda: lines.readline(PIECE), b""))
    return not (alone and isinstance(value, dict) and list_key(value))


def is_cut(error: json.JSONDecodeError, end: int) -> bool:
    """Whether an error may come from a value that goes on behind the text, which ends at `end`."""
    return error.msg.startswith("Unterminated") or error.pos > end - 16


def list_key(value: JsonObject) -> str | None:
    """The key that holds the rows of an object; None without one."""
    return next((key for key in LIST_KEYS if isinstance(value.get(key), list)), None)


class JsonText:
    """A JSON text that is decoded value by value while it is read."""

    def __init__(self, file: Path, lines: TextIO, limits: Limits) -> None:
        self.file, self.lines, self.limits = file, lines, limits
        self.text, self.at, self.line, self.column = "", 0, 1, 1
        self.decoder = json.JSONDecoder(object_pairs_hook=without_doubles)

    def rows(self) -> Iterator[tuple[object, int]]:
        """(value, its characters) of every item of the list, or of the list under a key."""
        if self.next() == "[":
            yield from self.items()
        else:
            yield from self.items_under_key()
        if self.next():
            self.fault("text behind the end")

    def items_under_key(self) -> Iterator[tuple[object, int]]:
        """The items of the list that an object holds under one of LIST_KEYS."""
        found = None
        self.take("{")
        while self.next() != "}":
            key, _ = self.value()
            self.take(":")
            if key in LIST_KEYS and self.next() == "[":
                if found:
                    self.fault(f"rows under {found!r} and under {key!r}; keep one of them")
                found = key
                yield from self.items()
            else:
                self.value()
            if self.next() != "}":
                self.take(",")
        self.take("}")
        if found is None:
            self.fault(f"an object without rows under one of {', '.join(LIST_KEYS)}")

    def items(self) -> Iterator[tuple[object, int]]:
        """The items of a list that begins here."""
        self.take("[")
        if self.next() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.next() == "]":
                self.take("]")
                return
            self.take(",")

    def next(self) -> str:
        """The next character that is no blank, which stays; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self, character: str) -> None:
        """Goes on behind the next character, which must be `character`."""
        if self.next() != character:
            self.fault(f"expected {character!r}")
        self.at += 1

    def value(self) -> tuple[object, int]:
        """The value that begins here, and its characters."""
        self.next()
        while True:
            fault = None
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                fault = error
            except RecursionError:
                self.fault("it is nested too deep")
            except ValueError as error:
                self.fault(str(error))
            if fault is None and end < len(self.text):
                size, self.at = end - self.at, end
                return value, size
            place = f"{self.file}, line {self.place()[0]}"
            self.limits.check_row(place, len(self.text) - self.at)
            start = self.at
            if (fault and not is_cut(fault, len(self.text))) or not self.more():
                if fault:
                    self.at += fault.pos - start
                self.fault(fault.msg if fault else "the text ends too early")

    def more(self) -> bool:
        """Reads on, and lets go of what is done; False at the end of the file."""
        piece = self.lines.read(max(PIECE, len(self.text) - self.at))
        self.line, self.column = self.place()
        self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)

    def place(self) -> tuple[int, int]:
        """(line, column) of the next character, from 1."""
        done = self.text[: self.at]
        breaks = done.count("\n")
        column = len(done) - done.rfind("\n") if breaks else self.column + len(done)
        return self.line + breaks, column

    def fault(self, what: str) -> NoReturn:
        """Raises ValueError with file, line and column."""
        line, column = self.place()
        raise ValueError(
            f"{self.file}, line {line}, column {column}: this is not JSON with rows ({what}). "
            f"{FORM}"
        )
