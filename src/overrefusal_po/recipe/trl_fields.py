"""TRL's own settings as a table that can be checked without importing TRL or torch.

    check_fields("trl.DPOConfig", {"learning_rate": 5e-6}, "trainer")

Importing TRL costs seconds, so the table is made once in a child process and kept in the cache
folder, one file for each pair of TRL and transformers versions. A field's JSON schema comes from
`pydantic.TypeAdapter(field.type)`; what that does not know is added here: enums that stand beside a
plain string, choices in `metadata` or in the help text, a switch that is typed as text, and that a
scalar may stand for a list of one.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.words import kind_of, unknown_key
from overrefusal_po.records import content_id, write_atomic

CONFIGS = ("trl.ModelConfig", *dict.fromkeys(row.config for row in METHODS.values()))
"""The config classes whose tables are made together, since importing TRL costs seconds."""

LAYOUT = 7
"""Raised when the table's own form changes, so that an old cache is not read."""


def cache_folder() -> Path:
    """Where converted models and look-up tables are kept (`OVERREFUSAL_PO_CACHE`, else
    `~/.cache/overrefusal-po`)."""
    base = os.environ.get("OVERREFUSAL_PO_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "overrefusal-po"


@cache
def field_table(config: str) -> dict[str, dict[str, Any]]:
    """{field: {"schema": JSON schema, "default": value or None}} of a TRL config class (dotted
    name)."""
    versions = "-".join(importlib.metadata.version(p) for p in ("trl", "transformers"))
    listed = config in CONFIGS
    marks = "all" if listed else content_id(config, source_of(config))
    file = cache_folder() / "fields" / f"{versions}-{LAYOUT}-{marks}.json"
    if not file.is_file():
        write_atomic(file, built_tables(CONFIGS if listed else (config,)))
    tables: dict[str, dict[str, dict[str, Any]]] = json.loads(file.read_text())
    return tables[config] if config in tables else built_again(file, config)


def built_again(file: Path, config: str) -> dict[str, dict[str, Any]]:
    """The table of a config that a cache file of another list of methods does not hold."""
    write_atomic(file, built_tables(CONFIGS))
    table: dict[str, dict[str, Any]] = json.loads(file.read_text())[config]
    return table


def source_of(config: str) -> str:
    """The source text of the module of a config class, so that an edit is seen."""
    found = importlib.util.find_spec(config.rpartition(".")[0])
    path = Path(found.origin) if found is not None and found.origin else None
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def built_tables(configs: Sequence[str]) -> str:
    """The tables of `configs` as JSON, made in a child process that imports TRL."""
    code = f"from overrefusal_po.recipe.trl_fields import print_tables; print_tables({configs!r})"
    quiet = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=quiet, check=False
    )
    if done.returncode:
        raise RuntimeError(f"TRL's settings could not be read: {done.stderr.strip()[-800:]}")
    return done.stdout[done.stdout.index("{") :]


def print_tables(configs: Sequence[str]) -> None:
    """Prints the tables of `configs` as JSON. Imports TRL and torch: run it in a child process."""
    import dataclasses

    tables: dict[str, Any] = {}
    for name in configs:
        module, _, cls = name.rpartition(".")
        fields = dataclasses.fields(getattr(importlib.import_module(module), cls))
        tables[name] = {
            f.name: {"schema": _schema(f), "default": _default(f)} for f in fields if f.init
        }
    print(json.dumps(tables, default=str))


def _default(field: Any) -> Any:
    import dataclasses
    import enum

    if field.default is dataclasses.MISSING:
        return field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    return field.default.value if isinstance(field.default, enum.Enum) else field.default


def _schema(field: Any) -> dict[str, Any]:
    """A field's JSON schema: its type, narrowed by choices and by the sign of its default."""
    import enum
    import re
    import typing

    from pydantic import TypeAdapter

    kinds = typing.get_args(field.type) or (field.type,)
    enums = [k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)]
    choices = [member.value for e in enums for member in e] or list(
        field.metadata.get("choices") or []
    )
    listed = re.search(
        r"(?:Possible|Supported) values are:?(.*?)(?:\. |\.$|$)",
        str(field.metadata.get("help")),
        re.S,
    )
    if not choices and listed and len(re.findall(r"[\"'`](\w+)[\"'`]", listed[1])) > 2:
        choices = re.findall(r"[\"'`](\w+)[\"'`]", listed[1])
    if choices:
        one = {
            "enum": [*choices, None] if type(None) in kinds or field.default is None else choices
        }
        return (
            {"anyOf": [one, {"type": "array", "items": one}]} if "list" in str(field.type) else one
        )
    try:
        schema = TypeAdapter(field.type).json_schema()
    except Exception:  # a type of torch or accelerate without a schema: TRL itself checks it later
        return {}
    if (
        field.type in (int, float)
        and not isinstance(field.default, bool)
        and (field.default or 0) >= 0
    ):
        # a count or a rate: upstream marks "unlimited" by a negative default (max_steps = -1)
        whole = field.name.endswith(("batch_size", "accumulation_steps"))
        schema["minimum"] = 1 if whole else 0
    if (
        field.metadata.get("const") is True
    ):  # fsdp: its older form is text, and its type still says that alone
        schema = {"anyOf": [{"type": "boolean"}, *schema.get("anyOf", [schema])]}
    return schema


def check_fields(config: str, values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """`values` with scalars put into lists where TRL wants a list, and the `no` back that YAML
    takes for false.

    Raises ValueError that names the key, what was given and what is allowed; for an unknown key the
    nearest known one.
    """
    import jsonschema

    table = field_table(config)
    checked = {}
    for name, value in values.items():
        if name not in table:
            raise ValueError(unknown_key(name, table, section, owner=config.rpartition(".")[2]))
        schema = table[name]["schema"]
        valid = jsonschema.Draft202012Validator(schema).is_valid
        given = (
            int(value)
            if isinstance(value, float) and value.is_integer() and _is_whole(schema)
            else value
        )
        if given is False and "no" in schema.get("enum", ()):
            given = "no"  # save_strategy: no
        if not valid(given) and not isinstance(given, list) and valid([given]):
            given = [given]
        if not valid(given):
            raise ValueError(
                f"{section}.{name} is {value!r} ({kind_of(value)}); allowed is "
                f"{_allowed(schema, value)}."
            )
        checked[name] = given
    return checked


def _is_whole(schema: Mapping[str, Any]) -> bool:
    """Whether a number must be whole here (a sweep may say 2.0, which would break a range in the
    trainer)."""
    kinds = {part.get("type") for part in schema.get("anyOf", [schema])}
    return "integer" in kinds and "number" not in kinds


def _allowed(schema: Mapping[str, Any], value: Any) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(part, value) for part in schema["anyOf"]))
    if "enum" in schema:
        choices = [c for c in schema["enum"] if c is not None]
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        text = f"one of {', '.join(map(str, choices))}"
        return f"{near[0]} (nearest), {text}" if near else text
    words = {
        "number": "a number",
        "integer": "a whole number",
        "boolean": "true or false",
        "string": "text",
    }
    words |= {"null": "null", "array": "a list", "object": "a mapping"}
    text = words.get(str(schema.get("type")), "another type")
    return f"{text} of at least {schema['minimum']}" if "minimum" in schema else text
