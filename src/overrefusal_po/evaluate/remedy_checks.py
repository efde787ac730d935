"""What cannot be measured of a model with a remedy, because of the remedy's form.

    check_with_remedy(recipe)                            # of a remedy that is there
    check_remedy_form(recipe, "weights", "@x.model")     # of one that an earlier stage will make

All of it is known before any weight is loaded.
"""

from __future__ import annotations

from overrefusal_po.model.remedy import Form
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.run.remedies import put_on, remedy_form


def check_with_remedy(recipe: EvaluateRecipe) -> None:
    """Raises ValueError for a tamper test or a perplexity that the recipe's remedy makes
    impossible. What an earlier stage makes (`@...`) has no form yet."""
    remedy = put_on(recipe.model)
    if remedy is None:
        return
    check_remedy_form(recipe, remedy_form(recipe.model), str(remedy.parent / "model"))
    trained = [tier for tier in recipe.tamper.tiers if tier] if recipe.tamper else []
    if trained:
        raise ValueError(
            f"tamper: tier {trained[0]} trains a copy, and model.remedy ({remedy}) is no part of "
            "the weights: it decides while a model answers, so no training can run through it. "
            "Set tamper.tiers to [0]. If the remedy became plain weights, measure its folder "
            "model/ (@stage.model), without model.remedy."
        )


def check_remedy_form(recipe: EvaluateRecipe, form: Form | None, weights: str) -> None:
    """Raises ValueError for what a remedy of this form makes impossible; None: not known yet.
    `weights`: where the model stands if the remedy is plain weights."""
    remedy = put_on(recipe.model)
    if form == "weights" and recipe.tamper is not None:
        raise ValueError(
            f"tamper changes weights, and model.remedy ({remedy}) stands beside them, though it is "
            f"plain weights too. Measure {weights}, without model.remedy."
        )
    if form == "streams" and recipe.capability.perplexity:
        raise ValueError(
            f"capability.perplexity: model.remedy ({remedy}) sets two streams of logits against "
            "each other. The result says which token comes next, and no probability of a text. "
            "Take the key out."
        )
