"""The model that an adapter was trained on -> whether it is one of the models that are named.

    is_base("Qwen/Qwen3-8B", ["/data/models/Qwen3-8B"])           # True, as far as names tell
    ancestors("runs/dpo-1a2b/model")     # that, and the models that it was trained from
    warn_other_base("runs/dpo/adapter", config, "runs/derta/model")

Reads configs and recipes of runs, and no weights.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from overrefusal_po.model.adapter_config import CONFIG
from overrefusal_po.model.bundled import public_base
from overrefusal_po.recipe.model_names import own_name
from overrefusal_po.records import read_state

logger = logging.getLogger(__name__)

SAYS_NOTHING = ("model", "")
"""Last parts of a model's path that name no model."""

LONGEST_LINE = 20
"""Trainings in a row that are looked through; a folder made by hand might form a ring."""


def is_base(base: str, names: Iterable[str]) -> bool:
    """Whether an adapter's base is one of these names or paths of models, as far as names tell.

    A hub's name and a path that ends in it are the same. An adapter that names no base fits all.
    """
    known = [name for name in names if name]
    return not base or not known or any(is_one(base, name) for name in known)


def is_one(one: str, other: str) -> bool:
    """Whether two names or paths are one model, as far as names tell."""
    return (
        one == other
        or own_name(one).casefold() == own_name(other).casefold()
        or (last_part(one) == last_part(other) and last_part(one) not in SAYS_NOTHING)
    )


def last_part(name: str) -> str:
    """The last part of a model's name or path, in lower case."""
    return own_name(name).rpartition("/")[2].casefold()


# Any: a config of peft's
def warn_other_base(path: str, config: Mapping[str, Any], model: str) -> None:
    """Logs a warning if an adapter says that it was trained on another model than `model`, and on
    none that `model` was trained from. `path` is the adapter's folder."""
    base = str(config.get("base_model_name_or_path") or "")
    if not base or not model or any(is_same_here(base, name) for name in ancestors(model)):
        return
    logger.warning(
        "%s was trained on %s, and it is put on %s. If these are two models, what it adds is wrong "
        "here, though its shapes fit: give an adapter of the model. If they are one under two "
        "names, nothing is wrong.",
        path,
        public_base(base),
        public_base(model),
    )


def is_same_here(one: str, other: str) -> bool:
    """Whether two names are one model: by their public names, and if both are folders here by
    their places."""
    first, second = public_base(one), public_base(other)
    places = Path(first).expanduser(), Path(second).expanduser()
    if first != second and all(place.is_dir() for place in places):
        return places[0].resolve() == places[1].resolve()
    return is_one(first, second)


def ancestors(model: str) -> list[str]:
    """A model, and what it was trained from: a run folder's model names its start in recipe.yaml,
    or in the adapter beside it."""
    found = [model]
    for name in found:
        folder = Path(name).expanduser()
        starts = starts_of(folder.parent) if folder.name == "model" and folder.is_dir() else []
        found += [start for start in starts if start not in found and len(found) < LONGEST_LINE]
    return found


def starts_of(run: Path) -> list[str]:
    """The models that a run folder says its own was made from; empty if it does not say."""
    starts = []
    with contextlib.suppress(OSError, ValueError):  # no adapter beside it, or one that is damaged
        starts.append(read_state(run / "adapter" / CONFIG).get("base_model_name_or_path"))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        starts.append(recipe["model"]["model_name_or_path"])
    return [str(start) for start in starts if start]
