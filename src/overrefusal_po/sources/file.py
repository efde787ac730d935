"""A local file of prompts, pairs or triples (JSON Lines, a JSON list, CSV, TSV, Parquet), in the
forms of docs/files.md.

    {name: file, path: my_prompts.jsonl, kind: benign}
    {name: file, path: x.csv, columns: {prompt: question, label: tag},
     labels: {ok: benign, bad: harmful}}
    {name: file, path: pairs.csv, columns: {prompt: asked, chosen: good, rejected: bad}}
    {name: file, path: triples.csv, kind: harmful, where: {agreed: true},
     columns: {safe_response: good, harmful_response: bad}}

A prompt needs `kind` or `label`. `label` is safe / unsafe as public sets have it (safe = should be
answered), or what `labels` says (`labels: {safe: general}` for ordinary prompts). A reference is
read from `reference`, for harmless prompts also from `response`, for harmful ones from
`safe_response`. `category`, `split`, `topic` and `contrast` are read if present. `assistant_prefix`
begins the assistant's turn. The row's own id is read from `id`, `uid` or `prompt_id`. Other fields
are counted in the log and kept in `origin.meta`. As triples (DeRTa) the file gives its harmful rows
that have a `safe_response` and a `harmful_response`, or our own triples.jsonl.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from overrefusal_po.records import (
    JsonObject,
    Kind,
    PreferencePair,
    Prompt,
    Split,
    Triple,
    content_id,
    first_fault,
)
from overrefusal_po.sources._conversations import (
    NOT_READ,
    PROMPT_COLUMNS,
    SIDES,
    count_unread,
    row_asked,
    unread_words,
)
from overrefusal_po.sources._local import Rows, local_rows
from overrefusal_po.sources._origins import ID_COLUMNS, check_ids, row_origin
from overrefusal_po.sources._pairs import row_to_pair
from overrefusal_po.sources._turns import Unread, is_blank, row_prefix

logger = logging.getLogger(__name__)

UNCHECKED = "unsafe_unverified"
"""The label of red-team dialogues that nobody checked: meant to be harmful, and its preferred
response may comply."""

Label = str | int | bool
KIND_OF_LABEL: dict[Label, Kind] = {"safe": "benign", "unsafe": "harmful", UNCHECKED: "harmful"}
DEV_NAMES = ("val", "valid", "validation")
"""What other sets call the split that we call dev."""

TRIPLE_SIDES = ("safe_response", "harmful_response")
FieldName = Literal[
    "prompt",
    "messages",
    "system",
    "chosen",
    "rejected",
    "kind",
    "label",
    "category",
    "split",
    "topic",
    "contrast",
    "reference",
    "safe_response",
    "harmful_response",
    "id",
    "assistant_prefix",
]
"""The fields that a file's columns can be mapped to."""

NOT_MEANT = {
    "prompt": PROMPT_COLUMNS,
    "messages": PROMPT_COLUMNS,
    "label": ("kind",),
}
"""If the column of a field is named, these others are not read."""

PROMPT_FIELDS = (*ID_COLUMNS, "origin", "type", "response", "source", *get_args(FieldName))
"""The columns that are read, those of the conversation apart."""


class Settings(BaseModel):
    """`path`: the file. `kind`: for rows that have neither `kind` nor `label`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    kind: Kind | None = None
    columns: dict[FieldName, str] = Field(default_factory=dict)
    """Field -> the file's column for it."""
    labels: dict[Label, Kind] = Field(default_factory=dict)
    """Label in the file -> kind; empty: safe is benign, unsafe is harmful."""
    where: dict[str, Label | list[Label]] = Field(default_factory=dict)
    """Column of the file -> the value, or one of the values, that a row must have to be read."""


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The file's prompts; rows that name another split are left out."""
    unread: Unread = Counter()
    found = [file_prompt(row, place, settings, unread) for place, row in read_rows(settings, split)]
    log_unread(settings.path, unread)
    check_ids(found)
    return found


