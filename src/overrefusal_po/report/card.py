"""A run folder -> the model card of what was trained in it: README.md beside `model/`, and inside
`model/` and `adapter/`, which people upload.

    card = write_card(Path("runs/demo"))
    # of the last run whose model was trained here
    card = write_card(Path("runs/demo"), run="DeRTa")
    # of a single training, with an evaluation of its model or without results
    card = write_card(Path("runs/dpo-1a2b"), measured=Path("runs/evaluate-3c4d"))

The results stand in the card's metadata too, which the hub reads. A card is made to be published:
it holds no path of this machine. `training` says which settings it may show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from overrefusal_po.engines._adapter_folder import adapter_hash
from overrefusal_po.model.bundled import BUNDLED
from overrefusal_po.pairs.findings import WAIVED_FILE
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.report.card_results import measured_words, result_parts, run_results
from overrefusal_po.report.fit_part import remedy_parts
from overrefusal_po.report.search_part import search_parts
from overrefusal_po.report.summary import MeasuredRun, Summary, read_summary
from overrefusal_po.report.texts import one_line, public_text
from overrefusal_po.report.training import (
    method_words,
    public_method,
    stage_recipe,
    training_parts,
)
from overrefusal_po.report.waivers import waived_words

BUNDLED_HUB_NAMES = {f"bundled:{key}": bundled.hub_name for key, bundled in BUNDLED.items()}
"""{name in a recipe: name on the hub} of the bundled models."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_card(folder: Path, *, run: str | None = None, measured: Path | None = None) -> Path:
    """README.md in the folder of the training, after the same text went into its `model/` and
    `adapter/`.

    Args:
        folder: the run folder of a pipeline, or of a single training.
        run: a pipeline's run whose model the card is of; None: the last one trained here.
        measured: the run folder of an evaluation of a single training's model.

    Raises:
        ValueError: nothing was trained here, or the evaluation is of another model.
    """
    task = stage_recipe(folder).get("task")
    if task == "fit" and not (folder / "model").is_dir():
        raise ValueError(
            f"{folder}: this fit left no plain weights, so there is no model to write a card for."
        )
    if task in ("train", "fit"):
        summary = None if measured is None else evaluation_of(folder, measured)
        return put_card(folder, card_text(summary, summary.runs[0] if summary else None, folder))
    if measured is not None:
        raise ValueError(
            f"{folder}: an evaluation beside the card is for the folder of a single training. A "
            "pipeline has its own evaluations."
        )
    return pipeline_card(folder, run)


def pipeline_card(folder: Path, run: str | None) -> Path:
    """The card of a pipeline's run; ValueError if it has no model that was trained here."""
    summary = read_summary(folder)
    stages = {
        found.name: stage
        for found in summary.runs
        if (stage := trained_stage(found, folder)) is not None
    }
    if (run is not None and run not in stages) or not stages:
        names = ", ".join(repr(name) for name in stages) or "none"
        raise ValueError(
            f"{folder}: {'no run' if run is None else f'run {run!r} has no model that'} was "
            "trained in this folder, so there is nothing to write a model card for. Runs with a "
            f"model of this folder: {names}."
        )
    name = run or list(stages)[-1]
    found = next(r for r in summary.runs if r.name == name)
    return put_card(stages[name], card_text(summary, found, stages[name]))


def put_card(stage: Path, text: str) -> Path:
    """Writes the card into `model/` and `adapter/` if they are there, and into the folder."""
    for name in ("model", "adapter"):
        if (stage / name).is_dir():
            write_atomic(stage / name / "README.md", text)
    return write_atomic(stage / "README.md", text)


