"""Sides of pairs -> rows for TRL's `KTOTrainer`, in an order in which its KL term is estimated as
KTO says.

    rows = unpaired([(chosen, rejected), ...], batch_size=4, seed=0)
    # [{"prompt": ..., "completion": ..., "label": ...}]

KTO (arXiv 2402.01306, equation 7) holds a response against how far the policy has gone from the
reference on prompts with responses to *other* prompts. TRL 1.16 gets these once, before training:
among each `per_device_train_batch_size` consecutive rows a prompt gets the response of the row
before it, the first that of the last. Where TRL itself unpairs, all chosen sides come before all
rejected ones, and a batch has one label. Of the order made here this holds exactly:

- all prompts of a batch are different, so that none is paired with a response to itself;
- any run of rows has its share of desirable ones, to within one row (half, where no side stands in
  two pairs);
- it follows from the seed and the rows alone, whatever order they come in.

accelerate deals whole batches to the processes in turn, and steps accumulate whole batches, so that
this holds for both. Rows that it repeats to fill up the last step of an epoch keep the responses
they have. Every epoch has the same order, as TRL pairs only once: a new one would need a trainer
and a sampler of our own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from overrefusal_po.records import content_id

logger = logging.getLogger(__name__)


class Side(NamedTuple):
    """One side of a pair: its tokens, and the row from which TRL makes the same tokens."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    desirable: bool
    row: dict[str, Any]


def unpaired(
    pairs: Sequence[tuple[Side, Side]], *, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """The rows of all sides in the order to train in, a side that stands in several pairs once.

    Left out, with a count: pairs whose sides have the same tokens, and a row that would be a batch
    by itself. Counted too: responses that one pair of a prompt chooses and another rejects.
    ValueError where no pair is left, and where the prompts of a batch cannot all be different.
    """
    given = [side for both in pairs if both[0].completion != both[1].completion for side in both]
    if not given:
        raise ValueError(
            f"The sides of all {len(pairs)} pairs have the same tokens. Raise data.opening."
        )
    if alike := len(pairs) - len(given) // 2:
        logger.warning(
            "%d of %d pairs begin alike on both sides and are left out", alike, len(pairs)
        )
    known = list({side[:3]: side for side in given}.values())
    if again := len(given) - len(known):
        logger.warning(
            "%d of %d sides stand in another pair too; each is one row", again, len(given)
        )
    if torn := len(known) - len({side[:2] for side in known}):
        logger.warning(
            "%d responses are chosen in one pair and rejected in another of the same prompt: KTO "
            "trains both ways",
            torn,
        )
    order = interleaved(
        *(in_rounds([s for s in known if s.desirable is label], seed) for label in (True, False))
    )
    part_prompts(order, batch_size)
    if len(order) % batch_size == 1 < batch_size:
        order.pop()
        logger.warning("1 of %d rows would be a batch by itself and is left out", len(order) + 1)
    return [side.row for side in order]


def in_rounds(sides: Sequence[Side], seed: int) -> list[Side]:
    """Sides of one label in a drawn order: one of each prompt, then one of each prompt that has
    more, and so on.

    A round of undesirable sides begins in its middle, so that the sides of a prompt are half a
    round apart.
    """
    by_prompt: dict[tuple[int, ...], list[Side]] = {}
    for side in sorted(sides, key=lambda s: content_id(seed, s.prompt, s.completion)):
        by_prompt.setdefault(side.prompt, []).append(side)
    waiting = [by_prompt[prompt] for prompt in sorted(by_prompt, key=lambda p: content_id(seed, p))]
    laid: list[Side] = []
    while waiting:
        middle = 0 if sides[0].desirable else (len(waiting) + 1) // 2
        laid += [own.pop() for own in waiting[middle:] + waiting[:middle]]
        waiting = [own for own in waiting if own]
    return laid


def interleaved(some: Sequence[Side], others: Sequence[Side]) -> list[Side]:
    """Both lists in one, each spread evenly over it."""
    places = [((2 * i + 1) * len(others), side) for i, side in enumerate(some)]
    places += [((2 * i + 1) * len(some), side) for i, side in enumerate(others)]
    return [side for _, side in sorted(places, key=lambda place: place[0])]


def part_prompts(order: list[Side], batch_size: int) -> None:
    """Swaps rows of one label until no batch has a prompt twice.

    Nothing is to be done where each prompt has one side of each label and there are as many prompts
    as rows in a batch. Where some have more, twice as many prompts were always enough (tried); with
    fewer there may be an order that is not found.
    """
    for i, side in enumerate(order):
        if is_alone(order, i, side.prompt, batch_size):
            continue
        fits = (
            j
            for j, other in enumerate(order)
            if other.desirable is side.desirable
            and is_alone(order, i, other.prompt, batch_size)
            and is_alone(order, j, side.prompt, batch_size)
        )
        if (j := next(fits, None)) is None:
            raise ValueError(
                f"KTO holds each response against responses to the other prompts of its batch, but "
                f"the {len(order)} sides, of {len({s.prompt for s in order})} prompts, do not go "
                f"into batches of {batch_size} with different prompts. "
                "Lower trainer.per_device_train_batch_size, or give pairs for more prompts."
            )
        order[i], order[j] = order[j], order[i]


def is_alone(order: Sequence[Side], place: int, prompt: tuple[int, ...], batch_size: int) -> bool:
    """Whether no other row of the batch of `place` has `prompt`."""
    start = place - place % batch_size
    return all(
        start + k == place or s.prompt != prompt
        for k, s in enumerate(order[start : start + batch_size])
    )


def warn_of_cut(rows: Any, max_length: int | None) -> None:
    """Counts the prompts whose responses to other prompts TRL cuts at `max_length`: their KL is
    that of a beginning."""
    if max_length is None or "KL_completion_ids" not in rows.column_names:
        return
    cut = sum(len(row["prompt_ids"]) + len(row["KL_completion_ids"]) > max_length for row in rows)
    if cut:
        logger.warning(
            "%d of %d prompts with another one's response are cut at max_length (KL)",
            cut,
            len(rows),
        )
