"""Progress in words: a line in the log now and then, with how far a work is and how long it takes.

for completion in spoken(stream, "answering", total=284):     # answering: 64 of 284, ...
    ...
pace = Pace("training: step", 132)
pace.reached(20, "loss 0.53")        # training: step 20 of 132, loss 0.53, about 3 min left
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

EVERY_SECONDS = 15.0


class Pace:
    """How far a work of `total` parts is (None: nobody knows how many there are)."""

    def __init__(
        self, label: str, total: int | None, *, every: float = EVERY_SECONDS, short: bool = True
    ) -> None:
        self.label, self.total, self.every, self.short = label, total, every, short
        self.first: int | None = None
        self.started = self.said = time.monotonic()
        self.before: tuple[int, float] | None = None
        """The part reached before, and when."""

    def reached(self, done: int, more: str = "") -> None:
        """Says it, if it is time for a line or if everything is done. Work that an earlier run did
        counts in `done`, and not in the time that is left. That is measured up to the part before
        this one: the first part of a batch comes when the whole batch is computed."""
        now = time.monotonic()
        before, self.before = self.before, (done, now)
        if self.first is None:
            self.first = done - 1
        ended = done == self.total and (self.short or self.said > self.started)
        if now - self.said < self.every and not ended:
            return
        self.said = now
        parts = [f"{done}" if self.total is None else f"{done} of {self.total}", more]
        if self.total is not None and done < self.total and before is not None:
            seconds = (before[1] - self.started) / (before[0] - self.first) * (self.total - done)
            parts.append(f"about {in_words(seconds)} left")
        logger.info("%s %s", self.label, ", ".join(part for part in parts if part))


def spoken(
    items: Iterable[T], label: str, *, total: int | None = None, short: bool = True
) -> Iterator[T]:
    """The items; each that was used counts as done. `short`: whether the end of a work is said that
    took less than EVERY_SECONDS."""
    pace = Pace(f"{label}:" if label else "done:", total, short=short)
    for done, item in enumerate(items, 1):
        yield item
        pace.reached(done)


def in_words(seconds: float) -> str:
    """`40 s`, `3 min` or `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
