"""Shards of pairs for training: what each client of a federated training learns from."""

from pathlib import Path
from typing import Any

import pytest
from test_selection import ANSWER, REFUSAL, asked

from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.shard import in_shard
from overrefusal_po.records import PreferencePair, write_jsonl
from overrefusal_po.run.keys import run_key
from overrefusal_po.train.preference import read

THINGS = [
    f"{which} {thing}"
    for which in ("an old", "a new", "a green", "my")
    for thing in ("lock", "safe", "window", "phone", "bank", "process", "program", "box")
]


def pairs() -> list[PreferencePair]:
    """A pair on each thing of both kinds."""
    made = []
    for kind, sides in (("benign", (ANSWER, REFUSAL)), ("harmful", (REFUSAL, ANSWER))):
        for prompt in asked(THINGS, kind):
            rule: Any = "overrefusal" if kind == "benign" else "containment"
            chosen, rejected = sides
            made.append(
                PreferencePair(
                    id=prompt.id, prompt=prompt, chosen=chosen, rejected=rejected, rule=rule
                )
            )
    return made


def trained_on(file: Path, **data: Any) -> TrainRecipe:
    """A DPO recipe on a file of pairs."""
    values = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": "my/model"},
        "data": {"pairs": str(file), **data},
    }
    body = check_body(values, "test")
    assert isinstance(body, TrainRecipe)
    return body


def test_shards_are_parts_that_make_up_the_whole(tmp_path: Path) -> None:
    every = pairs()
    file = tmp_path / "pairs.jsonl"
    write_jsonl(file, every)
    parts = [read(trained_on(file, shard=f"{n}/5")).records for n in range(1, 6)]
    assert all(parts) and len(parts) == 5
    found = [row.id for part in parts for row in part if isinstance(row, PreferencePair)]
    assert sorted(found) == sorted(pair.id for pair in every)
    assert len(read(trained_on(file)).records) == len(every)


def test_the_student_is_asked_the_prompts_of_its_shard_alone() -> None:
    recipes = [
        trained_on(Path("starter"), containment="student", shard=shard) for shard in ("1/2", "2/2")
    ]
    whole = read(trained_on(Path("starter"), containment="student"))
    parts = [read(recipe).asked for recipe in recipes]
    ids = [prompt.id for part in parts for prompt in part]
    assert all(parts) and sorted(ids) == sorted(prompt.id for prompt in whole.asked)


def test_a_shard_without_a_row_and_a_wrong_shard_are_errors() -> None:
    with pytest.raises(ValueError, match=r"data\.shard is .*, and none of 1 rows is in it"):
        for number in (1, 2):
            in_shard(pairs()[:1], f"{number}/2")
    with pytest.raises(ValueError, match="allowed is i/n"):
        trained_on(Path("starter"), shard="5/4").typed_data  # noqa: B018


def test_a_shard_is_another_run_and_a_run_without_one_keeps_its_key() -> None:
    def key(values: dict[str, Any]) -> str:
        return run_key({"task": "train", "data": values}, {})

    assert key({"pairs": "starter", "shard": None}) == key({"pairs": "starter"})
    assert len({key({"pairs": "starter", "shard": f"{n}/2"}) for n in (1, 2)}) == 2
