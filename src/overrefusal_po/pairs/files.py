"""A file of preference pairs -> PreferencePair: our own rows, or a public set's, which have no
rule.

    read_pairs("pairs.jsonl")

docs/files.md lists the forms that are read. A row in another form is a ValueError.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from overrefusal_po.records import (
    JsonObject,
    Kind,
    PreferencePair,
    Prompt,
    content_id,
    first_fault,
)
from overrefusal_po.sources._conversations import SIDES, count_unread, row_pair, unread_words
from overrefusal_po.sources._local import local_rows
from overrefusal_po.sources._turns import ROLE_FIELDS, Unread

logger = logging.getLogger(__name__)

KIND_OF_LABEL: dict[str, Kind] = {
    "safe": "benign",
    "unsafe": "harmful",
    "unsafe_unverified": "harmful",
}
PAIR_COLUMNS = (*SIDES, "id", "kind", "label", "category", "source")
"""The columns that are read, those of the conversation apart."""


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """The pairs of a file (JSON Lines, a JSON list, CSV, TSV, Parquet): our own rows, or others'.

    An empty side is read, so that the linter can name the row. Columns that are not read are
    counted in the log. ValueError names the line that is no pair.
    """
    unread: Unread = Counter()
    pairs = [read_row(value, place, unread) for place, value in local_rows(str(path))]
    if unread:
        logger.info("%s: columns that are not read: %s", path, unread_words(unread))
    return pairs


def read_row(value: JsonObject, place: str, unread: Unread) -> PreferencePair:
    """One row as a pair without a rule, unless it is one of ours."""
    try:
        if is_ours(value.get("prompt")):
            return own_pair(value, place)
        return imported_pair(value, place, unread)
    except ValidationError as error:
        raise ValueError(f"{place}: not a PreferencePair: {first_fault(error)}") from None


def is_ours(prompt: object) -> bool:
    """Whether a prompt is one of our records, and neither text nor a message."""
    return isinstance(prompt, dict) and not any(name in prompt for name in ROLE_FIELDS)


def own_pair(value: JsonObject, place: str) -> PreferencePair:
    """A row of our own form; ValueError if nobody asks anything in it."""
    for side in SIDES:
        if value.get(side) is None:
            raise ValueError(
                f"{place}: no {side!r}. A pair has prompt, chosen and rejected; found: "
                f"{', '.join(value)}, of which {side} is null or missing."
            )
    pair = PreferencePair.model_validate({**value, **{s: value[s] or " " for s in SIDES}})
    if not (pair.prompt.text.strip() or (pair.prompt.raw_text or "").strip()):
        raise ValueError(
            f"{place}: the prompt is empty: it has no user turn with text. Write what is asked "
            "into prompt.messages, or delete the row."
        )
    return pair


def imported_pair(value: JsonObject, place: str, unread: Unread) -> PreferencePair:
    """A public set's row; its kind from `kind` or `label` (safe, unsafe), else general."""
    asked = row_pair(value, place, unread)
    count_unread(value, PAIR_COLUMNS, place, unread)
    kind = value.get("kind") or KIND_OF_LABEL.get(str(value.get("label")), "general")
    prompt = Prompt(
        id=content_id(kind, [(turn.role, turn.content) for turn in asked.turns]),
        messages=asked.turns,
        kind=kind,
        category=str(value.get("category") or "uncategorised"),
        source=str(value.get("source") or "user"),
    )
    key = str(value.get("id") or content_id(prompt.id, asked.chosen, asked.rejected))
    return PreferencePair(
        id=key, prompt=prompt, chosen=asked.chosen or " ", rejected=asked.rejected or " "
    )
