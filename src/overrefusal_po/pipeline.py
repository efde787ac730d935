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
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from overrefusal_po.model.bundled import BUNDLED
from overrefusal_po.more_rounds import make_room
from overrefusal_po.named_plugs import check_plugs, engine_inputs, may_be_name
from overrefusal_po.plugins import FILE_ENDINGS, built_judge, find_search
from overrefusal_po.recipe.files import read_recipe
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.load import Recipe, check_body
from overrefusal_po.recipe.model_names import model_section, stage_model, with_start_model
from overrefusal_po.recipe.overrides import dotted, nested_texts, set_dotted
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, PipelineRecipe, TrainRecipe
from overrefusal_po.recipe.words import nearest
from overrefusal_po.records import content_id
from overrefusal_po.references import (
    check_reference,
    check_remedy_read,
    check_report,
    linked_stage,
    outputs,
    references,
    stages_left_out,
    stages_not_run,
)
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
from overrefusal_po.train.push import check_places

logger = logging.getLogger(__name__)

StageSummary = dict[str, Any]
"""What a stage returns. Any: each task has keys of its own, and the command line prints them."""

MODEL_KEYS = (
    *("model.model_name_or_path", "chosen.model", "rejects.model"),
    *("reference.model_name_or_path", "tamper.reference"),
)
"""Keys of a recipe whose value names a model, which may be a folder."""

PATH_KEYS = (*MODEL_KEYS, "model.remedy", "chat.template")
"""Keys whose value may be a path of any name."""


def stage_bodies(recipe: Recipe) -> dict[str, StageRecipe]:
    """The checked recipe of every stage, `@stage.output` left in place.

    Raises ValueError for a fault in a stage, and for a reference that no earlier stage makes.
    """
    stages: dict[str, StageRecipe] = {}
    for name, given in pipeline_body(recipe).stages.items():
        stages[name] = stage_body(recipe, name, given, stages)
    check_start_model(recipe, stages)
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
        may_be_path = key in PATH_KEYS or value.endswith(FILE_ENDINGS) or "/" in value
        # os.path.exists is False for what cannot be a path (a long system prompt with a slash)
        if may_be_path and os.path.exists(value):  # noqa: PTH110
            found[key] = path_hash(Path(value))
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
