"""One request -> an answer or a fault; several servers of one model -> the one to ask next.

A wrong set-up (no server, a bad key, an unknown model, a refused parameter) is a ValueError.
Everything else is a `Fault`: its kind, whether another try may help, and how long the server asks
to wait.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import SecretStr

from overrefusal_po.engines._openai_settings import Settings
from overrefusal_po.engines._openai_setup import first_choice, nobody_there, shown, wrong_setup

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

LONGEST_WAIT_SECONDS = 600.0
"""The longest Retry-After that is followed."""

LONGEST_BACKOFF_SECONDS = 30.0
STOP_REASONS = ("stop", "eos_token", "eos", "stop_sequence", "end_turn", None)
"""Servers' finish reasons for a response that ended by itself."""


class ServerAnswer(NamedTuple):
    """A server's text, and the tokens that it read and wrote (None if it does not report them)."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None
    completion_tokens: int | None


class Fault(NamedTuple):
    """Why a request gave nothing. `wait_seconds` is the wait that the server asks for."""

    kind: str
    reason: str
    retryable: bool
    """Whether another try may help."""
    wait_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Endpoint:
    """One server: its client, its running requests, and until when to leave it alone."""

    def __init__(self, url: str, client: AsyncOpenAI | None) -> None:
        self.url, self.client = url, client
        self.in_flight = 0
        self.faults_in_row = 0
        self.not_before = 0.0

    def record(self, fault: Fault | None, backoff_seconds: float) -> None:
        """Leaves the server alone as long as it asks for, and longer each time it is not there."""
        self.faults_in_row = 0 if fault is None else self.faults_in_row + 1
        if fault is None or not fault.retryable:
            return
        wait = fault.wait_seconds if fault.kind == "429" else None
        if fault.kind == "unreachable":
            wait = backoff(self.faults_in_row - 1, backoff_seconds)
        if wait is not None:
            self.not_before = max(self.not_before, time.monotonic() + wait)


def next_endpoint(
    endpoints: list[Endpoint], limit: int, avoid: Endpoint | None
) -> Endpoint | float:
    """The free server with the fewest running requests; or the seconds until one may be free.

    `avoid` is the server that just gave a fault. It is chosen only if no other is free.
    """
    now = time.monotonic()
    free = [e for e in endpoints if e.in_flight < limit and e.not_before <= now]
    if not free:
        # a server at its limit becomes free when a request ends, and nothing announces that
        return min((max(e.not_before - now, 0.02) for e in endpoints), default=0.02)
    return min(free, key=lambda e: (e is avoid, e.in_flight))


def backoff(tries: int, first_seconds: float) -> float:
    """Seconds to wait after `tries` + 1 failed tries."""
    return min(first_seconds * 2.0 ** min(tries, 30), LONGEST_BACKOFF_SECONDS)


async def ask(
    endpoint: Endpoint,
    body: Mapping[str, object],
    settings: Settings,
    *,
    key: SecretStr,
    answered: bool,
) -> ServerAnswer | Fault:
    """The result of one request. ValueError if the set-up is wrong.

    `answered`: whether any server has answered before.
    """
    from openai import APIError

    try:
        reply = await send(endpoint, body)
    except APIError as error:
        # an unreachable server may be down for a while only, or another one may answer
        may_be_gone = answered or len(settings.base_url or ()) > 1
        wrong = wrong_setup(
            error,
            settings,
            endpoint.url,
            model=str(body["model"]),
            answered=answered,
            may_be_gone=may_be_gone,
        )
        if wrong is not None:
            raise ValueError(shown(wrong, error, key)) from None
        return fault_from_error(error, key)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return Fault("malformed", "the server sent a body that is not JSON", True)
    return read_answer(reply)


async def send(endpoint: Endpoint, body: Mapping[str, object]) -> object:
    """The server's reply. A body with `prompt` goes to plain completions, others to chat."""
    assert endpoint.client is not None
    client = endpoint.client
    # the client's own overloads cannot be matched by a mapping
    create: Callable[..., Awaitable[object]] = (
        client.completions.create if "prompt" in body else client.chat.completions.create
    )
    return await create(**body)


def fault_from_error(error: APIError, key: SecretStr) -> Fault:
    """The fault behind an error of the client."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    if isinstance(error, APIConnectionError) and nobody_there(error):
        return Fault("unreachable", shown("the server cannot be reached", error, key), True)
    if isinstance(error, APITimeoutError):
        return Fault("timeout", "the server did not answer in time", True)
    if isinstance(error, APIConnectionError):
        return Fault("broken", shown("the connection broke off", error, key), True)
    if not isinstance(error, APIStatusError):
        reason = shown("the server sent something that is no completion", error, key)
        return Fault("malformed", reason, True)
    status = error.status_code
    retryable = status in (408, 409, 429) or status >= 500
    reason = shown(f"the server answered with status {status}", error, key)
    wait = retry_after(error.response.headers) if retryable else None
    return Fault(str(status), reason, retryable, wait)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; None if it does not ask.

    Read are `retry-after-ms`, and `Retry-After` in seconds or as a date.
    """
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


def read_answer(reply: object) -> ServerAnswer | Fault:
    """The text of a (chat) completion, or why there is none. A server may leave out or add
    anything."""
    read, written = usage_count(reply, "prompt_tokens"), usage_count(reply, "completion_tokens")
    first = first_choice(reply)
    finish = getattr(first, "finish_reason", None)
    text = choice_text(first, finish)
    if finish == "content_filter":
        reason = "the server's content filter withheld the response"
        return Fault("content_filter", reason, False, None, read or 0, written or 0)
    ends_well = (finish is None or isinstance(finish, str)) and finish in (*STOP_REASONS, "length")
    if text is None or not ends_well:
        what = "no completion"
        if text is not None:
            what = f"a completion with finish_reason {str(finish)[:40]!r}"
        return Fault("malformed", f"the server sent {what}", True, None, read or 0, written or 0)
    # half of a surrogate pair is no text and could not be written to a file
    whole = text.encode("utf-8", "replace").decode()
    return ServerAnswer(whole, "length" if finish == "length" else "stop", read, written)


def choice_text(choice: object, finish: object) -> str | None:
    """The model's text: the message's content, a refusal beside it, or a plain completion's
    text."""
    message = getattr(choice, "message", None)
    for found in (
        getattr(message, "content", None),
        getattr(message, "refusal", None),
        getattr(choice, "text", None),
    ):
        if isinstance(found, str):
            return found
    # some servers keep the thinking out of the content, and this one was cut while it thought
    return "" if message is not None and finish == "length" else None


def usage_count(reply: object, name: str) -> int | None:
    """A count of the reply's `usage`; None if the server gives none."""
    count = getattr(getattr(reply, "usage", None), name, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
