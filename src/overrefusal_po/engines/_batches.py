"""Padded prompts -> the token ids of their responses; a batch too large for the memory is halved.

rows = response_tokens(model, inputs, config, name="my-model")
for prompt, tokens in in_parts(batch, limit, make):
    ...
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from overrefusal_po.model.decoding import Decoding, FirstSeen, NotServed, own_loop_serves
from overrefusal_po.model.finite import FiniteLogits
from overrefusal_po.model.generation import generating_by
from overrefusal_po.model.remedied import installed_on

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding, GenerationConfig, PreTrainedModel

    from overrefusal_po.model.prompt_cache import PromptCache

logger = logging.getLogger(__name__)
P = TypeVar("P")
R = TypeVar("R")


def response_tokens(
    model: PreTrainedModel,
    inputs: BatchEncoding,
    config: GenerationConfig,
    *,
    name: str,
    first_seen: FirstSeen | None = None,
    prompts_read: PromptCache | None = None,
) -> list[list[int]]:
    """The token ids of each response, padded behind its end.

    By our own decoding loop if it serves, else by transformers'. Then `first_seen` and
    `prompts_read` get nothing. NotFiniteError if logits are NaN.
    """
    import torch

    own = own_loop_serves(model, config)
    watch = FiniteLogits(name)

    def generate(loop: Decoding | None) -> Tensor:
        # transformers does not annotate `generate`
        found: Tensor = model.generate(  # type: ignore[operator]
            **inputs, generation_config=config, logits_processor=[watch], custom_generate=loop
        )
        return found

    with torch.inference_mode(), generating_by(model, config):
        try:
            try:
                loop = Decoding(
                    remedy=installed_on(model), first_seen=first_seen, prompts_read=prompts_read
                )
                output = generate(loop if own else None)
            except NotServed:
                output = generate(None)
        finally:  # a draw from NaN is a RuntimeError, which says less
            watch.check()
    found: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
    return found


def planned(
    rows: Sequence[P], size: int, samples: int, missing: Callable[[P, int], bool]
) -> list[tuple[int, Sequence[P], bool]]:
    """(sample, batch of `size`, whether the same batch comes next), batch after batch, where a row
    of the batch misses the sample.

    The batches are those of all rows, so they do not depend on what is there already.
    """
    found: list[tuple[int, Sequence[P], bool]] = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        asked = [n for n in range(samples) if any(missing(row, n) for row in batch)]
        found += [(n, batch, n != asked[-1]) for n in asked]
    return found


class Limit:
    """How many rows are decoded at a time; fewer once the memory did not hold so many."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


def in_parts(
    batch: Sequence[P], limit: Limit, make: Callable[[Sequence[P]], list[R]]
) -> Iterator[R]:
    """What `make` makes of a batch, at most `limit` rows at a time, in order.

    If the memory does not hold a part, the limit is halved, and the log says so. A single row that
    does not fit ends the work.
    """
    rest = list(batch)
    while rest:
        part = rest[: limit.rows]
        made = fitting(part, make)
        if made is None:
            limit.rows = len(part) // 2
            logger.warning(
                "The memory does not hold %d responses at a time; from now on %d are decoded at a "
                "time. Texts that are drawn (temperature above 0) depend on that. A smaller "
                "generation.batch_size avoids it.",
                len(part),
                limit.rows,
            )
            continue
        yield from made
        del rest[: len(part)]


def fitting(part: Sequence[P], make: Callable[[Sequence[P]], list[R]]) -> list[R] | None:
    """What `make` makes of a part; None if the memory does not hold it. One row must fit."""
    import torch

    try:
        return make(part)
    except (MemoryError, RuntimeError) as error:
        if len(part) == 1 or not is_out_of_memory(error):
            raise
    # behind the except: the error held the tensors of the pass
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory was too small, of a GPU or of the machine."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
