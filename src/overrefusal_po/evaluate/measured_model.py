"""The model that an evaluation measures: its responses and its perplexity, the weights loaded once.

model = MeasuredModel(recipe, template)
completions = model.completions(run, prompts)
model.perplexity(run, prompts)        # None if the recipe leaves it out
model.release()
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import cast

from overrefusal_po.engines import Engine
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.capability import asked_references, perplexity
from overrefusal_po.evaluate.entries import PerplexityEntry
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.prompts import fixed_subset
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Completion, Prompt, read_state, write_atomic
from overrefusal_po.run.complete import complete, engine_for, in_process, recipe_sampling
from overrefusal_po.run.folder import Run

logger = logging.getLogger(__name__)


def wants_perplexity(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> bool:
    """Whether perplexity is measured. If the recipe leaves that open: if it can be.

    Attacked prompts do not count. Raises ValueError if the recipe asks for it and it cannot be.
    """
    asked = recipe.capability.perplexity
    if asked is False:
        return False
    if asked and not in_process(recipe.engine):
        raise ValueError(
            "capability.perplexity needs the model in process, and the engine is a server. Measure "
            "it in a recipe of its own with engine: transformers, or leave the key out."
        )
    known = bool(asked_references(prompts))
    if asked and not known:
        raise ValueError(
            "capability.perplexity needs benign or general prompts with a reference answer; none "
            f"of the {len(prompts)} prompts is one. Name a set that has references (starter), or "
            "leave the key out."
        )
    return known and in_process(recipe.engine)


class MeasuredModel:
    """The model of an evaluation. Its weights are loaded when they are first needed."""

    def __init__(self, recipe: EvaluateRecipe, template: ChatTemplate | None) -> None:
        self.recipe, self.template = recipe, template

    @cached_property
    def engine(self) -> Engine:
        """The engine, with weights if it runs in process."""
        recipe = self.recipe
        name = str(recipe.model["model_name_or_path"])
        return engine_for(
            recipe.model,
            self.template,
            recipe.generation,
            name,
            engine=recipe.engine,
            chat=recipe.chat,
        )

    def release(self) -> None:
        """Frees the weights: a judge may need the memory."""
        self.__dict__.pop("engine", None)

    def completions(
        self, run: Run, prompts: Sequence[Prompt], file: str = "completions.jsonl"
    ) -> list[Completion]:
        """A completion for each prompt, kept in this file of the run folder."""
        recipe = self.recipe
        return complete(
            run.path / file,
            prompts,
            recipe_sampling(recipe.generation, recipe.seed),
            lambda: self.engine,
            f"{recipe.run_name}: answering {len(prompts)} prompts",
        )

    def perplexity(self, run: Run, prompts: Sequence[Prompt]) -> PerplexityEntry | None:
        """Perplexity on the references of `prompts`, kept in the run folder; None if it is not
        wanted."""
        if not wants_perplexity(self.recipe, prompts):
            return None
        file = run.path / "perplexity.json"
        if not file.is_file():
            limit = self.recipe.capability.max_answers_per_kind
            read = fixed_subset(asked_references(prompts), limit)
            logger.info(
                "%s: perplexity on %d reference answers (capability.perplexity: false leaves it "
                "out)",
                self.recipe.run_name,
                len(read),
            )
            engine, template = self.engine, self.template
            assert isinstance(engine, TransformersEngine) and template is not None
            found = perplexity(engine.model, template, read, seed=self.recipe.seed)
            write_atomic(file, json.dumps(found.as_dict(), indent=1))
        known = read_state(file, PerplexityEntry.__required_keys__)
        return cast(PerplexityEntry, known)
