"""The model before safety training, for the defence `safelora` of a tamper test: whether its
weights can be compared with those of the measured model.

    check_reference(recipe)     # ValueError; reads configs and names of files
    check_directions(recipe)    # ValueError; reads weights, trains nothing

Safe LoRA needs the change W_aligned - W_reference of each linear layer that a copy's adapter is put
on. A layer without a change has no direction, and is not projected. At least one has to have one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from overrefusal_po.model import load as models
from overrefusal_po.model.compared import (
    EQUAL_WEIGHTS,
    check_comparable,
    differing_layer,
    equal_in_files,
    equal_weights,
    known_config,
    linear_shapes,
    linear_weights,
)
from overrefusal_po.recipe.schema import EvaluateRecipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

KEY, NAMED = "tamper.reference", "the measured model"

ADVICE = (
    "The defence safelora compares the weights of both. Name the model that the safety training "
    "began with, in 16 or 32 bits, or take safelora out of tamper.defences."
)


def measured_config(recipe: EvaluateRecipe) -> PretrainedConfig | None:
    """The config of the measured model; None if an earlier stage makes it (`@...`). ValueError if
    it cannot be found."""
    return known_config(own_options(recipe))


def check_reference(recipe: EvaluateRecipe) -> None:
    """Raises ValueError for a `tamper.reference` that cannot be compared with the measured model;
    see `check_comparable`."""
    check_comparable(own_options(recipe), options_of(recipe), key=KEY, named=NAMED, advice=ADVICE)


def own_options(recipe: EvaluateRecipe) -> models.LoadOptions:
    """How the measured model is loaded, without its remedy."""
    return models.model_options({**recipe.model, "remedy": None})


def options_of(recipe: EvaluateRecipe) -> models.LoadOptions:
    """How `tamper.reference` is loaded: as the measured model is."""
    assert recipe.tamper is not None
    own = {"model_name_or_path": recipe.tamper.reference, "model_revision": "main", "remedy": None}
    return models.model_options({**recipe.model, **own})


def check_directions(recipe: EvaluateRecipe) -> None:
    """Raises ValueError if all linear layers have equal weights in both models: none of them has a
    direction, so no copy could be projected.

    Files are read up to the first difference. Models in another format than safetensors, or under
    other names, are loaded.
    """
    sides = own_options(recipe), options_of(recipe)
    equal, why = equal_in_files(*sides), None
    if equal is None:
        logger.info("loading the model and tamper.reference, to compare their weights")
        measured, reference = (models.load_model(**options) for options in sides)
        why = differing_layer(linear_shapes(measured), linear_shapes(reference), NAMED)
        equal = not why and equal_weights(
            dict(linear_weights(measured)), dict(linear_weights(reference))
        )
    if why or equal:
        name = sides[1]["name"]
        raise ValueError(f"{KEY} is {name!r}: {why or EQUAL_WEIGHTS}. {ADVICE}")
