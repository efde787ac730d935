"""The names of models in recipes: `model: NAME`, a model's own name, and a pipeline's start model.

    own_name("runs/dpo-1a2b/model")                 # "dpo-1a2b/model"
    with_model_sections({"model": "my/model"})      # {"model": {"model_name_or_path": "my/model"}}

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from overrefusal_po.recipe.overrides import Values

START = "@model"
"""Names a pipeline's start model in a stage."""

WHICH_MODEL = ("model_name_or_path", "model_revision", "remedy")
"""Keys of `model:` that say which model it is; the others say how it is loaded or adapted."""

OWN_MODEL_KEYS = ("trust_remote_code", "remedy")
"""Keys of `model:` that are ours and none of TRL's ModelConfig."""

TRAINING_KEYS = (
    *("use_peft", "use_rslora", "use_dora", "lora_"),
    *("load_in_", "use_bnb_", "bnb_"),  # 4 bits round away what a training before has changed
)
"""How keys of `model:` begin that a pipeline's `model:` gives to its trainings alone."""


SECTIONS = ("model", "reference")
"""Sections that a model's name stands for."""

NO_NAMES = ("", ".", "..", "~")
"""Parts of a path that name nothing."""


def own_name(model: str) -> str:
    """A model's own name: a hub name unchanged, the last two parts of a longer path, the stage of
    `@stage.model`."""
    if model.startswith("@"):
        return model[1:].partition(".")[0]
    parts = [part for part in model.removeprefix("bundled:").split("/") if part not in NO_NAMES]
    cached = [part for part in parts if part.startswith("models--")]
    if cached:  # a folder of the hub's cache
        return cached[-1].removeprefix("models--").replace("--", "/")
    return "/".join(parts[-2:]) or model


def with_model_sections(values: Mapping[str, object]) -> Values:
    """A recipe's values with `model: NAME` written as a section, in its stages too."""
    found = dict(values)
    for key in SECTIONS:
        if isinstance(found.get(key), str):
            found[key] = {"model_name_or_path": found[key]}
    if isinstance(stages := found.get("stages"), Mapping):
        found["stages"] = {
            name: with_model_sections(body) if isinstance(body, Mapping) else body
            for name, body in stages.items()
        }
    return found


def override_key(key: str, value: object) -> str:
    """The key that an override means: `model` and `stages.NAME.model` with a name stand for the
    `model_name_or_path` in it, and so does `reference`."""
    parts = key.split(".")
    section = parts[-1] in SECTIONS and (len(parts) == 1 or parts[:-2] == ["stages"])
    return f"{key}.model_name_or_path" if section and isinstance(value, str) else key


def model_section(values: Mapping[str, object]) -> Mapping[str, object]:
    """The `model:` of a recipe's values; empty if there is none."""
    section = values.get("model")
    return section if isinstance(section, Mapping) else {}


def with_start_model(values: Mapping[str, object], section: Mapping[str, object]) -> Values:
    """A stage's values with the pipeline's start model for `@model`.

    Raises ValueError if the pipeline's `model:`, which is `section`, names none.
    """
    found: Values = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found[key] = with_start_model(value, section)
        elif value == START:
            found[key] = section.get("model_name_or_path")
            if not found[key]:
                raise ValueError(
                    f"{key} is {START}, and the pipeline has no start model. Give it one: "
                    "model: {model_name_or_path: NAME}."
                )
        else:
            found[key] = value
    return found


def stage_model(
    start: Mapping[str, object], file: Mapping[str, object], own: Mapping[str, object], task: object
) -> Values:
    """The `model:` of a stage: its file's keys, the pipeline's over them, its own over both.

    Args:
        start: the pipeline's `model:`.
        file: the `model:` of the stage's `recipe:` file.
        own: the `model:` that the pipeline's file or an override gives the stage itself.
        task: the stage's task; only a training takes `TRAINING_KEYS` of the pipeline.
    """
    named = own.get("model_name_or_path")
    taken = {
        key: value
        for key, value in start.items()
        if not (named and key in WHICH_MODEL)
        and (task == "train" or not key.startswith(TRAINING_KEYS))
    }
    # a revision and a remedy belong to the model that they stand beside
    other = "model_name_or_path" in taken or named
    below = {k: v for k, v in file.items() if not (other and k in WHICH_MODEL)}
    return {**below, **taken, **own}
