"""A thread that died while it was started ends the process, which else would wait for it for ever.

    with thread_starts_watched():
        ...

Without memory a new thread may fail before its first line. `Thread.start` then never returns
(python/cpython#140746, open in November 2026). The watching thread is there from the beginning, so
it needs no memory of its own then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_SECONDS = 5.0
LOOKS = 6
"""So many looks in a row find the same thread without a number: it will never get one. Looks are
counted and not seconds, so that a machine that slept does no harm."""

WORDS = (
    b"overrefusal-po: the memory was full when a thread was started, and Python would wait for it "
    b"for ever. The run ends here. What it wrote is kept: with more memory, the same command goes "
    b"on from there.\n"
)


@contextmanager
def thread_starts_watched() -> Iterator[None]:
    """Within, the process ends with exit code 1 and a sentence if a thread dies at its start."""
    ending = threading.Event()
    threading.Thread(target=watch, args=(ending,), name="thread starts", daemon=True).start()
    try:
        yield
    finally:
        ending.set()


def watch(ending: threading.Event) -> None:
    """Looks at all threads until `ending` is set."""
    seen: dict[threading.Thread, int] = {}
    while not ending.wait(LOOK_SECONDS):
        # one that has a number has begun
        starting = [one for one in threading.enumerate() if one.ident is None]
        seen = {one: seen.get(one, 0) + 1 for one in starting}
        if any(times >= LOOKS for times in seen.values()):
            os.write(2, WORDS)
            os._exit(1)
