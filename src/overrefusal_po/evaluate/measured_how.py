"""How runs were measured -> the settings in which they differ, in words.

    base, dpo = measured_how(Path("runs/base"), outcomes), measured_how(Path("runs/dpo"), others)
    settings_note({"base": base, "dpo": dpo})
    # "NOT MEASURED ALIKE: generation.max_new_tokens is 48 in base, 20 in dpo. ..."

A difference between two runs is one of their models only if all else was equal. Seeds, batches,
devices and servers' addresses are left out. Runs of two judges are never compared (`comparisons`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from overrefusal_po.recipe.overrides import dotted
from overrefusal_po.records import Outcome, read_state
from overrefusal_po.run.folder import written_recipe
from overrefusal_po.run.keys import keyed

MeasuredHow = Mapping[str, str]
"""{dotted recipe key: its value in words}."""

NOT_COMPARED = (
    *("engine.name", "engine.device", "engine.continuous_batching"),
    *("engine.model", "engine.adapter", "engine.adapter_on_server"),
)
"""Keys of recipe.yaml that change no response, the engine's name, which responses have, and those
that say which model is measured."""

RECIPE_MARK = "chat.system_prompt"
"""A key that every recipe has: a run without it was read without its recipe."""

UNLIKE = "NOT MEASURED ALIKE"
"""How the sentence about runs that differ begins."""

SHOWN = 60
"""Characters of a value that a sentence shows."""


def measured_how(folder: Path, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The settings of one run: those of its responses, and those of the recipe in its folder.

    A folder without a readable recipe.yaml has those of its responses alone.
    """
    return {**recipe_how(folder), **drawn_how(outcomes)}


def drawn_how(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """How the responses say that they were drawn."""
    ways = {outcome.completion.sampling for outcome in outcomes}
    values: dict[str, set[float]] = {
        "max_new_tokens": {way.max_new_tokens for way in ways},
        "temperature": {way.temperature for way in ways},
        # a greedy response does not depend on it
        "top_p": {way.top_p for way in ways if way.temperature > 0},
    }
    found = {
        f"generation.{name}": " and ".join(f"{value:g}" for value in sorted(known))
        for name, known in values.items()
        if known
    }
    return {**found, "engine": " and ".join(sorted({o.completion.engine for o in outcomes}))}


def recipe_how(folder: Path) -> dict[str, str]:
    """What recipe.yaml in a run folder says of the engine, and of how conversations are
    rendered."""
    values = written_recipe(folder)
    sections = {key: values[key] for key in ("chat", "engine") if isinstance(values.get(key), dict)}
    found = {
        key: in_words(value)
        for key, value in dotted(keyed(sections))
        if key not in NOT_COMPARED and value != {}
    }
    return {**found, **named_files(folder, found)}


def named_files(folder: Path, how: MeasuredHow) -> dict[str, str]:
    """The settings that name a file, by its name and content: two paths may lead to equal files,
    and a file may have changed."""
    status = folder / "status.json"
    inputs = read_state(status).get("inputs", {}) if how and status.is_file() else {}
    return {
        key: f"{Path(how[key]).name} (content {content})"
        for key, content in inputs.items()
        if key in how
    }


def in_words(value: object) -> str:
    """A value as a sentence has it: a text of several words, or of none, in quotation marks."""
    if value is None:
        return "none"
    return repr(value) if isinstance(value, str) and (" " in value or not value) else str(value)


def settings_note(runs: Mapping[str, MeasuredHow]) -> str | None:
    """A sentence with every setting in which runs differ, and its value in each; None if all are
    equal. `runs`: {name: how it was measured}.

    If a run was read without its recipe, the settings of the responses are compared alone.
    """
    keys = sorted({key for how in runs.values() for key in how})
    if not all(RECIPE_MARK in how for how in runs.values()):
        keys = [key for key in keys if all(key in how for how in runs.values())]
    apart = [f"{key} is {value_words(key, runs)}" for key in keys if differs(key, runs)]
    if not apart:
        return None
    return (
        f"{UNLIKE}: {'; '.join(apart)}. Differences between these runs may come from "
        "that, and not from the models. Measure them with the same settings."
    )


def differs(key: str, runs: Mapping[str, MeasuredHow]) -> bool:
    """Whether runs differ in a setting."""
    return len({how.get(key) for how in runs.values()}) > 1


def value_words(key: str, runs: Mapping[str, MeasuredHow]) -> str:
    """`48 in base, 20 in sft and dpo`."""
    names: dict[str, list[str]] = {}
    for name, how in runs.items():
        names.setdefault(how.get(key, "not set"), []).append(name)
    return ", ".join(
        f"{value if len(value) <= SHOWN else f'{value[:SHOWN]}...'} in {' and '.join(there)}"
        for value, there in names.items()
    )
