"""File + overrides -> a checked, frozen recipe. Imports neither torch nor transformers.

    recipe = load_recipe("recipes/dpo.yaml", ["--trainer.beta=0.2", "seed=3"])
    recipe.body.trainer["beta"], recipe.origin["trainer.beta"]      # 0.2, "override"

`model:` and `trainer:` hold TRL keys (ModelConfig and the method config), checked against TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.overrides import dotted, parse_overrides, set_dotted
from overrefusal_po.recipe.schema import (
    Body,
    CurateRecipe,
    EvaluateRecipe,
    PipelineRecipe,
    TrainRecipe,
)
from overrefusal_po.recipe.sections import Section
from overrefusal_po.recipe.trl_fields import check_fields, field_table
from overrefusal_po.recipe.words import unknown_key

HARDWARE_KEYS = ("use_cpu", "bf16", "gradient_checkpointing", "dataloader_pin_memory")
"""Trainer keys that hardware decides when a recipe leaves them open."""


MANAGED_KEYS = {
    "output_dir": "run_dir",
    "resume_from_checkpoint": "run_dir",
    "model_init_kwargs": "the model section",
    "trust_remote_code": "model.trust_remote_code",
    "hub_token": "the environment variable HF_TOKEN, since a recipe is written into the run "
    "folder,",
}
"""Trainer keys that may not stand in a recipe: {key: where to say it instead}."""


_BODY: TypeAdapter[Body] = TypeAdapter(Annotated[Body, Field(discriminator="task")])


TASKS = {
    "train": TrainRecipe,
    "curate": CurateRecipe,
    "evaluate": EvaluateRecipe,
    "pipeline": PipelineRecipe,
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: its body, its name (the file's stem), and where each dotted key came
    from."""

    name: str
    body: Body
    origin: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def resolved(self) -> dict[str, Any]:
        """The body as plain data, defaults included."""
        return self.body.model_dump(mode="json")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe. ValueError for everything that a user can mend."""
    file = Path(path)
    values = read_yaml(file)
    origin = {key: "file" for key, _ in dotted(values)}
    for key, value in parse_overrides(overrides):
        set_dotted(values, key, value)
        origin[key] = "override"
    body = check_body(values, file)
    return Recipe(file.stem, body, origin, file.parent)


def read_yaml(file: Path) -> dict[str, Any]:
    """A recipe file as plain data, without the `launch` line that makes it a script."""
    if not file.is_file():
        raise ValueError(
            f"{file}: there is no such recipe. Give the path of a .yaml file, or run: "
            "overrefusal-po init"
        )
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.load(file)
        values = OmegaConf.to_container(loaded, resolve=True)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: a recipe is a mapping of keys; got {type(values).__name__}.")
    values.pop("launch", None)
    return {str(key): value for key, value in values.items()}


def check_body(values: Mapping[str, Any], where: str | Path) -> Body:
    """Plain data -> a checked recipe body. ValueError names the file, the key, what was given and
    what is allowed."""
    values = {key: value for key, value in values.items() if key != "launch"}
    if "task" not in values:
        raise ValueError(
            f"{where}: task is missing. Add it to the recipe; allowed is one of {', '.join(TASKS)}."
        )
    if values["task"] not in TASKS:
        raise ValueError(
            f"{where}: task is {values['task']!r}; allowed is one of {', '.join(TASKS)}."
        )
    try:
        body = _BODY.validate_python(values)
        if isinstance(body, PipelineRecipe):
            return body
        checks: dict[str, Any] = {"model": check_model(body.model)}
        if isinstance(body, TrainRecipe):
            check_trainable(checks["model"])
            checks["data"] = body.typed_data.model_dump(mode="json")
            checks["trainer"] = check_trainer(body.method, body.trainer)
        return body.model_copy(update=checks)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, values)}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_model(section: Mapping[str, Any]) -> dict[str, Any]:
    """The `model:` section against TRL's ModelConfig, with our `trust_remote_code` beside it."""
    own = {k: v for k, v in section.items() if k == "trust_remote_code"}
    if own and not isinstance(own["trust_remote_code"], bool):
        raise ValueError(
            f"model.trust_remote_code is {own['trust_remote_code']!r}; allowed is true or false."
        )
    checked = check_fields(
        "trl.ModelConfig", {k: v for k, v in section.items() if k not in own}, "model"
    )
    if not checked.get("model_name_or_path"):
        raise ValueError(
            "model.model_name_or_path is missing: a hub name, a path, or "
            "bundled:smollm2-135m-instruct."
        )
    return {**checked, **own}


