"""The trainer's settings: TRL's config object from a mapping or a recipe.

    trainer_config(DPOConfig, {"learning_rate": 5e-6})     # what hardware decides is filled in
    full_settings(recipe)["per_device_train_batch_size"]   # TRL's defaults filled in, no TRL import

TRL's keys are passed through: they are never renamed or given other defaults here.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from overrefusal_po.model.load import check_world, has_bf16, has_cuda
from overrefusal_po.model.sharding import check_unsplit, wants_deepspeed
from overrefusal_po.model.zero import check_deepspeed, cpu_settings, joining
from overrefusal_po.recipe.load import check_sampling
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.trl_fields import checked_value, field_table, schema_of
from overrefusal_po.recipe.words import unknown_key

C = TypeVar("C")
Settings = Mapping[str, Any]
"""Keys of a TRL config; `Any`, since TRL's dataclasses type each of some 150 keys."""

PLAIN = (str, int, float, bool)
"""Types of values that a mapping of TRL's keys is checked for; TRL's config knows its objects."""


def trainer_config(cls: type[C], args: C | Settings | None) -> C:
    """`args` as a TRL config object; what a mapping leaves open and hardware decides is filled in.

    Raises ValueError for another type, an unknown key, a text, number or switch that the key cannot
    have, or settings that are refused: a sampling strategy, and layers or rows that are split over
    devices.
    """
    if isinstance(args, cls):
        check_unsplit(vars(args))
        check_sampling(getattr(args, "train_sampling_strategy", None))
        return args
    if args is not None and not isinstance(args, Mapping):
        wanted = f"{cls.__module__}.{cls.__name__}"
        raise ValueError(
            f"args must be a {wanted}, a mapping of its keys or None; got {type(args).__name__}."
        )
    given = dict(args or {})
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise ValueError(unknown_key(name, list(known), "", owner=cls.__name__))
        if type(value) in PLAIN:
            checked_value(schema_of(known[name]), value, f"args: {name}")
    check_unsplit(given)
    check_sampling(given.get("train_sampling_strategy"))
    if wants_deepspeed(given):
        check_deepspeed(given, {})  # a loaded model is checked by its stage
        with joining(given):
            check_world(use_cpu=False, timeout_seconds=given.get("ddp_timeout", 1800))
    return cls(**{**hardware_settings(given), **given})


def hardware_settings(given: Settings) -> dict[str, Any]:
    """The trainer keys that hardware decides; TRL's own defaults raise on a CPU."""
    if has_cuda() and not given.get("use_cpu"):
        return {"bf16": has_bf16(), "gradient_checkpointing": True}
    if wants_deepspeed(given):
        return cpu_settings()
    return {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def full_settings(recipe: TrainRecipe) -> dict[str, Any]:
    """Every trainer setting of a recipe: its own, what hardware decides, and TRL's defaults."""
    table = field_table(find_method(recipe.method).config)
    defaults = {name: row["default"] for name, row in table.items()}
    own = {**hardware_settings(recipe.trainer), **recipe.trainer}
    return {**defaults, "seed": recipe.seed, **own}


def method_config(recipe: TrainRecipe, settings: Settings) -> Any:
    """The config object of the recipe's method, of the class that its row names.

    Raises ValueError for settings that TRL itself refuses together.
    """
    module, _, name = find_method(recipe.method).config.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return trainer_config(cls, {"seed": recipe.seed, **settings})
