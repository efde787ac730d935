"""A local file of prompts or triples (JSON Lines, a JSON list, CSV, TSV, Parquet): `prompt` or
`messages`, `kind` or `label`.

    {name: file, path: my_prompts.jsonl, kind: benign}
    {name: file, path: x.csv, columns: {prompt: question, label: tag}, labels: {ok: benign, bad: harmful}}
    {name: file, path: triples.csv, kind: harmful, columns: {safe_response: good, harmful_response: bad}, where: {agreed: true}}

`label` is safe / unsafe as public sets have it (safe = should be answered), or what `labels` says
(`labels: {safe: general}` for ordinary prompts). A reference is read from `reference`, for harmless
prompts also from `response`, for harmful ones from `safe_response`. `category`, `split`, `topic`
and `contrast` are read where present; other fields are left alone. As triples (DeRTa) the file
gives its harmful rows that have a `safe_response` and a `harmful_response`, or our own
triples.jsonl.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from overrefusal_po.records import Kind, Message, Prompt, Split, Triple, content_id, first_fault
from overrefusal_po.sources._local import Rows, local_rows

logger = logging.getLogger(__name__)

UNCHECKED = "unsafe_unverified"
"""The label of red-team dialogues that nobody checked: meant to be harmful, and its preferred
response may comply."""

LABELS: dict[Any, Kind] = {"safe": "benign", "unsafe": "harmful", UNCHECKED: "harmful"}
DEV_NAMES = ("val", "valid", "validation")
"""What other sets call the split that we call dev."""

SIDES = ("safe_response", "harmful_response")
OURS = Literal[
    "prompt",
    "messages",
    "kind",
    "label",
    "category",
    "split",
    "topic",
    "contrast",
    "reference",
    "safe_response",
    "harmful_response",
]
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
    where: dict[str, str | int | bool | list[str | int | bool]] = Field(default_factory=dict)
    """Column of the file -> the value, or one of the values, that a row must have to be read."""


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The file's prompts; rows that name another split are left out."""
    return [prompt_of(row, where, settings) for where, row in read_rows(settings, split)]


def triples(settings: Settings, split: Split | None) -> list[Triple]:
    """The file's triples. What is left out is counted in the log; ValueError with the columns where
    nothing is left."""
    found: list[Triple] = []
    left_out: Counter[str] = Counter()
    columns: tuple[str, ...] = ()
    for where, row in read_rows(settings, split):
        columns = columns or tuple(map(str, row))
        if isinstance(row.get("prompt"), dict):
            found.append(own_triple(row, where))
            continue
        prompt = prompt_of(row, where, settings).model_copy(update={"reference": None})
        if why := no_triple(row, prompt, settings):
            left_out[why] += 1
        else:
            found.append(Triple(prompt=prompt, **{side: str(row[side]) for side in SIDES}))
    counts = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "none"
    logger.info("%s: %d triples; rows left out: %s", settings.path, len(found), counts)
    if not found and columns:
        raise ValueError(
            f"{settings.path}: no row is a triple (rows left out: {counts}). A triple has prompt, "
            f"{' and '.join(SIDES)} and is harmful (label or kind). The columns found are "
            f"{', '.join(columns)}; other names are given by columns."
        )
    return found


def no_triple(row: Mapping[str, Any], prompt: Prompt, settings: Settings) -> str | None:
    """Why a row gives no triple; None where it does."""
    if prompt.kind != "harmful":
        return f"of kind {prompt.kind}"
    if row.get("label") == UNCHECKED and UNCHECKED not in settings.labels:
        return f"with the label {UNCHECKED}"
    missing = [side for side in SIDES if not str(row.get(side) or "").strip()]
    return f"without {missing[0]}" if missing else None


def own_triple(row: Mapping[str, Any], where: str) -> Triple:
    """A row of our own triples.jsonl."""
    try:
        return Triple.model_validate(row)
    except ValidationError as error:
        raise ValueError(f"{where}: not a Triple: {first_fault(error)}") from None


