"""File + overrides -> a checked, frozen recipe. Imports neither torch nor transformers.

    recipe = load_recipe("recipes/dpo.yaml", ["--trainer.beta=0.2", "seed=3"])
    recipe.body.trainer["beta"], recipe.origin["trainer.beta"]      # 0.2, "override"

`model:` and `trainer:` hold TRL keys (ModelConfig and the method config), checked against TRL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from overrefusal_po.recipe.elsewhere import elsewhere
from overrefusal_po.recipe.faults import fault_text, unknown_of
from overrefusal_po.recipe.files import in_words, read_recipe
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.methods import check_plain_model, check_weights, find_method
from overrefusal_po.recipe.model_names import OWN_MODEL_KEYS, override_key
from overrefusal_po.recipe.overrides import Values, parse_overrides, set_dotted
from overrefusal_po.recipe.reading import SEED_MAX
from overrefusal_po.recipe.rounds import Repeats, round_origins, with_rounds
from overrefusal_po.recipe.schema import (
    MANAGED_KEYS,
    TASKS,
    Body,
    EvaluateRecipe,
    PipelineRecipe,
    TrainRecipe,
)
from overrefusal_po.recipe.search import checked_search
from overrefusal_po.recipe.secrets import check_no_secret
from overrefusal_po.recipe.sections import PairsData
from overrefusal_po.recipe.tamper import check_defences
from overrefusal_po.recipe.trl_fields import check_fields, field_table
from overrefusal_po.recipe.words import UnknownKey

_BODY: TypeAdapter[Body] = TypeAdapter(Annotated[Body, Field(discriminator="task")])


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: its body, its name (the file's stem), and where each dotted key came
    from. `repeats`: what a pipeline's `rounds` repeats; its stages have all rounds written out."""

    name: str
    body: Body
    origin: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    repeats: Repeats = field(default_factory=Repeats)

    def resolved(self) -> Values:
        """The body as plain data, defaults included."""
        return self.body.model_dump(mode="json")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe. ValueError for everything that a user can fix."""
    file = Path(path)
    given = read_recipe(file)
    origin = dict(given.origin)
    for key, value in parse_overrides(overrides):
        if key == "base":
            raise ValueError(f"{file}: base can only stand in a file, not in an override.")
        key = override_key(key, value)
        check_stage_key(key, given.values)
        set_dotted(given.values, key, value)
        origin[key] = "override"
    body = check_body(given.values, in_words(given.chain))
    if isinstance(body, PipelineRecipe):
        return pipeline_recipe(file, body, origin)
    return Recipe(file.stem, body, origin, file.parent)


def check_stage_key(key: str, values: Mapping[str, object]) -> None:
    """Raises ValueError for an override of a pipeline that names a stage's key without the stage,
    and names the stages that may be meant."""
    first = key.partition(".")[0]
    stages = values.get("stages")
    if values.get("task") != "pipeline" or not isinstance(stages, Mapping):
        return
    known = {name for task in TASKS.values() for name in task.model_fields}
    if first in PipelineRecipe.model_fields or first not in {*known, *stages}:
        return
    meant = [f"stages.{key}"] if first in stages else []
    meant = meant or [
        f"stages.{name}.{key}"
        for name, stage in stages.items()
        if isinstance(stage, Mapping) and first in stage
    ]
    hint = f" Did you mean --{' or --'.join(meant)}?" if meant else ""
    raise ValueError(
        f"--{key}: {first} is no key of a pipeline. A key of a stage begins with stages.STAGE; the "
        f"stages are {', '.join(stages)}.{hint}"
    )


def pipeline_recipe(file: Path, body: PipelineRecipe, origin: Mapping[str, str]) -> Recipe:
    """A pipeline with its rounds written out as stages. ValueError names the file."""
    try:
        found = with_rounds(body.stages, body.rounds, file.parent)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    whole = body.model_copy(update={"stages": found.stages})
    return Recipe(file.stem, whole, round_origins(origin, found), file.parent, found.repeats)


def check_body(values: Mapping[str, object], where: str | Path) -> Body:
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
    check_numbers(values, where)
    check_no_secret(values, where)
    try:
        body = _BODY.validate_python(values)
        if isinstance(body, PipelineRecipe):
            return body
        checks: Values = {"model": check_model(body.model)}
        if isinstance(body, EvaluateRecipe) and body.tamper is not None:
            check_defences(body.tamper)
        if isinstance(body, FitRecipe) and body.reference is not None:
            checks["reference"] = check_model(body.reference, "reference")
        if isinstance(body, TrainRecipe):
            check_plain_model(body.method, checks["model"])
            check_trainable(checks["model"])
            checks |= checked_training(body)
            checks["search"] = checked_search(body.model_copy(update=checks), checked_training)
        return body.model_copy(update=checks)
    except ValidationError as error:
        place = elsewhere(unknown_of(error), values)
        raise ValueError(f"{where}: {fault_text(error, values)}{place}") from None
    except UnknownKey as error:
        raise ValueError(f"{where}: {error}{elsewhere(error.key, values)}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_numbers(value: object, where: str | Path, key: str = "") -> None:
    """Raises ValueError for a number in a recipe that is infinite or NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {key} is {value}; allowed is a finite number.")
    inner: Mapping[Any, object] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list | tuple):
        inner = dict(enumerate(value))
    for name, one in inner.items():
        check_numbers(one, where, f"{key}.{name}" if key else str(name))


