"""A pipeline's recipe -> the checked recipe of each of its stages.

    bodies = stage_bodies(recipe)       # {stage: its recipe}, `@stage.output` left in place

A stage's values are those of its `recipe:` file, then the pipeline's model, judge and seed, then
its own keys.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping

from overrefusal_po.model.bundled import BUNDLED
from overrefusal_po.named_plugs import check_plugs, may_be_name
from overrefusal_po.recipe.files import read_recipe
from overrefusal_po.recipe.load import Recipe, check_body
from overrefusal_po.recipe.model_names import model_section, stage_model, with_start_model
from overrefusal_po.recipe.overrides import dotted, set_dotted
from overrefusal_po.recipe.schema import EvaluateRecipe, PipelineRecipe, TrainRecipe
from overrefusal_po.recipe.words import nearest
from overrefusal_po.references import (
    check_reference,
    check_remedy_read,
    check_report,
    outputs,
    references,
)
from overrefusal_po.report.pipeline_summary import StageRecipe
from overrefusal_po.train.push import check_places

logger = logging.getLogger(__name__)

MODEL_KEYS = (
    *("model.model_name_or_path", "chosen.model", "rejects.model"),
    *("reference.model_name_or_path", "tamper.reference"),
)
"""Keys of a recipe whose value names a model, which may be a folder."""


def stage_bodies(recipe: Recipe) -> dict[str, StageRecipe]:
    """The checked recipe of every stage, `@stage.output` left in place.

    Raises ValueError for a fault in a stage, and for a reference that no earlier stage makes.
    """
    stages: dict[str, StageRecipe] = {}
    for name, given in pipeline_body(recipe).stages.items():
        stages[name] = stage_body(recipe, name, given, stages)
    check_start_model(recipe, stages)
    warn_quantised(stages)
    try:
        check_places({n: body for n, body in stages.items() if isinstance(body, TrainRecipe)})
    except ValueError as error:
        raise ValueError(f"{recipe.name}: {error}") from None
    check_report(pipeline_body(recipe).report, stages, recipe.name)
    names = Counter(body.run_name for body in stages.values() if isinstance(body, EvaluateRecipe))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"{recipe.name}: {names[twice[0]]} evaluate stages have the name {twice[0]!r}, so the "
            "report could not distinguish them. Give each its own `name`."
        )
    return stages


def pipeline_body(recipe: Recipe) -> PipelineRecipe:
    """The recipe's body, which is a pipeline's."""
    assert isinstance(recipe.body, PipelineRecipe)
    return recipe.body


def stage_body(
    recipe: Recipe, name: str, given: Mapping[str, object], earlier: Mapping[str, StageRecipe]
) -> StageRecipe:
    """The checked recipe of one stage. ValueError for a fault in it."""
    where = f"{recipe.name}, stage {name}"
    checked = check_body(stage_values(recipe, name, given), where)
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(
            f"{recipe.name}: stage {name!r} needs a name of letters, digits, _ and - (it is a "
            "folder)."
        )
    if isinstance(checked, PipelineRecipe):
        raise ValueError(f"{where}: a stage cannot be a pipeline.")
    check_names(checked, earlier, f"{where}: ")
    return checked


def check_names(body: StageRecipe, earlier: Mapping[str, StageRecipe], above: str = "") -> None:
    """Raises ValueError for a plug, a stage's output, a baseline or a bundled model that is not
    there. `earlier`: the stages before this one; a recipe by itself has none."""
    check_plugs(body, above)
    values = dict(dotted(body.model_dump(mode="json")))
    for key, value in references(body):
        check_reference(value, earlier, f"{above}{key}")
    check_remedy_read(body, earlier, above)
    baseline = values.get("gate.baseline")
    if isinstance(baseline, str) and not baseline.startswith("@") and may_be_name(baseline):
        near = nearest(f"@{baseline}.outcomes", outputs(earlier))
        raise ValueError(
            f"{above}gate.baseline is {baseline!r}, and there is no such run folder here. Give the "
            f"run folder of an evaluation, or @stage.outcomes in a pipeline.{near}"
        )
    for key in MODEL_KEYS:
        name = str(values.get(key))
        if name.startswith("bundled:") and name.removeprefix("bundled:") not in BUNDLED:
            known = [f"bundled:{bundled}" for bundled in BUNDLED]
            raise ValueError(
                f"{above}{key} is {name!r}, which is no bundled model. Allowed: "
                f"{', '.join(known)}.{nearest(name, known)}"
            )


def stage_values(recipe: Recipe, name: str, given: Mapping[str, object]) -> dict[str, object]:
    """A stage's plain values: its `recipe:` file first, then the pipeline's model, judge and seed,
    then the stage's own keys."""
    body = pipeline_body(recipe)
    check_stage_given(recipe, name, given)
    values: dict[str, object] = {}
    if "recipe" in given:
        values = read_recipe(recipe.folder / str(given["recipe"])).values
    below, own = model_section(values), model_section(with_start_model(given, body.model))
    for key, value in dotted(with_start_model(given, body.model)):
        if key != "recipe":
            set_dotted(values, key, value)
    if body.model or own:
        values["model"] = stage_model(body.model, below, own, values.get("task"))
    for key in ("seed", "judge"):
        if getattr(body, key) is not None and key not in given:
            values[key] = getattr(body, key)
    where = f"{recipe.name}, stage {name}"
    if values.pop("run_dir", None) is not None:
        raise ValueError(f"{where}: run_dir belongs to the pipeline; a stage has a folder in it.")
    if values.get("shard") is not None:
        raise ValueError(f"{where}: a stage has no shard. Run its recipe alone, with --shard.")
    return values


