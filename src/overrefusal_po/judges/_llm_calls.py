"""Texts -> a judge model's replies over the OpenAI protocol, several at a time, each with its text
or its fault.

    replies = ask_all(settings, read_api_key(settings), texts)

A wrong set-up (nobody listens, a bad key, an unknown model, a refused parameter) is one ValueError.
If one item fails after the client's own retries, that is the item's `fault`. The first item is
asked alone, so that a wrong set-up is found by one request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import SecretStr

from overrefusal_po.engines._openai_setup import (
    OPENAI_URL,
    first_choice,
    make_client,
    own_loop,
    shown,
    wrong_setup,
)
from overrefusal_po.judges._llm_settings import Settings

NO_REPLY = "the judge gave no reply"
"""The beginning of a fault that may be gone at the next try."""


class JudgeReply(NamedTuple):
    """What the judge model wrote, or why that cannot be used."""

    text: str
    fault: str | None = None


def ask_all(
    settings: Settings, key: SecretStr, texts: Sequence[str], *, answered: bool = False
) -> list[JudgeReply]:
    """One reply for each text, in their order. Works too if an event loop runs already, as in a
    notebook.

    `answered`: this set-up has worked before.
    """
    if not texts:
        return []
    with own_loop() as run:
        replies: list[JudgeReply] = run(ask_concurrently(settings, key, texts, answered=answered))
    return replies


async def ask_concurrently(
    settings: Settings, key: SecretStr, texts: Sequence[str], *, answered: bool
) -> list[JudgeReply]:
    """The first text alone if nothing is `answered`, then the others, `concurrency` at a time; a
    wrong set-up stops all."""
    replies: dict[int, JudgeReply] = {}
    retries, seconds = settings.max_retries, settings.timeout_seconds
    async with make_client(
        settings.base_url or OPENAI_URL, key, timeout_seconds=seconds, max_retries=retries
    ) as client:
        asker = Asker(client, settings, key, answered=answered)
        if not answered:
            replies[0] = await asker.ask(texts[0])
        waiting = iter(range(len(replies), len(texts)))

        async def work() -> None:
            for number in waiting:
                replies[number] = await asker.ask(texts[number])

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(settings.concurrency, len(texts) - len(replies))):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    return [replies[number] for number in range(len(texts))]


class Asker:
    """Sends one text at a time and remembers whether the server has ever answered."""

    # Any: the types of openai's client do not take options that are known at run time only
    def __init__(self, client: Any, settings: Settings, key: SecretStr, *, answered: bool) -> None:
        self.client = client
        self.settings = settings
        self.key = key
        self.answered = answered
        # OpenAI's newer models know only the second name, and most other servers only the first
        limit = "max_completion_tokens" if settings.base_url is None else "max_tokens"
        options = {
            limit: settings.max_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
        }
        self.options = {name: value for name, value in options.items() if value is not None}

    async def ask(self, text: str) -> JudgeReply:
        """The reply to one text; ValueError if the set-up is wrong."""
        from openai import APIError

        messages = [{"role": "user", "content": text}]
        try:
            found = await self.client.chat.completions.create(
                model=self.settings.model, messages=messages, **self.options
            )
        except APIError as error:
            url, model = self.settings.base_url or OPENAI_URL, self.settings.model
            wrong = wrong_setup(error, self.settings, url, model=model, answered=self.answered)
            if wrong is not None:
                raise ValueError(shown(wrong, error, self.key)) from None
            status = getattr(error, "status_code", None)
            may_pass = status is None or status in (408, 409, 429) or status >= 500
            return JudgeReply(
                "",
                shown(
                    NO_REPLY if may_pass else "the judge's server refuses this item",
                    error,
                    self.key,
                ),
            )
        except (json.JSONDecodeError, UnicodeDecodeError):
            return JudgeReply("", f"{NO_REPLY} (its server sent a body that is not JSON)")
        self.answered = True
        return read_judge_reply(found)


def read_judge_reply(found: object) -> JudgeReply:
    """The text of a chat completion, or why there is none; a server may send anything."""
    first = first_choice(found)
    message = getattr(first, "message", None)
    if message is None:
        return JudgeReply("", "the judge's server sent something that is no chat completion")
    finish = getattr(first, "finish_reason", None)
    if finish == "length":
        return JudgeReply("", "the judge's reply was cut off at max_tokens; raise judge.max_tokens")
    if finish == "content_filter":
        return JudgeReply("", "the judge's reply was withheld by its server's content filter")
    if getattr(message, "refusal", None):
        return JudgeReply("", "the judge model refused to judge")
    text = getattr(message, "content", None)
    if not isinstance(text, str) or not text.strip():
        return JudgeReply("", "the judge's reply is empty")
    return JudgeReply(text)