def evaluation_of(stage: Path, measured: Path) -> Summary:
    """The summary of an evaluation; ValueError if it measured another model than the stage's."""
    summary = read_summary(measured)
    if remedy := summary.runs[0].remedy:
        raise ValueError(
            f"{measured} measured the model with the remedy {remedy}, and the card is of the "
            "weights alone. Give the run folder of an evaluation without model.remedy."
        )
    place = Path(summary.runs[0].model)
    status = measured / "status.json"
    inputs = read_state(status).get("inputs", {}) if status.is_file() else {}
    trained = stage / "status.json"
    key = read_state(trained).get("key") if trained.is_file() else None
    same = place.resolve() == (stage / "model").resolve()
    if (adapter := inputs.get("engine.adapter")) is not None:
        measured_it = adapter == adapter_hash(stage / "adapter")
    else:
        measured_it = same or bool(key and inputs.get("model.model_name_or_path") == key)
    if len(summary.runs) != 1 or not measured_it:
        raise ValueError(
            f"{measured} measured {str(place)!r}{' with an adapter' if adapter else ''}, and the "
            f"card is of {stage / 'model'}. Give the run folder of an evaluation of that model, or "
            f"of its base with {stage / 'adapter'} as engine.adapter."
        )
    return summary


def trained_stage(run: MeasuredRun, folder: Path) -> Path | None:
    """The stage's folder whose `model/` the run measured; None if it measured another model, or
    one with a remedy."""
    if run.remedy is not None:
        return None
    path = Path(run.model)
    stage = folder / path.parent.name
    made_here = path.name == "model" and path.parent.name and (stage / "model").is_dir()
    return stage if made_here else None


def card_text(summary: Summary | None, run: MeasuredRun | None, stage: Path) -> str:
    """The card: metadata, then Markdown. Without `summary` and `run` it has no results."""
    from huggingface_hub import ModelCard, ModelCardData

    recipe = stage_recipe(stage)
    base = base_model(recipe, stage.parent)
    method = public_method(recipe)
    name = stage.resolve().name
    if summary and run:
        name = run.name if summary.title == run.name else f"{summary.title}, {run.name}"
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["overrefusal-po", "over-refusal", "safety", *([method] if method else [])],
        model_name=one_line(name),
        eval_results=[*run_results(run, summary)] if summary and run else None,
    )
    parts = [f"# {one_line(name)}", origin_words(recipe, base)]
    if summary and run:
        parts += result_parts(summary, run)
    else:
        parts += ["## Results", "Not measured yet. Refusals and answers may be worse than before."]
    if waived := [f"- {line}" for line in public_waivers(stage)]:
        parts += ["## Waived", "\n".join(waived)]
    fitted = [*remedy_parts(stage)]
    parts += fitted or [*training_parts(stage), *search_parts(stage)]
    parts += [measured_words(summary)] if summary else []
    words = "\n".join(line for part in parts for line in (part, ""))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{words}", ignore_metadata_errors=False))


def origin_words(recipe: Mapping[str, object], base: str | None) -> str:
    """Two sentences on the model's base and its training, or its remedy."""
    method, came = method_words(recipe), f"`{base}`" if base else "another model"
    how = f"Trained from {came} by overrefusal-po{f' with method {method}' if method else ''}"
    if recipe.get("task") == "fit":
        how = f"Made from {came} by overrefusal-po with a remedy in its weights, without training"
    return (
        f"{how}, to answer what only sounds dangerous and "
        "still refuse what is harmful. The results show how far it does."
    )


def public_waivers(stage: Path) -> Iterator[str]:
    """What the trainings of a pipeline waived, or a single one, each reason without paths of this
    machine."""
    in_pipeline = (stage.parent / "summary.json").is_file()
    files = sorted(stage.parent.glob(f"*/{WAIVED_FILE}")) if in_pipeline else [stage / WAIVED_FILE]
    for file in filter(Path.is_file, files):
        for what, reason in waived_words(file):
            yield f"{one_line(what[:1].upper() + what[1:])}. Waived: {public_text(reason)}"


def base_model(recipe: Mapping[str, object], folder: Path) -> str | None:
    """The hub name from which the pipeline's training started, through all its stages; None if it
    has none."""
    for _ in range(20):  # stages form a row; a folder made by hand might form a ring
        model = recipe.get("model")
        name = str(model.get("model_name_or_path", "") if isinstance(model, Mapping) else "")
        if name.startswith("bundled:"):
            return BUNDLED_HUB_NAMES.get(name)
        path = Path(name)
        if path.name != "model" or not (folder / path.parent.name / "recipe.yaml").is_file():
            return name if HUB_NAME.fullmatch(name) and not path.exists() else None
        recipe = stage_recipe(folder / path.parent.name)
    return None