def check_stage_given(recipe: Recipe, name: str, given: Mapping[str, object]) -> None:
    """Raises ValueError for a stage without file and task: mostly a typo in another's name, or a
    round that the pipeline does not have."""
    stages, rounds = pipeline_body(recipe).stages, pipeline_body(recipe).rounds
    whole = [key for key, stage in stages.items() if "recipe" in stage or "task" in stage]
    if name in whole:
        return
    hint = nearest(name, whole) or " A new stage needs one of both."
    first, _, number = name.rpartition("_")
    if first in whole and number.isdecimal() and int(number) > rounds:
        hint = f" A stage of round {number} needs rounds: {number}, and rounds is {rounds}."
    raise ValueError(
        f"{recipe.name}, stage {name}: it has neither `recipe` nor `task`. The stages are "
        f"{', '.join(whole) or 'none'}.{hint}"
    )


def check_start_model(recipe: Recipe, stages: Mapping[str, StageRecipe]) -> None:
    """Raises ValueError if the pipeline names a model that none of its stages uses.

    Logs the stages that name another model than the pipeline.
    """
    name = pipeline_body(recipe).model.get("model_name_or_path")
    if name is None:
        return
    used = {stage: str(body.model["model_name_or_path"]) for stage, body in stages.items()}
    if name not in used.values():
        raise ValueError(
            f"{recipe.name}: no stage uses model.model_name_or_path {name!r}, since each names its "
            f"own: {', '.join(f'{stage} {own}' for stage, own in used.items())}. Take "
            "model_name_or_path out of the stages that are to use it."
        )
    for stage, own in used.items():
        if own != name and not own.startswith("@"):
            logger.warning("stage %s uses %s, not the pipeline's model %s", stage, own, name)


def warn_quantised(stages: Mapping[str, StageRecipe]) -> None:
    """Logs the stages that round a model which was trained before them to 4 or 8 bits."""
    for stage, body in stages.items():
        name = str(body.model.get("model_name_or_path"))
        for bits in (4, 8):
            if name.startswith("@") and body.model.get(f"load_in_{bits}bit"):
                logger.warning(
                    "stage %s loads %s with model.load_in_%dbit, which may round away a part of "
                    "what was trained",
                    *(stage, name, bits),
                )
