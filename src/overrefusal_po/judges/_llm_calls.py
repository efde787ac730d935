"""Texts -> a judge model's replies over the OpenAI protocol, so many at a time, each with its text or its fault.

    replies = ask_all(settings, key_of(settings), texts)

What is wrong with the set-up (nobody listens, a bad key, an unknown model, a refused parameter) is one ValueError. What
goes wrong with one item after the client's own retries is that item's `fault`. The first item is asked alone, so that
a wrong set-up is found by one request.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pydantic import SecretStr

from overrefusal_po.judges._llm_settings import Settings

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
NO_KEY = SecretStr("none")
"""Sent where a recipe says `api_key_env: null`: the client insists on a key, and must not take one that lies about."""

OUR_PARAMETERS = ("model", "max_tokens", "max_completion_tokens", "temperature", "seed")
UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
SHOWN = 200
"""Characters of a server's message that are passed on."""


class Reply(NamedTuple):
    """What the judge model wrote, or why that cannot be used."""

    text: str
    fault: str | None = None


def key_of(settings: Settings) -> SecretStr:
    """The key from the environment variable that the settings name.

    Raises ValueError where the openai package is missing, the variable is not set, or what it holds can be no key.
    """
    if importlib.util.find_spec("openai") is None:
        raise ValueError('the judge llm needs the package openai: pip install "overrefusal-po[openai]"')
    if settings.api_key_env is None:
        if settings.base_url is None:
            raise ValueError(
                "judge.api_key_env is null, but OpenAI's own service needs a key. Name the environment variable that "
                "holds it, or give judge.base_url of a server without keys."
            )
        return NO_KEY
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"judge.api_key_env names the environment variable {settings.api_key_env}, which is not set or empty. Set it "
            "to the key, or write `api_key_env: null` for a server without keys."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"the environment variable {settings.api_key_env} holds blanks, line ends or letters beyond ASCII, which no "
            "key has. Set it again (the value is not shown here)."
        )
    return SecretStr(key)


def ask_all(settings: Settings, key: SecretStr, texts: Sequence[str]) -> list[Reply]:
    """One reply for each text, in their order. Also where an event loop runs already, as in a notebook."""
    if not texts:
        return []
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask_concurrently(settings, key, texts))
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, ask_concurrently(settings, key, texts)).result()


async def ask_concurrently(settings: Settings, key: SecretStr, texts: Sequence[str]) -> list[Reply]:
    """The first text alone, then the others, `concurrency` at a time; a wrong set-up stops them all."""
    from openai import AsyncOpenAI, Timeout

    replies: dict[int, Reply] = {}
    waiting = iter(range(1, len(texts)))
    async with AsyncOpenAI(
        api_key=key.get_secret_value(),
        base_url=settings.base_url or OPENAI_URL,  # said, so that no environment variable decides who judges
        timeout=Timeout(settings.timeout_seconds, connect=min(CONNECT_SECONDS, settings.timeout_seconds)),
        max_retries=settings.max_retries,
    ) as client:
        asker = Asker(client, settings, key)

        async def work() -> None:
            for number in waiting:
                replies[number] = await asker.ask(texts[number])

        replies[0] = await asker.ask(texts[0])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(settings.concurrency, len(texts) - 1)):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    return [replies[number] for number in range(len(texts))]


class Asker:
    """Sends one text at a time and remembers whether the server has ever answered."""

    def __init__(self, client: Any, settings: Settings, key: SecretStr) -> None:
        self.client = client
        self.settings = settings
        self.key = key
        self.answered = False
        # OpenAI's newer models know only the second name, and most other servers only the first
        limit = "max_completion_tokens" if settings.base_url is None else "max_tokens"
        options = {limit: settings.max_tokens, "temperature": settings.temperature, "seed": settings.seed}
        self.options = {name: value for name, value in options.items() if value is not None}

    async def ask(self, text: str) -> Reply:
        """The reply to one text; ValueError where the set-up is wrong."""
        from openai import APIError

        messages = [{"role": "user", "content": text}]
        try:
            found = await self.client.chat.completions.create(
                model=self.settings.model, messages=messages, **self.options
            )
        except APIError as error:
            wrong = wrong_setup(error, self.settings, answered=self.answered)
            if wrong is not None:
                raise ValueError(self.shown(wrong, error)) from None
            return Reply("", self.shown("the judge gave no reply", error))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return Reply("", "the judge's server sent a body that is not JSON")
        self.answered = True
        return read_reply(found)

    def shown(self, what: str, error: Any) -> str:
        """`what` with the server's message on one line, shortened, the key taken out."""
        cause = f": {error.__cause__}" if error.__cause__ else ""
        message = " ".join(f"{error}{cause}".split())
        key = self.key.get_secret_value()
        if self.key is not NO_KEY:
            message = message.replace(key, "[key]")
        return f"{what} ({message[:SHOWN]})"


def wrong_setup(error: Any, settings: Settings, *, answered: bool) -> str | None:
    """What is wrong with the set-up and what to do, None where the fault is the item's own."""
    from openai import APIConnectionError, AuthenticationError, BadRequestError, NotFoundError, PermissionDeniedError

    server = f"judge.base_url {settings.base_url}" if settings.base_url else f"OpenAI ({OPENAI_URL})"
    if isinstance(error, APIConnectionError):
        if type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout"):
            return None  # it was there, and this one reply broke off or took too long
        return f"{server} cannot be reached. Start the server or correct the address"
    # a server that has answered and then forbids one item objects to what stands in it
    if isinstance(error, AuthenticationError) or (isinstance(error, PermissionDeniedError) and not answered):
        named = f"the key in {settings.api_key_env}" if settings.api_key_env else "a request without a key"
        return f"{server} does not accept {named}. Set judge.api_key_env to the variable that holds the right key"
    if isinstance(error, NotFoundError) or error.code == "model_not_found":
        return (
            f"{server} does not know the model {settings.model!r}. Correct judge.model, or the path in judge.base_url"
        )
    if error.code == "insufficient_quota":
        return f"{server} says that the account has no quota left"
    # some servers name max_tokens, too, when one item alone is too long for the model
    ours = error.param in OUR_PARAMETERS and (not answered or error.code in UNSUPPORTED)
    if isinstance(error, BadRequestError) and ours:
        return (
            f"{server} refuses {error.param} for {settings.model!r}. Change it in the recipe; `temperature: null` and "
            "`seed: null` are not sent"
        )
    return None


def read_reply(found: Any) -> Reply:
    """The text of a chat completion, or why there is none; a server may leave out anything."""
    choices = getattr(found, "choices", None)
    first: Any = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(first, "message", None)
    if message is None:
        return Reply("", "the judge's server sent something that is no chat completion")
    finish = getattr(first, "finish_reason", None)
    if finish == "length":
        return Reply("", "the judge's reply was cut off at max_tokens; raise judge.max_tokens")
    if finish == "content_filter":
        return Reply("", "the judge's reply was withheld by its server's content filter")
    if getattr(message, "refusal", None):
        return Reply("", "the judge model refused to judge")
    text = getattr(message, "content", None)
    if not isinstance(text, str) or not text.strip():
        return Reply("", "the judge's reply is empty")
    return Reply(text)
