"""Whether a fit's settings fit its model; no weights are loaded.

check_models(recipe)      # ValueError: layers is [0.3, 0.35], which are no blocks of a model with 2
"""

from __future__ import annotations

import contextlib

from overrefusal_po.model.blocks import UnfitModel, model_of_config
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.run.remedies import config_of


def check_models(recipe: FitRecipe) -> None:
    """Raises ValueError for settings that do not fit the model. Reads its config, and adapters that
    are there.

    A model that an earlier stage makes is not there yet, and one of other people's code may not
    load without weights.
    """
    module, settings = find_plug("remedies", recipe.remedy)
    made_later = str(recipe.model["model_name_or_path"]).startswith("@")
    if made_later or recipe.model.get("trust_remote_code") or not hasattr(module, "check_model"):
        return
    with contextlib.suppress(UnfitModel):  # a result, which the fit ends with
        module.check_model(settings, model_of_config(config_of(recipe.model)))
