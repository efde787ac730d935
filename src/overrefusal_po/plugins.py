"""Names in a recipe -> plug files: a file's name in sources/, attacks/, engines/, judges/ or
remedies/ is its name in a recipe.

    judge = make_judge("refusal")
    plug, settings = find_plug("judges", {"name": "guard", "model_name_or_path": "my/guard"})

A user's own plug is a dotted module name (`my_package.my_source`). An installed package may name
its plugs by entry points, in a group for each room (`overrefusal_po.sources`):

    [project.entry-points."overrefusal_po.judges"]
    mine = "my_package.my_judge"

Nothing is registered at import. What a plug file defines is checked when it is found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from overrefusal_po.attacks import Attack, AttackPlug, SearchPlug, SearchSettings
from overrefusal_po.judges import Judge, JudgePlug, SecondKey, refusal_judge, second_judge
from overrefusal_po.recipe.panels import JudgesGiven, panel_spec
from overrefusal_po.recipe.reading import FILE_ENDINGS as FILE_ENDINGS
from overrefusal_po.recipe.words import settings_fault, unknown_name
from overrefusal_po.sources import SourcePlug

Room = Literal["sources", "attacks", "engines", "judges", "remedies"]
ROOMS: tuple[Room, ...] = get_args(Room)
KINDS: dict[Room, str] = {room: room.removesuffix("s") for room in ROOMS} | {"remedies": "remedy"}
"""What one plug of a room is."""

# Any: a setting may be any value that YAML has
PlugSpec = str | Mapping[str, Any]
"""A plug in a recipe: its name, or {name: ..., key: value}."""

OTHER_FILES = (".xlsx", ".xls", ".ods", ".txt", ".md", ".yaml", ".yml", ".gz", ".zip", ".zst")
"""Endings of files that are often given as a source, and that no source reads."""

S = TypeVar("S", bound=BaseModel)

FUNCTIONS: dict[Room, tuple[str, ...]] = {
    "sources": ("prompts", "triples", "pairs", "responses"),
    "attacks": ("attacked", "search"),
    "engines": ("engine",),
    "judges": ("judge",),
    "remedies": ("fit",),
}
"""The functions of a room's plugs. A plug file defines one of them at least, beside `Settings`."""


class Common(BaseModel):
    """What every source takes beside its own settings (a source's own setting of the same name
    comes first)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max: int | None = Field(default=None, gt=0)
    """A fixed subset (by content hash) of this many rows; None takes all."""
    without_benchmarks: bool = False
    """Leave out what the benchmark firewall knows. Training on a public set needs that."""


class FoundPlug(NamedTuple):
    """A plug as a recipe names it: its module and its checked settings."""

    module: ModuleType
    settings: BaseModel


class FoundSource(NamedTuple):
    """A source as a recipe names it; `common` are the settings that all sources take."""

    module: SourcePlug
    settings: BaseModel
    common: Common


class FoundSearch(NamedTuple):
    """An attack that searches with models, as a recipe names it."""

    name: str
    module: SearchPlug
    settings: SearchSettings


# --- names ----------------------------------------------------------------------------------------


def names(room: Room) -> list[str]:
    """The names of a room's plugs: its files, and what installed packages bring."""
    return sorted({*plug_files(room), *installed_plugs(room)})


