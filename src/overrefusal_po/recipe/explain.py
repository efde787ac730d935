"""`overrefusal-po explain KEY`: the type, default and text of a recipe key. Imports no torch.

    explanation("trainer.beta", contexts())     # a paragraph for each group of methods

Methods that know a key in the same way share a paragraph.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from overrefusal_po.recipe.describe import KeyRow, describe
from overrefusal_po.recipe.keys import Key, keys_of
from overrefusal_po.recipe.load import Recipe
from overrefusal_po.recipe.methods import all_methods
from overrefusal_po.recipe.schema import MANAGED_KEYS, TASKS, Body, TrainRecipe
from overrefusal_po.recipe.words import nearest as nearest_name

WIDTH = 100
"""Columns of the printed text."""


class Context:
    """A task, for `train` with its method, and the keys that it knows."""

    def __init__(self, task: str, method: str | None = None) -> None:
        """`method` for `train` alone."""
        self.task = task
        self.method = method

    @cached_property
    def keys(self) -> dict[str, Key]:
        """{dotted key: Key}."""
        return keys_of(self.task, self.method)


def contexts(method: str | None = None) -> list[Context]:
    """Every task and method; with a `method` that one alone."""
    if method is not None:
        return [Context("train", method)]
    others = [Context(task) for task in TASKS if task != "train"]
    return [*(Context("train", name) for name in all_methods()), *others]


def recipe_contexts(stages: Mapping[str, Recipe]) -> list[Context]:
    """What the stages of one recipe know; for a pipeline its own keys too."""
    found = [stage_context(stage.body) for stage in stages.values()]
    own = [] if set(stages) == {""} else [Context("pipeline")]
    return list({(context.task, context.method): context for context in [*found, *own]}.values())


def stage_context(body: Body) -> Context:
    """What a recipe that is no pipeline knows."""
    return Context(body.task, body.method if isinstance(body, TrainRecipe) else None)


def explained(
    key: str, stages: Mapping[str, Recipe], method: str | None = None
) -> tuple[str, dict[str, list[KeyRow]]]:
    """The text about `key`, and {`stages.NAME.`: the values that a recipe has of it and of the keys
    under it}. `stages`: those of `stages_of`; empty without a recipe.

    ValueError if nobody knows the key.
    """
    named = named_stages(key, stages)
    known = recipe_contexts(named) if stages and not method else contexts(method)
    text, inner = explanation(key, known), without_stage(key)
    if not stages and inner != key:
        text += "\n" + "\n".join(indented(f"value: overrefusal-po explain {key} RECIPE.yaml"))
    return text, {
        above: [
            row
            for row in describe(stage, everything=True)
            if row[0] == inner or row[0].startswith(f"{inner}.")
        ]
        for above, stage in named.items()
    }


def explanation(key: str, known: Sequence[Context]) -> str:
    """The text about `key`; ValueError with the nearest keys if no context knows it.

    `stages.NAME.` before a key of a stage is ignored.
    """
    key = without_stage(key)
    knowing = [context for context in known if key in context.keys]
    if not knowing:
        raise ValueError(unknown(key, known))
    groups: dict[str, list[Context]] = {}
    for context in knowing:
        row = context.keys[key]
        same = json.dumps([row.type, row.default, row.text, row.inner])
        groups.setdefault(same, []).append(context)
    return "\n\n".join(paragraph(key, group, known) for group in groups.values())


def without_stage(key: str) -> str:
    """A key without the `stages.NAME.` of a pipeline."""
    parts = key.split(".")
    return ".".join(parts[2:]) if parts[0] == "stages" and len(parts) > 2 else key


def named_stages(key: str, stages: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The stage that a key names, or all if it names none; ValueError if there is no such stage.

    `stages` are those of `stages_of`: {`stages.NAME.`: its recipe}.
    """
    if without_stage(key) == key:
        return dict(stages)
    found = {above: stage for above, stage in stages.items() if key.startswith(above)}
    if stages and not found:
        names = [above.split(".")[1] for above in stages]
        name = key.split(".")[1]
        raise ValueError(
            f"{key}: this pipeline has no stage {name!r}. Its stages are {', '.join(names)}."
            f"{nearest_name(name, names)}"
        )
    return found


def paragraph(key: str, group: Sequence[Context], known: Sequence[Context]) -> str:
    """The text about a key for contexts that know it in the same way."""
    row = group[0].keys[key]
    lines = [f"{key}  ({places(group, known)})", *indented(f"type: {row.type}")]
    lines += indented(f"default: {shown(row.default)}")
    owners = dict.fromkeys(context.keys[key].owner for context in group)
    lines += indented(f"of: TRL's {', '.join(owners)}") if row.owner else []
    for line in row.text.splitlines():
        lines += indented(line)
    lines += indented(f"keys: {', '.join(row.inner)}") if row.inner else []
    return "\n".join(lines)


def places(group: Sequence[Context], known: Sequence[Context]) -> str:
    """The tasks and methods of a group: `train: dpo, kto`, or `every task`."""
    methods = [context.method for context in group if context.method]
    every = len(methods) == len([context for context in known if context.method])
    tasks = dict.fromkeys(context.task for context in group)
    if len(tasks) == len(TASKS) and every:
        return "every task"
    named = f"train: {', '.join(methods)}" if not every or len(methods) == 1 else "train"
    return "; ".join(named if task == "train" else task for task in tasks)


def shown(value: object) -> str:
    """A default as YAML would have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def indented(line: str) -> list[str]:
    """A line broken at the width; the items of a list are indented further."""
    if not line:
        return []
    below = "    " if line.startswith("- ") else "  "
    return textwrap.wrap(
        line, WIDTH, initial_indent="  ", subsequent_indent=below, break_on_hyphens=False
    )


def unknown(key: str, known: Sequence[Context]) -> str:
    """The error text for a key that no context knows."""
    section, _, name = key.rpartition(".")
    if section == "trainer" and name in MANAGED_KEYS:
        return f"trainer.{name} cannot be set in a recipe; use {MANAGED_KEYS[name]} instead."
    if open_key := open_section(key, known):
        return (
            f"{key}: the keys under {open_key} are not fixed. Run: overrefusal-po explain "
            f"{open_key}"
        )
    if elsewhere := [c.method or c.task for c in contexts() if key in c.keys]:
        return f"{key} is not a key here. It is one of {', '.join(elsewhere)}."
    near = nearest(key, {name: None for context in known for name in context.keys})
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else "`explain data` lists a section's keys."
    )
    return f"{key} is not a key of a recipe. {hint}"


def open_section(key: str, known: Sequence[Context]) -> str | None:
    """The key above `key` that holds a mapping with keys of its own; None if there is none."""
    parts = key.split(".")
    above = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
    for context in known:
        for name in above:
            row = context.keys.get(name)
            if row is not None and "a mapping" in row.type:
                return name
    return None


def nearest(key: str, names: Mapping[str, None]) -> list[str]:
    """At most three known keys that are like `key`: with the same last part, or spelled nearly
    so."""
    same_end = [name for name in names if name.endswith(f".{key}")]
    return list(dict.fromkeys([*same_end, *close(key, names)]))[:3]


def close(key: str, names: Iterable[str]) -> list[str]:
    """Known keys spelled nearly as `key`, also if it lacks its section."""
    names = list(names)
    found = difflib.get_close_matches(key, names, n=3, cutoff=0.75)
    if not found and "." not in key:
        ends = {name.rpartition(".")[2]: name for name in names}
        found = [ends[end] for end in difflib.get_close_matches(key, ends, n=3, cutoff=0.75)]
    return found
