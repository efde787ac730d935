"""`rounds: 2` of a pipeline -> ordinary stages `curate_2` and `dpo_2`. Imports no torch.

    found = with_rounds({"curate": {...}, "dpo": {...}, "after": {...}}, 2, Path("recipes"))
    found.stages            # curate, dpo, curate_2, dpo_2, after
    found.repeats.stages    # ("curate", "dpo")

Each round is iterated DPO: its pairs come from the model of the round before, and its training
starts from that model. Pairs of earlier rounds are not used again, since the model no longer says
their rejected sides (arXiv 2404.19733 and Snorkel-Mistral-PairRM-DPO do the same). DPO's reference
is the model at the start of the round. What must not add up over the rounds is held to the very
first model (`hold.start`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.recipe.files import read_recipe
from overrefusal_po.recipe.overrides import Values, dotted, merged_values, set_dotted

MODEL = "model.model_name_or_path"


class Repeats(NamedTuple):
    """Which stages a pipeline repeats, as they are called in round 1, and how many rounds it
    has."""

    stages: tuple[str, ...] = ()
    rounds: int = 1

    def origin(self, stage: str) -> tuple[str, int]:
        """(its name in round 1, its round) of a stage; the round is 0 if it is not repeated."""
        for number in range(1, self.rounds + 1):
            for name in self.stages:
                if in_round(name, number) == stage:
                    return name, number
        return stage, 0


class WithRounds(NamedTuple):
    """The stages of a pipeline with all rounds written out, and which keys were set for that."""

    stages: dict[str, Values]
    repeats: Repeats
    keys: tuple[str, ...] = ()
    """The dotted keys of the recipe that follow from `rounds`."""


def in_round(stage: str, number: int) -> str:
    """The name of a repeated stage in a round."""
    return stage if number == 1 else f"{stage}_{number}"


def with_rounds(stages: Mapping[str, Values], rounds: int, folder: Path) -> WithRounds:
    """The stages of all rounds, those behind the repeated ones with the last round's outputs. With
    one round `@dpo_1.model` is `@dpo.model`, so that a recipe may name round 1 either way.

    Args:
        stages: {name: what the recipe says of it}.
        rounds: how many there are.
        folder: where `recipe:` files are found.

    Raises ValueError if no training reads a curate stage, or if a name of a later round is taken.
    """
    whole = {name: with_file(given, folder) for name, given in stages.items()}
    repeats = Repeats(repeated_stages(whole), rounds)
    if rounds > 1:
        check_repeated(repeats)
        check_names_free(stages, repeats)
    elif not repeats.stages:
        return WithRounds(dict(stages), Repeats())
    extra = {in_round(s, n) for s in repeats.stages for n in range(2, rounds + 1)}
    found: dict[str, Values] = {}
    keys: list[str] = []
    for name, given in stages.items():
        if name in extra:
            continue
        behind = repeats.stages[-1] in found
        changes = renamed(whole[name], repeats, rounds if behind else 1, own=stages)
        found[name] = changed(given, changes)
        keys += [f"stages.{name}.{key}" for key in changes]
        if name == repeats.stages[-1]:
            for number in range(2, rounds + 1):
                keys += add_round(found, stages, whole, repeats=repeats, number=number)
    return WithRounds(found, repeats if rounds > 1 else Repeats(), tuple(keys))


def with_file(given: Mapping[str, object], folder: Path) -> Values:
    """What a stage says, over the keys of its `recipe:` file."""
    if "recipe" not in given:
        return dict(given)
    return merged_values(read_recipe(folder / str(given["recipe"])).values, given)


def repeated_stages(whole: Mapping[str, Values]) -> tuple[str, ...]:
    """The first stage that curates pairs, and what reads it up to the last training that does;
    empty if no training does."""
    reading: list[str] = []
    trains = 0
    for name, values in whole.items():
        first = (
            not reading
            and values.get("task") == "curate"
            and values.get("makes", "pairs") == "pairs"
        )
        if first or {stage for stage, _ in named_outputs(values).values()} & {*reading}:
            reading.append(name)
            trains = len(reading) if values.get("task") == "train" else trains
    return tuple(reading[:trains])


def check_repeated(repeats: Repeats) -> None:
    """Raises ValueError if there is nothing to repeat."""
    if not repeats.stages:
        raise ValueError(
            f"rounds is {repeats.rounds}, and this pipeline has nothing to repeat: no training "
            "reads what a curate stage makes of pairs. Add both (see recipes/porover.yaml), or "
            "take rounds out."
        )


def check_names_free(stages: Mapping[str, Values], repeats: Repeats) -> None:
    """Raises ValueError if a stage of the recipe has the name of a round's stage.

    Keys alone are allowed: they change that round's stage.
    """
    for first in repeats.stages:
        for number in range(1, repeats.rounds + 1):
            given = stages.get(f"{first}_{number}", {})
            if "recipe" in given or "task" in given:
                raise ValueError(
                    f"rounds is {repeats.rounds}, so {first}_{number} is the name of {first} in "
                    f"round {number}, and the recipe has a stage {first}_{number} already. Rename "
                    "that one, or take rounds out."
                )


def named_outputs(values: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """{dotted key: (stage, output)} of every "@stage.output" in a stage."""
    found = {}
    for key, value in dotted(values):
        if isinstance(value, str) and value.startswith("@") and "." in value:
            stage, _, output = value[1:].partition(".")
            found[key] = (stage, output)
    return found


def renamed(
    values: Mapping[str, object], repeats: Repeats, number: int, *, own: Mapping[str, Values]
) -> dict[str, object]:
    """{dotted key: the reference that it needs} if what is repeated is read as it is in a round.
    `@dpo_1.model` is always round 1's, unless dpo_1 is the recipe's `own` stage."""
    found: dict[str, object] = {}
    for key, (stage, output) in named_outputs(values).items():
        if stage in repeats.stages and number > 1:
            found[key] = f"@{in_round(stage, number)}.{output}"
        elif stage in {f"{first}_1" for first in repeats.stages} - own.keys():
            found[key] = f"@{stage.removesuffix('_1')}.{output}"
    return found


def add_round(
    found: dict[str, Values],
    stages: Mapping[str, Values],
    whole: Mapping[str, Values],
    *,
    repeats: Repeats,
    number: int,
) -> list[str]:
    """Adds the stages of one round to `found`; returns the keys that are not the recipe's own."""
    keys = []
    for first in repeats.stages:
        name = in_round(first, number)
        changes = renamed(whole[first], repeats, number, own=stages)
        changes |= of_later_round(first, whole, repeats, number=number)
        made = changed(stages[first], changes)
        if MODEL in changes:
            # a revision and a remedy belong to the model that they stood beside
            for key in ("model_revision", "remedy"):
                made["model"].pop(key, None)
        own = stages.get(name, {})
        found[name] = merged_values(made, own)
        given = dict(dotted(own))
        keys += [f"stages.{name}.{key}" for key in changes if key not in given]
    return keys


