"""What every record is, and the row of the user's file that it came from.

    Origin(id="q7", file="x.jsonl", line=3, meta={"annotator": "ann"}).place    # "x.jsonl, line 3"

`records` holds the nouns themselves.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

# Any: JSON may hold anything, and whoever reads an object checks the fields that it takes
JsonObject = dict[str, Any]


class Record(BaseModel):
    """Frozen, and closed: a field that is not known is an error, not a silent loss.

    Where a record was read (`origin`) is no part of what it is: equality leaves it out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(self) is not type(other):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[object, ...]:
        """The values of all fields but `origin`."""
        return tuple(getattr(self, name) for name in type(self).model_fields if name != "origin")


class Origin(Record):
    """The row of a file that a record was read from, so that its owner finds it again."""

    id: str | None = None
    """The row's own id; None if it has none."""
    file: str
    line: int
    """From 1: the line in a JSON Lines file, else the number of the row."""
    meta: JsonObject = {}
    """The row's columns that nobody reads here."""

    def __hash__(self) -> int:
        return hash((self.id, self.file, self.line))

    @property
    def place(self) -> str:
        """`x.jsonl, line 3`."""
        return f"{self.file}, line {self.line}"


def named(own_id: str, origin: Origin | None) -> str:
    """`q7 (x.jsonl, line 3)`: how a message names a record, by the user's own id if it has one."""
    return own_id if origin is None else f"{origin.id or own_id} ({origin.place})"
