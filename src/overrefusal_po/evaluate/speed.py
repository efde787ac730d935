"""How fast a model answered what an evaluation asked: tokens of its responses, and seconds.

    clock = Clock(lambda: model.engine)
    found = complete(file, prompts, sampling, clock.engine, "answering")
    answer_speed(clock, found, tokenizer)    # {"answer_tokens": 4700, "answer_seconds": 81.2}

The time is that of reading the prompts and writing the responses, with the weights loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from overrefusal_po.engines import Engine
from overrefusal_po.records import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS, SECONDS = "answer_tokens", "answer_seconds"
"""Keys of manifest.json."""


class Clock:
    """Starts when the engine is there: its weights are loaded before that."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self.make = make
        self.began: float | None = None

    def engine(self) -> Engine:
        """The engine; the clock starts."""
        found = self.make()
        self.began = time.monotonic()
        return found

    def seconds(self) -> float | None:
        """Since the start; None if no engine was needed."""
        return None if self.began is None else time.monotonic() - self.began


def answer_speed(
    clock: Clock, completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase
) -> dict[str, object]:
    """The facts of a run on its responses; empty if none was asked for now."""
    seconds = clock.seconds()
    if seconds is None:
        return {}
    return {TOKENS: response_tokens(completions, tokenizer), SECONDS: round(seconds, 3)}


def response_tokens(completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the texts of the responses have, with the one that ends each of those that
    ended."""
    said = [c for c in completions if c.error is None]
    if not said:
        return 0
    ids = tokenizer([c.text for c in said], add_special_tokens=False)["input_ids"]
    ended = sum(c.finish_reason == "stop" for c in said)
    return sum(map(len, ids)) + ended
