"""A row of a file -> PreferencePair: one of our own rows, or one of a public set, without a rule.

row_to_pair({"prompt": "How?", "chosen": "So.", "rejected": "No."}, "x.jsonl, line 1", Counter())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from pydantic import ValidationError

from overrefusal_po.records import (
    JsonObject,
    Kind,
    Origin,
    PreferencePair,
    Prompt,
    content_id,
    first_fault,
)
from overrefusal_po.sources._conversations import SIDES, check_last_turn, count_unread, row_pair
from overrefusal_po.sources._origins import (
    ID_COLUMNS,
    PROMPT_ID_COLUMNS,
    given_id,
    known_origin,
    row_origin,
)
from overrefusal_po.sources._turns import ROLE_FIELDS, Unread, is_seen, row_category, row_prefix

PAIR_COLUMNS = (*SIDES, *ID_COLUMNS, "origin", "kind", "category", "source", "assistant_prefix")
"""The columns that are read, those of the conversation apart."""


def row_to_pair(
    row: JsonObject,
    place: str,
    unread: Unread,
    *,
    kind: Kind = "general",
    read: Collection[str] = (),
) -> PreferencePair:
    """One row as a pair. `kind` is for rows of others that have none; `read` names further columns
    that the caller reads. ValueError names the place."""
    if is_ours(row.get("prompt")):
        return own_pair(row, place)
    try:
        pair = imported_pair(row, place, unread, kind)
    except ValidationError as error:
        raise ValueError(f"{place}: not a PreferencePair: {first_fault(error)}") from None
    named = (*PAIR_COLUMNS, *read)
    count_unread(row, named, place, unread)
    origin = row_origin(row, place, named, unread)
    of_prompt = Origin(id=given_id(row, PROMPT_ID_COLUMNS), file=origin.file, line=origin.line)
    prompt = pair.prompt.model_copy(update={"origin": of_prompt})
    return pair.model_copy(update={"origin": origin, "prompt": prompt})


def is_ours(prompt: object) -> bool:
    """Whether a prompt is one of our records, and neither text nor a message."""
    return isinstance(prompt, dict) and bool(prompt) and not set(ROLE_FIELDS) & prompt.keys()


def own_pair(row: JsonObject, place: str) -> PreferencePair:
    """A row of our own form; ValueError if it is none, or if nobody asks anything in it."""
    for side in SIDES:
        if row.get(side) is None:
            raise ValueError(
                f"{place}: no {side!r}. A pair has prompt, chosen and rejected; found: "
                f"{', '.join(row)}, of which {side} is null or missing."
            )
    if "messages" not in row["prompt"]:
        raise ValueError(
            f"{place}, column prompt: prompt is a mapping of {', '.join(row['prompt'])[:60]}; it "
            "must be text or messages. A row holds one pair; a table by columns is written by rows "
            "(pandas: to_json(orient='records'))."
        )
    try:
        pair = PreferencePair.model_validate({**row, **{s: row[s] or " " for s in SIDES}})
    except ValidationError as error:
        raise ValueError(f"{place}: not a PreferencePair: {first_fault(error)}") from None
    check_own_prompt(pair.prompt, place)
    known = known_origin(row.get("origin"))
    origin = row_origin({}, place, (), Counter(), own_id=known.id if known else pair.id)
    if known is not None:
        origin = origin.model_copy(update={"meta": known.meta})
    return pair.model_copy(update={"origin": origin})


def check_own_prompt(prompt: Prompt, place: str) -> None:
    """Raises ValueError if nobody asks anything in a prompt of our own form, or if it does not end
    with what the user asks. Beside `raw_text` the messages only say what was asked."""
    if is_seen(prompt.raw_text or ""):
        return
    if not is_seen(prompt.text):
        raise ValueError(
            f"{place}: the prompt is empty: it has no user turn with text. Write what is asked "
            "into prompt.messages, or delete the row."
        )
    check_last_turn(prompt.messages, place)


def imported_pair(row: JsonObject, place: str, unread: Unread, kind: Kind) -> PreferencePair:
    """A public set's row as a pair without a rule."""
    asked = row_pair(row, place, unread)
    kind = row.get("kind") or kind
    begun = row_prefix(row, place)
    turns = [(turn.role, turn.content) for turn in asked.turns]
    prompt = Prompt(
        id=content_id(kind, turns, *([{"assistant_prefix": begun}] if begun else [])),
        messages=asked.turns,
        kind=kind,
        category=row_category(row) or "uncategorised",
        source=str(row.get("source") or "user"),
        assistant_prefix=begun,
    )
    key = given_id(row) or content_id(prompt.id, asked.chosen, asked.rejected)
    return PreferencePair(
        id=key, prompt=prompt, chosen=asked.chosen or " ", rejected=asked.rejected or " "
    )
