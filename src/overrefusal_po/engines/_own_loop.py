"""An event loop of our own: coroutine -> its result, also if another loop runs already."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class RunCoroutine(Protocol):
    """Runs a coroutine to its end and returns its result."""

    # Any: what a coroutine yields and is sent is between it and the loop
    def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """The result of `work`."""


@contextmanager
def own_loop() -> Iterator[RunCoroutine]:
    """`run(coroutine)` on one event loop, also if another loop runs already (in a notebook)."""
    with asyncio.Runner() as runner:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            yield runner.run
            return
        with ThreadPoolExecutor(1) as other:

            def run(work: Coroutine[Any, Any, T], /) -> T:
                return other.submit(runner.run, work).result()

            try:
                yield run
            finally:
                other.submit(runner.close).result()
