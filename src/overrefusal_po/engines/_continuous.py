"""Token ids of prompts -> token ids of responses, with transformers' continuous batching.

A new request takes a slot as soon as a response ends, so no prompt waits for the longest response.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from overrefusal_po.model.generation import generating_by, generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

K = TypeVar("K")
CPU_BLOCKS = 64
CPU_BATCH_TOKENS = 256
"""transformers cannot measure the memory for the cache on a CPU; this holds some 16,000 tokens."""


class Response(NamedTuple):
    """The token ids of a response, or the reason why there are none."""

    tokens: list[int]
    error: str | None


def check_continuous(model: PreTrainedModel) -> None:
    """Raises ValueError if this model, or this version of transformers, has no continuous
    batching."""
    if not hasattr(model, "continuous_batching_context_manager"):
        raise ValueError(
            f"engine.continuous_batching: {type(model).__name__} has none in this version of "
            "transformers. Leave the key out, or install transformers 5.23 or newer."
        )


def generate_continuously(
    model: PreTrainedModel,
    requests: Iterable[tuple[K, list[int]]],
    options: Mapping[str, object],
    *,
    at_once: int,
) -> Iterator[tuple[K, Response]]:
    """(key, response) of each request (key, prompt ids), in the order in which they end.

    `options` are keys of GenerationConfig. `requests` is read only as needed: at most `at_once`
    requests wait or run.
    """
    from transformers import ContinuousBatchingConfig

    small = ContinuousBatchingConfig(num_blocks=CPU_BLOCKS, max_batch_tokens=CPU_BATCH_TOKENS)
    waiting = iter(requests)
    keys: dict[str, K] = {}
    number = 0
    config = generation_config(options)
    # a method of a mixin that PreTrainedModel's type does not have
    with (
        generating_by(model, config),
        model.continuous_batching_context_manager(  # type: ignore[operator]
            generation_config=config,
            continuous_batching_config=small if model.device.type == "cpu" else None,
        ) as manager,
    ):
        while True:
            for key, ids in islice(waiting, at_once - len(keys)):
                keys[name := str(number)] = key
                number += 1
                manager.add_request(ids, request_id=name, max_new_tokens=config.max_new_tokens)
            if not keys:
                return
            found = manager.get_result(timeout=1)
            if found is not None and found.is_finished():
                response = Response(list(found.generated_tokens), found.error)
                yield keys.pop(found.request_id), response
            elif found is None and not manager.is_running():
                raise RuntimeError(
                    "transformers' continuous batching ended before its work; see the log above"
                )
