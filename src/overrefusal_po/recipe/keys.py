"""Every key of a recipe as a task or a method knows it: type, default and text. Imports no torch.

    keys_of("train", "dpo")["data.opening"].text      # "Train on this many first tokens ..."

TRL's keys come from the cached tables of its classes, ours from the sections.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from overrefusal_po.recipe.faults import section_at
from overrefusal_po.recipe.methods import METHODS, find_method
from overrefusal_po.recipe.schema import HARDWARE_KEYS, MANAGED_KEYS, TASKS
from overrefusal_po.recipe.trl_fields import MODEL_CONFIG, field_table
from overrefusal_po.recipe.words import JsonSchema, allowed

REQUIRED = "(required)"
"""Stands for the default of a key that has none."""

REMOTE_CODE = "Run Python code that the model's repository brings. Only for models that you trust."
"""The text of model.trust_remote_code, which is ours and no key of TRL's ModelConfig."""

REMEDY = (
    "A fitted remedy that is put on the model: the folder remedy/ of a fit run, or @stage.remedy "
    "in a pipeline. The model is then measured, curated from and attacked with it. It needs the "
    "engine transformers, and no training takes it."
)
"""The text of model.remedy, which is ours too."""

BASE = (
    "Another file whose keys come first. The path is relative to the file that names it. That file "
    "may have a base too."
)
"""The text of `base`."""

LAUNCH = "Makes the file a Python script too, for `accelerate launch FILE`. It is no setting."
"""The text of `launch`."""


class Key(NamedTuple):
    """A key of a recipe.

    Attributes:
        type: what is allowed, in words.
        default: the value if a recipe leaves it out; `(required)` if it may not.
        text: what it means: paragraphs and lists, each on a line of its own.
        owner: the class of TRL that it belongs to; empty for our own keys.
        inner: the keys below it, for a section.
    """

    type: str
    default: object
    text: str
    owner: str = ""
    inner: tuple[str, ...] = ()


def keys_of(task: str, method: str | None = None) -> dict[str, Key]:
    """{dotted key: Key} of a task; for `train` those of a method."""
    found = {"base": Key("text or null", None, BASE), "launch": Key("text or null", None, LAUNCH)}
    found |= section_keys(TASKS[task])
    found |= trl_keys("model", MODEL_CONFIG, found["model"])
    found["model.trust_remote_code"] = Key("true or false", False, REMOTE_CODE)
    if task != "train":
        found["model.remedy"] = Key("text or null", None, REMEDY)
    if method is not None:
        row = find_method(method)
        found["method"] = found["method"]._replace(type=allowed({"enum": list(METHODS)}))
        found |= trl_keys("trainer", row.config, found["trainer"])
        found |= section_keys(row.data, "data.")
        text, inner = text_of(row.data), tuple(row.data.model_fields)
        found["data"] = Key("a section", {}, text, inner=inner)
    return found


def section_keys(section: type[BaseModel], above: str = "") -> Iterator[tuple[str, Key]]:
    """(dotted key, Key) of a section and of the sections in it."""
    properties = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        inner = section_at(section, name)
        yield f"{above}{name}", own_key(field, properties[name], inner)
        if inner is not None:
            yield from section_keys(inner, f"{above}{name}.")


def own_key(field: FieldInfo, schema: JsonSchema, inner: type[BaseModel] | None) -> Key:
    """A key of ours."""
    text = unwrapped(field.description or "")
    default = REQUIRED if field.is_required() else plain_default(field)
    if inner is None:
        return Key(allowed(schema), default, text)
    null = " or null" if type(None) in get_args(field.annotation) else ""
    whole = f"{text}\n{text_of(inner)}"
    return Key(f"a section{null}", default, whole, inner=tuple(inner.model_fields))


def plain_default(field: FieldInfo) -> object:
    """A field's default as plain data; of a section only what differs from its own defaults."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json", exclude_defaults=True)
    return list(default) if isinstance(default, tuple) else default


def trl_keys(above: str, config: str, section: Key) -> dict[str, Key]:
    """{dotted key: Key} of a class of TRL that stands under `above`, and of `above` itself."""
    owner = config.rpartition(".")[2]
    table = {k: row for k, row in field_table(config).items() if not is_managed(above, k)}
    found = {above: section._replace(type="a section", owner=owner, inner=tuple(table))}
    for name, row in table.items():
        default = row["default"]
        found[f"{above}.{name}"] = Key(allowed(row["schema"]), default, row["help"], owner)
    return {key: with_auto(key, row) for key, row in found.items()}


def is_managed(above: str, key: str) -> bool:
    """Whether a key of TRL may not stand in a recipe, since this package sets it."""
    return above == "trainer" and key in MANAGED_KEYS


def with_auto(key: str, row: Key) -> Key:
    """A key of TRL with the default that this package gives it if a recipe leaves it open."""
    section, _, name = key.partition(".")
    if (section == "trainer" and name in HARDWARE_KEYS) or key == "model.dtype":
        return row._replace(default="auto (decided by the hardware)")
    return row._replace(default="the recipe's seed") if key == "trainer.seed" else row


def text_of(section: type[BaseModel]) -> str:
    """The docstring of a section."""
    return unwrapped(inspect.cleandoc(section.__doc__ or ""))


def unwrapped(text: str) -> str:
    """A docstring with each paragraph and each item of a list on one line."""
    lines: list[str] = []
    for line in text.splitlines():
        goes_on = lines and lines[-1] and line.strip() and not line.startswith("- ")
        if goes_on:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return "\n".join(lines)
