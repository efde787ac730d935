"""The stages of a loaded recipe: their data checked, run, and the gate held.

run_recipe(load_recipe("recipes/demo.yaml"))      # exit code 3 if a gate failed, or a `hold:`
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from overrefusal_po.json_files import NO_PLACE, no_place_words
from overrefusal_po.recipe.load import Recipe, load_recipe
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, PipelineRecipe, TrainRecipe
from overrefusal_po.recipe.shard import Shard
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.report import terminal
from overrefusal_po.report.hold_notes import WAY_OUT, unheld_words
from overrefusal_po.report.next_steps import next_steps, unheld_last
from overrefusal_po.report.quiet import quiet_packages

if TYPE_CHECKING:
    from overrefusal_po.report.pipeline_summary import StageRecipe
    from overrefusal_po.train.sharded_memory import Spread

logger = logging.getLogger(__name__)


def stages_of(recipe: Recipe) -> dict[str, Recipe]:
    """{`stages.NAME.`: its stage as a recipe} of a pipeline; {"": itself} for other recipes."""
    if not isinstance(recipe.body, PipelineRecipe):
        return {"": recipe}
    from overrefusal_po.recipe.describe import stage_origins
    from overrefusal_po.stage_recipes import stage_bodies

    return {
        f"stages.{name}.": Recipe(recipe.name, body, stage_origins(recipe, name))
        for name, body in stage_bodies(recipe).items()
    }


def single(stage: Recipe) -> StageRecipe:
    """The body of a recipe that is no pipeline."""
    assert not isinstance(stage.body, PipelineRecipe)
    return stage.body


def check_alone(stage: Recipe) -> None:
    """Raises ValueError if a recipe that is no pipeline names something that is not there."""
    from overrefusal_po.stage_recipes import check_names

    check_names(single(stage), {})


def check_data(body: StageRecipe, named: str = "", spread: Spread | None = None) -> str:
    """Reads data, template and tokenizer of a stage without any weight; returns a line of what was
    found. ValueError begins with what the stage is `named`. `spread`: see `checks.check_stage`."""
    from overrefusal_po.checks import check_stage

    try:
        return check_stage(body, spread)
    except ValueError as error:
        raise ValueError(f"{named}: {error}" if named else str(error)) from None


def check_stages(recipe: Recipe) -> None:
    """Reads the data of all stages of a pipeline, and looks for the keys of its servers, so that a
    fault in the last one does not show only after hours of training."""
    from overrefusal_po.checks import check_together
    from overrefusal_po.named_plugs import check_keys
    from overrefusal_po.stage_recipes import stage_bodies

    stages = stage_bodies(recipe)
    for name, body in stages.items():
        where = f"{recipe.name}, stage {name}"
        check_data(body, where)
        try:
            check_keys(body)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    check_together(stages)


def run_recipe(recipe: Recipe, *, verbose: bool = False) -> None:
    """Runs a loaded recipe; prints its result and the next commands on rank 0.

    `verbose` shows the warnings and bars of other packages too.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # rows are tokenised in batches on all cores; no child process tokenises
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    terminal.set_up_logging(is_first())
    # before anything slow is imported: a user sees at once that the command works
    logger.info("%s", first_words(recipe))
    with contextlib.nullcontext() if verbose else quiet_packages():
        if isinstance(recipe.body, PipelineRecipe):
            run_pipeline_recipe(recipe)
        else:
            run_single_recipe(recipe)


def is_first() -> bool:
    """Whether this process is the first of those that were launched; a single one is."""
    return os.environ.get("RANK", "0") == "0"


def first_words(recipe: Recipe) -> str:
    """What will be done, in a line: `dpo: training by dpo of my/model`."""
    body = recipe.body
    if isinstance(body, PipelineRecipe):
        return f"{recipe.name}: a pipeline of {', '.join(body.stages)}"
    words = {"curate": "curation with", "evaluate": "evaluation of", "fit": "fit of a remedy for"}
    work = f"training by {body.method} of" if isinstance(body, TrainRecipe) else words[body.task]
    remedy = f" with {body.model['remedy']}" if body.model.get("remedy") else ""
    return f"{recipe.name}: {work} {body.model['model_name_or_path']}{remedy}; loading packages"


def run_single_recipe(recipe: Recipe) -> None:
    """Runs a recipe of one stage; prints its result."""
    check_alone(recipe)
    from overrefusal_po.pipeline import run_stage

    found = run_stage(single(recipe), recipe.name, shard_folder(recipe))
    folder = Path(found["folder"])
    if failures := gate_failures(found):
        refuse_at_gate({recipe.name: failures}, folder)
    if is_first():
        terminal.print_result(found)
        if shard_of(recipe) is None:
            terminal.print_next(next_steps(found, recipe.body.task, recipes_folder()))
        if lost := unheld_words(folder):
            end_unheld(lost, folder)