def read_rows(settings: Settings, split: Split | None) -> Rows:
    """(place, row under our names) for the rows of a split that `where` lets through."""
    for where, raw in local_rows(settings.path):
        if not passes(raw, settings.where, where):
            continue
        row = renamed(raw, settings.columns, where)
        row |= {"split": "dev"} if row.get("split") in DEV_NAMES else {}
        if split is None or row.get("split") in (None, split):
            yield where, row


def passes(row: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> bool:
    """Whether a row has the wanted values, compared as text without case; ValueError where a column
    is not there."""
    for column, values in wanted.items():
        if column not in row:
            raise ValueError(
                f"{where}: there is no column {column!r} for where; the columns found are "
                f"{', '.join(map(str, row))}."
            )
        allowed = values if isinstance(values, list) else [values]
        if str(row[column]).lower() not in {str(value).lower() for value in allowed}:
            return False
    return True


def prompt_of(row: dict[str, Any], where: str, settings: Settings) -> Prompt:
    """A row as a prompt under the source's settings."""
    return row_to_prompt(
        row, where, settings.kind, source=settings.path, labels=dict(settings.labels) or LABELS
    )


def renamed(row: dict[str, Any], columns: Mapping[OURS, str], where: str) -> dict[str, Any]:
    """The row with our names for the mapped columns; ValueError names a column that is not there
    and those that are."""
    for field, column in columns.items():
        if column not in row:
            raise ValueError(
                f"{where}: there is no column {column!r} for {field}; the columns found are "
                f"{', '.join(map(str, row))}."
            )
    gone = {
        other for field, other in OVERRULED.items() if field in columns and other not in columns
    }
    kept = {name: value for name, value in row.items() if name not in gone}
    return kept | {field: row[column] for field, column in columns.items()}


def row_to_prompt(
    row: dict[str, Any],
    where: str,
    kind: Kind | None,
    *,
    source: str,
    labels: Mapping[Any, Kind] = LABELS,
) -> Prompt:
    """One row of a public set as a Prompt; ValueError names `where` and the field."""
    kind = row.get("kind") or labelled(row.get("label"), labels, where) or kind
    if kind is None:
        raise ValueError(
            f"{where}: no kind. Add `kind` (harmful, benign, general) or `label` (safe, unsafe) to "
            f"the row, or `kind` to the source. The columns found are {', '.join(map(str, row))}."
        )
    try:
        turns = turns_of(row, where)
        return Prompt(
            id=content_id(
                kind,
                *([turns[0].content] if len(turns) == 1 else [(m.role, m.content) for m in turns]),
            ),
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
    """The kind behind a label, whatever its case; None without a label. ValueError on a label that
    is not known."""
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
        raise ValueError(
            f"{where}: messages is {messages!r}; it must be a list of {{role, content}}."
        )
    if row.get("messages") is None and row.get("prompt") is None:
        raise ValueError(
            f"{where}: the prompt is empty or missing; the columns found are "
            f"{', '.join(map(str, row))}. A row needs a "
            "`prompt` or `messages`; another name for it is given by columns: {prompt: ...}."
        )
    turns = tuple(Message.model_validate(message) for message in messages)
    if not any(turn.role == "user" and turn.content.strip() for turn in turns):
        raise ValueError(
            f"{where}: the prompt is empty. A row needs a `prompt`, or `messages` with a user turn."
        )
    return turns


def reference_of(row: dict[str, Any], kind: Kind) -> Any:
    """The good response of a row, None where none is known to be good."""
    if row.get("reference") or kind != "harmful":
        return row.get("reference") or row.get("response")
    # a bare `response` beside a harmful prompt may be anything, and so may the preferred one of an
    # unchecked dialogue
    return None if row.get("label") == UNCHECKED else row.get("safe_response")


def is_contrast(row: dict[str, Any]) -> bool:
    """Whether a row is the harmful twin of a benign prompt; told by its category where it does not
    say."""
    value = row.get("contrast")
    if value is None:
        return str(row.get("category") or row.get("type")).startswith("contrast")
    return str(value).lower() in ("true", "1", "yes")
