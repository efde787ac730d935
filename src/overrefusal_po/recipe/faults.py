"""A pydantic error about a recipe -> one sentence that names the key and what is allowed.

fault_text(error, values)     # "data.pears is not a known key. Did you mean pairs?"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError

from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.schema import TASKS
from overrefusal_po.recipe.sections import Section
from overrefusal_po.recipe.words import too_few, unknown_key


def fault_text(error: ValidationError, values: Mapping[str, object]) -> str:
    """The first fault of a pydantic error, in our words."""
    fault = error.errors()[0]
    # the task is the union's tag and stands first; the data section is checked by itself and knows
    # no place
    path = [str(part) for part in fault["loc"]]
    path = ["data", *path] if data_section(error.title, values) else path[1:]
    key, section = path[-1] if path else "", ".".join(path[:-1])
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        if not section and (tasks := tasks_with(key)):
            return key_of_others(key, str(values["task"]), tasks)
        return unknown_key(key, known_keys(error.title, values, path[:-1]), section)
    if fault["type"] == "missing":
        return f"{name} is missing. Add it to the recipe or give it as --{name}=value."
    if fault["type"] in ("tuple_type", "list_type"):
        return f"{name} is {fault.get('input')!r}; allowed is a list: [{fault.get('input')}]."
    if (few := too_few(name, fault)) is not None:
        return f"{few}."
    if fault["type"] == "value_error":  # a check of ours, whose words say what was given
        return f"{name}: {fault['ctx']['error']}"
    hint = " Put it in quotes to make it text." if fault["type"] == "string_type" else ""
    return f"{name} is {fault.get('input')!r}: {fault['msg']}.{hint}"


def unknown_of(error: ValidationError) -> str | None:
    """The key that no section knows, if that is the first fault; the key alone, without section."""
    fault = error.errors()[0]
    return str(fault["loc"][-1]) if fault["type"] == "extra_forbidden" else None


def tasks_with(key: str) -> list[str]:
    """The tasks of one stage whose recipes have this key."""
    return [name for name, body in TASKS.items() if key in body.model_fields and name != "pipeline"]


def key_of_others(key: str, task: str, tasks: Sequence[str]) -> str:
    """The error text for a key that other tasks have."""
    where = " Write it in a stage: stages.NAME." + key + "." if task == "pipeline" else ""
    return (
        f"{key} is not a known key of task {task}; it is one of task {' and '.join(tasks)}."
        f"{where or ' Take it out.'}"
    )


def data_section(title: str, values: Mapping[str, object]) -> type[Section] | None:
    """The data section of the recipe's method if `title` is its name, else None."""
    if values.get("task") != "train" or "method" not in values:
        return None
    section = find_method(str(values["method"])).data
    return section if section.__name__ == title else None


def known_keys(title: str, values: Mapping[str, object], above: Sequence[str]) -> list[str]:
    """The keys that the section at `above` may have."""
    own = data_section(title, values)
    section: type[BaseModel] = own or TASKS[str(values["task"])]
    for part in above[1:] if own else above:
        section = section_at(section, part) or section
    return list(section.model_fields)


def section_at(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section that a key of `section` holds, also if it may be null; None for other keys."""
    field = section.model_fields.get(key)
    annotation = field.annotation if field is not None else None
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None
