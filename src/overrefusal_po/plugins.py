"""Names in a recipe -> plug files: a file's name in sources/, attacks/, engines/ or judges/ is its name in a recipe.

    judge = plug("judges", "refusal").judge(settings)
    prompts = read_source("starter", "test")

A user's own plug is a dotted module name (`my_package.my_source`). Nothing is registered at import.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from overrefusal_po.fields import unknown_key
from overrefusal_po.records import Prompt, Split, first_fault

ROOMS = ("sources", "attacks", "engines", "judges")
FILE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""A source that ends so is a path, short for `{name: file, path: ...}`."""

MAKERS = {"sources": "prompts", "attacks": "attacked", "engines": "engine", "judges": "judge"}
"""What a plug file of a room defines beside its `Settings`."""


def names(room: str) -> list[str]:
    """The names of a room's plug files."""
    package = importlib.import_module(f"overrefusal_po.{room}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def plain_sets() -> dict[str, str]:
    """{name: one line} of the table of plain sets; each name is a source, short for `{name: table, set: name}`."""
    sets: dict[str, str] = importlib.import_module("overrefusal_po.sources.table").aliases()
    return sets


def plug(room: str, name: str) -> ModuleType:
    """The module behind a name; ValueError with the nearest known names where there is none."""
    if "." in name:
        return own_plug(room, name)
    if name not in names(room):
        known = [*names(room), *(plain_sets() if room == "sources" else ())]
        raise ValueError(unknown_key(name, known, "", owner=room))
    return importlib.import_module(f"overrefusal_po.{room}.{name}")


def own_plug(room: str, name: str) -> ModuleType:
    """A user's module by its dotted name; ValueError where there is none, or where it is no plug of this room."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name and f"{name}.".startswith(f"{error.name}.")):
            raise  # the module is there; what it imports is not
        raise ValueError(
            f"{room}: the module {name!r} cannot be imported (there is no {error.name!r}). Install its package, or put "
            "its folder on PYTHONPATH."
        ) from None
    missing = [needed for needed in ("Settings", MAKERS.get(room)) if needed and not hasattr(module, needed)]
    if missing:
        raise ValueError(f"{room}: the module {name!r} has no {missing[0]}. See overrefusal_po/{room}/ for the form.")
    return module


def summary(room: str, name: str) -> str:
    """The first sentence of a plug file's docstring."""
    text = (plug(room, name).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())


def split_spec(spec: str | Mapping[str, Any], room: str) -> tuple[str, dict[str, Any]]:
    """(name, settings) of `name` or `{name: ..., key: value}`; a path to a JSON Lines file is the source `file`."""
    values = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = str(values.pop("name", ""))
    if not name:
        # the values may hold a key that stands in the wrong place
        raise ValueError(f"{room}: a mapping needs a `name`; got the keys {', '.join(map(str, values)) or 'none'}.")
    if room == "sources" and isinstance(spec, str) and spec.endswith(FILE_ENDINGS):
        return "file", {"path": spec}
    if room == "sources" and "." not in name and name in plain_sets():
        return "table", {"set": name, **values}
    return name, values


def settings_of(room: str, spec: str | Mapping[str, Any]) -> tuple[ModuleType, BaseModel]:
    """The plug module and its checked settings."""
    name, values = split_spec(spec, room)
    module = plug(room, name)
    try:
        settings: BaseModel = module.Settings.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{room} {name!r}: {first_fault(error)}") from None
    return module, settings


def read_source(spec: str | Mapping[str, Any], split: Split | None) -> list[Prompt]:
    """The prompts of a source in one split (sources without splits give all)."""
    module, settings = settings_of("sources", spec)
    prompts: list[Prompt] = module.prompts(settings, split)
    if not prompts:
        raise ValueError(f"The source {spec!r} has no prompts in split {split!r}.")
    return prompts


def engine_note(spec: str | Mapping[str, Any]) -> str:
    """What completions come from, in words, for the report."""
    module, settings = settings_of("engines", spec)
    text: str = module.note(settings)
    return text


def source_note(spec: str | Mapping[str, Any]) -> str | None:
    """What a reader of a number from this source has to know (contested labels, say); None where there is nothing."""
    module, settings = settings_of("sources", spec)
    text: str | None = module.note(settings) if hasattr(module, "note") else None
    return text


def make_attack(spec: str | Mapping[str, Any]) -> Callable[[Prompt], list[Prompt]]:
    """The attack behind an entry of a recipe's `attacks:`: a prompt in, its attacked forms out."""
    module, settings = settings_of("attacks", spec)
    return partial(module.attacked, settings)


def check_plugs(body: Any) -> None:
    """Raises ValueError where a recipe's body names a plug that is not there, or gives it a setting that it has not."""
    for key in ("judge", "guard"):
        if getattr(body, key, None) is not None:
            settings_of("judges", getattr(body, key))
    for part in (body, getattr(body, "chosen", None), getattr(body, "rejects", None)):
        engine = getattr(part, "engine", None)
        if engine is not None:
            settings_of("engines", engine)
    data = getattr(body, "data", None)
    for room in ("sets", "attacks"):
        for spec in getattr(data, room, ()):
            settings_of("sources" if room == "sets" else room, spec)


def make_judge(spec: str | Mapping[str, Any]) -> Any:
    """The judge behind a recipe's `judge:`."""
    module, settings = settings_of("judges", spec)
    return module.judge(settings)
