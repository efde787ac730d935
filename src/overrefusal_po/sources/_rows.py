"""Rows of a file or a hub data set -> (place, text, category), with columns checked.

    for item in set_items(paths, HubSet("walledai/HarmBench", "standard", "train"), FORMS):
        Prompt.of(item.text, kind="harmful", category=item.category)

A set comes in one of a few known forms (the hub's columns, those of the authors' own file). Rows in
no known form are an error that names the columns found and those expected. If a column was renamed,
nothing is guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from overrefusal_po.records import JsonObject, Origin, Split
from overrefusal_po.sources._hub import HubSet, hub_rows
from overrefusal_po.sources._local import local_rows
from overrefusal_po.sources._origins import given_id, row_origin
from overrefusal_po.sources._turns import is_seen


class Form(NamedTuple):
    """The columns in which a set comes. `also`: further ones that must be there (labels,
    filters)."""

    prompt: str
    category: str | None = None
    also: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that a row must have."""
        return tuple(column for column in (self.prompt, self.category, *self.also) if column)


class Item(NamedTuple):
    """One row: its place (for errors), what is asked, its category, and all its columns."""

    place: str
    text: str
    category: str
    row: JsonObject

    @property
    def origin(self) -> Origin:
        """Where the row stands, and its own id. Its other columns are the set's, and not kept."""
        own = {"id": given_id(self.row)}
        return row_origin(own, self.place, ("id",), Counter())


def set_items(paths: Sequence[str], wanted: HubSet, forms: Sequence[Form]) -> Iterator[Item]:
    """The rows of local files if there are any, else of the hub's data set; ValueError on rows
    in no known form."""
    found = (row for path in paths for row in local_rows(path)) if paths else hub_rows(wanted)
    for place, row in found:
        form = matching_form(row, forms, place)
        yield Item(place, column_text(row, form.prompt, place), row_category(row, form), row)


def matching_form(row: JsonObject, forms: Sequence[Form], place: str) -> Form:
    """The first form whose columns the row has; ValueError names the columns found and those
    expected."""
    for form in forms:
        if all(column in row for column in form.columns):
            return form
    expected = ", or ".join(" + ".join(form.columns) for form in forms)
    raise ValueError(
        f"{place}: the columns found are {', '.join(map(str, row)) or 'none'}; expected "
        f"{expected}. The set has another form than when this source was written: give a "
        "`revision` that has these columns, or read a copy by {name: file, path: ..., columns: "
        "{prompt: ...}}."
    )


def column_text(row: JsonObject, column: str, place: str) -> str:
    """The text in a column; a list of one turn counts as its turn. ValueError if there is
    none."""
    value = row[column]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not is_seen(value):
        raise ValueError(
            f"{place}, column {column}: there must be text that is not empty; got "
            f"{str(value)[:80]!r}."
        )
    return value


def row_category(row: JsonObject, form: Form) -> str:
    """The category of a row, `uncategorised` if its form has none."""
    value = row[form.category] if form.category else None
    return "uncategorised" if value in (None, "") else str(value)


def hub_parts(split: Split | None, paths: Sequence[str]) -> list[Split]:
    """The hub's splits behind ours, for sets with train and test: no dev, None is both. Local files
    are the one asked for."""
    if paths:
        return [split or "train"]
    return ["train", "test"] if split is None else [] if split == "dev" else [split]
