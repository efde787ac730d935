"""Work -> completions: requests on their way to several servers, tried again where that may help,
within a budget."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._endpoints import Answer, Endpoint, Fault, ask, backoff, next_endpoint
from overrefusal_po.engines._openai_settings import Settings
from overrefusal_po.engines._openai_setup import OPENAI_URL, key_of, make_client, own_loop
from overrefusal_po.records import Completion, Prompt, Sampling, content_id

FEWEST_IN_VAIN = 20
"""So many completions without a response, and none with one between them, mean that the servers are
gone."""


class BudgetSpent(KeyboardInterrupt):
    """The token budget is spent: the run is interrupted (exit code 130), and the same command goes
    on under a greater one."""


class ServersGone(ConnectionError):
    """No server answers any longer (exit code 1); the same command goes on where it stopped."""


class Drawn(NamedTuple):
    """A completion, or its failure, with what it cost."""

    completion: Completion
    cost: Cost
    again: bool = False
    """Whether it failed by what may pass, such as a server that is down."""


class Session:
    """One pass over some work: the servers, what is on its way, and what has been spent."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        body: Callable[[Prompt, Sampling, int], dict[str, Any]],
        work: Iterator[tuple[Prompt, int]],
        sampling: Sampling,
        *,
        spent_tokens: int,
    ) -> None:
        self.settings, self.name, self.body, self.work, self.sampling = (
            settings,
            name,
            body,
            work,
            sampling,
        )
        self.key = key_of(settings)
        self.tokens = spent_tokens
        self.endpoints: list[Endpoint] = []
        self.answered = False
        self.left_over = False
        """Whether the budget ended before the work."""
        self.came: list[Drawn] = []
        self.news = asyncio.Event()
        self.vain: list[Drawn] = []
        """Failures since the last answer; kept back, because a server that is gone is no prompt's
        fault."""

    def drawn_in_turn(self) -> Iterator[Drawn]:
        """All that comes, for callers that know of no event loop."""
        with own_loop() as run:
            stream = self.batches()
            try:
                while (batch := run(following(stream))) is not None:
                    yield from batch
            finally:
                run(closed(stream))

    async def batches(self) -> AsyncGenerator[list[Drawn], None]:
        """What has come since the last look. The loop stands still while nobody looks, so little
        ever lies waiting."""
        async with AsyncExitStack() as stack:
            for url in self.settings.base_url or (OPENAI_URL,):
                # further tries are ours, because they are counted and may go to another server
                made = make_client(
                    url, self.key, timeout_seconds=self.settings.timeout_seconds, max_retries=0
                )
                client = await stack.enter_async_context(made)
                self.endpoints.append(Endpoint(url, client))
            task = asyncio.create_task(self.work_through())
            task.add_done_callback(lambda _: self.news.set())
            try:
                while self.came or not task.done():
                    await self.news.wait()
                    self.news.clear()
                    batch, self.came = self.came, []
                    yield batch
            finally:
                task.cancel()
                await asyncio.wait((task,))
            task.result()  # what stopped the work, after what had come was given

    async def work_through(self) -> None:
        """All work: the first request alone, so that a wrong set-up is found by one, then as many
        as may be at a time."""
        await self.work_off(most=1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.most_at_once):
                    group.create_task(self.work_off())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        self.give(self.vain)
        self.vain = []
        self.left_over = self.budget_spent and next(self.work, None) is not None

    async def work_off(self, most: int | None = None) -> None:
        """Takes work until none is left, the budget is spent, or `most` is done."""
        while most != 0 and not self.budget_spent:
            item = next(self.work, None)
            if item is None:
                return
            self.settle(await self.draw(*item))
            most = None if most is None else most - 1

    @property
    def budget_spent(self) -> bool:
        """Whether no further request may be sent."""
        return self.settings.token_budget is not None and self.tokens >= self.settings.token_budget

    @property
    def most_at_once(self) -> int:
        """Requests that may be on their way to all servers together."""
        return self.settings.concurrency * len(self.endpoints)

    def give(self, drawn: list[Drawn]) -> None:
        """Lays completions where `batches` finds them."""
        self.came += drawn
        self.news.set()

    def settle(self, drawn: Drawn) -> None:
        """Gives what is certain. ServersGone where failures follow each other and no answer comes
        between."""
        if drawn.completion.error is None:
            self.give([*self.vain, drawn])
            self.vain = []
        elif self.answered and not drawn.again:
            self.give([drawn])
        else:
            self.vain.append(drawn)
        if len(self.vain) >= max(FEWEST_IN_VAIN, 2 * self.most_at_once):
            raise ServersGone(
                f"the last {len(self.vain)} prompts got no response, most recently because "
                f"{drawn.completion.error}. They "
                "are not counted as done; when the server answers again, the same command goes on."
            )

    async def draw(self, prompt: Prompt, sample: int) -> Drawn:
        """One completion, with further tries where they may help."""
        body = self.body(prompt, self.sampling, sample)
        tally = Tally()
        endpoint: Endpoint | None = None
        result: Answer | Fault
        for tries in range(self.settings.max_retries + 1):
            endpoint = await self.free_endpoint(avoid=endpoint)
            result = await self.request(endpoint, body)
            tally.add(endpoint.url, result)
            if isinstance(result, Answer) or not result.again:
                break
            if tries < self.settings.max_retries:
                await asyncio.sleep(self.pause(result, tries))
        return self.drawn(prompt, sample, result, tally)

    def pause(self, fault: Fault, tries: int) -> float:
        """Seconds until the next try: what the server asks for, except after 429, where the server
        as a whole waits."""
        if fault.wait_seconds is not None and fault.kind != "429":
            return fault.wait_seconds
        # drawn, so that requests that failed together do not come back together
        return backoff(tries, self.settings.backoff_seconds) * random.uniform(0.5, 1.0)

    async def free_endpoint(self, avoid: Endpoint | None) -> Endpoint:
        """Waits until a server may be asked, and counts a request to it."""
        while isinstance(
            found := next_endpoint(self.endpoints, self.settings.concurrency, avoid), float
        ):
            await asyncio.sleep(found)
        found.in_flight += 1
        return found

    async def request(self, endpoint: Endpoint, body: dict[str, Any]) -> Answer | Fault:
        """One request to a server that `free_endpoint` gave."""
        try:
            result = await ask(endpoint, body, self.settings, self.key, answered=self.answered)
        finally:
            endpoint.in_flight -= 1
        fault = result if isinstance(result, Fault) else None
        endpoint.note(fault, self.settings.backoff_seconds)
        self.answered = self.answered or fault is None
        if (
            fault is None
            and self.settings.token_budget is not None
            and None in (result[2], result[3])
        ):
            raise ValueError(
                f"engine.token_budget cannot be held: {endpoint.url} does not say what it used. "
                "Leave it out."
            )
        self.tokens += (result.prompt_tokens or 0) + (result.completion_tokens or 0)
        return result

    def drawn(self, prompt: Prompt, sample: int, result: Answer | Fault, tally: Tally) -> Drawn:
        """The completion, or the failure with its reason."""
        text = result.text if isinstance(result, Answer) else ""
        error = None if isinstance(result, Answer) else result.reason
        completion = Completion(
            id=content_id(
                prompt.id, self.name, None, self.sampling.model_dump(), sample, error or text
            ),
            prompt_id=prompt.id,
            text=text,
            model=self.name,
            engine="openai",
            sampling=self.sampling,
            sample=sample,
            finish_reason=result.finish_reason if isinstance(result, Answer) else "error",
            error=error,
        )
        return Drawn(completion, tally.cost(completion), isinstance(result, Fault) and result.again)


