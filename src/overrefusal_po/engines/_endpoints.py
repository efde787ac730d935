"""One request -> an answer or a fault, and several servers of one model -> the one that is asked next.

What is wrong with the set-up (nobody listens, a bad key, an unknown model, a refused parameter) is a ValueError. All
else is a `Fault` with its kind, whether another try may help, and how long the server asks to wait.
"""

from __future__ import annotations

import email.utils
import importlib.util
import json
import math
import os
import time
from typing import Any, Literal, NamedTuple

from pydantic import SecretStr

from overrefusal_po.engines._openai_settings import Settings

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 600.0
"""No Retry-After is followed for longer."""

LONGEST_BACKOFF_SECONDS = 30.0
NO_KEY = SecretStr("none")
"""Sent where a recipe says `api_key_env: null`: the client insists on a key, and must not take one that lies about."""

OUR_PARAMETERS = ("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed")
TEMPLATE_PARAMETERS = ("chat_template_kwargs", "continue_final_message", "add_generation_prompt")
UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
STOPPED = ("stop", "eos_token", "eos", "stop_sequence", "end_turn", None)
"""Finish reasons of servers for a response that ended by itself."""

SHOWN = 200
"""Characters of a server's message that are passed on."""


class Answer(NamedTuple):
    """What a server gave: text, and the tokens that it says it read and wrote (None where it does not say)."""

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
        """Leaves the server alone for as long as it asks to, and longer each time that nobody is there."""
        self.faults_in_row = 0 if fault is None else self.faults_in_row + 1
        if fault is None or not fault.again:
            return
        wait = fault.wait_seconds if fault.kind == "429" else None
        if fault.kind == "unreachable":
            wait = backoff(self.faults_in_row - 1, backoff_seconds)
        if wait is not None:
            self.not_before = max(self.not_before, time.monotonic() + wait)


def next_endpoint(endpoints: list[Endpoint], limit: int, avoid: Endpoint | None) -> Endpoint | float:
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


def key_of(settings: Settings) -> SecretStr:
    """The key from the environment variable that the settings name.

    Raises ValueError where the openai package is missing, the variable is not set, or what it holds can be no key.
    """
    if importlib.util.find_spec("openai") is None:
        raise ValueError('the engine openai needs the package openai: pip install "overrefusal-po[openai]"')
    if settings.api_key_env is None:
        if settings.base_url is None:
            raise ValueError(
                "engine.api_key_env is null, but OpenAI's own service needs a key. Name the environment variable that "
                "holds it, or give engine.base_url of a server without keys."
            )
        return NO_KEY
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"engine.api_key_env names the environment variable {settings.api_key_env}, which is not set or empty. Set "
            "it to the key, or write `api_key_env: null` for a server without keys."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {settings.api_key_env} holds blanks, line ends or letters beyond ASCII, which no "
            "key has. Set it again (the value is not shown here)."
        )
    return SecretStr(key)


def make_client(url: str, settings: Settings, key: SecretStr) -> Any:
    """A client that tries once: further tries are ours, because they are counted and may go to another server."""
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(settings.timeout_seconds, connect=min(CONNECT_SECONDS, settings.timeout_seconds))
    return AsyncOpenAI(api_key=key.get_secret_value(), base_url=url, timeout=timeout, max_retries=0)


async def ask(
    endpoint: Endpoint, body: dict[str, Any], settings: Settings, key: SecretStr, *, answered: bool
) -> Answer | Fault:
    """One request. ValueError where the set-up is wrong; `answered`: whether any server has ever answered."""
    from openai import APIError

    extra = body.get("extra_body") or {}
    fields = {name: value for name, value in body.items() if name != "extra_body"}
    kind = endpoint.client.completions if "prompt" in body else endpoint.client.chat.completions
    try:
        found = await kind.create(**fields, extra_body=extra)
    except APIError as error:
        wrong = wrong_setup(error, endpoint.url, settings, str(body["model"]), answered=answered)
        if wrong is not None:
            raise ValueError(shown(wrong, error, key)) from None
        return fault_of(error, key)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return Fault("malformed", "the server sent a body that is not JSON", True)
    return read_answer(found)


