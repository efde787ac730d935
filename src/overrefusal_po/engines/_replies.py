"""A server's reply -> its text, its end, or why it withheld the text. A server may send anything.

refusal_of_item(error)      # "content filter: ..." if the server refuses what this item says
choice_text(first_choice(reply))
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import APIError

FILTERED = "content filter"
"""The beginning of each reason that says that a server refuses the content of one item."""

FILTER_WORDS = re.compile(
    r"content[ _-]?(filter|management|policy|moderation)|moderat(ion|ed)\b|flagged"
    r"|responsible ?ai|inappropriate content|data_?inspection|sensitive (content|words?)"
    r"|safety[ _](system|filter|policy|policies|check|guideline)|guardrail|prohibited[ _]content"
    r"|usage polic|polic(y|ies)[ _]violation|violat\w* .{0,40}polic"
    r"|content exists risk|敏感|违规|不安全",
    re.IGNORECASE,
)
"""How servers name a refusal because of what a prompt or response says."""

FILTER_FINISHES = (
    *("safety", "sensitive", "recitation", "prohibited_content", "blocklist", "spii", "language"),
    *("refusal", "blocked", "guardrail_intervened", "image_safety", "model_armor"),
)
"""Finish reasons of withheld responses, beside those that begin with `content_filter`."""

LENGTH_REASONS = ("length", "max_tokens", "max_length")
"""Servers' finish reasons for a response that was cut off, in lower case."""

TEXT_PARTS = ("text", "output_text", "refusal")
REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning")
REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
"""Where servers put a model's thinking beside the content."""

OTHER_STATUSES = (401, 402, 404, 407, 408, 409, 413, 429)
"""Statuses that have a meaning of their own. With them, and from 500 on, only an error's code or
type says that an item is refused."""

SETUP_CODES = ("insufficient_quota", "model_not_found", "invalid_api_key")
"""Codes of errors that would meet every item, whatever their status."""

TOO_LONG_WORDS = re.compile(r"context[ _](length|window|size)|too (long|large)", re.IGNORECASE)
"""How servers say that one prompt is too long for their model."""

KEY_WORDS = re.compile(
    r"api[ _-]?key|not authenticated|authenticat|credential|access[ _-]?token|unauthorized",
    re.IGNORECASE,
)
"""How servers say with 403 that a key is wrong or missing. Otherwise 403 is about the item."""

UNSUPPORTED = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
"""Codes of errors about a field of the request."""

TOO_LONG = "reply_too_long"
"""The code of the error that stands for a reply over the limit of bytes (`_openai_client`)."""

SHOWN = 200
"""Characters of a server's message that an error shows."""


