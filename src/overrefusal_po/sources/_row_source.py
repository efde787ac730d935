"""Rows in other people's columns -> prompts, pairs or triples; what `file` and `hub` share.

    Reader(local_rows("x.jsonl"), settings, "x.jsonl", "train").prompts()

Columns are renamed first. Then each row is read, and what is not read is counted or an error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.json_files import check_characters
from overrefusal_po.recipe.reading import BadRows
from overrefusal_po.records import (
    JsonObject,
    Kind,
    LabelledResponse,
    PreferencePair,
    Prompt,
    Split,
    Triple,
)
from overrefusal_po.sources._completions import labelled_response
from overrefusal_po.sources._conversations import (
    NOT_READ,
    PROMPT_COLUMNS,
    SIDES,
    count_unread,
    has_sides,
    unread_words,
)
from overrefusal_po.sources._faults import read_each
from overrefusal_po.sources._limits import LIMITS, Limits
from overrefusal_po.sources._local import Rows
from overrefusal_po.sources._origins import ID_COLUMNS, check_ids, row_origin
from overrefusal_po.sources._pairs import is_ours, own_pair, row_to_pair
from overrefusal_po.sources._prompt_rows import (
    KIND_OF_LABEL,
    TRIPLE_SIDES,
    Label,
    check_labelled,
    known_kind,
    label_kind,
    no_triple,
    own_triple,
    row_to_prompt,
    row_triple,
    spellings,
)
from overrefusal_po.sources._turns import Unread, from_json, is_blank, short

logger = logging.getLogger(__name__)

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}
"""What a set may call a split -> what we call it."""

FieldName = Literal[
    "id",
    "prompt",
    "messages",
    "question",
    "instruction",
    "input",
    "history",
    "system",
    "chosen",
    "rejected",
    "completion",
    "kind",
    "label",
    "category",
    "split",
    "topic",
    "contrast",
    "reference",
    "response",
    "safe_response",
    "harmful_response",
    "assistant_prefix",
]
"""The fields that columns can be mapped to."""

NOT_MEANT = {
    "prompt": PROMPT_COLUMNS,
    "messages": PROMPT_COLUMNS,
    "label": ("kind",),
}
"""If the column of a field is named, these others are not read."""

PROMPT_FIELDS = (
    *(
        *ID_COLUMNS,
        "origin",
        "assistant_prefix",
        "type",
        "source",
        "kind",
        "label",
        "category",
        "split",
        "topic",
        "contrast",
    ),
    *("reference", "response", "completion", "safe_response"),
)
"""The columns of a prompt that are read, those of the conversation apart."""

R = TypeVar("R", Prompt, Triple, PreferencePair, LabelledResponse)


class RowSettings(BaseModel):
    """`kind`: for rows that have neither `kind` nor `label`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: Kind | None = None
    columns: dict[FieldName, str] = Field(default_factory=dict)
    """Field -> the column for it."""
    labels: dict[Label, Kind] = Field(default_factory=dict)
    """Label in the rows -> kind; empty: safe is benign, unsafe is harmful."""
    where: dict[str, Label | list[Label]] = Field(default_factory=dict)
    """Column -> the value, or one of the values, that a row must have to be read."""
    ignore: tuple[str, ...] = ()
    """Columns that are left out on purpose."""
    bad_rows: BadRows = "error"
    """What happens to a row that cannot be read."""
    limit_rows: int = Field(default=LIMITS.rows, gt=0)
    limit_row_mb: float = Field(default=LIMITS.row_mb, gt=0)
    limit_mb: float = Field(default=LIMITS.mb, gt=0)

    @property
    def limits(self) -> Limits:
        """How much is read at most."""
        return Limits(self.limit_rows, self.limit_row_mb, self.limit_mb)


