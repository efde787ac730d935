"""Texts -> a judge model's replies over the OpenAI protocol, several at a time, each with its text
or its fault.

    replies = ask_all(settings, read_api_key(settings), texts)

A wrong set-up (nobody listens, a bad key, an unknown model, a refused parameter) is one ValueError.
If one item fails after the client's own retries, that is the item's `fault`. The first item is
asked alone, so that a wrong set-up is found by one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

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
from overrefusal_po.engines._openai_setup import OPENAI_URL, make_client
from overrefusal_po.engines._own_loop import own_loop
from overrefusal_po.engines._replies import (
    FILTERED,
    LENGTH_REASONS,
    TOO_LONG,
    body_error,
    body_refusal,
    choice_text,
    finish_of,
    first_choice,
    is_filtered,
    odd_message,
    refusal_of_item,
    why_empty,
)
from overrefusal_po.engines._silence import Silence
from overrefusal_po.judges._llm_settings import Settings

if TYPE_CHECKING:
    from openai import APIError

NO_REPLY = "the judge gave no reply"
"""The beginning of a fault that may be gone at the next try."""

PAUSE_SECONDS = 15.0
"""Between two requests to a server that is away."""

LONGEST_FAULT = 300
"""Characters of a fault that repeats a reply's words."""


class JudgeReply(NamedTuple):
    """What the judge model wrote, or why that cannot be used."""

    text: str
    fault: str | None = None

    @property
    def is_answer(self) -> bool:
        """Whether the server answered: with a text, or by refusing what this item says."""
        return self.fault is None or self.fault.startswith(FILTERED)


def ask_all(
    settings: Settings,
    key: SecretStr,
    texts: Sequence[str],
    *,
    limit: LimitName | None = None,
    answered: bool = False,
) -> list[JudgeReply]:
    """One reply for each text, in their order. Works too if an event loop runs already, as in a
    notebook.

    `limit`: what earlier calls learned of the server; `answered`: this set-up has worked before.
    """
    if not texts:
        return []
    limit = limit or limit_name(settings)
    with own_loop() as run:
        replies: list[JudgeReply] = run(
            ask_concurrently(settings, key, texts, limit=limit, answered=answered)
        )
    return replies


def limit_name(settings: Settings) -> LimitName:
    """What the judge's server calls the limit on new tokens, as far as the recipe knows."""
    return LimitName(settings.limit_name, "judge.max_tokens_name")


async def ask_concurrently(
    settings: Settings, key: SecretStr, texts: Sequence[str], *, limit: LimitName, answered: bool
) -> list[JudgeReply]:
    """The first text alone if nothing is `answered`, then the others, `concurrency` at a time; a
    wrong set-up stops all."""
    replies: dict[int, JudgeReply] = {}
    retries, seconds = settings.max_retries, settings.timeout_seconds
    async with make_client(
        settings.base_url or OPENAI_URL,
        key,
        settings,
        timeout_seconds=seconds,
        max_retries=retries,
    ) as client:
        asker = Asker(client, settings, key, limit=limit, answered=answered)
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
    def __init__(
        self, client: Any, settings: Settings, key: SecretStr, *, limit: LimitName, answered: bool
    ) -> None:
        self.client = client
        self.settings = settings
        self.key = key
        self.limit = limit
        self.answered = answered
        self.silence = Silence(settings.wait_seconds)
        options = {
            settings.limit_name: settings.max_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
        }
        self.options = {name: value for name, value in options.items() if value is not None}

    async def ask(self, text: str) -> JudgeReply:
        """The reply to one text; ValueError if the set-up is wrong."""
        from openai import APIError

        messages = [{"role": "user", "content": text}]
        body = {"model": self.settings.model, "messages": messages, **self.options}
        while True:
            sent = self.limit.fits(body)
            try:
                found = await self.client.chat.completions.create(**sent)
            except APIError as error:
                if self.asks_again(sent, error) or await self.waited(error):
                    continue
                return self.explained(error)
            except RecursionError:
                return JudgeReply("", "the judge's server sent JSON that is nested too deeply")
            except ValueError:  # of JSON, of UTF-8, of integers with thousands of digits
                return JudgeReply("", f"{NO_REPLY} (its server sent a body that is not JSON)")
            reply = read_judge_reply(found)
            self.answered = True
            self.silence.note(None)
            self.limit.answered()
            fault = reply.fault and without_key(reply.fault, self.key)[:LONGEST_FAULT]
            return JudgeReply(text_without_key(reply.text, self.key), fault)

    def asks_again(self, sent: Mapping[str, object], error: APIError) -> bool:
        """Whether the server may take the limit on tokens under its other name."""
        if refusal_of_item(error) is not None:
            return False
        field = refused_field(error, self.settings)
        return self.limit.another(sent, error, field, answered=self.answered)

    async def waited(self, error: APIError) -> bool:
        """Waits a while if no server is there and the recipe asks for patience; whether it did."""
        kind = "unreachable" if nobody_there(error) else str(getattr(error, "status_code", ""))
        self.silence.note(kind)
        waits = self.silence.may_end(kind)
        if waits:
            await asyncio.sleep(min(PAUSE_SECONDS, self.settings.wait_seconds / 10))
        return waits

    def explained(self, error: APIError) -> JudgeReply:
        """What an error of the client means; ValueError if the set-up is wrong."""
        url, model = self.settings.base_url or OPENAI_URL, self.settings.model
        note = proxy_note(url)
        if (refusal := refusal_of_item(error)) is not None:
            self.answered = True
            return JudgeReply("", shown(refusal + note, error, self.key))
        wrong = wrong_setup(error, self.settings, url, model=model, answered=self.answered)
        if wrong is not None:
            raise ValueError(shown(wrong + note, error, self.key)) from None
        status = getattr(error, "status_code", None)
        may_pass = status is None or status in (408, 409, 429) or status >= 500
        what = NO_REPLY if may_pass else "the judge's server refuses this item"
        return JudgeReply("", shown(what + note, error, self.key))


def read_judge_reply(found: object) -> JudgeReply:
    """The text of a chat completion, or why there is none; a server may send anything."""
    if (refusal := body_refusal(found)) is not None:
        return JudgeReply("", refusal)
    first = first_choice(found)
    message = getattr(first, "message", None)
    if message is None:
        code, error = body_error(found) or ("", "")
        if error and code != TOO_LONG:  # an error that may be gone at the next try
            return JudgeReply("", f"{NO_REPLY} (its server sent an error: {error})")
        if error:
            return JudgeReply("", f"the judge's server sent too much: {error}")
        return JudgeReply("", "the judge's server sent something that is no chat completion")
    try:
        finish = finish_of(first)
    except ValueError as error:
        return JudgeReply("", f"the judge's server sent a reply whose {error}")
    if finish in LENGTH_REASONS:
        return JudgeReply("", "the judge's reply was cut off at max_tokens; raise judge.max_tokens")
    if is_filtered(finish):
        return JudgeReply("", f"{FILTERED}: the judge's server withheld its reply")
    if getattr(message, "refusal", None):
        return JudgeReply("", "the judge model refused to judge")
    if (odd := odd_message(first)) is not None:
        return JudgeReply("", f"{NO_REPLY} ({odd})")
    text = choice_text(first)
    if text is None or not text.strip():
        why = f" ({why_empty(first)})" if text is None else ""
        return JudgeReply("", f"the judge's reply is empty{why}")
    return JudgeReply(text)
