"""Stages in a row: `task: pipeline`. An input may name an earlier output, and the whole ends in a
summary and a report.

    stages:
      derta:  {recipe: derta.yaml}
      tuned:  {recipe: evaluate.yaml, name: DeRTa, model: {model_name_or_path: "@derta.model"}}

Outputs that a later stage may name: `@curate.pairs`, `@train.model`, `@fit.remedy`,
`@train.harmful` (what the student said to harmful prompts) and others (`references.OUTPUTS`). Each
stage has a folder of its own in the pipeline's run folder. A stage that is done is skipped; a stage
that was killed goes on at the same place. The stages of later rounds are ordinary ones
(`recipe.rounds`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from overrefusal_po.more_rounds import make_room
from overrefusal_po.named_plugs import check_plugs, engine_inputs
from overrefusal_po.plugins import FILE_ENDINGS, built_judge, find_search
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.load import Recipe
from overrefusal_po.recipe.overrides import nested_texts
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.records import content_id
from overrefusal_po.references import linked_stage, stages_left_out, stages_not_run
from overrefusal_po.report.pipeline_summary import (
    StageMetrics,
    StageRecipe,
    is_other_summary,
    write_summary,
)
from overrefusal_po.report.remedies_entry import is_other_report
from overrefusal_po.run.folder import Run
from overrefusal_po.run.keys import file_hash, path_hash, run_folder
from overrefusal_po.sources import SHIPPED_SETS
from overrefusal_po.stage_recipes import MODEL_KEYS, pipeline_body, stage_bodies

logger = logging.getLogger(__name__)

StageSummary = dict[str, Any]
"""What a stage returns. Any: each task has keys of its own, and the command line prints them."""

PATH_KEYS = (*MODEL_KEYS, "model.remedy", "chat.template")
"""Keys whose value may be a path of any name."""

PATH_NAMES = ("path", "paths", "adapter", "adapters", "merged")
"""Names of a plug's settings whose values may be such paths."""


