"""A recipe's body -> every plug that it names, checked before anything runs.

check_plugs(recipe.body)      # ValueError: data.attacks: ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from overrefusal_po.engines._openai_setup import ServerSettings, read_api_key
from overrefusal_po.plugins import (
    FILE_ENDINGS,
    FoundPlug,
    PlugSpec,
    Room,
    find_plug,
    find_search,
    split_spec,
)
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.panels import panel_members


class NamedPlug(NamedTuple):
    """A plug that a recipe names: the recipe's key, the room, and the entry."""

    key: str
    room: Room
    spec: PlugSpec


def check_plugs(body: BaseModel, above: str = "") -> None:
    """Raises ValueError if a recipe's body names a plug that is not there, or gives it a setting
    that it does not have; and for what a fit cannot do. `above` stands before the key that the
    error names."""
    for key, room, spec in named_plugs(body):
        try:
            find_plug(room, spec)
        except ValueError as error:
            said = str(error)  # it may begin with the room and the name: `remedies 'dial': ...`
            own = said.removeprefix(f"{room} '")
            words = f"{key}: {said}" if own == said else f"{key} '{own}"
            raise ValueError(f"{above}{words}") from None
    if isinstance(body, FitRecipe):
        try:
            check_fit(body)
        except ValueError as error:
            raise ValueError(f"{above}{error}") from None


def check_fit(recipe: FitRecipe) -> None:
    """Raises ValueError for what a fit cannot do, as its recipe alone shows."""
    module, _ = find_plug("remedies", recipe.remedy)
    name, _ = split_spec(recipe.remedy, "remedies")
    if recipe.generation.temperature > 0:
        raise ValueError(
            f"generation.temperature is {recipe.generation.temperature:g}, and a fit measures "
            "greedily: drawn responses would choose by luck. Take it out."
        )
    for key, section in recipe.models.items():
        if section.get("remedy"):
            raise ValueError(
                f"{key}.remedy is {section['remedy']!r}, and a remedy is fitted on a model without "
                "one. Take it out."
            )
    if getattr(module, "NEEDS_REFERENCE", False) and recipe.reference is None:
        raise ValueError(
            f"remedy {name} compares the model with the one before its safety training. Name that "
            "one: reference: {model_name_or_path: NAME}."
        )


def named_plugs(body: BaseModel) -> Iterator[NamedPlug]:
    """Every plug that a recipe's body names; a panel comes before its members."""
    looks = [(f"{key}.", getattr(body, key, None)) for key in ("select", "hold")]
    if getattr(body, "remedy", None) is not None:
        yield NamedPlug("remedy", "remedies", body.remedy)  # type: ignore[attr-defined]
    judging = [("", body, key) for key in ("judge", "guard", "reward")]
    for above, part, key in [*judging, *((above, part, "judge") for above, part in looks)]:
        if getattr(part, key, None) is not None:
            place, spec = f"{above}{key}", getattr(part, key)
            yield NamedPlug(place, "judges", spec)
            for below, member in panel_members(spec):
                yield NamedPlug(f"{place}.{below}", "judges", member)
    for above in ("", "chosen.", "rejects."):
        engine = getattr(getattr(body, above[:-1], None) if above else body, "engine", None)
        if engine is not None:
            yield NamedPlug(f"{above}engine", "engines", engine)
    data = getattr(body, "typed_data", None) or getattr(body, "data", None)
    for spec in getattr(data, "attacks", ()):
        yield NamedPlug("data.attacks", "attacks", spec)
        if (search := find_search(spec)) is not None:
            for role, helper in search.module.helpers(search.settings).items():
                place = f"data.attacks.{search.name}.{role}.engine"
                yield NamedPlug(place, "engines", helper.engine)
    lists = [(data, "data.sets"), (data, "data.helpful_from")]
    lists.append((getattr(data, "choose", None), "data.choose.sets"))
    for part, key in [*lists, *((part, f"{above}sets") for above, part in looks)]:
        for spec in getattr(part, key.rpartition(".")[2], ()):
            yield NamedPlug(key, "sources", spec)
    if (tamper := getattr(body, "tamper", None)) is not None:
        yield NamedPlug("tamper.source", "sources", tamper.source)
    for key in ("triples", "ask", "prompts", "benign", "harmful", "ordinary", "pairs"):
        spec = getattr(data, key, None)
        for one in spec if isinstance(spec, tuple) else (spec,):
            if one is not None and not is_elsewhere(one, pairs=key == "pairs"):
                yield NamedPlug(f"data.{key}", "sources", one)


def named_engines(body: BaseModel) -> Iterator[tuple[str, FoundPlug]]:
    """(dotted key, plug) of every engine that a recipe's body names."""
    for key, room, spec in named_plugs(body):
        if room == "engines":
            yield key, find_plug(room, spec)


def engine_inputs(body: BaseModel) -> dict[str, str]:
    """{dotted key: hash of its content} of what a recipe's engines read beside its model."""
    found: dict[str, str] = {}
    for key, (module, settings) in named_engines(body):
        read = module.inputs(settings) if hasattr(module, "inputs") else {}
        found |= {f"{key}.{name}": known for name, known in read.items()}
    return found


def engine_lines(body: BaseModel) -> list[str]:
    """What `check` says of a recipe's engines. ValueError for a fault that an engine finds."""
    lines = [
        module.check_line(settings)
        for _, (module, settings) in named_engines(body)
        if hasattr(module, "check_line")
    ]
    return [line for line in lines if line is not None]


def check_keys(body: BaseModel) -> None:
    """Raises ValueError if the key of a server that a recipe's engines ask is not there."""
    for _, (_, settings) in named_engines(body):
        if isinstance(settings, ServerSettings):
            read_api_key(settings)


def is_elsewhere(spec: PlugSpec, *, pairs: bool) -> bool:
    """Whether an entry is no plug: an output of another stage (`@...`), or a place of pairs."""
    if not isinstance(spec, str):
        return False
    return spec.startswith("@") or (pairs and not may_be_name(spec))


def may_be_name(text: str) -> bool:
    """Whether a text can be the name of something: it is no path, and nothing here has it."""
    is_path = "/" in text or "\\" in text or text.endswith(FILE_ENDINGS)
    return not is_path and not os.path.exists(text)  # noqa: PTH110 (no OSError for a long text)