def first_choice(reply: object) -> object:
    """The first choice of a (chat) completion; None without one. A server may leave out or add
    anything."""
    choices = getattr(reply, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def finish_of(choice: object) -> str | None:
    """The choice's finish_reason in lower case; None without one. ValueError if it is no text."""
    finish = getattr(choice, "finish_reason", None)
    if finish is None:
        return None
    if not isinstance(finish, str):
        raise ValueError(f"finish_reason is {str(finish)[:40]!r}")
    return finish.lower()


def is_filtered(finish: str | None) -> bool:
    """Whether a finish reason in lower case says that the response is withheld."""
    begin = ("content_filter", "contentfilter", "content-filter")
    return finish is not None and (finish.startswith(begin) or finish in FILTER_FINISHES)


def choice_text(choice: object) -> str | None:
    """The model's text: the message's content, a refusal beside it, or a plain completion's text;
    a blank one gives way to a filled one.

    None without a text. Of a list of parts, the texts are joined; thinking is left out.
    """
    message = getattr(choice, "message", None)
    content = getattr(message, "content", None)
    if isinstance(content, list | dict):
        parts = content if isinstance(content, list) else [content]
        content = "".join(map(part_text, parts)) or None
    texts = (content, getattr(message, "refusal", None), getattr(choice, "text", None))
    found = [text for text in texts if isinstance(text, str)]
    return next((text for text in found if text.strip()), found[0] if found else None)


def part_text(part: object) -> str:
    """The text of one part of a message's content; "" for thinking and for what is no text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    name = "refusal" if part.get("type") == "refusal" else "text"
    text = part.get(name) if part.get("type", "text") in TEXT_PARTS else None
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else ""


def odd_message(choice: object) -> str | None:
    """What is wrong with a choice that looks complete: its content is no text, or it holds an
    error; None for any other choice."""
    content = getattr(getattr(choice, "message", None), "content", None)
    if not isinstance(content, str | list | dict | None):
        return f"the server sent a message whose content is {str(content)[:40]!r}"
    error = body_error(choice) if getattr(choice, "error", None) else None
    return error and f"the server sent an error in place of a text ({error[1]})"


def called_tool(choice: object) -> bool:
    """Whether the model called a tool, whatever the choice says of its end."""
    message = getattr(choice, "message", None)
    return any(bool(getattr(message, name, None)) for name in ("tool_calls", "function_call"))


def has_thought(choice: object) -> bool:
    """Whether a message holds reasoning."""
    message = getattr(choice, "message", None)
    content = getattr(message, "content", None)
    parts = content if isinstance(content, list) else [content]
    return any(getattr(message, name, None) for name in REASONING_FIELDS) or any(
        isinstance(part, dict) and part.get("type") in REASONING_PARTS for part in parts
    )


def why_empty(choice: object) -> str:
    """Why a message has no text, in words."""
    if has_thought(choice):
        return "the server sent reasoning and no text"
    return "the server sent a message without text"


def refusal_of_item(error: APIError) -> str | None:
    """Why the server refuses this one item; None for any other error.

    A content filter answers with 400, 403, 422, 451 or any other status. A bare 403 is an answer
    too, unless it names the key.
    """
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or status < 400 or error.code in (*UNSUPPORTED, *SETUP_CODES):
        return None
    words = " ".join(said_words(error.body))
    clear = words if status < 500 and status not in OTHER_STATUSES else f"{error.code} {error.type}"
    if FILTER_WORDS.search(clear):
        return f"{FILTERED}: the server refuses this item with status {status}"
    if status in (403, 451) and not KEY_WORDS.search(words):
        return f"{FILTERED} or missing right: the server refuses this item with status {status}"
    return None


def is_item_too_long(error: APIError) -> bool:
    """Whether the server refuses one item because it is too long for the model."""
    status = getattr(error, "status_code", None)
    words = " ".join(said_words(error.body))
    return status == 413 or (status in (400, 422) and TOO_LONG_WORDS.search(words) is not None)


def unknown_path(error: APIError) -> str | None:
    """The path of plain completions, if the server does not have it; None for any other error. A
    404 with the word "model" is about the model's name."""
    path = str(error.request.url.path)
    if getattr(error, "status_code", 0) not in (404, 405) or path.endswith("/chat/completions"):
        return None
    words = " ".join(said_words(error.body)).lower()
    return None if error.code == "model_not_found" or "model" in words else path


def said_words(body: object) -> Iterator[str]:
    """What an error says of itself: message, code, type. Never what it repeats of the request."""
    if isinstance(body, str):
        yield body[: 10 * SHOWN]
    if isinstance(body, list):
        body = body[0] if body else None
    if isinstance(body, dict):
        for name in ("message", "detail", "code", "type", "error", "innererror"):
            yield from said_words(body.get(name))


def body_error(reply: object) -> tuple[str, str] | None:
    """(code, message) of an error that came with status 200; None without one."""
    error = getattr(reply, "error", None)
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return None
    message = " ".join(said_words(error.get("message"))) or "without a message"
    return str(error.get("code")), " ".join(message.split())


def body_refusal(reply: object) -> str | None:
    """Why the server refuses this one item, if it says so with status 200; None otherwise."""
    code, message = body_error(reply) or ("", "")
    words = " ".join(said_words(getattr(reply, "error", None)))
    if code in ("403", "451") or FILTER_WORDS.search(words):
        return f"{FILTERED}: the server refuses this item ({message})"
    return None
