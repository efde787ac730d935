"""TRL's own settings as a table that can be checked without importing TRL or torch.

    check_fields("trl.DPOConfig", {"learning_rate": 5e-6}, "trainer")

Importing TRL costs seconds, so the table is made once in a child process. The cache folder keeps
it, one file for each pair of TRL and transformers versions. A field's JSON schema comes from
`pydantic.TypeAdapter(field.type)`. What that does not know is added here: enums beside a plain
string, choices in `metadata` or in the help text, and a switch that is typed as text. A scalar may
stand for a list of one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from overrefusal_po.json_files import write_if_possible
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.words import JsonSchema, UnknownKey, allowed, kind_of, unknown_key
from overrefusal_po.records import content_id

if TYPE_CHECKING:
    import dataclasses

    AnyField = dataclasses.Field[Any]
    """A field of any type."""

MODEL_CONFIG = "trl.ModelConfig"
"""The class whose keys stand under `model`."""

CONFIGS = (MODEL_CONFIG, *dict.fromkeys(row.config for row in METHODS.values()))
"""The config classes whose tables are made together, since importing TRL costs seconds."""

LAYOUT = 9
"""Raised when the table's own form changes, so that an old cache is not read."""

AT_LEAST_ONE = ("batch_size", "accumulation_steps", "lora_r")
"""How the names of counts end that cannot be 0."""

SHARES = ("lora_dropout",)
"""Shares, which are at most 1."""

CHOICES_IN_HELP = re.compile(r"(?:Possible|Supported) values are:?(.*?)(?:\. |\.$|$)", re.DOTALL)
"""Where TRL's help text lists what is allowed."""

QUOTED_CHOICE = re.compile(r"[\"'`](\w+)[\"'`]")
"""One of the listed choices."""


# Any: TRL's defaults have every type that a setting can have
class TrlField(TypedDict):
    """One field of a TRL config: its JSON schema, its default (None if it has none), its help."""

    schema: dict[str, Any]
    default: Any
    help: str


Table = dict[str, TrlField]
"""{field: what is known of it} of a config class."""


def cache_folder() -> Path:
    """Where converted models and look-up tables are kept (`OVERREFUSAL_PO_CACHE`, else
    `~/.cache/overrefusal-po`). ValueError for a user without a home."""
    own, shared = os.environ.get("OVERREFUSAL_PO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return Path(shared or "~/.cache").expanduser() / "overrefusal-po"
    except RuntimeError:  # as in some containers
        raise ValueError(
            "This user has no home folder, so there is no place for converted models and tables. "
            "Set OVERREFUSAL_PO_CACHE to a folder in which you may write."
        ) from None


@cache
def field_table(config: str) -> Table:
    """{field: schema, default and help} of a TRL config class (dotted name)."""
    versions = "-".join(importlib.metadata.version(p) for p in ("trl", "transformers"))
    listed = config in CONFIGS
    marks = "all" if listed else content_id(config, source_of(config))
    file = cache_folder() / "fields" / f"{versions}-{LAYOUT}-{marks}.json"
    tables = kept_tables(file)
    if config in tables:
        return tables[config]
    # there is no file, or it is of another list of methods
    text = built_tables(CONFIGS if listed else (config,))
    write_if_possible(file, text)
    table: Table = json.loads(text)[config]
    return table


def kept_tables(file: Path) -> dict[str, Table]:
    """The tables of a cache file; none if it is missing or cannot be read."""
    try:
        tables: dict[str, Table] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return tables


def source_of(config: str) -> str:
    """The source text of the module of a config class, so that an edit is seen."""
    found = importlib.util.find_spec(config.rpartition(".")[0])
    path = Path(found.origin) if found is not None and found.origin else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def built_tables(configs: Sequence[str]) -> str:
    """The tables of `configs` as JSON, made in a child process that imports TRL, and finds modules
    where this process does."""
    code = f"from overrefusal_po.recipe.trl_fields import print_tables; print_tables({configs!r})"
    env = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        raise RuntimeError(f"TRL's settings could not be read: {done.stderr.strip()[-800:]}")
    return done.stdout[done.stdout.index("{") :]


def print_tables(configs: Sequence[str]) -> None:
    """Prints the tables of `configs` as JSON. Imports TRL and torch: run it in a child process."""
    import dataclasses

    tables: dict[str, Table] = {}
    for name in configs:
        module, _, cls = name.rpartition(".")
        fields = dataclasses.fields(getattr(importlib.import_module(module), cls))
        tables[name] = {f.name: table_row(f) for f in fields if f.init}
    print(json.dumps(tables, default=str))


def table_row(field: AnyField) -> TrlField:
    """What is known of a dataclass field."""
    text = " ".join(str(field.metadata.get("help") or "").split())
    return {"schema": schema_of(field), "default": default_of(field), "help": text}


def default_of(field: AnyField) -> object:
    """A field's default as JSON can hold it; None if it has none."""
    import dataclasses
    import enum

    if field.default is dataclasses.MISSING:
        return field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    return field.default.value if isinstance(field.default, enum.Enum) else field.default


def schema_of(field: AnyField) -> dict[str, Any]:
    """A field's JSON schema: its type, narrowed by choices and by the sign of its default."""
    import typing

    choices = choices_of(field)
    if choices:
        null = type(None) in typing.get_args(field.type) or field.default is None
        one = {"enum": [*choices, None] if null else choices}
        return (
            {"anyOf": [one, {"type": "array", "items": one}]} if "list" in str(field.type) else one
        )
    return typed_schema(field)


def choices_of(field: AnyField) -> list[object]:
    """The values that a field may have: of its enum, its metadata or its help text; else empty."""
    import enum
    import typing

    kinds = typing.get_args(field.type) or (field.type,)
    enums = [k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)]
    if members := [member.value for e in enums for member in e]:
        return members
    if given := list(field.metadata.get("choices") or []):
        return given
    listed = CHOICES_IN_HELP.search(str(field.metadata.get("help")))
    names: list[object] = list(QUOTED_CHOICE.findall(listed[1])) if listed else []
    return names if len(names) > 2 else []