def run_pipeline(recipe: Recipe, report: Callable[[Path], Path]) -> Path:
    """The pipeline's folder, after all stages ran. Writes summary.json and calls `report` on the
    folder, if some stage measured and the summary that is there is not of that."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{recipe.name} is a pipeline, which runs in one process; {os.environ['WORLD_SIZE']} "
            "were launched. Run its train stages one by one with the launcher, or the pipeline "
            "without it."
        )
    body, stages = pipeline_body(recipe), stage_bodies(recipe)
    with open_pipeline(recipe, stages, writer=True) as run:
        folder = run.path
        runs = run_stages(recipe, stages, folder)
        if not run.done or is_other_report(body.report, folder) or is_other_summary(folder, runs):
            if runs:
                write_summary(body, folder, runs, stages=stages, repeats=recipe.repeats)
                report(folder)
            run.finish({"runs": len(runs)})
    return folder


def run_stages(
    recipe: Recipe, stages: Mapping[str, StageRecipe], folder: Path
) -> list[StageMetrics]:
    """The metrics of the evaluations, after all stages ran."""
    runs: list[StageMetrics] = []
    for number, (name, body) in enumerate(stages.items(), 1):
        left_out = stages_left_out(recipe.repeats, folder)
        of = f"stage {number} of {len(stages)}: {name}"
        if name in left_out:
            logger.info("%s is left out; %s stands for it", of, left_out[name])
            if isinstance(body, TrainRecipe) and body.trainer.get("push_to_hub"):
                model = folder / left_out[name] / "model"
                logger.warning("%s: nothing is pushed. The last model is in %s", name, model)
            continue
        if why := stages_not_run(pipeline_body(recipe), stages, folder, left_out).get(name):
            logger.warning("%s is left out: %s", of, why)
            continue
        logger.info("%s", of)
        linked = linked_stage(body, folder, left_out)
        fits = [folder / other for other in stages if isinstance(stages[other], FitRecipe)]
        found = run_stage(linked, f"stage {name}", folder / name, fits=fits)
        if isinstance(body, EvaluateRecipe):
            # an evaluation returns its metrics.json
            runs.append(cast("StageMetrics", {**found, "folder": name}))
    return runs


def open_pipeline(recipe: Recipe, stages: Mapping[str, StageRecipe], *, writer: bool) -> Run:
    """The run of the whole pipeline; without `writer` it is only read."""
    bodies = {name: body.model_dump(mode="json") for name, body in stages.items()}
    resolved = {"task": "pipeline", **bodies, "run_dir": pipeline_body(recipe).run_dir}
    folder = run_folder(recipe.name, resolved, {})
    if writer:
        make_room(folder, resolved, recipe.repeats)
    return Run.open(folder, resolved, {}, writer=writer)


def is_finished(recipe: Recipe) -> bool:
    """Whether this very pipeline is done, all its stages with the inputs that they would read
    now."""
    stages = stage_bodies(recipe)
    whole = open_pipeline(recipe, stages, writer=False)
    if not whole.done or is_other_report(pipeline_body(recipe).report, whole.path):
        return False
    runs = [whole]
    left_out = stages_left_out(recipe.repeats, whole.path)
    not_run = {*left_out, *stages_not_run(pipeline_body(recipe), stages, whole.path, left_out)}
    for name, body in stages.items():
        if name in not_run:
            continue
        linked = linked_stage(body, whole.path, left_out)
        resolved = linked.model_dump(mode="json")
        runs.append(Run.open(whole.path / name, resolved, stage_inputs(linked), writer=False))
    return all(run.done and run.status()["key"] == run.key for run in runs)


def stage_inputs(body: StageRecipe) -> dict[str, str]:
    """{dotted key: content hash} of the files and folders that a stage reads, and its judge's
    version."""
    found = {}
    for key, value in nested_texts(body.model_dump(mode="json", exclude={"run_dir"})):
        # os.path.exists is False for what cannot be a path (a long system prompt with a slash)
        place = os.path.expanduser(value)  # noqa: PTH111
        if may_be_path(key, value) and os.path.exists(place):  # noqa: PTH110
            found[key] = path_hash(Path(place))
        elif value in SHIPPED_SETS and key.startswith(("data.", "select.", "hold.", "tamper.")):
            found[key] = file_hash(Path(__file__).parent / "data" / f"{value}.jsonl")
    judging = [(key, getattr(body, key, None)) for key in ("judge", "guard", "reward")]
    if isinstance(body, TrainRecipe):
        looks = {"select.judge": body.looks, "hold.judge": body.held}
        judging += [(key, sets.judge) for key, sets in looks.items() if sets is not None]
    for key, spec in judging:
        if spec is not None:
            judge = built_judge(spec)
            found[key] = f"{judge.name} {judge.version}"
    found |= engine_inputs(body)
    # the files and the code of an attack decide its prompts
    if isinstance(body, EvaluateRecipe) and body.data.attacks:
        from overrefusal_po.prompts import measured_prompts

        found["attacks"] = content_id(sorted(p.id for p in measured_prompts(body.data)))
        for search in filter(None, map(find_search, body.data.attacks)):
            found[f"attacks.{search.name}"] = search.module.version(search.settings)
    return found


def may_be_path(key: str, value: str) -> bool:
    """Whether a recipe's value may name a file or a folder. An engine's adapter has a hash of its
    own (`engine_inputs`)."""
    named = key in PATH_KEYS or (
        key != "engine.adapter" and not {*PATH_NAMES}.isdisjoint(key.split(".")[1:][-2:])
    )
    return named or value.lower().endswith(FILE_ENDINGS) or "/" in value


def run_stage(
    body: StageRecipe, name: str, folder: Path | None = None, *, fits: Sequence[Path] = ()
) -> StageSummary:
    """The stage's summary, after it ran in `folder` (None: the recipe's own run folder). `fits`:
    folders of fits that may have measured the same model."""
    check_plugs(body)  # a key in a wrong place must not be written into a run folder
    inputs = stage_inputs(body)
    resolved = body.model_dump(mode="json")
    path = folder or run_folder(name, resolved, inputs)
    if isinstance(body, TrainRecipe):
        from overrefusal_po.train.search import train_or_search

        trained = train_or_search(
            body, lambda writer: Run.open(path, resolved, inputs, writer=writer)
        )
        return {**trained, "folder": str(path)}
    if os.environ.get("RANK", "0") != "0":
        return {"folder": str(path)}  # one process generates and judges
    with Run.open(path, resolved, inputs) as run:
        if isinstance(body, CurateRecipe):
            from overrefusal_po.curate.stage import curate

            return {**curate(body, run), "folder": str(path)}
        if isinstance(body, FitRecipe):
            from overrefusal_po.fit.stage import fit

            return {**fit(body, run, fits), "folder": str(path)}
        from overrefusal_po.evaluate.part import evaluate_part
        from overrefusal_po.evaluate.stage import evaluate

        if body.shard is not None:
            return {**evaluate_part(body, run), "folder": str(path)}
        if body.tamper is None:
            return {**evaluate(body, run), "folder": str(path)}
        from overrefusal_po.train.tamper import tamper_test

        return {**evaluate(body, run, tamper_test), "folder": str(path)}
