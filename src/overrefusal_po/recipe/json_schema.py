"""One JSON schema (draft 2020-12) for all recipes, for the completion and checks of editors.

    schema_text(recipe_schema(METHODS))     # what recipes/recipe.schema.json holds

An editor shows a key's text, its values and unknown keys. `task`, and for a training `method`,
decide which keys are known. A file with a `base`, and a stage with a `recipe`, may leave out what
the other file has. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from overrefusal_po.recipe.keys import BASE, LAUNCH, REMEDY, REMOTE_CODE, is_managed
from overrefusal_po.recipe.methods import Method
from overrefusal_po.recipe.schema import TASKS
from overrefusal_po.recipe.sections import Section
from overrefusal_po.recipe.trl_fields import MODEL_CONFIG, TrlField, field_table
from overrefusal_po.recipe.words import JsonSchema

# Any: a schema's keywords hold numbers, texts, lists and further schemas
Schema = dict[str, Any]

STAGE_TASKS = tuple(task for task in TASKS if task != "pipeline")
"""What a stage of a pipeline may be."""

TASK = "What this recipe does. Each task has its own keys."
"""The text of `task`."""

FILE_KEYS: Schema = {
    "base": {"type": "string", "description": BASE},
    "launch": {"type": "string", "description": LAUNCH},
}
"""Keys of a file that no section has."""

STAGE_KEYS: Schema = {
    "recipe": {
        "type": "string",
        "description": "A recipe whose keys come first. The path is relative to this recipe.",
    }
}
"""What a stage has instead."""


def recipe_schema(methods: Mapping[str, Method]) -> Schema:
    """The schema of every recipe that uses these methods."""
    definitions: Schema = {}
    for task in TASKS:
        definitions[task] = task_schema(task, FILE_KEYS, definitions, methods)
    for task in STAGE_TASKS:
        whole = task_schema(task, STAGE_KEYS, definitions, methods)
        asked, *others = whole.pop("allOf")
        definitions[f"{task}_keys"] = {**whole, **({"allOf": others} if others else {})}
        definitions[f"{task}_stage"] = {"allOf": [ref(f"{task}_keys"), asked]}
    definitions["stage"] = by_task({task: f"{task}_stage" for task in STAGE_TASKS}, "recipe")
    definitions["stage_of_base"] = by_task({task: f"{task}_keys" for task in STAGE_TASKS}, None)
    definitions["pipeline"]["allOf"].append(
        {"if": {"required": ["base"]}, "then": stages("stage_of_base"), "else": stages("stage")}
    )
    definitions |= trl_definitions(methods)
    made_with = " and ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("trl", "transformers")
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "overrefusal-po recipe",
        "$comment": f"Made by `overrefusal-po schema` with {made_with}.",
        **by_task({task: task for task in TASKS}, "base"),
        "$defs": definitions,
    }


def schema_text(schema: Schema) -> str:
    """A schema as a file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def ref(name: str) -> Schema:
    """A reference to a definition."""
    return {"$ref": f"#/$defs/{name}"}


def stages(name: str) -> Schema:
    """A pipeline whose stages are as a definition says."""
    return {"properties": {"stages": {"additionalProperties": ref(name)}}}


def by_task(names: Mapping[str, str], shortcut: str | None) -> Schema:
    """The schema whose `task` decides which definition holds: {task: definition}.

    Without a task, `shortcut` must name the file that has it. None: another file may have it.
    """
    branches = [
        when({"task": {"const": task}}, ["task"], ref(name)) for task, name in names.items()
    ]
    unnamed: Schema = {"anyOf": [ref(name) for name in names.values()]}
    if shortcut is not None:
        unnamed["required"] = [shortcut]
    return {
        "type": "object",
        "properties": {"task": {"enum": list(names), "description": TASK}},
        "allOf": [*branches, {"if": {"not": {"required": ["task"]}}, "then": unnamed}],
    }


def when(properties: Schema, required: Sequence[str], then: Schema) -> Schema:
    """`then` holds if the properties are as given."""
    return {"if": {"properties": properties, "required": list(required)}, "then": then}


