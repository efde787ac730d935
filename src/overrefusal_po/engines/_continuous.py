"""Token ids of prompts -> token ids of responses by transformers' continuous batching: a slot is
filled when it is free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

K = TypeVar("K")
CPU_BLOCKS = 64
CPU_BATCH_TOKENS = 256
"""On a CPU nothing says how much memory the cache may take; this is room for some 16,000 tokens."""


class Generated(NamedTuple):
    """The tokens of a response, or why there are none."""

    tokens: list[int]
    error: str | None


def check_continuous(model: Any) -> None:
    """Raises ValueError where this transformers version, or this model, has no continuous
    batching."""
    if not hasattr(model, "continuous_batching_context_manager"):
        raise ValueError(
            f"engine.continuous_batching: {type(model).__name__} has none in this version of "
            "transformers. Leave the key "
            "out, or install transformers 5.23 or newer."
        )


def generated(
    model: Any,
    requests: Iterable[tuple[K, list[int]]],
    options: Mapping[str, Any],
    *,
    max_new_tokens: int,
    at_once: int,
) -> Iterator[tuple[K, Generated]]:
    """(key, response) of each request (key, prompt ids), as they end. `options` are
    GenerationConfig's keys.

    `requests` is read as it is needed: no more than `at_once` wait or are in work.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    small = ContinuousBatchingConfig(num_blocks=CPU_BLOCKS, max_batch_tokens=CPU_BATCH_TOKENS)
    waiting = iter(requests)
    keys: dict[str, K] = {}
    number = 0
    with model.continuous_batching_context_manager(
        generation_config=GenerationConfig(max_new_tokens=max_new_tokens, **options),
        continuous_batching_config=small if model.device.type == "cpu" else None,
    ) as manager:
        while True:
            for key, ids in islice(waiting, at_once - len(keys)):
                keys[name := str(number)] = key
                number += 1
                manager.add_request(ids, request_id=name, max_new_tokens=max_new_tokens)
            if not keys:
                return
            found = manager.get_result(timeout=1)
            if found is not None and found.is_finished():
                yield (
                    keys.pop(found.request_id),
                    Generated(list(found.generated_tokens), found.error),
                )
            elif found is None and not manager.is_running():
                raise RuntimeError(
                    "transformers' continuous batching ended before its work; see the log above"
                )