class Tally:
    """Counts the requests of one completion."""

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.faults: dict[str, dict[str, int]] = {}
        self.answered_by: str | None = None
        self.prompt_tokens = self.completion_tokens = 0

    def add(self, url: str, result: Answer | Fault) -> None:
        """Counts one request and how it ended."""
        self.requests[url] = self.requests.get(url, 0) + 1
        self.prompt_tokens += result.prompt_tokens or 0
        self.completion_tokens += result.completion_tokens or 0
        if isinstance(result, Answer):
            self.answered_by = url
        else:
            kinds = self.faults.setdefault(url, {})
            kinds[result.kind] = kinds.get(result.kind, 0) + 1

    def cost(self, completion: Completion) -> Cost:
        """The row of the ledger."""
        return Cost(
            prompt_id=completion.prompt_id,
            sample=completion.sample,
            model=completion.model,
            requests=self.requests,
            faults=self.faults,
            answered_by=self.answered_by,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )


async def following(stream: AsyncIterator[list[Drawn]]) -> list[Drawn] | None:
    """The next of a stream, None at its end: a coroutine, which is what `Runner.run` takes."""
    return await anext(stream, None)


async def closed(stream: AsyncGenerator[list[Drawn], None]) -> None:
    """Ends a stream, and what it has on its way."""
    await stream.aclose()
