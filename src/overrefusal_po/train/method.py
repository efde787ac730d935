"""What the file of a training method defines, and how the stage finds it.

    module = method_module("dpo")
    source = module.read(recipe)
    prepared = module.prepare(recipe, source, template, None)
    trainer = module.recipe_trainer(model, prepared, recipe=recipe, args=args, ...)

A method is one row in `recipe/methods.py` and one file like `train/dpo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.methods import find_method, method_file
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.train.data import Prepared, Source
from overrefusal_po.train.student import StudentAnswer

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, Trainer


class MethodModule(Protocol):
    """The functions of a method's file."""

    def read(self, recipe: TrainRecipe) -> Source:
        """What the recipe's data section names, read once; raises ValueError for what is wrong."""

    def prepare(
        self,
        recipe: TrainRecipe,
        source: Source,
        template: ChatTemplate,
        said: Sequence[StudentAnswer] | None,
    ) -> Prepared:
        """The rows to train on, checked; raises ValueError for what cannot be trained on.

        `said` is what the student answered to `source.asked`. It is None before the student was
        asked: then everything that needs no answers is checked.
        """

    def recipe_trainer(
        self,
        model: PreTrainedModel,
        prepared: Prepared,
        *,
        recipe: TrainRecipe,
        args: Any,  # the config object of the method's own class
        template: ChatTemplate,
        peft_config: PeftConfig | None,
    ) -> Trainer:
        """The trainer of a recipe on a loaded model."""


NEEDED = ("read", "prepare", "recipe_trainer")


def method_module(name: str) -> MethodModule:
    """The file of a method; ValueError if it lacks a function."""
    place = find_method(name).module
    module = method_file(place, name)
    missing = [needed for needed in NEEDED if not callable(getattr(module, needed, None))]
    if missing:
        raise ValueError(
            f"method {name!r}: its module {place} does not define {', '.join(missing)}. "
            "docs/extend.md shows what a method's file holds."
        )
    return cast(MethodModule, module)
