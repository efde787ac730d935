"""Prompts -> completions over HTTP: many requests at a time to several servers, retried if that may
help, within a token budget."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import NamedTuple

from overrefusal_po.engines._adapter_server import (
    AdapterAt,
    MakeAdapter,
    check_unchanged,
    load,
    unload,
)
from overrefusal_po.engines._costs import Cost
from overrefusal_po.engines._endpoints import (
    Endpoint,
    Fault,
    ServerAnswer,
    ask,
    backoff,
    next_endpoint,
)
from overrefusal_po.engines._limit_name import LimitName
from overrefusal_po.engines._openai_settings import FleetSettings
from overrefusal_po.engines._openai_setup import OPENAI_URL, make_client, read_api_key
from overrefusal_po.engines._own_loop import own_loop
from overrefusal_po.engines._silence import Silence
from overrefusal_po.records import Completion, Prompt, Sampling, content_id

FEWEST_FAILURES = 20
"""At least so many failures in a row, without an answer between them, mean that the servers are
gone."""

MakeBody = Callable[[Prompt, Sampling, int], Mapping[str, object]]
"""(prompt, sampling, sample number) -> the fields of a request."""


class BudgetSpent(KeyboardInterrupt):
    """The token budget is spent. The same command goes on with a greater budget, and not before
    (exit code 1): what queues an interrupted job again must not do so here."""

    exit_code = 1


class ServersGone(ConnectionError):
    """No server answers any longer (exit code 1). The same command goes on where it stopped."""


class Drawn(NamedTuple):
    """A completion, or its failure, with what it cost."""

    completion: Completion
    cost: Cost
    retryable: bool = False
    """Whether it failed for a reason that may pass, such as a server that is down."""
    is_answer: bool = True
    """Whether the server answered: with a completion, or by refusing this item."""
    answer: ServerAnswer | None = None
    """What the server sent; None after a failure."""


class Session:
    """One pass over some work: the servers, the running requests, and the tokens spent.

    Args:
        settings: the recipe's keys.
        name: the model's name in completions.
        make_body: makes the fields of a request.
        work: (prompt, sample number) of each completion to draw.
        sampling: how to draw.
        token_budget: after so many tokens, read and written, no request is sent. None: no limit.
        spent_tokens: tokens of the budget that earlier runs spent.
        make_adapter: makes the adapter at a server; None: the servers' own model answers.
    """

    def __init__(
        self,
        settings: FleetSettings,
        name: str,
        make_body: MakeBody,
        *,
        work: Iterator[tuple[Prompt, int]],
        sampling: Sampling,
        token_budget: int | None = None,
        spent_tokens: int = 0,
        make_adapter: MakeAdapter | None = None,
    ) -> None:
        self.settings, self.name, self.make_body = settings, name, make_body
        self.make_adapter = make_adapter
        self.work, self.sampling = work, sampling
        self.key = read_api_key(settings)
        self.token_budget, self.tokens = token_budget, spent_tokens
        self.endpoints: list[Endpoint] = []
        self.answered = False
        self.work_left = False
        """Whether the budget ended before the work."""
        self.finished: list[Drawn] = []
        """What came since `batches` last looked."""
        self.empty: Counter[str] = Counter()
        """Answers without a text, by the reason."""
        self.something_finished = asyncio.Event()
        self.silence = Silence(settings.wait_seconds)
        self.held_back: list[Drawn] = []
        """Failures since the last answer. If the servers are gone, the prompts are not at
        fault."""

    def results(self) -> Iterator[Drawn]:
        """Everything that comes, for callers without an event loop."""
        with own_loop() as run:
            stream = self.batches()
            try:
                while (batch := run(next_batch(stream))) is not None:
                    yield from batch
            finally:
                run(close(stream))

    async def batches(self) -> AsyncGenerator[list[Drawn], None]:
        """What came since the last look. The loop rests between looks, so little piles up."""
        async with AsyncExitStack() as stack:
            for url in self.settings.base_url or (OPENAI_URL,):
                # we retry ourselves: retries are counted, and may go to another server
                seconds = self.settings.timeout_seconds
                made = make_client(
                    url, self.key, self.settings, timeout_seconds=seconds, max_retries=0
                )
                client = await stack.enter_async_context(made)
                key = f"{self.settings.owner.section}.max_tokens_name"
                limit = LimitName(self.settings.limit_name, key)
                adapter = self.make_adapter and self.make_adapter(url, client)
                self.endpoints.append(Endpoint(url, client, limit, adapter))
            stack.push_async_callback(unload, self.adapters)
            task = asyncio.create_task(self.run_all())
            task.add_done_callback(lambda _: self.something_finished.set())
            try:
                while self.finished or not task.done():
                    await self.something_finished.wait()
                    self.something_finished.clear()
                    batch, self.finished = self.finished, []
                    yield batch
            finally:
                task.cancel()
                await asyncio.wait((task,))
            task.result()  # raises what stopped the work, after everything that came was given

    async def run_all(self) -> None:
        """Does all work. The first request runs alone, so that one request finds a wrong set-up;
        then as many run as are allowed."""
        await load(self.adapters)
        await self.run_worker(most=1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.most_at_once):
                    group.create_task(self.run_worker())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        self.give(self.held_back)
        self.held_back = []
        await check_unchanged(self.adapters)
        self.work_left = self.budget_spent and next(self.work, None) is not None

    async def run_worker(self, most: int | None = None) -> None:
        """Takes work until none is left, the budget is spent, or `most` items are done."""
        while most != 0 and not self.budget_spent:
            item = next(self.work, None)
            if item is None:
                return
            self.sort_in(await self.draw(*item))
            most = None if most is None else most - 1

    @property
    def adapters(self) -> list[AdapterAt]:
        """The adapter at each server; empty without one."""
        return [e.adapter for e in self.endpoints if e.adapter is not None]

    @property
    def budget_spent(self) -> bool:
        """Whether no further request may be sent."""
        return self.token_budget is not None and self.tokens >= self.token_budget

    @property
    def most_at_once(self) -> int:
        """Requests that may run at the same time, at all servers together."""
        return self.settings.concurrency * len(self.endpoints)

    def give(self, drawn: list[Drawn]) -> None:
        """Hands completions to `batches`."""
        self.finished += drawn
        self.something_finished.set()

    def sort_in(self, drawn: Drawn) -> None:
        """Gives what is certain and holds back the rest. ServersGone after many failures without an
        answer between them."""
        if drawn.is_answer:
            self.give([*self.held_back, drawn])
            self.held_back = []
        elif self.answered and not drawn.retryable:
            self.give([drawn])
        else:
            self.held_back.append(drawn)
        many = len(self.held_back) >= max(FEWEST_FAILURES, 2 * self.most_at_once)
        if many or (self.held_back and self.silence.is_over):
            raise ServersGone(
                f"the last {len(self.held_back)} prompts got no response, most recently because "
                f"{drawn.completion.error}. They are not counted as done; when the server answers "
                "again, the same command goes on."
            )

    async def draw(self, prompt: Prompt, sample: int) -> Drawn:
        """One completion, with further tries if they may help."""
        body = self.make_body(prompt, self.sampling, sample)
        counter = CostCounter()
        endpoint: Endpoint | None = None
        result: ServerAnswer | Fault
        tries = 0
        while True:
            endpoint = await self.free_endpoint(avoid=endpoint)
            result = await self.request(endpoint, body)
            counter.add(endpoint.url, result)
            if isinstance(result, ServerAnswer) or not result.retryable:
                break
            if result.at_once:
                endpoint = None  # any server may be asked now, also this one
                continue
            if tries >= self.settings.max_retries and not self.silence.may_end(result.kind):
                break
            await asyncio.sleep(self.pause(result, tries))
            tries += 1
        return self.drawn(prompt, sample, result, counter=counter)

    def pause(self, fault: Fault, tries: int) -> float:
        """Seconds until the next try: as the server asks. After 429 `Endpoint` waits for the whole
        server."""
        if fault.wait_seconds is not None and fault.kind != "429":
            return fault.wait_seconds
        # random, so that requests that failed together do not come back together
        return backoff(tries, self.settings.backoff_seconds) * random.uniform(0.5, 1.0)

    async def free_endpoint(self, avoid: Endpoint | None) -> Endpoint:
        """Waits for a server that is free, and counts a request to it."""
        while isinstance(
            found := next_endpoint(self.endpoints, self.settings.concurrency, avoid), float
        ):
            await asyncio.sleep(found)
        found.in_flight += 1
        return found

    async def request(self, endpoint: Endpoint, body: Mapping[str, object]) -> ServerAnswer | Fault:
        """One request to a server that `free_endpoint` gave."""
        try:
            result = await ask(endpoint, body, self.settings, key=self.key, answered=self.answered)
        finally:
            endpoint.in_flight -= 1
        fault = result if isinstance(result, Fault) and not result.is_answer else None
        endpoint.record(fault, self.settings.backoff_seconds)
        self.answered |= fault is None
        self.silence.note(fault and fault.kind)
        if isinstance(result, ServerAnswer):
            self.check_usage(endpoint, result)
        self.tokens += (result.prompt_tokens or 0) + (result.completion_tokens or 0)
        return result

    def check_usage(self, endpoint: Endpoint, answer: ServerAnswer) -> None:
        """Raises ValueError if there is a budget and the server does not report its tokens."""
        unknown = None in (answer.prompt_tokens, answer.completion_tokens)
        if self.token_budget is not None and unknown:
            raise ValueError(
                f"engine.token_budget cannot be held: {endpoint.url} does not say what it used. "
                "Leave it out."
            )

    def drawn(
        self, prompt: Prompt, sample: int, result: ServerAnswer | Fault, *, counter: CostCounter
    ) -> Drawn:
        """The completion, or the failure with its reason."""
        text = result.text if isinstance(result, ServerAnswer) else ""
        error = None if isinstance(result, ServerAnswer) else result.reason
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
            finish_reason=result.finish_reason if isinstance(result, ServerAnswer) else "error",
            error=error,
        )
        cost = counter.cost(completion)
        if isinstance(result, Fault):
            return Drawn(completion, cost, result.retryable, result.is_answer)
        if result.empty is not None:
            self.empty[result.empty] += 1
        cost = cost.model_copy(update={"empty": result.empty})
        return Drawn(completion, cost, answer=result)


class CostCounter:
    """Counts the requests behind one completion."""

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.faults: dict[str, dict[str, int]] = {}
        self.answered_by: str | None = None
        self.prompt_tokens = self.completion_tokens = 0

    def add(self, url: str, result: ServerAnswer | Fault) -> None:
        """Counts one request and how it ended."""
        self.requests[url] = self.requests.get(url, 0) + 1
        self.prompt_tokens += result.prompt_tokens or 0
        self.completion_tokens += result.completion_tokens or 0
        if isinstance(result, ServerAnswer):
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


async def next_batch(stream: AsyncIterator[list[Drawn]]) -> list[Drawn] | None:
    """The next batch of a stream, None at its end. `Runner.run` needs a coroutine."""
    return await anext(stream, None)


async def close(stream: AsyncGenerator[list[Drawn], None]) -> None:
    """Ends a stream and its running requests."""
    await stream.aclose()
