"""One request -> an answer or a fault, and several servers of one model -> the one that is asked
next.

What is wrong with the set-up (nobody listens, a bad key, an unknown model, a refused parameter) is
a ValueError. All else is a `Fault` with its kind, whether another try may help, and how long the
server asks to wait.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from typing import Any, Literal, NamedTuple

from pydantic import SecretStr

from overrefusal_po.engines._openai_settings import Settings
from overrefusal_po.engines._openai_setup import first_choice, nobody_there, shown, wrong_setup

LONGEST_WAIT_SECONDS = 600.0
"""No Retry-After is followed for longer."""

LONGEST_BACKOFF_SECONDS = 30.0
STOPPED = ("stop", "eos_token", "eos", "stop_sequence", "end_turn", None)
"""Finish reasons of servers for a response that ended by itself."""


class Answer(NamedTuple):
    """What a server gave: text, and the tokens that it says it read and wrote (None where it does
    not say)."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None
    completion_tokens: int | None


class Fault(NamedTuple):
    """Why a request gave nothing. `wait_seconds` is what the server asks for."""

    kind: str
    reason: str
    again: bool
    """Whether another try may help."""
    wait_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Endpoint:
    """One server: its client, what is on its way to it, and until when it is left alone."""

    def __init__(self, url: str, client: Any) -> None:
        self.url, self.client = url, client
        self.in_flight = 0
        self.faults_in_row = 0
        self.not_before = 0.0

    def note(self, fault: Fault | None, backoff_seconds: float) -> None:
        """Leaves the server alone for as long as it asks to, and longer each time that nobody is
        there."""
        self.faults_in_row = 0 if fault is None else self.faults_in_row + 1
        if fault is None or not fault.again:
            return
        wait = fault.wait_seconds if fault.kind == "429" else None
        if fault.kind == "unreachable":
            wait = backoff(self.faults_in_row - 1, backoff_seconds)
        if wait is not None:
            self.not_before = max(self.not_before, time.monotonic() + wait)


def next_endpoint(
    endpoints: list[Endpoint], limit: int, avoid: Endpoint | None
) -> Endpoint | float:
    """The server with the least on its way that may be asked now, or the seconds until one may be.

    `avoid` is the one that gave a fault just now, taken only where there is no other.
    """
    now = time.monotonic()
    free = [e for e in endpoints if e.in_flight < limit and e.not_before <= now]
    if not free:
        # a server at its limit is free when a request ends, which nobody announces
        return min((max(e.not_before - now, 0.02) for e in endpoints), default=0.02)
    return min(free, key=lambda e: (e is avoid, e.in_flight))


def backoff(tries: int, first_seconds: float) -> float:
    """Seconds before the next try after `tries` + 1 in vain."""
    return min(first_seconds * 2.0 ** min(tries, 30), LONGEST_BACKOFF_SECONDS)


async def ask(
    endpoint: Endpoint, body: dict[str, Any], settings: Settings, key: SecretStr, *, answered: bool
) -> Answer | Fault:
    """One request. ValueError where the set-up is wrong; `answered`: whether any server has ever
    answered."""
    from openai import APIError

    extra = body.get("extra_body") or {}
    fields = {name: value for name, value in body.items() if name != "extra_body"}
    kind = endpoint.client.completions if "prompt" in body else endpoint.client.chat.completions
    try:
        found = await kind.create(**fields, extra_body=extra)
    except APIError as error:
        # it was there before, or another server may be
        may_be_gone = answered or len(settings.base_url or ()) > 1
        wrong = wrong_setup(
            error,
            settings,
            endpoint.url,
            str(body["model"]),
            answered=answered,
            may_be_gone=may_be_gone,
        )
        if wrong is not None:
            raise ValueError(shown(wrong, error, key)) from None
        return fault_of(error, key)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return Fault("malformed", "the server sent a body that is not JSON", True)
    return read_answer(found)


def fault_of(error: Any, key: SecretStr) -> Fault:
    """The fault behind an error of the client."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    if isinstance(error, APIConnectionError) and nobody_there(error):
        return Fault("unreachable", shown("the server cannot be reached", error, key), True)
    if isinstance(error, APITimeoutError):
        return Fault("timeout", "the server did not answer in time", True)
    if isinstance(error, APIConnectionError):
        return Fault("broken", shown("the connection broke off", error, key), True)
    if not isinstance(error, APIStatusError):
        return Fault(
            "malformed", shown("the server sent something that is no completion", error, key), True
        )
    status = error.status_code
    again = status in (408, 409, 429) or status >= 500
    reason = shown(f"the server answered with status {status}", error, key)
    return Fault(str(status), reason, again, retry_after(error.response.headers) if again else None)


def retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, `Retry-After` in seconds or as a date;
    None: it does not."""
    try:
        seconds = float(headers["retry-after-ms"]) / 1000
    except (KeyError, ValueError):
        text = headers.get("retry-after", "")
        try:
            seconds = float(text)
        except ValueError:
            date = email.utils.parsedate_tz(text)
            seconds = email.utils.mktime_tz(date) - time.time() if date else math.nan
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def read_answer(found: Any) -> Answer | Fault:
    """The text of a (chat) completion, or why there is none; a server may leave out or add
    anything."""
    read, written = tokens(found, "prompt_tokens"), tokens(found, "completion_tokens")
    first = first_choice(found)
    finish = getattr(first, "finish_reason", None)
    text = text_of(first, finish)
    if finish == "content_filter":
        reason = "the server's content filter withheld the response"
        return Fault("content_filter", reason, False, None, read or 0, written or 0)
    if (
        text is None
        or not (finish is None or isinstance(finish, str))
        or finish not in (*STOPPED, "length")
    ):
        what = (
            "no completion"
            if text is None
            else f"a completion with finish_reason {str(finish)[:40]!r}"
        )
        return Fault("malformed", f"the server sent {what}", True, None, read or 0, written or 0)
    # half of a surrogate pair is no text and could not be written
    whole = text.encode("utf-8", "replace").decode()
    return Answer(whole, "length" if finish == "length" else "stop", read, written)


def text_of(choice: Any, finish: Any) -> str | None:
    """What the model said: the message's content, a refusal that stands beside it, or a plain
    completion's text."""
    message = getattr(choice, "message", None)
    for found in (
        getattr(message, "content", None),
        getattr(message, "refusal", None),
        getattr(choice, "text", None),
    ):
        if isinstance(found, str):
            return found
    # cut off while it still thought, which some servers keep out of the content
    return "" if message is not None and finish == "length" else None


def tokens(found: Any, name: str) -> int | None:
    """A count of the reply's `usage`; None where the server gives none."""
    count = getattr(getattr(found, "usage", None), name, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
