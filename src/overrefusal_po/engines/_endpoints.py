"""One request -> an answer or a fault; several servers of one model -> the one to ask next.

A wrong set-up (no server, a bad key, an unknown model, a refused parameter) is a ValueError.
Everything else is a `Fault`: its kind, whether another try may help, and how long the server asks
to wait.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from pydantic import SecretStr

from overrefusal_po.engines._adapter_server import AdapterAt
from overrefusal_po.engines._limit_name import LimitName
from overrefusal_po.engines._openai_faults import (
    nobody_there,
    proxy_note,
    refused_field,
    shown,
    text_without_key,
    without_key,
    wrong_setup,
)
from overrefusal_po.engines._openai_settings import FleetSettings
from overrefusal_po.engines._replies import (
    FILTERED,
    LENGTH_REASONS,
    TOO_LONG,
    body_error,
    body_refusal,
    called_tool,
    choice_text,
    finish_of,
    first_choice,
    has_thought,
    is_filtered,
    is_item_too_long,
    odd_message,
    refusal_of_item,
    why_empty,
)

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

LONGEST_WAIT_SECONDS = 600.0
"""The longest Retry-After that is followed."""

LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_REASON = 300
"""Characters of a reason that repeats a reply's words."""

STOP_REASONS = ("stop", "eos_token", "eos", "stop_sequence", "end_turn", None)
"""Servers' finish reasons for a response that ended by itself, in lower case."""

TOOL_REASONS = ("tool_calls", "function_call")


class ServerAnswer(NamedTuple):
    """A server's text, and the tokens that it read and wrote (None if it does not report them)."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None
    completion_tokens: int | None
    empty: str | None = None
    """Why the text is empty, if the message has none."""
    choice: object = None
    """The reply's first choice as it came, for who reads more of it than the text."""


class Fault(NamedTuple):
    """Why a request gave nothing. `wait_seconds` is the wait that the server asks for."""

    kind: str
    reason: str
    retryable: bool
    """Whether another try may help."""
    wait_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_answer: bool = False
    """Whether it is the server's answer to this item, as from a content filter. Then the server is
    there, and the set-up is valid."""
    at_once: bool = False
    """Whether the next try differs from this one, and so costs no try."""


class Endpoint:
    """One server: its client, its running requests, and until when to leave it alone."""

    def __init__(
        self,
        url: str,
        client: AsyncOpenAI | None,
        limit: LimitName | None = None,
        adapter: AdapterAt | None = None,
    ) -> None:
        self.url, self.client, self.adapter = url, client, adapter
        self.limit = limit or LimitName("max_tokens", "engine.max_tokens_name")
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
    settings: FleetSettings,
    *,
    key: SecretStr,
    answered: bool,
) -> ServerAnswer | Fault:
    """The result of one request. ValueError if the set-up is wrong.

    `answered`: whether any server has answered before.
    """
    from openai import APIError

    adapter, loads = endpoint.adapter, 0
    try:
        if adapter is not None:
            loads = await adapter.ready()
    except APIError as error:
        return explained(error, endpoint, body, settings, key=key, answered=answered)
    sent = endpoint.limit.fits(body if adapter is None else adapter.named(body))
    try:
        reply = await send(endpoint, sent)
    except APIError as error:
        if adapter is not None and adapter.forgot(error, loads):
            return Fault("adapter", "the server has lost the adapter", True, at_once=True)
        return explained(error, endpoint, sent, settings, key=key, answered=answered)
    except RecursionError:
        return Fault("malformed", "the server sent JSON that is nested too deeply", False)
    except ValueError:  # of JSON, of UTF-8, of integers with thousands of digits
        return Fault("malformed", "the server sent a body that is not JSON", True)
    result = read_answer(reply)
    if isinstance(result, Fault):
        return result._replace(reason=without_key(result.reason, key)[:LONGEST_REASON])
    endpoint.limit.answered()
    if adapter is not None:
        adapter.answered()
    return result._replace(text=text_without_key(result.text, key))


def explained(
    error: APIError,
    endpoint: Endpoint,
    sent: Mapping[str, object],
    settings: FleetSettings,
    *,
    key: SecretStr,
    answered: bool,
) -> Fault:
    """What an error of the client means. ValueError if the set-up is wrong."""
    if (refusal := refusal_of_item(error)) is not None:
        reason = shown(refusal + proxy_note(endpoint.url), error, key)
        kind = str(getattr(error, "status_code", "content_filter"))
        return Fault(kind, reason, False, is_answer=True)
    field = refused_field(error, settings)
    if endpoint.limit.another(sent, error, field, answered=answered):
        reason = f"the server takes the limit on tokens as {endpoint.limit.name}"
        return Fault("limit_name", reason, True, at_once=True)
    # an unreachable server may be down for a while only, or another one may answer
    may_be_gone = answered or len(settings.base_url or ()) > 1 or settings.wait_seconds > 0
    wrong = wrong_setup(
        error,
        settings,
        endpoint.url,
        model=str(sent["model"]),
        answered=answered,
        may_be_gone=may_be_gone,
    )
    if wrong is not None:
        raise ValueError(shown(wrong + proxy_note(endpoint.url), error, key)) from None
    return fault_from_error(error, key, endpoint.url)