def pairs(settings: Settings, split: Split | None) -> list[PreferencePair]:
    """The file's preference pairs; those of others have no rule, and are general without a kind."""
    unread: Unread = Counter()
    found = [file_pair(row, place, settings, unread) for place, row in read_rows(settings, split)]
    log_unread(settings.path, unread)
    return found


def file_pair(row: JsonObject, place: str, settings: Settings, unread: Unread) -> PreferencePair:
    """A row as a pair under the source's settings."""
    kind = label_kind(row.get("label"), settings.labels or KIND_OF_LABEL, place) or settings.kind
    named = ("label", "split", *settings.columns.values(), *settings.where)
    return row_to_pair(row, place, unread, kind=kind or "general", read=named)


def triples(settings: Settings, split: Split | None) -> list[Triple]:
    """The file's triples. Rows that are left out are counted in the log; ValueError with the
    columns if nothing is left."""
    found: list[Triple] = []
    left_out: Counter[str] = Counter()
    columns: tuple[str, ...] = ()
    unread: Unread = Counter()
    for place, row in read_rows(settings, split):
        columns = columns or tuple(map(str, row))
        if isinstance(row.get("prompt"), dict):
            found.append(own_triple(row, place))
            continue
        prompt = file_prompt(row, place, settings, unread)
        prompt = prompt.model_copy(update={"reference": None})
        if why := no_triple(row, prompt, settings):
            left_out[why] += 1
        else:
            found.append(Triple(prompt=prompt, **{side: str(row[side]) for side in TRIPLE_SIDES}))
    log_unread(settings.path, unread)
    counts = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "none"
    logger.info("%s: %d triples; rows left out: %s", settings.path, len(found), counts)
    if not found and columns:
        raise ValueError(
            f"{settings.path}: no row is a triple (rows left out: {counts}). A triple has prompt, "
            f"{' and '.join(TRIPLE_SIDES)} and is harmful (label or kind). The columns found are "
            f"{', '.join(columns)}; other names are given by columns."
        )
    return found


def no_triple(row: JsonObject, prompt: Prompt, settings: Settings) -> str | None:
    """Why a row gives no triple; None if it does."""
    if prompt.kind != "harmful":
        return f"of kind {prompt.kind}"
    if row.get("label") == UNCHECKED and UNCHECKED not in settings.labels:
        return f"with the label {UNCHECKED}"
    missing = [side for side in TRIPLE_SIDES if not str(row.get(side) or "").strip()]
    return f"without {missing[0]}" if missing else None


def own_triple(row: JsonObject, place: str) -> Triple:
    """A row of our own triples.jsonl."""
    try:
        triple = Triple.model_validate(row)
    except ValidationError as error:
        raise ValueError(f"{place}: not a Triple: {first_fault(error)}") from None
    if triple.prompt.origin is not None:
        return triple
    origin = row_origin(row, place, tuple(row), Counter(), own_id=triple.prompt.id)
    prompt = triple.prompt.model_copy(update={"origin": origin})
    return triple.model_copy(update={"prompt": prompt})


def read_rows(settings: Settings, split: Split | None) -> Rows:
    """(place, row under our names) for the rows of a split that `where` lets through."""
    for place, raw in local_rows(settings.path):
        if not passes(raw, settings.where, place):
            continue
        row = renamed(raw, settings.columns, place)
        row |= {"split": "dev"} if row.get("split") in DEV_NAMES else {}
        if split is None or row.get("split") in (None, split):
            yield place, row


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
        if str(row[column]).lower() not in {str(value).lower() for value in allowed}:
            return False
    return True


def file_prompt(row: JsonObject, place: str, settings: Settings, unread: Unread) -> Prompt:
    """A row as a prompt under the source's settings; columns that are not read are counted."""
    prompt = row_to_prompt(
        row,
        place,
        settings.kind,
        source=settings.path,
        labels=settings.labels or KIND_OF_LABEL,
        unread=unread,
    )
    named = (*PROMPT_FIELDS, *SIDES, *settings.columns.values(), *settings.where)
    count_unread(row, named, place, unread)
    for name in ("response", "safe_response"):
        unread[name] += not is_blank(row.get(name)) and row[name] != prompt.reference
    kept = [name for name in named if name not in ("source", "type")]  # they have no field of ours
    origin = row_origin(row, place, kept, unread)
    return prompt.model_copy(update={"origin": origin})


