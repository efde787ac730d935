"""A value of a row -> turns: messages, ShareGPT's from and value, or Anthropic's "Human: ..." text.

    read_turns([{"from": "human", "value": "Hi"}], "x.jsonl, line 1, prompt", unread)
    hh_turns("\\n\\nHuman: Hi\\n\\nAssistant: Hello")

What is not text of a system, user or assistant turn is a ValueError. It says what the row holds and
what to change. Nothing is left out in silence: `unread` counts the fields that are not read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from unicodedata import category

from overrefusal_po.records import JsonObject, Message, content_id

UNSEEN = ("Cc", "Cf", "Mn")
"""Unicode's categories of control characters, of those without width, and of marks, which are
nothing without a letter."""

FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Signs that are drawn as a blank: of Hangul, and Braille's."""

Turns = tuple[Message, ...]
Unread = Counter[str]
"""Column, or field of a message -> how many rows hold something in it that is not read."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Role in a file -> ours. `developer` is OpenAI's system prompt, human and gpt are ShareGPT's."""

TEXT_FIELDS = ("content", "value")
ROLE_FIELDS = ("role", "from")
LOST_FIELDS = frozenset(
    {"name", "tool_calls", "tool_call_id", "tool_use", "function_call", "refusal"}
    | {"thinking", "reasoning", "reasoning_content", "image", "images", "audio", "videos"}
)
"""Fields of a message that say something: a training without them learns another conversation."""

HH = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HH_LINES = re.compile(r"(?:\A\s*|\n)(Human|Assistant):")
HH_WHOLE = re.compile(r"\A\s*Human:.*\n\nAssistant:", re.DOTALL)


def read_turns(value: object, place: str, unread: Unread) -> Turns:
    """The turns of a list of messages, or of one message. ValueError names the message."""
    messages = value if isinstance(value, list) else [value]
    if not messages:
        raise ValueError(f"{place}: the list holds no message. Add one, or delete the row.")
    return tuple(
        read_turn(message, f"{place}, message {number}", unread)
        for number, message in enumerate(messages, 1)
    )


def read_turn(message: object, place: str, unread: Unread) -> Message:
    """One message as a turn; ValueError if it is no text of a system, user or assistant turn."""
    if not isinstance(message, dict):
        raise ValueError(
            f"{place}: got {short(message)}. A message is {{role, content}} or {{from, value}}."
        )
    role = next((message[name] for name in ROLE_FIELDS if message.get(name) is not None), None)
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            f"{place}: the role is {short(role)}; allowed are {', '.join(ROLES)}. Delete the row, "
            "or write this message's text into a user turn."
        )
    check_fields(message, place, unread)
    filled = [name for name in TEXT_FIELDS if message.get(name) is not None]
    filled.sort(key=lambda name: is_blank(message[name]))
    said = [message[name] for name in filled if not is_blank(message[name])]
    if said[1:] and said[0] != said[1]:
        raise ValueError(
            f"{place}: {' and '.join(filled)} say different things ({short(said[0])}, "
            f"{short(said[1])}). Keep one of them."
        )
    if not filled:
        raise ValueError(
            f"{place}: the {role} turn has no content (found: {', '.join(message)}; content is "
            "null or missing). Write its text, or delete the row."
        )
    return Message.model_validate(
        {"role": ROLES[role], "content": content_text(message[filled[0]], place)}
    )


def check_fields(message: JsonObject, place: str, unread: Unread) -> None:
    """Counts the fields of a message that are not read; ValueError for those that say something."""
    for name, value in message.items():
        if name in TEXT_FIELDS + ROLE_FIELDS or is_blank(value):
            continue
        if name in LOST_FIELDS:
            raise ValueError(
                f"{place}: the field {name!r} ({short(value)}) is not read, and would be lost. "
                "Write what it says into the content, delete the field, or delete the row."
            )
        unread[f"field {name} of a message"] += 1


