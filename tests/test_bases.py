"""recipe/files.py: `base: other.yaml`, where its keys come from, and what may be wrong with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from overrefusal_po.cli import main
from overrefusal_po.recipe.describe import describe
from overrefusal_po.recipe.files import read_recipe, read_yaml
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.overrides import dotted, merged_values
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.stage_recipes import stage_bodies

FOLDER = Path(__file__).parents[1] / "recipes"
BASES = sorted((FOLDER / "base").glob("*.yaml"))
LARGE = sorted(
    path
    for name in ("llama-3.1-8b", "qwen3-8b", "mistral-7b", "llama-3-70b")
    for path in (FOLDER / name).glob("*.yaml")
)
Write = Callable[..., Path]

WHOLE = """
task: train
method: dpo
model: {model_name_or_path: some/model, use_peft: true}
data: {pairs: pairs.jsonl, max_pairs: 5}
trainer: {beta: 0.3, loss_type: [sft]}
chat: {chat_template_kwargs: {enable_thinking: false}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes {name: text} as files of a temporary folder; returns the first one's path."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path / f"{next(iter(files)).replace('__', '/')}.yaml"

    return write


def fault(path: Path, *overrides: str) -> str:
    """The text of the ValueError that a recipe raises."""
    with pytest.raises(ValueError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_a_recipe_with_bases_is_the_recipe_written_out(write: Write) -> None:
    recipe = write(
        mine="base: below/middle.yaml\ntrainer: {beta: 0.3, loss_type: [sft]}\n",
        below__middle="base: ../last.yaml\ndata: {max_pairs: 5}\ntrainer: {beta: 0.2}\n",
        last=WHOLE.replace("max_pairs: 5", "max_pairs: 9").replace("0.3", "0.1"),
        whole=WHOLE,
    )
    found, wanted = load_recipe(recipe), load_recipe(recipe.with_name("whole.yaml"))
    assert found.resolved() == wanted.resolved() and "base" not in found.resolved()
    assert found.name == "mine"


def test_overrides_come_last_and_origins_name_the_file(write: Write) -> None:
    recipe = write(
        mine="base: below/middle.yaml\ndata: {pairs: mine.jsonl}\n",
        below__middle="base: ../last.yaml\ntrainer: {beta: 0.2}\n",
        last=WHOLE,
    )
    loaded = load_recipe(recipe, ["--data.max_pairs=7"])
    rows = {key: (value, origin) for key, value, origin in describe(loaded)}
    assert rows["data.pairs"] == ("mine.jsonl", "file")
    assert rows["data.max_pairs"] == (7, "override")
    assert rows["trainer.beta"] == (0.2, "base (below/middle.yaml)")
    assert rows["trainer.loss_type"] == (["sft"], "base (last.yaml)")
    assert rows["seed"] == (0, "default")


def test_check_shows_the_base(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", str(write(mine="base: last.yaml\nseed: 3\n", last=WHOLE))])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert not end.value.code
    assert ["trainer.beta", "0.3", "base", "(last.yaml)"] in lines and [
        "seed",
        "3",
        "file",
    ] in lines


def test_a_mapping_is_merged_and_a_list_is_replaced() -> None:
    below = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": "text", "d": {"k": 1}}
    above = {"a": {"y": {"w": 3}}, "b": [3], "c": {"name": "n"}, "d": {}, "e.f": 1}
    assert merged_values(below, above) == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}},
        "b": [3],
        "c": {"name": "n"},
        "d": {},
        "e.f": 1,
    }
    assert below["a"] == {"x": 1, "y": {"z": 2}}, "what is below stays unchanged"


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (
            {"mine": "base: none.yaml\n"},
            ["mine.yaml -> ", "none.yaml", "there is no such base", "relative to mine.yaml"],
        ),
        (
            {"mine": "base: a.yaml\n", "a": "base: gone/b.yaml\n"},
            ["mine.yaml -> ", "a.yaml -> ", "gone/b.yaml: there is no such base", "to a.yaml"],
        ),
        ({"mine": "base: mine.yaml\n"}, ["mine.yaml -> ", "mine.yaml: base leads back"]),
        (
            {"mine": "base: a.yaml\n", "a": "base: b.yaml\n", "b": "base: ./a.yaml\n"},
            ["mine.yaml -> ", "a.yaml -> ", "b.yaml -> ", "a.yaml: base leads back"],
        ),
        ({"mine": "base: [a.yaml]\n"}, ["base is ['a.yaml']", "allowed is one path"]),
        ({"mine": "base:\n"}, ["base is None", "allowed is one path"]),
        ({"mine": "base: a.yaml\n", "a": "- x\n"}, ["a.yaml: a recipe is a mapping"]),
        ({"mine": "base: a.yaml\n", "a": "seed: 1\n"}, ["mine.yaml -> ", "task is missing"]),
        (
            {"mine": "base: a.yaml\n", "a": WHOLE.replace("beta", "betta")},
            ["mine.yaml -> ", "a.yaml: trainer.betta", "Did you mean beta"],
        ),
    ],
)
def test_a_wrong_base_is_an_error_that_names_the_chain(
    write: Write, files: dict[str, str], parts: list[str]
) -> None:
    text = fault(write(**files))
    for part in parts:
        assert part in text, text