def task_schema(
    task: str, more: Schema, definitions: Schema, methods: Mapping[str, Method]
) -> Schema:
    """The keys of one task, `more` among them; its sections are added to `definitions`."""
    schema = section_schema(TASKS[task], definitions)
    required = [key for key in schema.pop("required") if key != "task"]
    shortcut = "base" if "base" in more else "recipe"
    whole: Schema = {"required": required}
    schema["properties"]["model"] |= ref(MODEL_CONFIG)
    if "model" in required:
        whole["properties"] = {"model": {"required": ["model_name_or_path"]}}
    if more is STAGE_KEYS:
        del schema["properties"]["run_dir"]
    schema["properties"] |= more
    schema["allOf"] = [{"if": {"not": {"required": [shortcut]}}, "then": whole}]
    if task == "train":
        schema["allOf"] += by_method(schema["properties"], definitions, methods)
    return schema


def by_method(
    properties: Schema, definitions: Schema, methods: Mapping[str, Method]
) -> list[Schema]:
    """The conditions that give `data` and `trainer` the keys of the method."""
    properties["method"] |= {"anyOf": [{"enum": list(methods)}, {"pattern": r"\."}]}
    sections = {}
    for row in methods.values():
        definitions[f"{row.name}_data"] = section_schema(row.data, definitions)
        both = {"data": ref(f"{row.name}_data"), "trainer": ref(row.config)}
        sections[row.name] = {"properties": both}
    branches = [when({"method": {"const": n}}, ["method"], s) for n, s in sections.items()]
    unnamed = {"anyOf": list(sections.values())}
    return [*branches, {"if": {"not": {"required": ["method"]}}, "then": unnamed}]


def section_schema(section: type[Section], definitions: Schema) -> Schema:
    """The schema of a section; those in it are added to `definitions`."""
    schema: Schema = untitled(section.model_json_schema())
    definitions |= schema.pop("$defs", {})
    return schema


def untitled(schema: Any) -> Any:
    """A schema without the titles that repeat each key. `Any`: any part of a schema."""
    if isinstance(schema, list):
        return [untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: untitled(v) for k, v in schema.items() if k != "title" or not isinstance(v, str)}


def trl_definitions(methods: Mapping[str, Method]) -> Schema:
    """{name: schema} of TRL's classes, and of the keys that all of the trainers' classes share."""
    configs = list(dict.fromkeys(row.config for row in methods.values()))
    tables = {
        config: {k: field_schema(row) for k, row in field_table(config).items() if not hidden(k)}
        for config in configs
    }
    first, *others = tables.values()
    shared = {k: s for k, s in first.items() if all(table.get(k) == s for table in others)}
    found: Schema = {f"trainer.{key}": schema for key, schema in shared.items()}
    for config, table in tables.items():
        found[config] = closed(
            {k: ref(f"trainer.{k}") if k in shared else schema for k, schema in table.items()}
        )
    model = {key: field_schema(row) for key, row in field_table(MODEL_CONFIG).items()}
    model["trust_remote_code"] = {"type": "boolean", "description": REMOTE_CODE}
    model["remedy"] = {"type": ["string", "null"], "description": REMEDY}
    return {**found, MODEL_CONFIG: closed(model)}


def hidden(key: str) -> bool:
    """Whether a trainer key may not stand in a recipe."""
    return is_managed("trainer", key)


def closed(properties: Schema) -> Schema:
    """A mapping with these keys and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def field_schema(row: TrlField) -> Schema:
    """The schema of a key of TRL with its text; a scalar may stand for a list of one."""
    schema = with_scalars(row["schema"])
    known = {"description": row["help"], "default": row["default"]}
    return {**{k: v for k, v in known.items() if v not in (None, "")}, **schema}


def with_scalars(schema: JsonSchema) -> Schema:
    """A schema that takes one item in place of a list of one, as the checks do."""
    parts = list(schema.get("anyOf", [schema]))
    items = [p["items"] for p in parts if p.get("type") == "array" and "items" in p]
    added = [item for item in items if item not in parts]
    return {"anyOf": [*parts, *added]} if added else dict(schema)