class Reader:
    """The rows of one file or set, read under its settings; it counts what is not read."""

    def __init__(self, rows: Rows, settings: RowSettings, name: str, split: Split | None) -> None:
        self.rows, self.settings, self.name, self.split = rows, settings, name, split
        self.unread: Unread = Counter()
        self.left_out: Counter[str] = Counter()
        self.other_splits = 0
        self.found: tuple[str, ...] = ()

    def prompts(self) -> list[Prompt]:
        """The prompts; rows that name another split are left out."""
        found = self.noted(read_each(self.rows, self.prompt, self.name, self.settings.bad_rows))
        check_ids(found)
        return found

    def pairs(self) -> list[PreferencePair]:
        """The pairs; those of others have no rule, and are general without a kind."""
        return self.noted(read_each(self.rows, self.pair, self.name, self.settings.bad_rows))

    def responses(self) -> list[LabelledResponse]:
        """The labelled responses of TRL's unpaired form."""
        return self.noted(read_each(self.rows, self.response, self.name, self.settings.bad_rows))

    def is_unpaired(self) -> bool:
        """Whether the first row is of TRL's unpaired form: a completion and no sides."""
        _, row = next(iter(self.rows), ("", {}))
        columns = {*row, *self.settings.columns}
        return "completion" in columns and not any(side in columns for side in SIDES)

    def triples(self) -> list[Triple]:
        """The triples. Rows that are left out are counted; ValueError if nothing is left."""
        found = self.noted(read_each(self.rows, self.triple, self.name, self.settings.bad_rows))
        counts = ", ".join(f"{count} {why}" for why, count in self.left_out.items()) or "none"
        logger.info("%s: %d triples; rows left out: %s", self.name, len(found), counts)
        if not found and self.left_out:
            raise ValueError(
                f"{self.name}: no row is a triple (rows left out: {counts}). A triple has prompt, "
                f"{' and '.join(TRIPLE_SIDES)} and is harmful (label or kind). The columns found "
                f"are {', '.join(self.found)}; other names are given by columns."
            )
        return found

    def noted(self, found: list[R]) -> list[R]:
        """`found`, after log lines that say which columns and rows were not read."""
        if self.other_splits:
            logger.info("%s: %d rows are of another split", self.name, self.other_splits)
        if any(self.unread.values()):
            logger.warning(NOT_READ, self.name, unread_words(self.unread))
        return found

    def row(self, raw: JsonObject, place: str) -> JsonObject | None:
        """The row under our names; None if `where` or the split leaves it out."""
        if not passes(raw, self.settings.where, place):
            return None
        row = renamed(raw, self.settings, place, self.unread)
        row |= (
            {"prompt": from_json(row["prompt"], f"{place}, column prompt")}
            if "prompt" in row
            else {}
        )
        if "split" in row:
            row["split"] = row_split(row, place, "read all rows: data.ignore: [split]")
        wanted = self.split is None or row.get("split") in (None, self.split)
        self.other_splits += not wanted
        if wanted:
            check_characters(row, place)
        return row if wanted else None

    def prompt(self, raw: JsonObject, place: str) -> Prompt | None:
        """A row as a prompt."""
        row = self.row(raw, place)
        if row is None:
            return None
        if is_ours(row.get("prompt")):
            return own_pair(row, place).prompt
        return self.row_prompt(row, place)

    def row_prompt(self, row: JsonObject, place: str, read: Collection[str] = ()) -> Prompt:
        """A row under our names as a prompt; `read` names further columns that are read."""
        prompt = row_to_prompt(
            row,
            place,
            self.settings.kind,
            source=self.name,
            labels=self.settings.labels or KIND_OF_LABEL,
            unread=self.unread,
        )
        sides = SIDES if has_sides(row) else ()
        named = (*PROMPT_FIELDS, *sides, *read, *self.named)
        count_unread(row, named, place, self.unread)
        kept = [name for name in named if name not in ("source", "type")]  # no field of ours
        origin = row_origin(row, place, kept, self.unread)
        return prompt.model_copy(update={"origin": origin})

    def pair(self, raw: JsonObject, place: str) -> PreferencePair | None:
        """A row as a pair. Without `labels`, a label that says no kind is counted alone."""
        row = self.row(raw, place)
        if row is None:
            return None
        labels, strict = self.settings.labels, "label" in self.settings.columns
        check_labelled(row, place, labels or KIND_OF_LABEL)
        kind = known_kind(row.get("label"))
        if labels or strict:
            kind = label_kind(row.get("label"), labels or KIND_OF_LABEL, place)
        read = ("label", "split", *self.named) if kind else ("split", *self.named)
        kind = kind or self.settings.kind or "general"
        return row_to_pair(row, place, self.unread, kind=kind, read=read)

    def response(self, raw: JsonObject, place: str) -> LabelledResponse | None:
        """A row as a labelled response."""
        row = self.row(raw, place)
        if row is None:
            return None
        kind, read = self.settings.kind or "general", ("split", *self.named)
        return labelled_response(row, place, self.unread, kind=kind, read=read)

    def triple(self, raw: JsonObject, place: str) -> Triple | None:
        """A row as a triple; None if it is none, which is counted."""
        row = self.row(raw, place)
        if row is None:
            return None
        if is_ours(row.get("prompt")):
            return own_triple(row, place)
        prompt = self.row_prompt(row, place, TRIPLE_SIDES)
        prompt = prompt.model_copy(update={"reference": None})
        self.found = self.found or tuple(map(str, row))
        if why := no_triple(row, prompt, self.settings.labels):
            self.left_out[why] += 1
            return None
        return row_triple(row, prompt, place)

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that the settings name."""
        return (*self.settings.columns.values(), *self.settings.where)


def row_split(row: JsonObject, place: str, way_out: str) -> Split | None:
    """The split that a row names, whatever its case; None if it names none. ValueError on another
    word: the row would vanish from every split."""
    value = row.get("split")
    if is_blank(value):
        return None
    found = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            f"{place}: split is {short(value)}; allowed are {', '.join(SPLIT_NAMES)}. Correct it, "
            f"or {way_out}."
        )
    return found


def renamed(row: JsonObject, settings: RowSettings, place: str, unread: Unread) -> JsonObject:
    """The row with our names for the mapped columns, without the ignored ones.

    ValueError names a column that is not there and those that are. A column whose name another one
    took is counted as not read.
    """
    columns = settings.columns
    for field, column in columns.items():
        if column not in row:
            raise ValueError(
                f"{place}: there is no column {column!r} for {field}; the columns found are "
                f"{', '.join(map(str, row))}."
            )
    fields = {other for field in columns for other in NOT_MEANT.get(field, (field,))}
    gone = {name for name in fields if name in row and name not in columns.values()}
    for name in gone - {*settings.ignore}:
        if not is_blank(row[name]):
            unread[name] += 1
    left = {name: v for name, v in row.items() if name not in gone and name not in settings.ignore}
    return left | {field: row[column] for field, column in columns.items()}


def passes(row: JsonObject, wanted: Mapping[str, Label | list[Label]], place: str) -> bool:
    """Whether a row has the wanted values, compared as text without case; ValueError if a column
    is not there."""
    for column, values in wanted.items():
        if column not in row:
            raise ValueError(
                f"{place}: there is no column {column!r} for where; the columns found are "
                f"{', '.join(map(str, row))}."
            )
        allowed = values if isinstance(values, list) else [values]
        if str(row[column]).lower() not in {text for one in allowed for text in spellings(one)}:
            return False
    return True
