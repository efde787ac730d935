"""A row of a file -> what is asked, and the two responses of a pair.

    row_asked({"system": "Be brief.", "question": "How?"}, "x.jsonl, line 1", Counter())
    row_pair({"prompt": "How?", "chosen": "So.", "rejected": "No."}, "x.jsonl, line 1", Counter())

Nothing is guessed. A row without a prompt, and a row whose columns contradict each other, is a
ValueError that names the place and the columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from overrefusal_po.records import JsonObject, Message
from overrefusal_po.sources._lost_columns import column_words, is_lost
from overrefusal_po.sources._turns import (
    Turns,
    Unread,
    begun_turns,
    from_json,
    hh_turns,
    holds_turns,
    is_blank,
    is_exchange,
    is_seen,
    parsed_json,
    read_turns,
    short,
)

SIDES = ("chosen", "rejected")
NOT_READ = "%s: columns that are not read: %s"
"""What the log says of a file's other columns."""

PROMPT_COLUMNS = ("prompt", "question", "instruction", "messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt")
CONVERSATION_COLUMNS = (*PROMPT_COLUMNS, *SYSTEM_COLUMNS, "history", "input")
"""The columns that say what is asked."""

FORMS = (
    "`prompt` (text or messages), `messages`, `conversations` (from and value), `question`, "
    "`instruction` (with `input`), each with `system` and `history` if there are any; or whole "
    'conversations in `chosen` and `rejected` (messages, or text "\\n\\nHuman: ... \\n\\n'
    'Assistant: ...")'
)


UNPAIRED = (
    "the row is TRL's unpaired form (prompt, completion, label). Only `method: kto` trains on it; "
    "the other methods need a pair: chosen and rejected."
)


class Asked(NamedTuple):
    """What is asked, up to the last user turn, and the answer behind it if there is one."""

    turns: Turns
    answer: str | None = None


class RowPair(NamedTuple):
    """What is asked, and the two responses to it."""

    turns: Turns
    chosen: str
    rejected: str


def row_pair(row: JsonObject, place: str, unread: Unread) -> RowPair:
    """The pair of a row. The context is what both sides begin with, or what the columns say."""
    chosen, rejected = (row_side(row, side, place, unread) for side in SIDES)
    if chosen.turns != rejected.turns:
        raise ValueError(
            f"{place}: chosen and rejected answer different conversations "
            f"({len(chosen.turns)} and {len(rejected.turns)} messages before the answer, or other "
            "texts). Only the last message may differ. Delete the row, or cut both sides."
        )
    stated = stated_prompt(row, place, unread)
    check_unanswered(stated, place, str(chosen.answer))
    turns = agreed_turns(stated.turns, chosen.turns, place)
    whole = checked_prompt(with_context(row, turns, place, unread), row, place)
    return RowPair(whole, str(chosen.answer), str(rejected.answer))


def has_sides(row: JsonObject) -> bool:
    """Whether both sides of a pair are filled."""
    return all(not is_blank(row.get(side)) for side in SIDES)


def row_asked(row: JsonObject, place: str, unread: Unread) -> Asked:
    """What a row asks; a last turn by the assistant is the answer. A pair's prompt is asked too."""
    if has_sides(row):
        return Asked(row_pair(row, place, unread).turns)
    stated = stated_prompt(row, place, unread)
    turns = with_context(row, stated.turns, place, unread)
    return Asked(checked_prompt(turns, row, place), stated.answer)


def check_unanswered(asked: Asked, place: str, *answers: str) -> None:
    """Raises ValueError for a last turn by the assistant that would be lost: it is none of the
    answers that the row gives elsewhere."""
    said = asked.answer
    if said is not None and said.strip() not in [answer.strip() for answer in answers]:
        raise ValueError(
            f"{place}: the prompt ends with a turn by the assistant ({short(said)}). It must end "
            "with what the user asks. Delete that turn."
        )


def checked_prompt(turns: Turns, row: JsonObject, place: str) -> Turns:
    """The turns, if the last one is a user's and says something; else ValueError."""
    if not any(turn.role == "user" and is_seen(turn.content) for turn in turns):
        raise ValueError(
            f"{place}: the prompt is empty or missing (no user turn with text); the columns "
            f"found are {', '.join(map(str, row))}. Read are {FORMS}. Rename the column "
            "that holds the prompt, or name it: data.columns: {prompt: ...}."
        )
    check_last_turn(turns, place)
    return turns