def typed_schema(field: AnyField) -> dict[str, Any]:
    """The JSON schema of a field's type; empty for a type of torch or accelerate, which TRL itself
    checks later."""
    from pydantic import TypeAdapter

    kind, default = field.type, field.default
    try:
        found = TypeAdapter[Any](kind).json_schema()  # type: ignore[arg-type]  # no text in TRL
    except Exception:  # a type without a schema
        return {}
    schema: dict[str, Any] = inlined(found, found.get("$defs", {}))
    counts = isinstance(default, int | float) and not isinstance(default, bool) and default >= 0
    if kind in (int, float) and (counts or default is None):
        # a count or a rate: upstream marks "unlimited" by a negative default (max_steps = -1)
        schema["minimum"] = 1 if field.name.endswith(AT_LEAST_ONE) else 0
    if field.name in SHARES:
        schema["maximum"] = 1
    if field.metadata.get("const") is True:
        # fsdp: its older form is text, and its type still says that alone
        schema = {"anyOf": [{"type": "boolean"}, *schema.get("anyOf", [schema])]}
    return schema


def inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A JSON schema with its definitions (enums, say) put in the places that refer to them. `Any`:
    any part of a schema."""
    if isinstance(part, list):
        return [inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    name = str(part.get("$ref", "")).removeprefix("#/$defs/")
    whole = {**definitions[name], **part} if name else part
    return {k: inlined(v, definitions) for k, v in whole.items() if k not in ("$ref", "$defs")}


def check_fields(config: str, values: Mapping[str, object], section: str) -> dict[str, Any]:
    """`values` with scalars put into lists if TRL wants a list, and the `no` back that YAML takes
    for false.

    Raises ValueError that names the key, what was given and what is allowed; UnknownKey for an
    unknown key, with the nearest known one.
    """
    table = field_table(config)
    checked = {}
    for name, value in values.items():
        if name not in table:
            owner = config.rpartition(".")[2]
            raise UnknownKey(unknown_key(name, table, section, owner=owner), name)
        checked[name] = checked_value(table[name]["schema"], value, f"{section}.{name}")
    return checked


def checked_value(schema: JsonSchema, value: object, key: str) -> object:
    """`value` in the form that TRL takes; ValueError if the schema does not allow it."""
    import jsonschema

    valid = jsonschema.Draft202012Validator(schema).is_valid
    given = value
    if isinstance(value, float) and value.is_integer() and is_whole_number(schema):
        given = int(value)
    if given is False and "no" in schema.get("enum", ()):
        given = "no"  # save_strategy: no
    if not valid(given) and not isinstance(given, list) and valid([given]):
        given = [given]
    if not valid(given):
        raise ValueError(
            f"{key} is {value!r} ({kind_of(value)}); allowed is {allowed(schema, value)}."
        )
    return given


def is_whole_number(schema: JsonSchema) -> bool:
    """Whether a number must be whole here (a sweep may say 2.0, which would break a range in the
    trainer)."""
    kinds = {part.get("type") for part in schema.get("anyOf", [schema])}
    return "integer" in kinds and "number" not in kinds
