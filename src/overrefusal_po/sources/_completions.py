"""A row with one response in the column `completion`, as TRL has it -> prompt and response.

    labelled_response({"prompt": "How?", "completion": "So.", "label": True}, "x, row 1", Counter())
    answered_prompt({"prompt": "How?", "completion": "So."}, "x, row 1", Counter())

`completion` is text, one message of the assistant, or a whole conversation that ends with it.
"""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

from overrefusal_po.records import (
    JsonObject,
    Kind,
    LabelledResponse,
    Prompt,
    first_fault,
)
from overrefusal_po.sources._answers import label_truth
from overrefusal_po.sources._conversations import (
    agreed_turns,
    check_unanswered,
    checked_prompt,
    count_unread,
    row_asked,
    row_side,
    stated_prompt,
    with_context,
)
from overrefusal_po.sources._origins import ID_COLUMNS, row_origin
from overrefusal_po.sources._turns import (
    Turns,
    Unread,
    is_blank,
    is_seen,
    prompt_id,
    row_category,
    short,
)

COMPLETION_COLUMNS = ("completion", *ID_COLUMNS, "origin", "kind", "category", "source")
"""The columns that are read, those of the conversation apart."""


def labelled_response(
    row: JsonObject,
    place: str,
    unread: Unread,
    *,
    kind: Kind = "general",
    read: Collection[str] = (),
) -> LabelledResponse:
    """A row of TRL's unpaired form (prompt, completion, label); ValueError names the place.

    `kind` is for rows that have none; `read` names further columns that the caller reads.
    """
    if is_blank(row.get("label")):
        raise ValueError(
            f"{place}: no label. A row with a completion says by `label` (true or false) whether "
            f"it is a good one. The columns found are {', '.join(row)}."
        )
    turns, response = completion_turns(row, place, unread)
    label = row["label"]
    # a column with an empty cell holds 1.0 and 0.0 in pandas
    label = bool(label) if isinstance(label, float) and label in (0.0, 1.0) else label
    desirable = label_truth(label, "label", place)
    named = (*COMPLETION_COLUMNS, "label", *read)
    count_unread(row, named, place, unread)
    origin = row_origin(row, place, named, unread)
    prompt = row_prompt(row, turns, place, kind).model_copy(update={"origin": origin})
    return LabelledResponse(prompt=prompt, response=response, desirable=desirable)


def completion_turns(row: JsonObject, place: str, unread: Unread) -> tuple[Turns, str]:
    """What a row asks, and its completion; ValueError if the completion is empty."""
    side = row_side(row, "completion", place, unread)
    stated = stated_prompt(row, place, unread)
    check_unanswered(stated, place, str(side.answer))
    turns = agreed_turns(stated.turns, side.turns, place)
    whole = checked_prompt(with_context(row, turns, place, unread), row, place)
    response = str(side.answer)
    if not is_seen(response):
        raise ValueError(f"{place}: the completion is empty. Write it, or delete the row.")
    return whole, response


def answered_prompt(
    row: JsonObject, place: str, unread: Unread, *, read: Collection[str] = ()
) -> Prompt:
    """A row that SFT learns from, as a prompt with a reference.

    The reference is the completion, the last turn by the assistant, or `reference` or `response`.
    ValueError if there is none.
    """
    if not is_blank(row.get("completion")):
        turns, answer = completion_turns(row, place, unread)
    else:
        asked = row_asked(row, place, unread)
        other = other_answer(row, place)
        if other:
            check_unanswered(asked, place, other)
        turns, answer = asked.turns, asked.answer or other
    if is_blank(answer):
        raise ValueError(
            f"{place}: there is no answer to learn. Give `completion`, `response`, or `messages` "
            f"that end with the assistant. The columns found are {', '.join(row)}."
        )
    known = (*COMPLETION_COLUMNS, "reference", "response", "label", *read)
    count_unread(row, known, place, unread)
    return row_prompt(row, turns, place).answered_with(answer)


def other_answer(row: JsonObject, place: str) -> str:
    """The answer of a row in another column than the conversation's; "" without one. ValueError if
    it is no text."""
    for name in ("reference", "response"):
        value = row.get(name)
        if not is_blank(value) and not isinstance(value, str):
            raise ValueError(f"{place}: {name} is {short(value)}; it must be text.")
        if not is_blank(value):
            return str(value)
    return ""


def row_prompt(row: JsonObject, turns: Turns, place: str, kind: Kind = "general") -> Prompt:
    """The prompt of a row; its kind from the column, else `kind`."""
    kind = row.get("kind") or kind
    try:
        return Prompt(
            id=prompt_id(kind, turns),
            messages=turns,
            kind=kind,
            category=row_category(row) or "uncategorised",
            source=str(row.get("source") or "user"),
        )
    except ValidationError as error:
        raise ValueError(f"{place}: {first_fault(error)}") from None