def check_trainable(section: Mapping[str, Any]) -> None:
    """Raises ValueError for weights in 4 or 8 bits without adapters: they cannot be trained
    themselves."""
    bits = next((key for key in ("load_in_4bit", "load_in_8bit") if section.get(key)), None)
    if bits and not section.get("use_peft"):
        raise ValueError(
            f"model.{bits} is true without model.use_peft, and quantised weights cannot be "
            f"trained. Add use_peft: true to train LoRA adapters on them, or take {bits} out to "
            "train all weights."
        )


def check_trainer(method: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The `trainer:` section against the method's TRL config."""
    for key, place in MANAGED_KEYS.items():
        if key in section:
            raise ValueError(f"trainer.{key} cannot be set in a recipe; use {place} instead.")
    row = find_method(method)
    checked = check_fields(row.config, section, "trainer")
    check_sampling(checked.get("train_sampling_strategy"))
    defaults = {name: entry["default"] for name, entry in field_table(row.config).items()}
    row.check({**defaults, **checked})
    return checked


def check_sampling(strategy: str | None) -> None:
    """Raises ValueError for transformers' batches of different numbers of rows.

    Its sampler (transformers 5) begins epoch 0 anew where a run is resumed in a later one.
    """
    if strategy == "batch_rebalance":
        raise ValueError(
            "trainer.train_sampling_strategy is batch_rebalance, whose batches hold few long rows "
            "or many short ones: a pair would count by its length, and a resumed run would go on "
            "in another order. Take group_by_length or random."
        )


def explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first fault of a pydantic error, in our words."""
    fault = error.errors()[0]
    # the task is the union's tag and stands first; the data section is checked by itself and knows
    # no place
    path = [str(part) for part in fault["loc"]]
    path = ["data", *path] if data_section(error.title, values) else path[1:]
    key, section = path[-1] if path else "", ".".join(path[:-1])
    if fault["type"] == "extra_forbidden":
        return unknown_key(key, known_keys(error.title, values, path[:-1]), section)
    if fault["type"] == "missing":
        return f"{'.'.join(path)} is missing. Add it to the recipe or give it as --{'.'.join(path)}=value."
    hint = " Put it in quotes to make it text." if fault["type"] == "string_type" else ""
    return f"{'.'.join(path)} is {fault.get('input')!r}: {fault['msg']}.{hint}"


def data_section(title: str, values: Mapping[str, Any]) -> type[Section] | None:
    """The data section of the recipe's method if `title` is its name, else None."""
    if values.get("task") != "train" or "method" not in values:
        return None
    section = find_method(str(values["method"])).data
    return section if section.__name__ == title else None


def known_keys(title: str, values: Mapping[str, Any], above: Sequence[str]) -> list[str]:
    """The keys that the section at `above` may have."""
    own = data_section(title, values)
    model: Any = own or TASKS[str(values["task"])]
    for part in above[1:] if own else above:
        inner = model.model_fields.get(part)
        annotation = inner.annotation if inner is not None else None
        for option in (annotation, *get_args(annotation)):  # a section, or a section or null
            if isinstance(option, type) and issubclass(option, BaseModel):
                model = option
    return list(model.model_fields)


def describe(recipe: Recipe, *, everything: bool = False) -> list[tuple[str, Any, str]]:
    """[(dotted key, value, origin)] with origin file, override, default or auto; `everything` adds
    all of TRL's keys."""
    body = recipe.resolved()
    rows = [(key, value, recipe.origin.get(key, "default")) for key, value in dotted(body)]
    if isinstance(recipe.body, TrainRecipe):
        given = recipe.body.trainer
        rows = [row for row in rows if row[0] != "trainer"]
        rows += [
            (f"trainer.{key}", "auto", "auto (hardware)")
            for key in HARDWARE_KEYS
            if key not in given
        ]
        if "seed" not in given:
            rows.append(("trainer.seed", recipe.body.seed, "auto (seed)"))
        if everything:
            shown = {key for key, _, _ in rows}
            table = field_table(find_method(recipe.body.method).config)
            rows += [
                (f"trainer.{k}", v["default"], "default (TRL)")
                for k, v in table.items()
                if f"trainer.{k}" not in shown
            ]
    if not isinstance(recipe.body, PipelineRecipe) and "dtype" not in recipe.body.model:
        rows.append(("model.dtype", "auto", "auto (hardware)"))
    return rows