async def send(endpoint: Endpoint, body: Mapping[str, object]) -> object:
    """The server's reply. A body with `prompt` goes to plain completions, others to chat."""
    assert endpoint.client is not None
    client = endpoint.client
    # the client's own overloads cannot be matched by a mapping
    create: Callable[..., Awaitable[object]] = (
        client.completions.create if "prompt" in body else client.chat.completions.create
    )
    return await create(**body)


def fault_from_error(error: APIError, key: SecretStr, url: str) -> Fault:
    """The fault behind an error of the client, asking the server at `url`."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    note = proxy_note(url)
    if isinstance(error, APIConnectionError) and nobody_there(error):
        return Fault("unreachable", shown(f"the server cannot be reached{note}", error, key), True)
    if isinstance(error, APITimeoutError):
        return Fault("timeout", f"the server did not answer in time{note}", True)
    if isinstance(error, APIConnectionError):
        return Fault("broken", shown(f"the connection broke off{note}", error, key), True)
    if not isinstance(error, APIStatusError):
        reason = shown("the server sent something that is no completion", error, key)
        return Fault("malformed", reason, True)
    status = error.status_code
    retryable = status in (408, 409, 429) or status >= 500
    reason = shown(f"the server answered with status {status}{note}", error, key)
    wait = retry_after(error.response.headers) if retryable else None
    return Fault(str(status), reason, retryable, wait, is_answer=is_item_too_long(error))


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
            seconds = seconds_until(text, headers.get("date", ""))
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def seconds_until(date: str, now: str) -> float:
    """Seconds from one HTTP date to another; NaN if `date` is none.

    `now` is the reply's own date, because our clock may be wrong. Without it ours is taken.
    """
    then, there = email.utils.parsedate_tz(date), email.utils.parsedate_tz(now)
    if then is None:
        return math.nan
    return email.utils.mktime_tz(then) - (email.utils.mktime_tz(there) if there else time.time())


def read_answer(reply: object) -> ServerAnswer | Fault:
    """The text of a (chat) completion, or why there is none. A server may leave out or add
    anything."""
    read, written = usage_count(reply, "prompt_tokens"), usage_count(reply, "completion_tokens")
    choice = first_choice(reply)
    fault = reply_fault(reply, choice)
    if fault is not None:
        return fault._replace(prompt_tokens=read or 0, completion_tokens=written or 0)
    text = choice_text(choice)
    bare = text is None or (not text.strip() and has_thought(choice))
    empty = why_empty(choice) if bare else None
    # half of a surrogate pair is no text and could not be written to a file
    whole = (text or "").encode("utf-8", "replace").decode()
    ended = "length" if finish_of(choice) in LENGTH_REASONS else "stop"
    return ServerAnswer(whole, cast(Literal["stop", "length"], ended), read, written, empty, choice)


def reply_fault(reply: object, choice: object) -> Fault | None:
    """What is wrong with a reply that came with status 200; None for a completion."""
    if (refusal := body_refusal(reply) or body_refusal(choice)) is not None:
        return Fault("content_filter", refusal, False, is_answer=True)
    if choice is None and (error := body_error(reply)) is not None:
        if error[0] == TOO_LONG:
            return Fault("too_long", error[1], False)
        reason = f"the server sent an error instead of a completion ({error[1]})"
        return Fault("malformed", reason, True)
    try:
        finish = finish_of(choice)
    except ValueError as error:
        return Fault("malformed", f"the server sent a completion whose {error}", True)
    if is_filtered(finish):
        reason = f"{FILTERED}: the server's content filter withheld the response"
        return Fault("content_filter", reason, False, is_answer=True)
    if (odd := odd_message(choice)) is not None:
        return Fault("malformed", odd, True)
    text = choice_text(choice)
    if not (text or "").strip() and (finish in TOOL_REASONS or called_tool(choice)):
        return Fault(
            "tool_calls", "the model called a tool and said nothing", False, is_answer=True
        )
    if finish not in (*STOP_REASONS, *LENGTH_REASONS):
        # not in lower case: a key in it must still be found and masked
        given = str(getattr(choice, "finish_reason", None))
        reason = f"the server sent a completion with finish_reason {given!r}"
        return Fault("malformed", reason, True)
    # some servers keep the thinking out of the content, so a message may end without a text
    if text is None and (finish is None or getattr(choice, "message", None) is None):
        return Fault("malformed", "the server sent no completion", True)
    return None


def usage_count(reply: object, name: str) -> int | None:
    """A count of the reply's `usage`; None if the server gives none."""
    count = getattr(getattr(reply, "usage", None), name, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