def check_last_turn(turns: Turns, place: str) -> None:
    """Raises ValueError if the last turn is not a user's, or says nothing."""
    if turns[-1].role != "user" or not is_seen(turns[-1].content):
        raise ValueError(
            f"{place}: the prompt's last turn is by the {turns[-1].role} "
            f"({short(turns[-1].content)}). It must be a user turn that is not empty."
        )


def row_side(row: JsonObject, side: str, place: str, unread: Unread) -> Asked:
    """One side as the conversation before the answer, and the answer."""
    if side not in row and "completion" in row and "label" in row:
        raise ValueError(f"{place}: no {side!r}; {UNPAIRED}")
    if side not in row:
        raise ValueError(
            f"{place}: no {side!r}. A pair has prompt, chosen and rejected; found: "
            f"{', '.join(map(str, row))}. Name other columns: data.columns: {{{side}: ...}}."
        )
    there = f"{place}, column {side}"
    value = from_json(row[side], there)
    if not isinstance(value, str | list | dict):
        raise ValueError(
            f"{there}: {side} is {'null' if value is None else short(value)}. It must be text or "
            "messages. Write the response, or delete the row."
        )
    turns = hh_turns(value) if isinstance(value, str) else read_turns(value, there, unread)
    if not turns:
        return Asked((), str(value))
    if turns[-1].role != "assistant":
        raise ValueError(
            f"{there}: the last turn is by the {turns[-1].role} ({short(turns[-1].content)}). It "
            "must be the assistant's response. Delete the turns behind it, or the row."
        )
    return Asked(turns[:-1], turns[-1].content)


def stated_prompt(row: JsonObject, place: str, unread: Unread) -> Asked:
    """What the prompt columns say, before system and history; no turns if all are blank."""
    found = {
        name: column_asked(row, name, place, unread)
        for name in PROMPT_COLUMNS
        if not is_blank(row.get(name))
    }
    longest = max((asked.turns for asked in found.values()), key=len, default=())
    for name, asked in found.items():
        if not agree(asked.turns, longest):
            raise ValueError(
                f"{place}: {name} says something else than the other prompt columns "
                f"({', '.join(found)}): {short(asked.turns[-1].content)}. Keep one of them."
            )
    answers = (asked.answer for asked in found.values() if asked.answer is not None)
    return Asked(longest, next(answers, None))


def column_asked(row: JsonObject, name: str, place: str, unread: Unread) -> Asked:
    """What one prompt column says."""
    there = f"{place}, column {name}"
    value = from_json(row[name], there)
    if isinstance(value, str):
        turns = text_turns(row, name, value, there)
    elif isinstance(value, list | dict):
        turns = read_turns(value, there, unread)
    else:
        raise ValueError(f"{there}: {name} is {short(value)}; it must be text or messages.")
    if turns[-1].role == "assistant" and len(turns) > 1:
        return Asked(turns[:-1], turns[-1].content or None)
    return Asked(turns)


def text_turns(row: JsonObject, name: str, value: str, place: str) -> Turns:
    """A text as one user turn, or as the turns of "Human: ... Assistant:"."""
    if name in ("messages", "conversations", "conversation"):
        raise ValueError(f"{place}: {name} is {short(value)}; it must be a list of messages.")
    given = row.get("input") if name == "instruction" else None
    if not is_blank(given):
        if not isinstance(given, str):
            raise ValueError(f"{place}: input is {short(given)}; it must be text.")
        value = f"{value.rstrip()}\n\n{given}"
    return hh_turns(value) or begun_turns(value) or (Message(role="user", content=value),)


def agreed_turns(stated: Turns, before: Turns, place: str) -> Turns:
    """The conversation that the prompt columns and the sides (`before`) say together."""
    if not before or not stated:
        return before or stated
    if not agree(stated, before):
        raise ValueError(
            f"{place}: each side holds {len(before)} messages before the answer, and they are not "
            f"the prompt. Their last one is {short(before[-1].content)}, the prompt ends with "
            f"{short(stated[-1].content)}. A side is one answer, or the whole conversation."
        )
    return max(before, stated, key=len)


def agree(turns: Turns, whole: Turns) -> bool:
    """Whether `turns` are `whole`, a system turn apart that only one has, or its last user turn."""
    if len(turns) == 1 and turns[0].role == whole[-1].role == "user":
        return turns[0].content.strip() == whole[-1].content.strip()
    both = all(part[0].role == "system" for part in (turns, whole))
    return stripped(turns, both) == stripped(whole, both)


