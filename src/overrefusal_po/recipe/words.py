"""Words for keys and values: the nearest known key, the kind of a value, a JSON schema in words.

unknown_key("betta", ["beta"], "trainer")     # "... Did you mean beta?"
allowed({"type": "integer", "minimum": 1})    # "a whole number of at least 1"
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from overrefusal_po.json_files import first_fault, is_too_long

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Any: a JSON schema's keywords hold numbers, texts, lists and further schemas
JsonSchema = Mapping[str, Any]
"""A JSON schema, or a part of one."""

TYPE_WORDS = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
"""The types of JSON in words."""

BOUND_WORDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}
"""The bounds of JSON schemas in words."""

VALUE_WORDS: dict[type, str] = {
    bool: "true/false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "mapping",
}
"""What a value is, in words."""


NEAR = 0.7
"""How alike a name and a known one have to be (difflib's ratio): one wrong letter of four. Below
it the nearest name is mostly another thing."""


class UnknownKey(ValueError):
    """A section of a recipe has no such key."""

    def __init__(self, words: str, key: str) -> None:
        """`key`: without its section."""
        super().__init__(words)
        self.key = key


def check_is_path(word: str, commands: Iterable[str]) -> None:
    """Raises ValueError, with the commands, for a first word that is no command and looks like no
    path of a recipe."""
    if (not is_too_long(Path(word)) and Path(word).exists()) or re.search(r"[./\\]", word):
        return
    known = sorted(commands)
    raise ValueError(
        f"{word!r} is neither a command nor the path of a recipe. The commands are "
        f"{', '.join(known)}.{nearest(word, known)} A recipe is a .yaml file; overrefusal-po init "
        "copies the shipped ones."
    )


def unknown_key(name: str, known: Iterable[str], section: str, *, owner: str = "") -> str:
    """The error text for a key that is not known: names the nearest ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=NEAR)
    place = f"{section}.{name}" if section else name
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else f"Known keys: {first_of(sorted(known))}."
    )
    return f"{place} is not a known key{f' of {owner}' if owner else ''}. {hint}"


def first_of(known: Sequence[str], most: int = 40) -> str:
    """The names in a line: the first ones, and how many more there are."""
    more = len(known) - most
    return ", ".join([*known[:most], *([f"and {more} more"] if more > 0 else [])])


def unknown_name(name: str, known: Iterable[str], kind: str) -> str:
    """The error text for a name that no plug has: names the nearest ones. `kind`: what it would
    be, such as `remedy`."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=NEAR)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are {first_of(known)}."
    return f"{name} is no {kind} that is known. {hint}"


def settings_fault(error: ValidationError, settings: type[BaseModel]) -> str:
    """The first fault of a plug's settings, in words."""
    fault = error.errors()[0]
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        field = settings.model_fields.get(name)
        what = " ".join((field.description or "").split()) if field is not None else ""
        what = what.replace("The ", "Give the ", 1) if what.startswith("The ") else what
        top = name.partition(".")[0]
        return f"{name} is missing. {what} It stands beside the name: {{name: ..., {top}: ...}}."
    if (few := too_few(name, fault)) is not None:
        return few
    if fault["type"] == "value_error":  # a check of ours, whose words say what was given
        text = str(fault["ctx"]["error"])
        return f"{name}: {text}" if name else text
    return first_fault(error)


def too_few(name: str, fault: ErrorDetails) -> str | None:
    """`strengths is []; give at least 1` for a list or text that is too short; None for other
    faults."""
    if fault["type"] not in ("too_short", "string_too_short"):
        return None
    given = fault["input"]
    shown = list(given) if isinstance(given, tuple) else given
    least = fault["ctx"].get("min_length", 1)
    if isinstance(given, str):
        return f"{name} is {shown!r}; give a text of at least {least} characters"
    return f"{name} is {shown!r}; give at least {least}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean before?` for a name that is near a known one; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=NEAR)
    return f" Did you mean {near[0]}?" if near else ""


def kind_of(value: object) -> str:
    """The kind of a value in words: `true/false`, `whole number`, ..., or `null`."""
    return VALUE_WORDS.get(type(value), "null")


def allowed(schema: JsonSchema, given: object = None) -> str:
    """What a JSON schema allows, in words; of several choices the one nearest to `given` first."""
    if "anyOf" in schema:
        first, *others = schema["anyOf"]
        if others and others[0].get("items") == first:
            return " or ".join(
                [f"{allowed(first, given)}, or a list of these", *map(allowed, others[1:])]
            )
        return " or ".join(dict.fromkeys(allowed(part, given) for part in schema["anyOf"]))
    if "enum" in schema:
        return one_of([choice for choice in schema["enum"] if choice is not None], given)
    if "const" in schema:
        return str(schema["const"])
    text = TYPE_WORDS.get(str(schema.get("type")), "another type")
    if text == "a list" and schema.get("items"):
        text = f"a list (each {allowed(schema['items'], given)})"
    return f"{text} {bounds(schema)}".strip()


def bounds(schema: JsonSchema) -> str:
    """The bounds of a JSON schema in words: `from 0 to 1`, `above 0`; empty if it has none."""
    if {"minimum", "maximum"} <= schema.keys():
        return f"from {schema['minimum']:.10g} to {schema['maximum']:.10g}"
    if schema.get("minItems", 0) > 1:
        return f"of at least {schema['minItems']}"
    if "minLength" in schema or "minItems" in schema:
        return "that is not empty"
    return " and ".join(
        f"{word} {schema[key]:.10g}" for key, word in BOUND_WORDS.items() if key in schema
    )


def one_of(choices: list[object], given: object) -> str:
    """Choices in words, the one nearest to `given` first."""
    names = [name if isinstance(name, str) else json.dumps(name) for name in choices]
    near = difflib.get_close_matches(str(given), names, n=1) if given is not None else []
    text = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    return f"{near[0]} (nearest), {text}" if near else text