def content_text(content: object, place: str) -> str:
    """The text of a message: text, or a list of parts of text, which are joined."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part_text(part, place) for part in parts)


def part_text(part: object, place: str) -> str:
    """The text of one part; ValueError if it is an image, a tool call or anything else."""
    if isinstance(part, str):
        return part
    held = part if isinstance(part, dict) else {}
    others = [name for name in held if name not in ("type", "text") and not is_blank(held[name])]
    if held.get("type", "text") != "text" or not isinstance(held.get("text"), str) or others:
        raise ValueError(
            f"{place}: content holds {short(part)}. Content is text, or a list of parts "
            '{"type": "text", "text": ...}. Write it as text, or delete the row.'
        )
    return str(held["text"])


def hh_turns(text: str) -> Turns:
    """The turns of "Human: ... Assistant: ..."; no turns if the text is not written like that."""
    if not (text.startswith(("\n\nHuman:", "\n\nAssistant:")) or HH_WHOLE.match(text)):
        return ()
    return hh_parts(HH.split(text)[1:])


def begun_turns(text: str) -> Turns:
    """The turns of a prompt "Human: ... Assistant:" with one line end between its turns; no turns
    if it does not end there, or if its turns do not take turns."""
    if not (HH_LINES.match(text) and text.rstrip().endswith("\nAssistant:")):
        return ()
    turns = hh_parts(HH_LINES.split(text)[1:])
    roles = [turn.role for turn in turns]
    return turns if roles == ["user", "assistant"] * (len(roles) // 2) else ()


def hh_parts(parts: Sequence[str]) -> Turns:
    """The turns of [who, what is said, who, ...]."""
    return tuple(
        Message(role="user" if who == "Human" else "assistant", content=said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    )


def from_json(value: object, place: str) -> object:
    """The messages that a CSV cell holds as JSON; any other value unchanged."""
    if isinstance(value, str) and looks_like_messages(value):
        return parsed_json(value, place)
    return value


def parsed_json(text: str, place: str) -> object:
    """What a cell holds as JSON; ValueError if it is written in another way."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", "it is nested too deep")
        raise ValueError(
            f"{place}: the text looks like messages, but is not JSON ({why}): {short(text)}. "
            "Write it as JSON, with double quotation marks."
        ) from None


WRITTEN = re.compile(r"\[?\s*\{.*[\"'](role|from|messages|content)[\"']\s*:", re.DOTALL)
"""How a written message, a list of messages or a record of ours begins."""

WRITTEN_TEXT = re.compile(r"[\"'](content|value|messages)[\"']\s*:")


def looks_like_messages(text: str) -> bool:
    """Whether a text is a written message or list of messages, as CSV files hold them."""
    start = text.lstrip()[:400]
    if not WRITTEN.match(start) or text.rstrip()[-1] not in "]}":
        return False
    return start.startswith("[") or WRITTEN_TEXT.search(text) is not None


def holds_turns(value: object) -> bool:
    """Whether a value is messages, pairs of texts, "Human: ... Assistant: ...", or JSON of
    messages."""
    if isinstance(value, str):
        return looks_like_messages(value) or bool(hh_turns(value))
    items = value if isinstance(value, list) else [value]
    return bool(items) and (all(map(is_message, items)) or all(map(is_exchange, items)))


def is_message(value: object) -> bool:
    """Whether a value has the fields of a message."""
    return isinstance(value, dict) and all(
        value.keys() & set(fields) for fields in (ROLE_FIELDS, TEXT_FIELDS)
    )


def is_exchange(value: object) -> bool:
    """Whether a value is a pair of texts: what the user said, and what the assistant said."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def is_blank(value: object) -> bool:
    """Whether a value says nothing: null, a text without a sign that is seen, an empty list."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not is_seen(value))


def row_category(row: JsonObject) -> str | None:
    """The category of a row, by the first of its names that says something."""
    found = (row.get(name) for name in ("category", "type"))
    return next((str(value) for value in found if not is_blank(value)), None)


def is_seen(text: str) -> bool:
    """Whether a text has a sign that is seen: no blank, no control or zero-width character."""
    blanks = (sign.isspace() or sign in FILLERS or category(sign) in UNSEEN for sign in text)
    return not all(blanks)


def short(value: object) -> str:
    """A value as a message shows it."""
    return repr(value)[:80]


def prompt_id(kind: str, turns: Turns, prefix: str = "") -> str:
    """The id of a prompt in a row: a hash of its kind, its turns, and how the answer begins. That
    of a single turn is `Prompt.of`'s."""
    asked = [turns[0].content] if len(turns) == 1 else [(m.role, m.content) for m in turns]
    return content_id(kind, *asked, *([{"assistant_prefix": prefix}] if prefix else []))


def row_prefix(row: JsonObject, place: str) -> str:
    """The text with which the assistant's turn already begins; ValueError if it is no text."""
    value = row.get("assistant_prefix")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: assistant_prefix is {short(value)}; it must be text.")
    return value