def stripped(turns: Turns, with_system: bool) -> list[tuple[str, str]]:
    """(role, text without blanks around it) of the turns, with or without the first system turn."""
    kept = turns if with_system or turns[0].role != "system" else turns[1:]
    return [(turn.role, turn.content.strip()) for turn in kept]


def with_context(row: JsonObject, turns: Turns, place: str, unread: Unread) -> Turns:
    """The turns behind the row's system prompt and history; ValueError if they contradict."""
    if not turns:
        return ()
    lead, rest = (turns[:1], turns[1:]) if turns[0].role == "system" else ((), turns)
    history = history_turns(row.get("history"), f"{place}, column history", unread)
    if history and rest[: len(history)] != history:
        if len(rest) > 1:
            raise ValueError(
                f"{place}: history says something else than the conversation of the other columns. "
                "Keep one of them."
            )
        rest = history + rest
    return (system_turn(row, lead, place) or lead) + rest


def system_turn(row: JsonObject, lead: Turns, place: str) -> Turns:
    """The turn of a system column, if there is one; ValueError if the messages begin with
    another."""
    found: Turns = lead
    for name in SYSTEM_COLUMNS:
        value = row.get(name)
        if is_blank(value):
            continue
        if not isinstance(value, str):
            raise ValueError(
                f"{place}: {name} is {short(value)}; it must be text. Write the text alone, or put "
                "it into the messages as a system turn."
            )
        if found and found[0].content.strip() != value.strip():
            raise ValueError(
                f"{place}: {name} is {short(value)}, but the row has another system prompt: "
                f"{short(found[0].content)}. Keep one of them."
            )
        found = (Message(role="system", content=value),)
    return found


def history_turns(value: object, place: str, unread: Unread) -> Turns:
    """Earlier turns: pairs [what the user said, what the assistant said], or messages."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed_json(value, place)
    if is_blank(value):
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{place}: got {short(value)}; history is a list of pairs of texts.")
    if all(isinstance(item, dict) for item in value):
        turns = read_turns(value, place, unread)
    else:
        turns = tuple(turn for pair in value for turn in history_pair(pair, place))
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"{place}: the roles are {', '.join(roles)}. History is user, assistant, and so on; a "
            "system prompt belongs into the column system."
        )
    return turns


def history_pair(pair: Any, place: str) -> Iterable[Message]:
    """The two turns of [what the user said, what the assistant said]."""
    if not (is_exchange(pair) and all(map(is_seen, pair))):
        raise ValueError(
            f"{place}: got {short(pair)}; a pair of texts [user, assistant] is needed, none of "
            "which is empty. A last question without an answer is the prompt: delete it here."
        )
    yield Message(role="user", content=pair[0])
    yield Message(role="assistant", content=pair[1])


def count_unread(row: JsonObject, read: Collection[str], place: str, unread: Unread) -> None:
    """Counts the columns of a row that are not read. ValueError for those that carry text of the
    conversation."""
    for name, value in row.items():
        if is_read(row, name, read) or is_blank(value) or value in ("[]", "{}"):
            continue
        if carries_conversation(name, value):
            raise ValueError(
                f"{place}: the column {name!r} ({short(value)}) carries text of the conversation "
                "and is not read. Write it into the prompt or into `system`, or delete or rename "
                f"the column, or leave it out on purpose: data.ignore: [{name}]."
            )
        unread[name] += 1


def carries_conversation(name: str, value: object) -> bool:
    """Whether a column that is not read holds turns, or is called as others call such a column."""
    if not isinstance(value, str | list | dict):
        return False
    return is_lost(name) or column_words(name) in CONVERSATION_COLUMNS or holds_turns(value)


def is_read(row: JsonObject, name: str, read: Collection[str]) -> bool:
    """Whether a column of a row is read; `input` is, behind an instruction alone."""
    if name == "input" and is_blank(row.get("instruction")):
        return name in read
    return name in read or name in CONVERSATION_COLUMNS


def check_unpaired(row: JsonObject, place: str, labels: Collection[object]) -> None:
    """Raises ValueError for a row of KTO's form: a completion, and a label that is true or
    false."""
    label = row.get("label")
    if is_blank(row.get("completion")) or str(label).lower() not in ("true", "false", "0", "1"):
        return
    if label not in labels:
        raise ValueError(f"{place}: {UNPAIRED}")


def unread_words(unread: Mapping[str, int]) -> str:
    """`score (3 rows), tag (1 row)`: what was not read."""
    rows = [(name or "(no name)", n) for name, n in unread.items() if n]
    return ", ".join(f"{name} ({n} row{'s' * (n > 1)})" for name, n in rows)
