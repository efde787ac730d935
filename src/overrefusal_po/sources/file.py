"""A local file of prompts (JSON Lines, a JSON list, CSV, TSV, Parquet): `prompt` or `messages`, and `kind` or `label`.

    {name: file, path: my_prompts.jsonl, kind: benign}
    {name: file, path: x.csv, columns: {prompt: question, label: tag}, labels: {ok: benign, bad: harmful}}

`label` is safe / unsafe as public sets have it (safe = should be answered), or what `labels` says (`labels: {safe:
general}` for ordinary prompts). A reference is read from `reference`, for harmless prompts also from `response`, for
harmful ones from `safe_response`. `category`, `split`, `topic` and `contrast` are read where present; other fields are
left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from overrefusal_po.records import Kind, Message, Prompt, Split, content_id, first_fault
from overrefusal_po.sources._local import local_rows

UNCHECKED = "unsafe_unverified"
"""The label of red-team dialogues that nobody checked: meant to be harmful, and its preferred response may comply."""

LABELS: dict[Any, Kind] = {"safe": "benign", "unsafe": "harmful", UNCHECKED: "harmful"}
DEV_NAMES = ("val", "valid", "validation")
"""What other sets call the split that we call dev."""

OURS = Literal["prompt", "messages", "kind", "label", "category", "split", "topic", "contrast", "reference"]
"""The fields that a file's columns can be mapped to."""

OVERRULED = {"prompt": "messages", "label": "kind"}
"""Naming the column of one field says that the other of the two is not meant."""


class Settings(BaseModel):
    """`path`: the file. `kind`: for rows that have neither `kind` nor `label`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    kind: Kind | None = None
    columns: dict[OURS, str] = Field(default_factory=dict)
    """Field -> the file's column for it."""
    labels: dict[str | int | bool, Kind] = Field(default_factory=dict)
    """Label in the file -> kind; empty: safe is benign, unsafe is harmful."""


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The file's prompts; rows that name another split are left out."""
    found = []
    for where, raw in local_rows(settings.path):
        row = renamed(raw, settings.columns, where)
        row |= {"split": "dev"} if row.get("split") in DEV_NAMES else {}
        if split is not None and row.get("split") not in (None, split):
            continue
        found.append(
            row_to_prompt(row, where, settings.kind, source=settings.path, labels=dict(settings.labels) or LABELS)
        )
    return found


def renamed(row: dict[str, Any], columns: Mapping[OURS, str], where: str) -> dict[str, Any]:
    """The row with our names for the mapped columns; ValueError names a column that is not there and those that are."""
    for field, column in columns.items():
        if column not in row:
            raise ValueError(
                f"{where}: there is no column {column!r} for {field}; the columns found are {', '.join(map(str, row))}."
            )
    gone = {other for field, other in OVERRULED.items() if field in columns and other not in columns}
    kept = {name: value for name, value in row.items() if name not in gone}
    return kept | {field: row[column] for field, column in columns.items()}


def row_to_prompt(
    row: dict[str, Any], where: str, kind: Kind | None, *, source: str, labels: Mapping[Any, Kind] = LABELS
) -> Prompt:
    """One row of a public set as a Prompt; ValueError names `where` and the field."""
    kind = row.get("kind") or labelled(row.get("label"), labels, where) or kind
    if kind is None:
        raise ValueError(
            f"{where}: no kind. Add `kind` (harmful, benign, general) or `label` (safe, unsafe) to the row, or `kind` "
            f"to the source. The columns found are {', '.join(map(str, row))}."
        )
    try:
        turns = turns_of(row, where)
        return Prompt(
            id=content_id(kind, *([turns[0].content] if len(turns) == 1 else [(m.role, m.content) for m in turns])),
            messages=turns,
            kind=kind,
            category=str(row.get("category") or row.get("type") or "uncategorised"),
            source=source,
            split=row.get("split"),
            topic=row.get("topic"),
            contrast=is_contrast(row),
            reference=reference_of(row, kind),
        )
    except ValidationError as error:
        raise ValueError(f"{where}: {first_fault(error)}") from None


def labelled(label: Any, labels: Mapping[Any, Kind], where: str) -> Kind | None:
    """The kind behind a label, whatever its case; None without a label. ValueError on a label that is not known."""
    if label is None:
        return None
    known = {str(name).lower(): kind for name, kind in labels.items()}
    if str(label).lower() not in known:
        raise ValueError(
            f"{where}: label is {label!r}; allowed is one of {', '.join(known)}. Other labels: "
            "`labels: {their label: harmful | benign | general}`."
        )
    return known[str(label).lower()]


def turns_of(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """The conversation of a row; ValueError where nobody asks anything."""
    messages = row.get("messages") or [{"role": "user", "content": row.get("prompt")}]
    if not isinstance(messages, list):
        raise ValueError(f"{where}: messages is {messages!r}; it must be a list of {{role, content}}.")
    if row.get("messages") is None and row.get("prompt") is None:
        raise ValueError(
            f"{where}: the prompt is empty or missing; the columns found are {', '.join(map(str, row))}. A row needs a "
            "`prompt` or `messages`; another name for it is given by columns: {prompt: ...}."
        )
    turns = tuple(Message.model_validate(message) for message in messages)
    if not any(turn.role == "user" and turn.content.strip() for turn in turns):
        raise ValueError(f"{where}: the prompt is empty. A row needs a `prompt`, or `messages` with a user turn.")
    return turns


def reference_of(row: dict[str, Any], kind: Kind) -> Any:
    """The good response of a row, None where none is known to be good."""
    if row.get("reference") or kind != "harmful":
        return row.get("reference") or row.get("response")
    # a bare `response` beside a harmful prompt may be anything, and so may the preferred one of an unchecked dialogue
    return None if row.get("label") == UNCHECKED else row.get("safe_response")


def is_contrast(row: dict[str, Any]) -> bool:
    """Whether a row is the harmful twin of a benign prompt; told by its category where it does not say."""
    value = row.get("contrast")
    if value is None:
        return str(row.get("category") or row.get("type")).startswith("contrast")
    return str(value).lower() in ("true", "1", "yes")
