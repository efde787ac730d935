"""`overrefusal-po schema`: shipped recipes are valid by it, typical mistakes are not."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from overrefusal_po.cli import main
from overrefusal_po.recipe.json_schema import recipe_schema, with_scalars
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.schema import MANAGED_KEYS

FOLDER = Path(__file__).parents[1] / "recipes"
FILE = FOLDER / "recipe.schema.json"
SHIPPED = sorted(path for path in FOLDER.rglob("*.yaml") if "\nlaunch:" in path.read_text())
MODEL = {"model_name_or_path": "some/model"}
DPO = {"task": "train", "method": "dpo", "model": MODEL}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """What an editor does with the schema."""
    schema = recipe_schema(METHODS)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def own_part(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without TRL's keys and version."""
    kept = {k: v for k, v in schema["$defs"].items() if "." not in k}
    return {**schema, "$defs": kept, "$comment": ""}


def test_the_shipped_file_is_fresh() -> None:
    """If it is not: overrefusal-po schema > recipes/recipe.schema.json."""
    shipped, made = json.loads(FILE.read_text()), recipe_schema(METHODS)
    assert own_part(shipped) == own_part(made)
    if all(f"{name} {version(name)}" in shipped["$comment"] for name in ("trl", "transformers")):
        assert shipped == made
    else:  # another TRL than the one that the file was made with
        assert shipped["$comment"] != made["$comment"]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["schema"])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["title"] == "overrefusal-po recipe"


def test_it_is_small_enough_for_an_editor() -> None:
    assert FILE.stat().st_size < 300_000


def test_every_reference_leads_to_a_definition(validator: Draft202012Validator) -> None:
    text = json.dumps(validator.schema)
    names = {part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert names and names <= set(validator.schema["$defs"])
    assert text.count('"$ref"') == text.count('"$ref": "#/$defs/')


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_shipped_recipe_is_valid_and_names_the_schema(
    validator: Draft202012Validator, path: Path
) -> None:
    text = path.read_text()
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []
    mark = "# yaml-language-server: $schema="
    (line,) = [line for line in text.splitlines() if line.startswith(mark)]
    assert (path.parent / line.removeprefix(mark)).resolve() == FILE.resolve()


def test_the_schema_stands_where_copied_recipes_look_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path)])
    assert "recipe.schema.json" not in capsys.readouterr().out
    copied = tmp_path / "recipes" / "mistral-7b" / "dpo.yaml"
    mark = next(n for n in copied.read_text().splitlines() if "yaml-language-server" in n)
    found = (copied.parent / mark.partition("$schema=")[2]).resolve()
    assert found == (tmp_path / "recipes" / "recipe.schema.json").resolve() and found.is_file()


@pytest.mark.parametrize(
    "recipe",
    [
        DPO,
        {**DPO, "trainer": {"loss_type": "ipo", "loss_weights": 1.0, "max_steps": 2.0}},
        {**DPO, "trainer": {"report_to": "wandb", "save_strategy": "no", "fsdp": True}},
        {**DPO, "model": {**MODEL, "lora_target_modules": "all-linear", "trust_remote_code": True}},
        {**DPO, "method": "my_package.grpo", "data": {"any": 1}, "trainer": {"thing": 2}},
        {**DPO, "select": None, "data": {"pairs": {"name": "ultrafeedback", "max": 3}}},
        {"base": "other.yaml"},
        {"base": "other.yaml", "task": "train", "trainer": {"beta": 0.2}},
        {"base": "other.yaml", "data": {"triples": "starter"}, "model": {"lora_r": 3}},
        {"base": "porover.yaml", "stages": {"dpo": {"hold": {"aim": "both"}}}},
        {
            "base": "porover.yaml",
            "task": "pipeline",
            "stages": {"curate": {"data": {"max_pairs": 9}}},
        },
        {"task": "evaluate", "model": MODEL, "gate": {"harmful_refused_min": 0.9}},
        {"task": "evaluate", "model": {**MODEL, "remedy": "@steer.remedy"}},
        {"task": "pipeline", "stages": {"a": {"recipe": "x.yaml", "data": {"max_pairs": 3}}}},
        {"task": "pipeline", "stages": {"a": {"task": "curate", "model": MODEL}}, "seed": 3},
    ],
)
def test_a_valid_recipe_is_valid(validator: Draft202012Validator, recipe: dict[str, Any]) -> None:
    assert [error.message for error in validator.iter_errors(recipe)] == []


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"task": "trian"},
        {"method": "dpo", "model": MODEL},
        {"task": "train", "model": MODEL},
        {"task": "train", "method": "dpo"},
        {**DPO, "model": {"use_peft": True}},
        {**DPO, "method": "ppo"},
        {**DPO, "modle": {}},
        {**DPO, "trainer": {"betta": 0.2}},
        {**DPO, "trainer": {"beta": "high"}},
        {**DPO, "trainer": {"beta": -1}},
        {**DPO, "trainer": {"optim": "adamwx"}},
        {**DPO, "trainer": {"loss_type": ["sigmoid", "x"]}},
        *({**DPO, "trainer": {key: "x"}} for key in MANAGED_KEYS),
        {**DPO, "data": {"triples": "starter"}},
        {**DPO, "data": {"containment": "teacher"}},
        {**DPO, "data": {"max_pairs": 0}},
        {**DPO, "model": {**MODEL, "lora": 3}},
        {**DPO, "select": {"tolerance": 2}},
        {**DPO, "generation": {"temprature": 1}},
        {**DPO, "seed": -1},
        {**DPO, "recipe": "other.yaml"},
        {"task": "evaluate", "model": MODEL, "trainer": {}},
        {"task": "evaluate", "model": MODEL, "data": {"sets": []}},
        {"task": "curate", "model": MODEL, "chosen": {"select": "best"}},
        {"task": "pipeline", "stages": {}},
        {"task": "pipeline", "stages": {"a": 3}},
        {"task": "pipeline", "stages": {"a": {"data": {}}}},
        {"task": "pipeline", "stages": {"a": {"task": "pipeline", "stages": {}}}},
        {"task": "pipeline", "stages": {"a": {"recipe": "x.yaml", "data": {"pears": 3}}}},
        {"task": "pipeline", "stages": {"a": {"recipe": "x.yaml", "run_dir": "here"}}},
        {"base": ["a.yaml"]},
        {"base": "other.yaml", "trainer": {"betta": 0.2}},
        {"base": "porover.yaml", "stages": {"dpo": {"hold": {"aim": "bothh"}}}},
        {"base": "porover.yaml", "stages": {"curate": {"data": {"pears": 3}}}},
        {"base": "other.yaml", "task": "train", "data": {"pears": 3}},
    ],
)
def test_a_typical_mistake_is_not(validator: Draft202012Validator, recipe: dict[str, Any]) -> None:
    assert list(validator.iter_errors(recipe))


def test_every_key_has_a_description(validator: Draft202012Validator) -> None:
    definitions = validator.schema["$defs"]
    for name, definition in definitions.items():
        for key, value in definition.get("properties", {}).items():
            target = definitions.get(value.get("$ref", "").rpartition("/")[2], {})
            assert value.get("description") or target.get("description"), f"{name}: {key}"


def test_one_item_may_stand_for_a_list() -> None:
    items = {"type": "string"}
    listed = {"type": "array", "items": items}
    assert with_scalars(listed) == {"anyOf": [listed, items]}
    both = {"anyOf": [items, listed]}
    assert with_scalars(both) == both and with_scalars(items) == items