def checked_training(body: TrainRecipe) -> Values:
    """`data` and `trainer` of a training, as its method takes them."""
    data, trainer = body.typed_data, check_trainer(body.method, body.trainer)
    if isinstance(data, PairsData):
        stored = body.speed.reference_store
        check_weights(body.method, data.weights, trainer, reference_store=stored)
    return {"data": data.model_dump(mode="json"), "trainer": trainer}


def check_model(section: Mapping[str, object], key: str = "model") -> Values:
    """The `model:` section against TRL's ModelConfig, with our own keys beside it; `key` is another
    section's."""
    own = {name: value for name, value in section.items() if name in OWN_MODEL_KEYS}
    if not isinstance(trust := own.get("trust_remote_code", False), bool):
        raise ValueError(f"{key}.trust_remote_code is {trust!r}; allowed is true or false.")
    remedy = own.pop("remedy", None)
    if remedy is not None and (not isinstance(remedy, str) or not remedy):
        raise ValueError(
            f"{key}.remedy is {remedy!r}; allowed is the folder remedy/ of a fit run, as text."
        )
    checked = check_fields(
        "trl.ModelConfig", {k: v for k, v in section.items() if k not in OWN_MODEL_KEYS}, key
    )
    if not checked.get("model_name_or_path"):
        raise ValueError(
            f"{key}.model_name_or_path is missing: a hub name, a path, or "
            "bundled:smollm2-135m-instruct."
        )
    # a recipe without a remedy keeps the key of its run
    return {**checked, **own} if remedy is None else {**checked, **own, "remedy": remedy}


def check_trainable(section: Mapping[str, object]) -> None:
    """Raises ValueError for a remedy, which no training changes, and for weights in 4 or 8 bits
    without adapters, which cannot be trained."""
    if section.get("remedy"):
        raise ValueError(
            f"model.remedy is {section['remedy']}, and a training changes weights alone, not a "
            "remedy beside them. Fit the remedy after the training. Or take a remedy that becomes "
            "weights: train the folder model/ beside its remedy/ (model.model_name_or_path)."
        )
    bits = next((key for key in ("load_in_4bit", "load_in_8bit") if section.get(key)), None)
    if bits and not section.get("use_peft"):
        raise ValueError(
            f"model.{bits} is true without model.use_peft, and quantised weights cannot be "
            f"trained. Add use_peft: true to train LoRA adapters on them, or take {bits} out to "
            "train all weights."
        )


def check_trainer(method: str, section: Mapping[str, object]) -> Values:
    """The `trainer:` section against the method's TRL config."""
    for key, place in MANAGED_KEYS.items():
        if key in section:
            raise ValueError(f"trainer.{key} cannot be set in a recipe; use {place} instead.")
    row = find_method(method)
    checked = check_fields(row.config, section, "trainer")
    check_sampling(checked.get("train_sampling_strategy"))
    defaults = {name: entry["default"] for name, entry in field_table(row.config).items()}
    check_learns({**defaults, **checked})
    row.check({**defaults, **checked})
    return checked


def check_learns(trainer: Mapping[str, Any]) -> None:
    """Raises ValueError for settings with which nothing would be learned, and for a seed that
    transformers does not take."""
    rate, epochs = trainer.get("learning_rate"), trainer.get("num_train_epochs")
    if rate is not None and rate <= 0:
        raise ValueError(
            f"trainer.learning_rate is {rate!r}, and no weight would change. Give a number above 0."
        )
    if epochs is not None and epochs <= 0 and (trainer.get("max_steps") or 0) <= 0:
        raise ValueError(
            f"trainer.num_train_epochs is {epochs!r}, and nothing would be trained. Give a number "
            "above 0, or trainer.max_steps."
        )
    for key in ("seed", "data_seed"):
        if not 0 <= (trainer.get(key) or 0) <= SEED_MAX:
            raise ValueError(
                f"trainer.{key} is {trainer[key]}; allowed is a whole number from 0 to {SEED_MAX}."
            )


def check_sampling(strategy: str | None) -> None:
    """Raises ValueError for transformers' batches of different numbers of rows.

    Its sampler (transformers 5) starts epoch 0 again when a run is resumed in a later one.
    """
    if strategy == "batch_rebalance":
        raise ValueError(
            "trainer.train_sampling_strategy is batch_rebalance. Its batches hold few long rows or "
            "many short ones: a pair would count by its length, and a resumed run would go on in "
            "another order. Take group_by_length or random."
        )