def of_later_round(
    first: str, whole: Mapping[str, Values], repeats: Repeats, *, number: int
) -> dict[str, object]:
    """{dotted key: value} of what is different in a later round: the model before it, only pairs
    that are still needed, and the safety of the very first model."""
    values, found = whole[first], dict[str, object]()
    task = values.get("task")
    model = named_outputs(values).get(MODEL, ("", ""))[0]
    if task in ("curate", "train") and model not in repeats.stages:
        found[MODEL] = f"@{in_round(last_training(whole, repeats.stages), number - 1)}.model"
    if (
        task == "curate"
        and values.get("makes", "pairs") == "pairs"
        and not values.get("later_round")
    ):
        found["later_round.held_per_wrong"] = 1.0
    hold = values.get("hold")
    if task == "train" and isinstance(hold, Mapping) and not hold.get("start"):
        found["hold.start"] = f"@{first}.start"
    if task == "evaluate" and values.get("name"):
        found["name"] = f"{values['name']}, round {number}"
    return found


def last_training(whole: Mapping[str, Values], stages: Sequence[str]) -> str:
    """The last of these stages, which is a training."""
    assert whole[stages[-1]].get("task") == "train"
    return stages[-1]


def changed(given: Mapping[str, object], changes: Mapping[str, object]) -> Values:
    """A copy of what a stage says, with these keys."""
    made = copy.deepcopy(dict(given))
    for key, value in changes.items():
        set_dotted(made, key, value)
    return made


def round_origins(origin: Mapping[str, str], found: WithRounds) -> dict[str, str]:
    """{dotted key: where it came from} of the stages of later rounds, and of what `rounds` set."""
    repeats, more = found.repeats, dict[str, str]()
    for key, said in origin.items():
        parts = key.split(".", 2)
        if parts[0] != "stages" or len(parts) < 3 or parts[1] not in repeats.stages:
            continue
        for number in range(2, repeats.rounds + 1):
            more[f"stages.{in_round(parts[1], number)}.{parts[2]}"] = said
    return {**more, **origin, **dict.fromkeys(found.keys, "rounds")}
