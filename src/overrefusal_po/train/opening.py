"""Preference training on how responses begin: both sides of a pair cut after their first tokens,
without an end of turn.

    trainer = opening_of(DPOTrainer, 8)(model=..., train_dataset=pairs, ...)

Whether a model refuses is decided in the first tokens of a response (Qi et al., arXiv 2406.05946,
section 2). In DPO's sum over whole responses they are a few of many: the words of the answers,
which say nothing about refusing, soon make the margin and with it take away the gradient. On
openings the decision is what is learned, in a fraction of the time.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

SIDES = ("chosen_ids", "rejected_ids")
KTO_SIDES = ("completion_ids", "KL_completion_ids")
"""What KTO's rows have instead: a side, and what it is compared with."""


def opening_of(trainer_class: Any, tokens: int | None) -> Any:
    """A class of TRL preference trainer that trains on the first `tokens` of each side (None: the
    class as it is).

    Pairs whose sides begin alike are left out, with a count. ValueError where none is left.
    """
    if tokens is None:
        return trainer_class

    class OpeningTrainer(trainer_class):  # type: ignore[misc]
        """Cuts the tokenised rows, before TRL computes any reference on them."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            rows = super()._prepare_dataset(dataset, *args, **kwargs)
            columns = [name for name in SIDES + KTO_SIDES if name in rows.column_names]
            cut = rows.map(lambda row: {name: row[name][:tokens] for name in columns})
            if (
                KTO_SIDES[0] in columns
            ):  # sides that begin alike were left out before they were parted (see `kto`)
                return cut
            kept = cut.filter(lambda row: row[SIDES[0]] != row[SIDES[1]])
            if not len(kept):
                raise ValueError(
                    f"The sides of all {len(rows)} pairs begin with the same {tokens} tokens. "
                    "Raise data.opening."
                )
            if len(kept) < len(rows):
                logger.warning(
                    "%d of %d pairs begin alike on both sides and are left out",
                    len(rows) - len(kept),
                    len(rows),
                )
            return kept

    return OpeningTrainer
