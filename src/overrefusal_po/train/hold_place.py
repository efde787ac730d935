"""The place of the bias that `hold` folds into a model, or why there is none.

site, why_not = hold_place(model, hold)      # ValueError if hold may not be left undone
check_hold(recipe.model, hold, config)       # the same by the config, and for an adapter
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.model.blocks import UnfitModel, model_of_config
from overrefusal_po.model.opener_bias import Site, bias_site
from overrefusal_po.recipe.two_sided import Hold
from overrefusal_po.records import Outcome
from overrefusal_po.run.openers import Openers, thinks
from overrefusal_po.train.hold_result import too_few_scored
from overrefusal_po.train.policy import EMBEDDINGS, adapts, named_modules

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

THINKS = "the model thinks first, so the first token of a response decides nothing"


class HoldPlace(NamedTuple):
    """Where the bias goes; or None and why there is no place for one."""

    site: Site | None
    why_not: str = ""


def hold_place(model: PreTrainedModel | PeftModel, hold: Hold) -> HoldPlace:
    """The place in a model; it reads names alone, so a model without weights will do.

    Raises ValueError for a model without a place, unless `hold.optional` is set.
    """
    try:
        return HoldPlace(bias_site(model))
    except UnfitModel as error:
        return HoldPlace(None, left_out(hold, str(error)))


def left_out(hold: Hold, why_not: str) -> str:
    """The reason why a model is trained without its `hold`. ValueError unless `hold.optional` is
    set."""
    if not hold.optional:
        raise ValueError(
            f"hold: {why_not}. Set hold.optional: true to train this model without it (its safety "
            "is then measured, and not held), or leave hold out and use select."
        )
    return why_not


def undecided(start: Sequence[Outcome], own: Sequence[Outcome], openers: Openers) -> str:
    """Why the first token decides nothing, by the responses before and after the training; "" if
    it decides."""
    if thinks(start) or thinks(own):
        return THINKS
    if not openers.ids:
        return "no token opens more refusals than answers"
    return too_few_scored(own)


def without_hold(why_not: str) -> str:
    """What a training without its `hold` says."""
    return f"hold: {why_not}. The model is trained without it (hold.optional): IT IS NOT HELD"


def check_hold(section: Mapping[str, object], hold: Hold, config: PretrainedConfig) -> HoldPlace:
    """The place by the config; None if the model is made by other people's code, which may not load
    without weights.

    Raises ValueError as `hold_place`, or if the adapter that `section`, a recipe's `model:`, asks
    for has no room for a bias.
    """
    if section.get("trust_remote_code"):
        return HoldPlace(None)
    place = hold_place(model_of_config(config), hold)
    if place.site is None or not section.get("use_peft"):
        return place
    if section.get("use_dora"):
        raise ValueError(
            "hold: a bias cannot be folded into a DoRA adapter, which rescales each matrix as a "
            "whole. Set model.use_dora: false, or leave hold out and use select."
        )
    names = named_modules(section, "lora_target_modules")
    if shared := sorted(set(names) & (EMBEDDINGS - {"lm_head", "embed_out"})):
        raise ValueError(
            f"hold gives an adapter one rank more, and peft cannot do that to {shared[0]}. Take it "
            "out of model.lora_target_modules, or leave hold out."
        )
    down = place.site.down
    if not any(adapts(name, down) for name in names):
        raise ValueError(
            f"hold folds its bias into the adapter of {down}, and model.lora_target_modules "
            f"is {', '.join(names) or 'not given'}. Add {down.rpartition('.')[2]} to it, or "
            "set it to all-linear."
        )
    return place
