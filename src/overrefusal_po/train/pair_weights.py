"""How much each pair counts in a loss, by how near its prompt is to the start policy's boundary.

    margins = refusal_margins(chosen, rejected, harmful)    # log-odds that it refuses
    boundary_weights(margins, harmful)                      # mean 1, most near the boundary

A margin compares the two sides of a pair: the log-prob of the refusal minus that of the answer, by
the start policy. On openings that is the decision to refuse. The boundary is where the policy, if
its bias towards refusing were set there, would mistake as large a share of harmful prompts as of
harmless ones. Plainly harmful and plainly ordinary prompts keep a share of their weight: they hold
the ends.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FLOOR = 0.25
"""The weight of a pair far from the boundary, as a share of that of one on it."""


def refusal_margins(
    chosen: Sequence[float], rejected: Sequence[float], harmful: Sequence[bool]
) -> NDArray[np.float64]:
    """(pairs,): log-prob of the refusal minus that of the answer. The chosen side refuses if the
    prompt is harmful, the rejected one if not."""
    signs = np.where(np.asarray(harmful, dtype=bool), 1.0, -1.0)
    found: NDArray[np.float64] = signs * (np.asarray(chosen) - np.asarray(rejected))
    return found


def boundary(margins: NDArray[np.float64], harmful: NDArray[np.bool_]) -> float:
    """The margin at which the shares of harmful prompts below and of harmless ones above are most
    alike.

    >>> boundary(np.array([1.0, 4.0, 0.0, 2.0]), np.array([True, True, False, False]))
    1.5
    """
    values = np.unique(margins)
    if len(values) == 1:
        return float(values[0])
    cuts = (values[:-1] + values[1:]) / 2
    bad, good = np.sort(margins[harmful]), np.sort(margins[~harmful])
    missed = np.searchsorted(bad, cuts) / len(bad)
    refused = 1 - np.searchsorted(good, cuts) / len(good)
    return float(cuts[np.argmin(np.abs(missed - refused))])


def boundary_weights(
    margins: NDArray[np.float64], harmful: Sequence[bool], floor: float = FLOOR
) -> NDArray[np.float64]:
    """(pairs,): a bell over the distance to the boundary, in standard deviations of the margins.

    `floor` is what is left of it far away. The mean is 1. Raises ValueError if the pairs are of one
    kind: there is no boundary then.
    """
    kinds = np.asarray(harmful, dtype=bool)
    if kinds.all() or not kinds.any():
        kind = "harmful" if kinds.all() else "harmless"
        raise ValueError(
            f"weights: boundary needs pairs on harmful and on harmless prompts; all {len(kinds)} "
            f"are on {kind} ones. Add the other kind, or leave weights out."
        )
    spread = float(margins.std())
    if spread == 0.0:
        return np.ones(len(margins))
    middle = boundary(margins, kinds)
    bell = np.exp(-(((margins - middle) / spread) ** 2) / 2)
    raw = floor + (1 - floor) * bell
    found: NDArray[np.float64] = raw / raw.mean()
    logger.info(
        "weights: the boundary is at a margin of %.2f (spread %.2f); pairs weigh %.2f to %.2f",
        *(middle, spread, found.min(), found.max()),
    )
    return found
