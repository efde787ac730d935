"""The model before safety training, for remedies that compare with it: checked, and loaded as the
model is.

    check_reference(recipe, module)             # ValueError, before any weight is loaded
    reference_loader(recipe, subject.model)     # loads it when a remedy asks for it
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from overrefusal_po.model import load as models
from overrefusal_po.model.compared import check_comparable
from overrefusal_po.plugins import split_spec
from overrefusal_po.recipe.fit import FitRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def warn_unused(recipe: FitRecipe, module: ModuleType) -> None:
    """Logs a warning if the recipe names a reference that the remedy does not use."""
    if recipe.reference is not None and not getattr(module, "NEEDS_REFERENCE", False):
        logger.warning(
            "reference changes nothing: the remedy %s does not use it (its plug has no "
            "NEEDS_REFERENCE = True)",
            split_spec(recipe.remedy, "remedies")[0],
        )


def check_reference(recipe: FitRecipe, module: ModuleType) -> None:
    """Raises ValueError for a `reference` that the remedy cannot compare with the model: another
    architecture, other shapes, another vocabulary, or the model itself. See `check_comparable`."""
    if recipe.reference is None or not getattr(module, "NEEDS_REFERENCE", False):
        return
    name, _ = split_spec(recipe.remedy, "remedies")
    weights = bool(getattr(module, "COMPARES_WEIGHTS", False))
    bits = ", both in 16 or 32 bits" if weights else ""
    check_comparable(
        models.model_options(recipe.model),
        models.model_options(recipe.reference),
        key="reference",
        named="the model",
        advice=f"The remedy {name} compares the model with the one that its safety training began "
        f"with. Name that one{bits}: reference: {{model_name_or_path: NAME}}.",
        vocabulary=True,
        weights=weights,
    )


def reference_loader(
    recipe: FitRecipe, model: PreTrainedModel
) -> Callable[[], PreTrainedModel] | None:
    """What loads the recipe's reference in the number format and with the attention of the loaded
    model, unless it names its own; None if there is no reference. In another format all weights
    would differ, by rounding alone."""
    if recipe.reference is None:
        return None
    alike = {"dtype": str(model.dtype).removeprefix("torch.")}
    if (attention := recipe.model.get("attn_implementation")) is not None:
        alike["attn_implementation"] = attention
    return partial(models.load_model, **models.model_options({**alike, **recipe.reference}))
