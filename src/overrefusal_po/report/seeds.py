"""Several run folders -> an error, unless they are one recipe with several seeds.

    check_seeds([Path("runs/seed0"), Path("runs/seed1")], summaries)

A mean over different models, prompts, judges or settings says nothing about seeds. `compare` is for
those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from overrefusal_po.records import content_id
from overrefusal_po.report.summary import Summary
from overrefusal_po.report.training import stage_recipe

SEED_KEYS = ("seed", "data_seed", "run_dir")
"""Recipe keys in which two seeds of one training may differ."""
DEEPEST = 8
"""How many trainings, each on the model of the one before, are looked through."""


def check_seeds(folders: Sequence[Path], summaries: Sequence[Summary]) -> None:
    """Raises ValueError that says what differs, and points to compare, unless all are seeds."""
    first = summaries[0]
    for folder, summary in islice(zip(folders, summaries, strict=True), 1, None):
        found = differences(folders[0], first, folder, summary)
        if found:
            raise ValueError(
                f"{folders[0]} and {folder} are not seeds of one recipe: {'; '.join(found)}. A "
                "mean over them says nothing. Compare evaluations prompt by prompt: overrefusal-po "
                f"compare {folders[0]} {folder}"
            )


def differences(one: Path, first: Summary, other: Path, second: Summary) -> list[str]:
    """What differs in how two folders were measured, in words; the models of runs of one name."""
    found = []
    for what, value in MEASURED.items():
        if value(first) != value(second):
            found.append(f"the {what} is {shown(value(first))} and {shown(value(second))}")
    models = {run.name: run.model for run in first.runs}
    for run in second.runs:
        known = models.get(run.name)
        if known is not None and same_model(known, one) != same_model(run.model, other):
            found.append(f"the model of {run.name!r} is {known!r} and {run.model!r}")
    if not found and asked(first) != asked(second):
        found.append("the prompts of their examples differ, so they were measured on other prompts")
    return found


def shown(value: object) -> str:
    """A value as an error shows it."""
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else repr(value)


MEASURED: Mapping[str, Callable[[Summary], object]] = {
    "judge": lambda summary: summary.measured.judge,
    "guard": lambda summary: summary.measured.guard,
    "list of prompt sets": lambda summary: summary.measured.sets,
    "list of attacks": lambda summary: summary.measured.attacks,
    "engine with its settings": lambda summary: summary.measured.engine,
}
"""What must be the same in all seeds."""


def asked(summary: Summary) -> list[tuple[str, str]]:
    """The prompts of the examples, which a hash of their content chose."""
    return sorted((sample.kind, sample.prompt) for sample in summary.samples if not sample.attack)


def same_model(model: str, folder: Path, depth: int = 0) -> str:
    """A text that is equal for the models of two seeds of one recipe.

    A trained model is called by the recipe of its training without the seed, and so is the model
    that this training began with. Other models are called by their names.
    """
    stage = trained_in(model, folder)
    values = {} if stage is None else stage_recipe(stage.folder)
    if stage is None or depth >= DEEPEST:
        return model
    if not values:
        return stage.place or model
    section = values.get("model")
    known = without_seeds(values, stage.above)
    if isinstance(known, dict) and isinstance(section, dict):
        begun = str(section.get("model_name_or_path", ""))
        within = folder if stage.place else stage.folder
        known["model"] = {**section, "model_name_or_path": same_model(begun, within, depth + 1)}
    return content_id(known)


class Stage(NamedTuple):
    """The folder of the training that made a model.

    Attributes:
        folder: where it is now.
        place: its model's place in the pipeline, such as dpo/model; "" outside of a pipeline.
        above: where the pipeline was when it ran, as its recipes write it.
    """

    folder: Path
    place: str
    above: str


def trained_in(model: str, folder: Path) -> Stage | None:
    """The training that made a model, in the pipeline's folder or in one of its own; None if the
    model comes from elsewhere."""
    parts = PurePath(model).parts
    if len(parts) >= 2:
        inside = folder / parts[-2]
        if (inside / "recipe.yaml").is_file() or (inside / parts[-1]).exists():
            return Stage(inside, "/".join(parts[-2:]), str(PurePath(*parts[:-2])))
    alone = Path(model).parent
    if Path(model).is_dir() and (alone / "recipe.yaml").is_file():
        return Stage(alone, "", str(alone))
    return None


def without_seeds(value: object, above: str) -> object:
    """A recipe without the keys in which seeds may differ, and with paths below `above` cut."""
    if isinstance(value, Mapping):
        return {k: without_seeds(v, above) for k, v in value.items() if k not in SEED_KEYS}
    if isinstance(value, list):
        return [without_seeds(item, above) for item in value]
    return value.removeprefix(f"{above}/") if isinstance(value, str) else value
