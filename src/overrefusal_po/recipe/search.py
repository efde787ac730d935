"""`search:`: a grid of settings, the points of it that are tried, and what is wrong with it.

    search = Search(space={"trainer.learning_rate": [1e-4, 2e-4], "trainer.beta": [0.1, 0.3]})
    points(search, seed=0)[1]      # {"trainer.learning_rate": 1e-4, "trainer.beta": 0.3}
    trained_bodies(recipe)         # a recipe for each trial
    settings_words({"trainer.beta": 0.3})     # "trainer.beta 0.3"

Imports no torch.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from overrefusal_po.recipe.faults import fault_text
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.reading import ReadingSection
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.two_sided import Search
from overrefusal_po.recipe.words import nearest
from overrefusal_po.records import content_id

# Any: the values of TRL's keys and of `data`, whose own classes check them
Point = dict[str, Any]
"""The settings of one trial: {dotted key: value}."""

Checked = Callable[[TrainRecipe], dict[str, Any]]
"""A recipe -> {section: its checked values}; ValueError if one is wrong."""

SECTIONS = ("trainer", "data")
"""The sections in which trials may differ."""

FIXED = ("seed", "data_seed", "use_cpu", "report_to", "run_name", "push_to_hub", "hub_model_id")
"""Keys of `trainer` that say nothing of what is learned, or leave it to luck."""

GRID_MAX = 1000
"""The most combinations of a search that tries all of them."""


def grid_size(search: Search) -> int:
    """The number of combinations."""
    return math.prod(len(values) for values in search.space.values())


def points(search: Search, seed: int) -> list[Point]:
    """The settings of each trial: the whole grid in its order, or as many as `trials` says in an
    order that `seed` draws."""
    numbers: Sequence[int] = range(grid_size(search))
    if search.trials is not None:
        drawn = random.Random(content_id("search", seed))
        numbers = drawn.sample(numbers, search.trials)
    return [point_at(search, number) for number in numbers]


def point_at(search: Search, number: int) -> Point:
    """One combination of the grid. The values of the last key change first."""
    found: Point = {}
    for key, values in reversed(search.space.items()):
        number, at = divmod(number, len(values))
        found[key] = values[at]
    return dict(reversed(found.items()))


def with_point(body: TrainRecipe, point: Mapping[str, Any]) -> TrainRecipe:
    """The recipe with the settings of a trial, and without `search`."""
    sections = {name: dict(getattr(body, name)) for name in SECTIONS}
    for key, value in point.items():
        name, _, inner = key.partition(".")
        sections[name][inner] = value
    return body.model_copy(update={**sections, "search": None})


def trained_bodies(body: TrainRecipe) -> list[TrainRecipe]:
    """The recipes that are trained: one for each trial, or the recipe itself without a search."""
    if body.search is None:
        return [body]
    return [with_point(body, point) for point in points(body.search, body.seed)]


def search_words(search: Search) -> str:
    """`a search of 4 trials (6 combinations), each a training`."""
    size = grid_size(search)
    number = size if search.trials is None else search.trials
    return f"a search of {number} trials ({size} combinations), each a training"


def settings_words(point: Mapping[str, object]) -> str:
    """`trainer.learning_rate 0.0002, trainer.beta 0.3`."""
    return ", ".join(f"{key} {value_words(value)}" for key, value in point.items())


def value_words(value: object) -> str:
    """A value in few characters."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def checked_search(body: TrainRecipe, checked: Checked) -> Search | None:
    """The recipe's search, its values in the form that their keys take. ValueError for a search
    that cannot be made."""
    search = body.search
    if search is None:
        return None
    if body.hold is None:
        raise ValueError(
            "search is given without hold, and the best trial is the one that answers most at the "
            "safety that hold states. Add hold: {sets: [...]}, or take search out."
        )
    space = {
        key: checked_values(body, key, values, checked) for key, values in search.space.items()
    }
    search = search.model_copy(update={"space": space})
    check_trials(search)
    for point in points(search, body.seed):
        asked(checked, with_point(body, point), f", trial with {settings_words(point)}")
    return search


def checked_values(
    body: TrainRecipe, key: str, values: Sequence[object], checked: Checked
) -> list[object]:
    """The values of a key as its section takes them. ValueError for a key that stays the same in
    all trials, for a value that is not allowed, and for one that comes twice."""
    check_key(body, key)
    if not values:
        raise ValueError(
            f"search.space.{key} is an empty list. Give the values to try, or take the key out."
        )
    name, _, inner = key.partition(".")
    found = [asked(checked, with_point(body, {key: value}))[name][inner] for value in values]
    for at, value in enumerate(found):
        if value in found[:at]:
            raise ValueError(
                f"search.space.{key} has {value_words(value)} twice. Give each value once."
            )
    return found


# Any: values as above
def asked(checked: Checked, body: TrainRecipe, trial: str = "") -> dict[str, Any]:
    """The checked values of a recipe; ValueError that says that the search has the fault."""
    try:
        return checked(body)
    except ValidationError as error:
        values = {"task": "train", "method": body.method}
        raise ValueError(f"search.space{trial}: {fault_text(error, values)}") from None
    except ValueError as error:
        raise ValueError(f"search.space{trial}: {error}") from None


def check_key(body: TrainRecipe, key: str) -> None:
    """Raises ValueError for a key that no trial may change."""
    name, _, inner = key.partition(".")
    free = free_data_keys(body)
    if name == "trainer" and inner and inner not in FIXED:
        return
    if name == "data" and (
        inner in free or inner not in find_method(body.method).data.model_fields
    ):
        return  # an unknown key is found when its first value is checked
    allowed = [f"data.{key}" for key in free]
    raise ValueError(
        f"search.space.{key}: no trial may change {key}. Allowed are the keys of trainer (but not "
        f"{', '.join(FIXED)}) and {', '.join(allowed)}.{nearest(key, allowed)}"
    )


def free_data_keys(body: TrainRecipe) -> list[str]:
    """The keys of `data` that a trial may change: not those that say what is read, or waived."""
    section = find_method(body.method).data
    fixed = {*getattr(section, "sources", ()), *ReadingSection.model_fields, "waive"}
    return [key for key in section.model_fields if key not in fixed]


def check_trials(search: Search) -> None:
    """Raises ValueError for a number of trials that the grid does not have."""
    size = grid_size(search)
    if size < 2:
        raise ValueError(
            "search.space has one combination only, so there is nothing to choose from. Give at "
            "least one key two values, or take search out."
        )
    if search.trials is not None and search.trials > size:
        raise ValueError(
            f"search.trials is {search.trials}, but search.space has {size} combinations. Give at "
            f"most {size}, null for all of them, or more values."
        )
    if search.trials is None and size > GRID_MAX:
        raise ValueError(
            f"search.space has {size} combinations, and each is a training. Say how many of them "
            "are tried: search.trials."
        )