def shown(what: str, error: Any, key: SecretStr) -> str:
    """`what` with the server's message on one line, shortened, the key taken out."""
    cause = f": {error.__cause__}" if error.__cause__ else ""
    message = " ".join(f"{error}{cause}".split())
    if key is not NO_KEY:
        message = message.replace(key.get_secret_value(), "[key]")
    return f"{what} ({message[:SHOWN]})"


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
        return Fault("malformed", shown("the server sent something that is no completion", error, key), True)
    status = error.status_code
    again = status in (408, 409, 429) or status >= 500
    reason = shown(f"the server answered with status {status}", error, key)
    return Fault(str(status), reason, again, retry_after(error.response.headers) if again else None)


def nobody_there(error: Any) -> bool:
    """Whether no connection was made at all."""
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, `Retry-After` in seconds or as a date; None: it does not."""
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


def wrong_setup(error: Any, url: str, settings: Settings, model: str, *, answered: bool) -> str | None:
    """What is wrong with the set-up and what to do, None where the fault is this request's own."""
    from openai import APIConnectionError, AuthenticationError, BadRequestError, NotFoundError, PermissionDeniedError

    server = f"engine.base_url {url}" if settings.base_url else f"OpenAI ({OPENAI_URL})"
    if isinstance(error, APIConnectionError):
        alone = settings.base_url is None or len(settings.base_url) == 1
        if answered or not alone or not nobody_there(error):
            return None  # it was there before, or another server may be
        return f"{server} cannot be reached. Start the server or correct the address"
    # a server that has answered and then forbids one item objects to what stands in it
    if isinstance(error, AuthenticationError) or (isinstance(error, PermissionDeniedError) and not answered):
        named = f"the key in {settings.api_key_env}" if settings.api_key_env else "a request without a key"
        return f"{server} does not accept {named}. Set engine.api_key_env to the variable that holds the right key"
    if isinstance(error, NotFoundError) or error.code == "model_not_found":
        return f"{server} does not know the model {model!r}. Correct engine.model, or the path in engine.base_url"
    if error.code == "insufficient_quota":
        return f"{server} says that the account has no quota left; the same command goes on when it has"
    ours = error.param in (*OUR_PARAMETERS, *TEMPLATE_PARAMETERS) and (not answered or error.code in UNSUPPORTED)
    if isinstance(error, BadRequestError) and ours:
        return f"{server} refuses {error.param} for {model!r}. Change it in the recipe; `seeded: false` sends no seed"
    return None


def read_answer(found: Any) -> Answer | Fault:
    """The text of a (chat) completion, or why there is none; a server may leave out or add anything."""
    read, written = tokens(found, "prompt_tokens"), tokens(found, "completion_tokens")
    choices = getattr(found, "choices", None)
    first: Any = choices[0] if isinstance(choices, list) and choices else None
    finish = getattr(first, "finish_reason", None)
    text = text_of(first, finish)
    if finish == "content_filter":
        reason = "the server's content filter withheld the response"
        return Fault("content_filter", reason, False, None, read or 0, written or 0)
    if text is None or not (finish is None or isinstance(finish, str)) or finish not in (*STOPPED, "length"):
        what = "no completion" if text is None else f"a completion with finish_reason {str(finish)[:40]!r}"
        return Fault("malformed", f"the server sent {what}", True, None, read or 0, written or 0)
    # half of a surrogate pair is no text and could not be written
    whole = text.encode("utf-8", "replace").decode()
    return Answer(whole, "length" if finish == "length" else "stop", read, written)


def text_of(choice: Any, finish: Any) -> str | None:
    """What the model said: the message's content, a refusal that stands beside it, or a plain completion's text."""
    message = getattr(choice, "message", None)
    for found in (getattr(message, "content", None), getattr(message, "refusal", None), getattr(choice, "text", None)):
        if isinstance(found, str):
            return found
    # cut off while it still thought, which some servers keep out of the content
    return "" if message is not None and finish == "length" else None


def tokens(found: Any, name: str) -> int | None:
    """A count of the reply's `usage`; None where the server gives none."""
    count = getattr(getattr(found, "usage", None), name, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None