def plug_files(room: Room) -> list[str]:
    """The names of a room's plug files."""
    package = importlib.import_module(f"overrefusal_po.{room}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return [name for name in found if not name.startswith("_")]


def installed_plugs(room: Room) -> dict[str, importlib.metadata.EntryPoint]:
    """{name: entry point} of the plugs that other installed packages bring."""
    points = importlib.metadata.entry_points(group=f"overrefusal_po.{room}")
    return {point.name: point for point in points}


def plain_sets() -> dict[str, str]:
    """{name: one line} of the table of plain sets; each name is a source, short for `{name: table,
    set: name}`."""
    sets: dict[str, str] = importlib.import_module("overrefusal_po.sources.table").aliases()
    return sets


def plug(room: Room, name: str) -> ModuleType:
    """The checked module behind a name: a file of the room, then an installed plug, then a dotted
    module name.

    Raises ValueError with the nearest known names if there is none, and if a plug's module lacks
    what it must define.
    """
    if name in plug_files(room):
        return checked_plug(room, importlib.import_module(f"overrefusal_po.{room}.{name}"))
    installed = installed_plugs(room)
    if name in installed:
        return imported_plug(room, installed[name].module)
    if room == "sources" and ("/" in name or name.lower().endswith(OTHER_FILES)):
        raise ValueError(
            f"sources: {name!r} is no file of rows. A file ends in {', '.join(FILE_ENDINGS)}. "
            "A set of the hub is {name: hub, repo: OWNER/NAME}."
        )
    if "." in name:
        return imported_plug(room, name)
    known = [*names(room), *(plain_sets() if room == "sources" else ())]
    raise ValueError(unknown_name(name, known, KINDS[room]))


def imported_plug(room: Room, name: str) -> ModuleType:
    """The checked module of another package by its dotted name; ValueError if there is none."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name and f"{name}.".startswith(f"{error.name}.")):
            raise  # the module is there; what it imports is not
        raise ValueError(
            f"{room}: the module {name!r} cannot be imported (there is no {error.name!r}). Install "
            "its package, or put its folder on PYTHONPATH."
        ) from None
    return checked_plug(room, module)


def checked_plug(room: Room, module: ModuleType) -> ModuleType:
    """`module` if it defines what a plug of the room must define; else ValueError that says what is
    missing."""
    wanted = " or ".join(FUNCTIONS[room])
    settings = getattr(module, "Settings", None)
    given = [name for name in FUNCTIONS[room] if hasattr(module, name)]
    fault = ""
    if settings is None:
        fault = "has no Settings"
    elif not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        fault = "has Settings that are no pydantic model"
    elif not given:
        fault = f"has no function {wanted}"
    elif not all(callable(getattr(module, name)) for name in given):
        fault = f"has a {' and a '.join(given)} that cannot be called"
    if fault:
        raise ValueError(
            f"{room}: the module {module.__name__!r} {fault}. A plug file defines Settings, a "
            f"pydantic model, and {wanted}; docs/extend.md shows one."
        )
    return module


def summary(room: Room, name: str) -> str:
    """The first sentence of a plug file's docstring."""
    text = (plug(room, name).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())


# --- names and settings ---------------------------------------------------------------------------


def split_spec(spec: PlugSpec, room: Room) -> tuple[str, dict[str, Any]]:
    """(name, settings) of `name` or `{name: ..., key: value}`; a path to a file of rows is the
    source `file`."""
    values = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = str(values.pop("name", ""))
    if not name:
        # the values may hold a key that stands in the wrong place
        raise ValueError(
            f"{room}: a mapping needs a `name`; got the keys "
            f"{', '.join(map(str, values)) or 'none'}."
        )
    if room == "sources" and isinstance(spec, str) and spec.lower().endswith(FILE_ENDINGS):
        return "file", {"path": spec}
    if room == "sources" and "." not in name and name in plain_sets():
        return "table", {"set": name, **values}
    return name, values


def find_plug(room: Room, spec: PlugSpec) -> FoundPlug:
    """The plug behind an entry of a recipe; ValueError for a name or a setting that is not
    there."""
    if room == "sources":
        module, settings, _ = find_source(spec)
        return FoundPlug(cast(ModuleType, module), settings)
    name, values = split_spec(spec, room)
    found = plug(room, name)
    return FoundPlug(found, checked_plug_settings(found.Settings, values, f"{room} {name!r}"))


def find_source(spec: PlugSpec) -> FoundSource:
    """The source behind an entry of a recipe; ValueError for a name or a setting that is not
    there."""
    name, values = split_spec(spec, "sources")
    module = cast(SourcePlug, plug("sources", name))
    shared = set(Common.model_fields) - set(module.Settings.model_fields)
    own = {key: value for key, value in values.items() if key not in shared}
    common = {key: value for key, value in values.items() if key in shared}
    where = f"sources {name!r}"
    settings = checked_plug_settings(module.Settings, own, where)
    return FoundSource(module, settings, checked_plug_settings(Common, common, where))


def checked_plug_settings(settings: type[S], values: Mapping[str, object], where: str) -> S:
    """`values` as settings; ValueError names `where` and the first fault."""
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {settings_fault(error, settings)}") from None


# --- what plugs give ------------------------------------------------------------------------------


def engine_note(spec: PlugSpec) -> str:
    """What completions come from, in words, for the report."""
    module, settings = find_plug("engines", spec)
    text: str = module.note(settings)
    return text


def model_words(spec: PlugSpec) -> str | None:
    """What answers beside the recipe's `model:`, in words (an adapter); None if nothing does."""
    module, settings = find_plug("engines", spec)
    return module.model_words(settings) if hasattr(module, "model_words") else None


def check_engine(spec: PlugSpec) -> None:
    """Raises ValueError if something that an engine needs is missing (a key, say). No weight is
    loaded."""
    module, settings = find_plug("engines", spec)
    if hasattr(module, "check"):
        module.check(settings)


def source_note(spec: PlugSpec) -> str | None:
    """What a reader of a number from this source has to know (contested labels, say); None if there
    is nothing."""
    source, settings, _ = find_source(spec)
    return source.note(settings) if hasattr(source, "note") else None


def set_name(spec: PlugSpec) -> str:
    """`contrasts (hands [10])`: a source as its recipe names it; of a file its path."""
    if isinstance(spec, str):
        return spec
    more = ", ".join(f"{key} {value}" for key, value in spec.items() if key not in ("name", "path"))
    name = str(spec.get("path") or spec["name"])
    return f"{name} ({more})" if more else name


def make_attack(spec: PlugSpec) -> Attack:
    """The attack behind an entry of a recipe's `attacks:`."""
    module, settings = find_plug("attacks", spec)
    return partial(cast(AttackPlug, module).attacked, settings)


def find_search(spec: PlugSpec) -> FoundSearch | None:
    """The search behind an entry of a recipe's `attacks:`; None for an attack that needs no
    model."""
    module, settings = find_plug("attacks", spec)
    if not hasattr(module, "search"):
        return None
    missing = [name for name in ("helpers", "cost", "version") if not hasattr(module, name)]
    if missing or not isinstance(settings, SearchSettings):
        lack = f"no {missing[0]}()" if missing else "Settings that are no SearchSettings"
        raise ValueError(
            f"attacks: the module {module.__name__!r} has a search() and {lack}. "
            "overrefusal_po/attacks/__init__.py says what a search defines."
        )
    name, _ = split_spec(spec, "attacks")
    return FoundSearch(name, cast(SearchPlug, module), settings)


def make_judge(spec: JudgesGiven) -> Judge:
    """The judge behind a recipe's `judge:`, ready to score; of a list, the panel. ValueError if
    something that it needs is missing."""
    found = built_judge(spec)
    if hasattr(found, "check"):
        found.check()
    return found


def make_refusal_judge(spec: JudgesGiven) -> Judge:
    """`make_judge` for a recipe's `judge:`. ValueError for a judge that never says what refuses."""
    return refusal_judge(make_judge(spec))


def make_second_judge(spec: PlugSpec, key: SecondKey) -> Judge:
    """`make_judge` for a recipe's `guard:` or `reward:`. ValueError for a judge that never says
    what the key is for."""
    return second_judge(make_judge(spec), key)


def built_judge(spec: JudgesGiven) -> Judge:
    """The judge with its name and version, also if something that it needs for scoring is missing
    (a key, say)."""
    module, settings = find_plug("judges", panel_spec(spec))
    return checked_judge(cast(JudgePlug, module).judge(settings), module.__name__)


def checked_judge(judge: Judge, module: str) -> Judge:
    """`judge` if it is one; else ValueError that says what the judge of this module lacks."""
    lacks = [
        name for name in ("name", "version") if not isinstance(getattr(judge, name, None), str)
    ]
    lacks += [] if callable(getattr(judge, "score", None)) else ["score"]
    if lacks:
        raise ValueError(
            f"judges: what judge(settings) of {module!r} returns has no {' and no '.join(lacks)}. "
            "A judge has name and version, which are texts, and score(prompts, completions); "
            "docs/extend.md shows one."
        )
    return judge
