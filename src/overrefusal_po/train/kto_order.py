"""Sides of pairs, or labelled responses, in the order that KTO trains on them.

    sides = different_sides([(chosen, rejected), ...])
    order = in_training_order(sides, batch_size=4, seed=0)

KTO compares a response with how far the policy has moved from the reference. It measures that
distance on prompts with responses to *other* prompts. TRL 1.16 picks those responses once, before
training. Among each `per_device_train_batch_size` rows in a row, a prompt gets the response of the
row before it; the first prompt gets the response of the last row. If TRL makes rows of pairs
itself, all chosen sides come before all rejected ones. A batch then has one label. The order made
here has these properties:

- All prompts of a batch are different, so that no prompt gets a response to itself.
- Any run of rows has its share of desirable rows, to within one row. The share is a half if no side
  is in two pairs.
- The order follows from the seed and the rows alone, whatever order they come in.

accelerate gives whole batches to the processes in turn, and a step accumulates whole batches. So
both keep these properties. accelerate repeats rows to fill the last step of an epoch; those rows
keep their responses. Every epoch has the same order, since TRL pairs only once. A new order would
need a trainer and a sampler of our own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from overrefusal_po.records import content_id

logger = logging.getLogger(__name__)


class Side(NamedTuple):
    """The token ids of one side of a pair, and whether it is the chosen one."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    desirable: bool


def compared_with(place: int, rows: int, batch_size: int) -> int:
    """The place of the row whose completion the prompt at `place` gets for its KL term.

    >>> [compared_with(at, 5, 3) for at in range(5)]
    [2, 0, 1, 4, 3]
    """
    start = place - place % batch_size
    end = min(start + batch_size, rows)
    return end - 1 if place == start else place - 1


def in_training_order(sides: Sequence[Side], *, batch_size: int, seed: int) -> list[Side]:
    """The sides in training order; a row that would be a batch by itself is left out.

    Raises ValueError if the prompts of a batch cannot all be different, or there is one row alone.
    """
    order = interleaved(
        *(in_rounds([s for s in sides if s.desirable is label], seed) for label in (True, False))
    )
    separate_prompts(order, batch_size)
    if len(order) == 1 < batch_size:
        raise ValueError(
            "There is one row to learn, whatever comes twice, and KTO compares each row with "
            "another one of its batch. Give at least two different rows."
        )
    if len(order) % batch_size == 1 < batch_size:
        order.pop()
        logger.warning("1 of %d rows would be a batch by itself and is left out", len(order) + 1)
    return order


def different_sides(pairs: Sequence[tuple[Side, Side]]) -> list[Side]:
    """Each side once, without the pairs whose sides have the same tokens.

    Warns of what it leaves out, and of responses that one pair of a prompt chooses and another
    rejects. Raises ValueError if no pair is left.
    """
    given = [side for both in pairs if both[0].completion != both[1].completion for side in both]
    if not given:
        raise ValueError(
            f"The sides of all {len(pairs)} pairs have the same tokens. Raise data.opening."
        )
    if equal := len(pairs) - len(given) // 2:
        logger.warning(
            "%d of %d pairs begin with the same tokens on both sides and are left out",
            equal,
            len(pairs),
        )
    known = list(dict.fromkeys(given))
    if again := len(given) - len(known):
        logger.warning(
            "%d of %d sides stand in another pair too; each is one row", again, len(given)
        )
    warn_of_labels(known)
    return known


def warn_of_labels(sides: Sequence[Side]) -> None:
    """Warns of responses that are chosen and rejected for one prompt, and of a single label."""
    if both_ways := len(sides) - len({side[:2] for side in sides}):
        logger.warning(
            "%d responses are chosen in one row and rejected in another of the same prompt: KTO "
            "trains both ways",
            both_ways,
        )
    if len({side.desirable for side in sides}) == 1:
        logger.warning(
            "all %d responses have the label %s: KTO has nothing to hold them against",
            len(sides),
            sides[0].desirable,
        )


def in_rounds(sides: Sequence[Side], seed: int) -> list[Side]:
    """Sides of one label in a drawn order, in rounds.

    The first round has one side of each prompt, the next one side of each prompt that has more. A
    round of undesirable sides begins in its middle. So both sides of a prompt are half a round
    apart.
    """
    by_prompt: dict[tuple[int, ...], list[Side]] = {}
    for side in sorted(sides, key=lambda s: content_id(seed, s.prompt, s.completion)):
        by_prompt.setdefault(side.prompt, []).append(side)
    waiting = [by_prompt[prompt] for prompt in sorted(by_prompt, key=lambda p: content_id(seed, p))]
    order: list[Side] = []
    while waiting:
        middle = 0 if sides[0].desirable else (len(waiting) + 1) // 2
        order += [own.pop() for own in waiting[middle:] + waiting[:middle]]
        waiting = [own for own in waiting if own]
    return order


def interleaved(some: Sequence[Side], others: Sequence[Side]) -> list[Side]:
    """Both lists in one list, each spread evenly over it."""
    places = [((2 * i + 1) * len(others), side) for i, side in enumerate(some)]
    places += [((2 * i + 1) * len(some), side) for i, side in enumerate(others)]
    return [side for _, side in sorted(places, key=lambda place: place[0])]


def separate_prompts(order: list[Side], batch_size: int) -> None:
    """Swaps rows of one label until no batch has a prompt twice.

    No swap is needed if each prompt has one side of each label. (A batch must not have more rows
    than there are prompts.) If some prompts have more sides, twice as many prompts were always
    enough (tried). With fewer prompts an order may exist that is not found: that is a ValueError.
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
                "Lower trainer.per_device_train_batch_size (for eval_dataset "
                "per_device_eval_batch_size), or give pairs for more prompts."
            )
        order[i], order[j] = order[j], order[i]


def is_alone(order: Sequence[Side], place: int, prompt: tuple[int, ...], batch_size: int) -> bool:
    """Whether no other row in the batch of `place` has `prompt`."""
    start = place - place % batch_size
    return all(
        start + k == place or s.prompt != prompt
        for k, s in enumerate(order[start : start + batch_size])
    )
