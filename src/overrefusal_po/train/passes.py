"""A batch cut into passes of so many tokens, each of which a model computes at once.

    passes = cut(batch, most=4096, shared=True)

A pass is filled by tokens instead of pairs: pairs of similar length go together, and columns that
only held padding go. `windowed` computes the passes of a batch one after the other; the update is
the same, since each term of the loss is a mean over the whole step (see `windows`).

Shapes: P pairs, T tokens of a padded row. This module imports torch at its top: import it inside a
function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from overrefusal_po.exact.shared_prefix import shared_length
from overrefusal_po.train.windows import Batch, num_pairs


def cut(
    batch: Batch, most: int, *, shared: bool, tokens: Sequence[int] | None = None
) -> list[Batch]:
    """The passes of a batch, each of at most `most` tokens or of one pair.

    Args:
        batch: right-padded rows: tensors of 2P rows, chosen sides first, or of P pairs.
        most: tokens of a pass. Padding counts, and with `shared` a common beginning once.
        shared: whether pairs are computed without padding, and their prompt once.
        tokens: (P,) what the pairs count as, from the shortest to the longest; None: as they are.
            With the greatest of all processes each cuts its batch alike.

    >>> ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 7, 0], [5, 8, 0, 0]])
    >>> batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    >>> [found["input_ids"].tolist() for found in cut(batch, 5, shared=True)]
    [[[5, 6], [5, 8]], [[1, 2, 3, 4], [1, 2, 7, 0]]]
    """
    own = pair_tokens(batch, shared=shared)
    order = sorted(range(len(own)), key=lambda at: own[at])
    passes = filled(sorted(own) if tokens is None else tokens, most, padded=not shared)
    if len(passes) == 1:
        return [batch]
    return [pass_of(batch, [order[at] for at in places]) for places in passes]


def pair_tokens(batch: Batch, *, shared: bool) -> list[int]:
    """The tokens of each pair: of both sides, a common beginning once; else of two padded rows."""
    lengths = batch["attention_mask"].sum(1)  # (2P,)
    chosen, rejected = lengths.chunk(2)  # (P,) each
    if not shared:
        padded: list[int] = (2 * torch.maximum(chosen, rejected)).tolist()
        return padded
    common = shared_length(batch["input_ids"], batch["attention_mask"])
    packed: list[int] = (chosen + rejected - common).tolist()
    return packed


def filled(tokens: Sequence[int], most: int, *, padded: bool) -> list[list[int]]:
    """Places of pairs in passes of at most `most` tokens, from the shortest pair to the longest.

    >>> filled([4, 2, 3, 9], 6, padded=False)
    [[1, 2], [0], [3]]
    >>> filled([4, 2, 3, 9], 6, padded=True)    # two rows of 3 or 4 tokens are 6 or 8
    [[1, 2], [0], [3]]
    """
    passes: list[list[int]] = []
    held = 0
    for at in sorted(range(len(tokens)), key=lambda at: tokens[at]):
        held = tokens[at] * (len(passes[-1]) + 1) if padded and passes else held + tokens[at]
        if passes and held <= most:
            passes[-1].append(at)
        else:
            passes.append([at])
            held = tokens[at]
    return passes


def pass_of(batch: Batch, places: Sequence[int]) -> Batch:
    """The pairs at `places`, without the columns that are padding in all of them."""
    found = part_of(batch, sorted(places), int(num_pairs(batch)))
    width = int(found["attention_mask"].sum(1).max())

    def trimmed(value: object) -> object:
        return value[:, :width] if isinstance(value, Tensor) and value.dim() > 1 else value

    return {name: trimmed(value) for name, value in found.items()}


def part_of(batch: Mapping[str, object], places: Sequence[int], pairs: int) -> dict[str, Any]:
    """What a batch of `pairs` pairs holds of those at `places`: their rows of (2P, ...) tensors,
    their numbers of those of length P, and everything else unchanged. `Any`: a batch and an output
    hold many types."""
    rows = [*places, *(pairs + at for at in places)]

    def part(value: object) -> object:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if len(value) == 2 * pairs:
            return value[rows]
        return value[list(places)] if len(value) == pairs else value

    return {name: part(value) for name, value in batch.items()}
