"""A checked recipe -> its keys, their values and where each came from. Imports no torch.

describe(load_recipe("recipes/dpo.yaml"))     # [("trainer.beta", 0.3, "file"), ...]
"""

from __future__ import annotations

from overrefusal_po.recipe.files import read_recipe
from overrefusal_po.recipe.load import Recipe
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.overrides import dotted
from overrefusal_po.recipe.schema import HARDWARE_KEYS, PipelineRecipe, TrainRecipe
from overrefusal_po.recipe.trl_fields import field_table

KeyRow = tuple[str, object, str]
"""(dotted key, value, origin)."""


def describe(recipe: Recipe, *, everything: bool = False) -> list[KeyRow]:
    """[(dotted key, value, origin)]; the origin is file, base, override, default or auto.

    `everything` adds all of TRL's keys.
    """
    rows: list[KeyRow] = [
        (key, value, origin_of(recipe, key)) for key, value in dotted(recipe.resolved())
    ]
    if isinstance(recipe.body, TrainRecipe):
        rows = [row for row in rows if row[0] != "trainer"]
        rows += left_open(recipe.body)
        if everything:
            shown = {key for key, _, _ in rows}
            rows += [row for row in upstream_defaults(recipe.body) if row[0] not in shown]
    if not isinstance(recipe.body, PipelineRecipe) and "dtype" not in recipe.body.model:
        rows.append(("model.dtype", "auto", "auto (hardware)"))
    return rows


def origin_of(recipe: Recipe, key: str) -> str:
    """Where a key came from. The keys of a panel may come from a list under `judge`."""
    above, _, _ = key.rpartition(".")
    from_list = recipe.origin.get(above) if above.split(".")[-1] == "judge" else None
    return recipe.origin.get(key) or from_list or "default"


def left_open(body: TrainRecipe) -> list[KeyRow]:
    """The trainer keys that the recipe leaves to the hardware and to its seed."""
    rows: list[KeyRow] = [
        (f"trainer.{key}", "auto", "auto (hardware)")
        for key in HARDWARE_KEYS
        if key not in body.trainer
    ]
    if "seed" not in body.trainer:
        rows.append(("trainer.seed", body.seed, "auto (seed)"))
    return rows


def upstream_defaults(body: TrainRecipe) -> list[KeyRow]:
    """Every trainer key with TRL's default."""
    table = field_table(find_method(body.method).config)
    return [(f"trainer.{key}", row["default"], "default (TRL)") for key, row in table.items()]


def stage_origins(recipe: Recipe, name: str) -> dict[str, str]:
    """{key: where it came from} of one stage of a pipeline; the stage's own file counts too."""
    assert isinstance(recipe.body, PipelineRecipe)
    above = f"stages.{name}."
    known = {k.removeprefix(above): v for k, v in recipe.origin.items() if k.startswith(above)}
    given = recipe.body.stages[name]
    own = read_recipe(recipe.folder / str(given["recipe"])).origin if "recipe" in given else {}
    inherited = {f"model.{key}": "pipeline" for key in recipe.body.model}
    shared = {"seed": recipe.body.seed, "judge": recipe.body.judge}
    inherited |= {key: "pipeline" for key, value in shared.items() if value is not None}
    return {**own, **inherited, **known}