def test_a_base_is_no_override(write: Write) -> None:
    assert "base can only stand in a file" in fault(write(mine=WHOLE), "--base=other.yaml")


def test_a_stage_may_name_a_recipe_with_a_base(write: Write) -> None:
    pipeline = write(
        all="task: pipeline\nstages:\n  one: {recipe: sub/dpo.yaml, data: {max_pairs: 2}}\n",
        sub__dpo="base: ../last.yaml\ntrainer: {beta: 0.2}\n",
        last=WHOLE,
    )
    body = stage_bodies(load_recipe(pipeline))["one"]
    assert isinstance(body, TrainRecipe)
    assert (body.data["max_pairs"], body.trainer["beta"]) == (2, 0.2)


def test_check_says_which_base_of_a_stage_a_value_comes_from(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = write(
        all="task: pipeline\nstages:\n  one: {recipe: dpo.yaml, data: {max_pairs: 2}}\n",
        dpo="base: last.yaml\nseed: 4\n",
        last=WHOLE,
    )
    with pytest.raises(SystemExit):
        main(["check", str(pipeline)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stages.one.trainer.beta", "0.3", "base", "(last.yaml)"] in lines
    assert ["stages.one.seed", "4", "file"] in lines
    assert ["stages.one.data.max_pairs", "2", "file"] in lines


def test_the_stages_of_a_base_name_files_beside_it(write: Write) -> None:
    pipeline = write(
        mine="base: sub/all.yaml\nseed: 3\nstages: {one: {data: {max_pairs: 2}}}\n",
        sub__all="task: pipeline\nstages:\n  one: {recipe: dpo.yaml}\n",
        sub__dpo=WHOLE,
    )
    body = stage_bodies(load_recipe(pipeline))["one"]
    assert isinstance(body, TrainRecipe)
    assert (body.data["max_pairs"], body.trainer["beta"], body.seed) == (2, 0.3, 3)


# the shipped bases


@pytest.mark.parametrize("path", BASES, ids=lambda p: p.name)
def test_a_shipped_base_says_that_it_is_no_recipe(path: Path) -> None:
    assert path.read_text().startswith("# Not a recipe by itself: ")
    assert not {"task", "launch"} & set(yaml.safe_load(path.read_text()))
    assert "task is missing" in fault(path)


def test_every_shipped_base_is_used_and_none_of_its_keys_is_always_replaced() -> None:
    used = {
        path: read_recipe(path) for path in FOLDER.rglob("*.yaml") if "base:" in path.read_text()
    }
    for base in BASES:
        users = [g for g in used.values() if base.resolve() in {f.resolve() for f in g.chain[1:]}]
        assert users, base
        own = {key for key, _ in dotted(read_yaml(base)) if key != "base"}
        kept = {
            key for given in users for key, origin in given.origin.items() if base.name in origin
        }
        assert own <= kept, f"{base.name}: {own - kept}"


@pytest.mark.parametrize("path", LARGE, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_recipe_of_a_large_model_has_at_most_twelve_lines_and_comments(path: Path) -> None:
    assert sum(not line.startswith("#") for line in path.read_text().splitlines()) <= 12
    assert load_recipe(path).origin["base" if "base" in path.parts else "task"] == "file"
