"""The stages of a loaded recipe: their data checked, run, and the gate held.

run_recipe(load_recipe("recipes/demo.yaml"))      # exit code 3 if a gate failed
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from overrefusal_po.recipe.load import Recipe
from overrefusal_po.recipe.schema import CurateRecipe, PipelineRecipe
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.report import terminal

if TYPE_CHECKING:
    from overrefusal_po.report.pipeline_summary import StageRecipe


def stages_of(recipe: Recipe) -> dict[str, Recipe]:
    """{`stages.NAME.`: its stage as a recipe} of a pipeline; {"": itself} for other recipes."""
    if not isinstance(recipe.body, PipelineRecipe):
        return {"": recipe}
    from overrefusal_po.pipeline import stage_bodies
    from overrefusal_po.recipe.describe import stage_origins

    return {
        f"stages.{name}.": Recipe(recipe.name, body, stage_origins(recipe, name))
        for name, body in stage_bodies(recipe).items()
    }


def single(stage: Recipe) -> StageRecipe:
    """The body of a recipe that is no pipeline."""
    assert not isinstance(stage.body, PipelineRecipe)
    return stage.body


def check_data(body: StageRecipe) -> str:
    """Reads data, template and tokenizer of a stage without any weight; returns a line of what was
    found."""
    from overrefusal_po.checks import check_stage

    return check_stage(body)


def check_stages(recipe: Recipe) -> None:
    """Reads the data of all stages of a pipeline, so that a fault in the last one does not show
    only after hours of training."""
    from overrefusal_po.checks import check_stages_apart
    from overrefusal_po.pipeline import stage_bodies

    stages = stage_bodies(recipe)
    for name, body in stages.items():
        try:
            check_data(body)
        except ValueError as error:
            raise ValueError(f"{recipe.name}, stage {name}: {error}") from None
    check_stages_apart(stages)


def run_recipe(recipe: Recipe) -> None:
    """Runs a loaded recipe; prints its result on rank 0."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # rows are tokenised in batches on all cores; no child process tokenises
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    first = os.environ.get("RANK", "0") == "0"
    terminal.set_up_logging(first)
    if isinstance(recipe.body, PipelineRecipe):
        run_pipeline_recipe(recipe)
        return
    from overrefusal_po.pipeline import run_stage

    found = run_stage(recipe.body, recipe.name, shard_folder(recipe))
    if failures := gate_failures(found):
        refuse_at_gate({recipe.name: failures}, Path(found["folder"]))
    if first:
        terminal.print_result(found)


def run_pipeline_recipe(recipe: Recipe) -> None:
    """Runs a pipeline; prints its summary, if one of its stages measured."""
    from overrefusal_po.pipeline import is_finished, run_pipeline
    from overrefusal_po.prompts import sources_read_once
    from overrefusal_po.report.page import write_report

    with sources_read_once():
        if not is_finished(recipe):
            check_stages(recipe)
        folder = run_pipeline(recipe, write_report)
    if not (folder / "summary.json").is_file():
        return
    terminal.print_summary(folder)
    runs = read_state(folder / "summary.json", ["runs"])["runs"]
    if failed := {run["name"]: found for run in runs if (found := gate_failures(run))}:
        refuse_at_gate(failed, folder)


def gate_failures(result: terminal.StageResult) -> list[str]:
    """A sentence for each bound of the gate that did not hold; empty without a gate."""
    gate = result.get("gate", {"passed": True})
    return [] if gate["passed"] else list(gate["failures"])


def shard_folder(recipe: Recipe) -> Path | None:
    """The folder of a recipe's shard in the run's own; None without a shard."""
    if not isinstance(recipe.body, CurateRecipe) or recipe.body.shard is None:
        return None
    from overrefusal_po.pipeline import stage_inputs
    from overrefusal_po.recipe.sections import Shard
    from overrefusal_po.run.keys import run_folder

    whole = run_folder(recipe.name, recipe.resolved(), stage_inputs(recipe.body))
    return whole / Shard.of(recipe.body.shard).folder


def refuse_at_gate(failed: Mapping[str, list[str]], folder: Path) -> NoReturn:
    """Exit code 3, in the folder's status too, with a sentence for every bound that did not
    hold."""
    lines = [f"{name}: {sentence}" for name, sentences in failed.items() for sentence in sentences]
    status = folder / "status.json"
    known = read_state(status)
    write_atomic(
        status, json.dumps({**known, "exit_code": 3, "message": " ".join(lines)}, indent=1)
    )
    for line in lines:
        terminal.say(f"overrefusal-po: the gate failed. {line}", error=True)
    sys.exit(3)