def recipes_folder() -> Path:
    """The shipped recipes: inside the installed package, or beside src/ in a checkout."""
    inside = Path(str(files("overrefusal_po"))) / "recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def copy_recipes(target: Path) -> list[str]:
    """The names of the shipped recipes, which are now in `target`. ValueError if it is there, or is
    no place for a folder."""
    if target.exists():
        raise ValueError(f"{target} is there already. Choose another folder, or delete it.")
    try:
        shutil.copytree(recipes_folder(), target)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        raise ValueError(no_place_words(target, error)) from None
    return sorted(str(path.relative_to(target)) for path in target.rglob("*.yaml"))


def run_pipeline_recipe(recipe: Recipe) -> None:
    """Runs a pipeline; prints its summary, if one of its stages measured."""
    from overrefusal_po.pipeline import is_finished, run_pipeline
    from overrefusal_po.prompts import sources_read_once
    from overrefusal_po.report.page import write_report

    with sources_read_once():
        if not is_finished(recipe):
            check_stages(recipe)
        folder = run_pipeline(recipe, write_report)
    if (folder / "summary.json").is_file():
        terminal.print_summary(folder)
        runs = read_state(folder / "summary.json", ["runs"])["runs"]
        if failed := {run["name"]: found for run in runs if (found := gate_failures(run))}:
            refuse_at_gate(failed, folder)
    terminal.print_next(next_steps({"folder": str(folder)}, "pipeline", recipes_folder()))
    of_remedies = isinstance(recipe.body, PipelineRecipe) and recipe.body.report is not None
    if not of_remedies and (lost := unheld_last(folder)):
        end_unheld(lost, folder)  # a table of remedies says itself which of them hold


def gate_failures(result: terminal.StageResult) -> list[str]:
    """A sentence for each bound of the gate that did not hold; empty without a gate."""
    gate = result.get("gate", {"passed": True})
    return [] if gate["passed"] else list(gate["failures"])


def shard_of(recipe: Recipe) -> str | None:
    """The recipe's `shard`; None without one."""
    body = recipe.body
    return body.shard if isinstance(body, CurateRecipe | EvaluateRecipe) else None


def shard_folder(recipe: Recipe) -> Path | None:
    """The folder of a recipe's shard in the run's own; None without a shard."""
    shard = shard_of(recipe)
    return None if shard is None else whole_folder(recipe) / Shard.of(shard).folder


def whole_folder(recipe: Recipe) -> Path:
    """The run folder of a recipe that is no pipeline, in which its shards have theirs."""
    from overrefusal_po.pipeline import stage_inputs
    from overrefusal_po.run.keys import run_folder

    return run_folder(recipe.name, recipe.resolved(), stage_inputs(single(recipe)))


def merged_folder(given: Path, overrides: Sequence[str]) -> Path:
    """The run folder whose shards are to be merged: `given` itself, or that of a recipe.

    Raises ValueError for a recipe that has no shards, and for overrides of a folder.
    """
    if given.suffix not in (".yaml", ".yml"):
        if overrides:
            raise ValueError(
                f"{given} is a folder, which takes no {overrides[0]!r}. Give the recipe with its "
                "overrides, or the folder alone."
            )
        return given
    recipe = load_recipe(given, overrides)
    if not isinstance(recipe.body, CurateRecipe | EvaluateRecipe):
        raise ValueError(f"{given} is neither a curation nor an evaluation, so it has no shards.")
    return whole_folder(recipe)


def refuse_at_gate(failed: Mapping[str, list[str]], folder: Path) -> NoReturn:
    """`end_with_3` with a sentence for every bound that did not hold."""
    lines = [f"{name}: {sentence}" for name, sentences in failed.items() for sentence in sentences]
    end_with_3([f"the gate failed. {line}" for line in lines], folder)


def end_unheld(lost: str, folder: Path) -> NoReturn:
    """`end_with_3` for a training that lost the safety that its `hold:` asks for."""
    end_with_3([f"{lost}. {WAY_OUT}"], folder)


def end_with_3(lines: Sequence[str], folder: Path) -> NoReturn:
    """Exit code 3, in the folder's status too, with these sentences."""
    status = folder / "status.json"
    known = {**read_state(status), "exit_code": 3, "message": " ".join(lines)}
    write_atomic(status, json.dumps(known, indent=1))
    for line in lines:
        terminal.say(f"overrefusal-po: {line}", error=True)
    sys.exit(3)
