"""What an engine in process does otherwise if the model has a remedy.

check_served(model, settings, continuous=False)     # ValueError if the remedy could not work
drawn_revision(model, "main")                       # "main + steering-1a2b3c4d"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from overrefusal_po.model.contrast import Contrast
from overrefusal_po.model.remedied import check_generation, installed_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTINUOUS = (
    "engine.continuous_batching puts many prompts into one row, and model.remedy decides for each "
    "prompt. Take one of both out."
)
"""What is wrong with continuous batching and a remedy."""


def check_served(
    model: PreTrainedModel, settings: Mapping[str, object], *, continuous: bool
) -> None:
    """Raises ValueError if a model has a remedy that these settings of generation leave out."""
    if installed_on(model) is None:
        return
    if continuous:
        raise ValueError(CONTINUOUS)
    check_generation(settings)


def tokens_behind(model: PreTrainedModel, new: int) -> int:
    """How many tokens of the context have to be free behind a prompt for `new` ones of a response.
    A second stream reads a longer prompt, and the first tokens of the response."""
    found = installed_on(model)
    change = None if found is None else found.remedy.change
    if not isinstance(change, Contrast):
        return new
    return max(new, change.more + min(change.tokens or new, new))


def drawn_revision(model: PreTrainedModel, revision: str | None) -> str | None:
    """The revision that completions carry: with a remedy on the model, the remedy's id too."""
    found = installed_on(model)
    if found is None:
        return revision
    return found.id if revision is None else f"{revision} + {found.id}"
