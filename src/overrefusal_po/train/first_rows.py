"""The first rows of every training against the template, before any weights are loaded.

check_first_rows(prepared, template)        # ValueError if a row is not what `turn()` renders
check_given_rows(prepared, template)        # in a factory: warns of a missing BOS too

A wrong boundary between prompt and side trains the question as the answer, and no number shows it.
So the first rows, whoever made them, are compared with the turns of their records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from overrefusal_po.model.chat import ChatTemplate, Turn
from overrefusal_po.records import LabelledResponse, Message, PreferencePair, Prompt, Triple
from overrefusal_po.train.data import Prepared, TrainingRecord
from overrefusal_po.train.model_checks import warn_of_missing_bos

FIRST = 4
"""Rows that are looked at."""

ROW_KINDS = {
    "sft": "reference",
    "safe": "safe_response",
    "prefix": "safe_response",
    "rto": "harmful_response",
}
"""What a row of DeRTa's kinds trains -> the field of its record."""

CANDIDATES = 64
"""Records that may have made a row, if the tokenizer does not write their questions back."""


class Part(NamedTuple):
    """What one row trains: prompt and side, which may be cut."""

    prompt: list[int]
    side: list[int]
    side_of: str
    """The field of its record that it is, for the error."""


def check_given_rows(prepared: Prepared, template: ChatTemplate) -> None:
    """`check_first_rows` for a factory, with a warning of prompts without BOS.

    Rows that were loaded have no records, and were checked before.
    """
    if prepared.rows is not None and (prepared.records or prepared.helpful):
        warn_of_missing_bos(template)
        check_first_rows(prepared, template)


def check_first_rows(prepared: Prepared, template: ChatTemplate) -> None:
    """Raises ValueError if one of the first rows is not its record as the template renders it."""
    records = [*prepared.records, *prepared.helpful]
    if prepared.rows is None or not records:
        return
    for number in range(min(FIRST, len(prepared.rows))):
        for part in parts_of(prepared.rows[number]):
            check_part(number, part, records, template)


def parts_of(row: Mapping[str, Any]) -> Iterator[Part]:  # Any: columns of several kinds
    """The parts of a row of any method; none of a row that this module does not know."""
    for branch in row.get("branches", ()):
        yield from parts_of(branch)
    for column, field in (("chosen_ids", "chosen"), ("rejected_ids", "rejected")):
        if column in row:
            yield Part(list(row["prompt_ids"]), list(row[column]), field)
    if "completion_ids" in row:
        field = "chosen" if row.get("label", True) else "rejected"
        yield Part(list(row["prompt_ids"]), list(row["completion_ids"]), field)
    if "labels" in row and "kind" in row:
        labels, ids = list(row["labels"]), list(row["input_ids"])
        start = next((at for at, label in enumerate(labels) if label != -100), len(ids))
        yield Part(ids[:start], ids[start:], ROW_KINDS[row["kind"]])


def check_part(
    number: int, part: Part, records: Sequence[TrainingRecord], template: ChatTemplate
) -> None:
    """Raises ValueError unless a record gives this part."""
    shown = squeezed(str(template.tokenizer.decode(part.prompt)))
    likely = [r for r in records if squeezed(template.content(asked(r)[-1])) in shown]
    for record in likely or records[:CANDIDATES]:
        if (said := response(record, part.side_of)) is None:
            continue
        begun = record.prompt.assistant_prefix if isinstance(record, PreferencePair) else ""
        if fits(part, template.turn(asked(record), begun + said)):
            return
    decode = template.tokenizer.decode
    raise ValueError(
        f"Row {number + 1} of this training is not what the chat template renders of any of its "
        f"records: its prompt ends with {decode(part.prompt)[-60:]!r}, and its {part.side_of} "
        f"begins with {decode(part.side)[:60]!r}. Nothing was trained. The rows were made with "
        "another template or tokenizer, or the template renders the same turn differently each "
        "time."
    )


def fits(part: Part, turn: Turn) -> bool:
    """Whether a part is a turn, its side whole or cut; a harmful prefix may stand before it."""
    start = len(turn.prompt_ids)
    if part.prompt[:start] != turn.prompt_ids or not part.side:
        return False
    if part.side_of == "safe_response":
        return part.side == turn.response_ids
    begun = part.prompt[start:]
    return turn.response_ids[: len(begun) + len(part.side)] == begun + part.side


def asked(record: TrainingRecord) -> Sequence[Message]:
    """The messages of a record's prompt."""
    return (record if isinstance(record, Prompt) else record.prompt).messages


def response(record: TrainingRecord, field: str) -> str | None:
    """A record's text of this name; None if it has none."""
    known = {
        PreferencePair: ("chosen", "rejected"),
        Triple: ("safe_response", "harmful_response"),
        Prompt: ("reference",),
        LabelledResponse: (),
    }[type(record)]
    if isinstance(record, LabelledResponse):
        return record.response if record.desirable == (field == "chosen") else None
    return getattr(record, field) if field in known else None


def squeezed(text: str) -> str:
    """A text without blanks: tokenizers write some of them back otherwise."""
    return "".join(text.split())