def log_unread(path: str, unread: Unread) -> None:
    """Logs which columns of a file are not read, if there are any."""
    if any(unread.values()):
        logger.warning(NOT_READ, path, unread_words(unread))


def renamed(row: JsonObject, columns: Mapping[FieldName, str], place: str) -> JsonObject:
    """The row with our names for the mapped columns; ValueError names a column that is not there
    and those that are."""
    for field, column in columns.items():
        if column not in row:
            raise ValueError(
                f"{place}: there is no column {column!r} for {field}; the columns found are "
                f"{', '.join(map(str, row))}."
            )
    gone = {
        other
        for field, others in NOT_MEANT.items()
        if field in columns
        for other in others
        if other not in columns
    }
    kept = {name: value for name, value in row.items() if name not in gone}
    return kept | {field: row[column] for field, column in columns.items()}


def row_to_prompt(
    row: JsonObject,
    place: str,
    kind: Kind | None,
    *,
    source: str,
    labels: Mapping[Label, Kind] = KIND_OF_LABEL,
    unread: Unread | None = None,
) -> Prompt:
    """One row of a public set as a Prompt; ValueError names `place` and the field."""
    kind = row.get("kind") or label_kind(row.get("label"), labels, place) or kind
    if kind is None:
        raise ValueError(
            f"{place}: no kind. Add `kind` (harmful, benign, general) or `label` (safe, unsafe) to "
            f"the row, or `kind` to the source. The columns found are {', '.join(map(str, row))}."
        )
    try:
        unread = Counter() if unread is None else unread
        turns, answer = row_asked(row, place, unread)
        if answer is not None and is_blank(row.get("response")):
            row = {**row, "response": answer}
        reference = row_reference(row, kind)
        if answer not in (None, reference):
            unread["last turn by the assistant"] += 1
        prefix = row_prefix(row, place)
        return Prompt(
            id=content_id(
                kind,
                *([turns[0].content] if len(turns) == 1 else [(m.role, m.content) for m in turns]),
                *([{"assistant_prefix": prefix}] if prefix else []),
            ),
            messages=turns,
            kind=kind,
            category=str(row.get("category") or row.get("type") or "uncategorised"),
            source=source,
            split=row.get("split"),
            topic=row.get("topic"),
            contrast=is_contrast(row),
            reference=reference,
            assistant_prefix=prefix,
        )
    except ValidationError as error:
        raise ValueError(f"{place}: {first_fault(error)}") from None


def label_kind(label: object, labels: Mapping[Label, Kind], place: str) -> Kind | None:
    """The kind behind a label, whatever its case; None without a label. ValueError on a label that
    is not known."""
    if label is None:
        return None
    known = {str(name).lower(): kind for name, kind in labels.items()}
    if str(label).lower() not in known:
        raise ValueError(
            f"{place}: label is {label!r}; allowed is one of {', '.join(known)}. Other labels: "
            "`labels: {their label: harmful | benign | general}`."
        )
    return known[str(label).lower()]


def row_reference(row: JsonObject, kind: Kind) -> str | None:
    """The good response of a row, None if none is known to be good."""
    if row.get("reference") or kind != "harmful":
        return row.get("reference") or row.get("response")
    # a bare `response` beside a harmful prompt may be anything, and so may the preferred one of an
    # unchecked dialogue
    return None if row.get("label") == UNCHECKED else row.get("safe_response")


def is_contrast(row: JsonObject) -> bool:
    """Whether a row is the harmful twin of a benign prompt; its category tells if the row does not
    say."""
    value = row.get("contrast")
    if value is None:
        return str(row.get("category") or row.get("type")).startswith("contrast")
    return str(value).lower() in ("true", "1", "yes")
