"""Curation from Python: a loaded model, or its name, as the student; no run folder is left.

with answering_engine(model, Generation(), tokenizer=tokenizer) as engine:
    engine.complete(prompts, sampling)
pairs, summary = curate_in_memory(curation_recipe(seed=1), model, prompts, tokenizer, None)
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.curate.checks import check_settings
from overrefusal_po.curate.inputs import clean_prompts
from overrefusal_po.curate.overgenerate import (
    AnsweringModel,
    Curation,
    CurationModels,
    make_curation_judges,
)
from overrefusal_po.curate.stage import pair_set
from overrefusal_po.model import load as models
from overrefusal_po.plugins import PlugSpec, checked_plug_settings
from overrefusal_po.recipe.panels import JudgesGiven
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.records import PreferencePair, Prompt
from overrefusal_po.run.complete import recipe_sampling
from overrefusal_po.run.folder import Run
from overrefusal_po.run.loaded import answering_engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from overrefusal_po.engines import Engine
    from overrefusal_po.model.chat import ChatTemplate
    from overrefusal_po.run.loaded import Student

logger = logging.getLogger(__name__)


class LoadedStudent(AnsweringModel):
    """A student whose engine is there already."""

    def __init__(self, recipe: CurateRecipe, run: Run, engine: Engine) -> None:
        self.run, self.samples, self.others = run, 1, []
        self.sampling = recipe_sampling(recipe.generation, recipe.seed)
        self.__dict__["engine"] = engine

    def release(self) -> None:
        """Keeps the weights: they are the caller's."""


def curation_recipe(
    *,
    teacher: str | None = None,
    refusals: str = "reference",
    prefill: str | None = "Sure, here",
    judge: JudgesGiven = "refusal",
    guard: PlugSpec | None = None,
    chat: Chat | None = None,
    generation: Generation | None = None,
    seed: int = 0,
) -> CurateRecipe:
    """The recipe of a curation from Python. The student stands beside it, not in `model:`."""
    recipe = checked_plug_settings(
        CurateRecipe,
        {
            "task": "curate",
            "model": {"model_name_or_path": teacher or "given"},
            "chosen": {"model": teacher, "refusals": refusals},
            "rejects": {"prefill": prefill},
            "judge": judge,
            "guard": guard,
            "chat": chat or Chat(),
            "generation": generation or Generation(max_new_tokens=40),
            "seed": seed,
        },
        "curate",
    )
    check_settings(recipe)
    if teacher is not None:
        models.check_available(teacher)
    return recipe


# Any: summary.json, whose form follows from the recipe
def curate_in_memory(
    recipe: CurateRecipe,
    student: Student,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase | None,
    template: ChatTemplate | None,
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """(pairs, summary) of the curate stage. Its files lie in a temporary folder, which is removed.

    Raises ValueError without usable prompts, and if a rule yields no pair.
    """
    judges = make_curation_judges(recipe)
    benign, harmful, cleaning = clean_prompts(recipe.data, *usable_prompts(recipe, prompts))
    with (
        tempfile.TemporaryDirectory(prefix="overrefusal-po-") as folder,
        answering_engine(
            student, recipe.generation, chat=recipe.chat, tokenizer=tokenizer, template=template
        ) as engine,
    ):
        run = Run(Path(folder), {}, {}, writer=True)
        answering = answering_models(recipe, run, LoadedStudent(recipe, run, engine))
        made = pair_set(Curation(recipe, run, answering, judges, {}), benign, harmful)
    filters = {**cleaning.filters, **made.filters}
    summary = {**made.summary, "filters": filters, "hygiene": cleaning.hygiene}
    return cast("list[PreferencePair]", list(made.rows)), summary


def answering_models(recipe: CurateRecipe, run: Run, student: AnsweringModel) -> CurationModels:
    """The student, and the teacher if the recipe names one."""
    teacher = None
    if recipe.chosen.model is not None:
        teacher = AnsweringModel(
            recipe,
            run,
            name=recipe.chosen.model,
            engine=recipe.chosen.engine,
            generation=recipe.generation,
        )
    return CurationModels(student, teacher, None)


def usable_prompts(
    recipe: CurateRecipe, prompts: Sequence[Prompt]
) -> tuple[list[Prompt], list[Prompt]]:
    """(benign, harmful) prompts that have a reference, or that a model will answer; the others are
    counted in the log. ValueError without a benign one."""
    answered = recipe.chosen.model is not None
    refused = recipe.chosen.refusals != "reference"
    benign = [p for p in prompts if p.kind in recipe.data.kinds and (p.reference or answered)]
    harmful = [p for p in prompts if p.kind == "harmful" and (p.reference or refused)]
    if not benign:
        raise ValueError(
            f"None of the {len(prompts)} prompts is benign and has a reference answer. Give rows "
            "with a reference, or name a teacher that answers them: teacher=..."
        )
    if left_out := len(prompts) - len(benign) - len(harmful):
        logger.warning(
            "%d of %d prompts are left out: they have no reference, or are ordinary ones",
            left_out,
            len(prompts),
        )
    return benign, harmful
