"""One `model:` for all stages of a pipeline, and what a run is called."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from overrefusal_po.recipe.describe import stage_origins
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.model_names import own_name
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.references import linked_stage
from overrefusal_po.stage_recipes import stage_bodies

RECIPES = Path(__file__).parents[1] / "recipes"
EVALUATE = str(RECIPES / "evaluate.yaml")
DPO = str(RECIPES / "dpo.yaml")
FORMS = ("--model.model_name_or_path=my/model", "--model=my/model", "model=my/model")


def stage_models(path: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """{stage: its `model:`}."""
    stages = stage_bodies(load_recipe(path, overrides))
    return {name: body.model for name, body in stages.items()}


def pipeline(folder: Path, stages: dict[str, Any], **keys: Any) -> Path:
    """A pipeline's file."""
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"task": "pipeline", **keys, "stages": stages}, sort_keys=False))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["porover.yaml", "demo.yaml"])
def test_one_override_sets_the_start_model_of_every_shipped_stage(name: str, form: str) -> None:
    found = stage_models(RECIPES / name, form)
    names = {model["model_name_or_path"] for model in found.values()}
    assert {n for n in names if not n.startswith("@")} == {"my/model"}
    assert found["dpo"]["lora_r"] == 16  # the rest of the section stays
    for body in stage_bodies(load_recipe(RECIPES / name, [form])).values():
        assert "bundled:" not in str(body.model_dump())


@pytest.mark.parametrize("form", FORMS)
def test_an_override_of_the_model_keeps_the_rest_of_a_single_recipe(form: str) -> None:
    body = load_recipe(DPO, [form]).body
    assert body.model["model_name_or_path"] == "my/model" and body.model["lora_r"] == 16


def test_a_model_that_is_a_name_in_a_file_is_a_section(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {DPO}\nmodel: my/model\n")
    body = load_recipe(path).body
    assert body.model["model_name_or_path"] == "my/model" and body.model["lora_r"] == 16


def test_a_stage_keeps_its_own_model_and_outputs_and_a_revision_stays_with_its_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = {
        "before": {"recipe": EVALUATE, "name": "before"},
        "other": {"recipe": EVALUATE, "model": "their/model"},
        "dpo": {"recipe": DPO},
        "after": {"recipe": EVALUATE, "model": "@dpo.model"},
    }
    start = {"model_name_or_path": "my/model", "model_revision": "v2", "dtype": "float32"}
    path = pipeline(tmp_path, stages, model={**start, "lora_r": 4})
    found = stage_models(path)
    assert found["before"] == start
    assert found["other"] == {"model_name_or_path": "their/model", "dtype": "float32"}
    assert found["after"] == {"model_name_or_path": "@dpo.model", "dtype": "float32"}
    assert found["dpo"]["lora_r"] == 4 and found["dpo"]["model_revision"] == "v2"
    assert "stage other uses their/model, not the pipeline's model my/model" in caplog.text
    origins = stage_origins(load_recipe(path), "before")
    assert origins["model.model_name_or_path"] == "pipeline"


@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_trained_is_not_rounded_away_when_it_is_measured(
    bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = f"load_in_{bits}bit"
    quantised = (f"--model.{key}=true", "--model.bnb_4bit_quant_type=nf4")
    found = stage_models(RECIPES / "porover.yaml", *quantised, "--model.use_bnb_nested_quant=true")
    for stage in ("before", "curate", "after"):
        assert not [name for name in found[stage] if "bit" in name or "bnb" in name], stage
    assert found["dpo"][key] and found["dpo"]["use_bnb_nested_quant"]
    assert found["dpo"]["bnb_4bit_quant_type"] == "nf4" and not caplog.text

    found = stage_models(RECIPES / "porover.yaml", f"--stages.after.model.{key}=true")
    assert found["after"][key]
    assert f"stage after loads @dpo.model with model.{key}, which may round away" in caplog.text


def test_a_start_model_that_no_stage_uses_is_an_error(tmp_path: Path) -> None:
    path = pipeline(tmp_path, {"before": {"recipe": EVALUATE, "model": "their/model"}})
    with pytest.raises(ValueError, match=r"no stage uses .*'my/model'.*before their/model"):
        stage_models(path, "--model=my/model")


def test_the_start_model_of_a_pipeline_without_one_is_an_error(tmp_path: Path) -> None:
    stages = {"curate": {"recipe": str(RECIPES / "curate.yaml"), "chosen": {"model": "@model"}}}
    with pytest.raises(ValueError, match=r"model is @model, .*has no start model"):
        stage_models(pipeline(tmp_path, stages))
    found = stage_bodies(load_recipe(pipeline(tmp_path, stages), ["--model=my/model"]))
    assert found["curate"].model_dump()["chosen"]["model"] == "my/model"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--stages.befor.model=x", ["stage befor", "before, curate, dpo, after", "mean before?"]),
        ("--dpo.hold.aim=both", ["dpo is no key of a pipeline", "mean --stages.dpo.hold.aim?"]),
        ("--hold.aim=both", ["hold is no key of a pipeline", "mean --stages.dpo.hold.aim?"]),
        (
            "--data.split=dev",
            ["before, curate, dpo, after", "--stages.curate.data.split or --stages.dpo.data.split"],
        ),
        ("--gate.x=1", ["gate is no key of a pipeline", "stages are before, curate"]),
        ("--titel=x", ["titel is not a known key. Did you mean title?"]),
        ("--stages.dpo.hold.sets=a.jsonl", ["hold.sets is 'a.jsonl'", "a list: [a.jsonl]."]),
        ("--stages.zzz.seed=1", ["stage zzz", "before, curate, dpo, after", "needs one of both"]),
        ("--model.model_name=x", ["stage before", "model.model_name", "model_name_or_path"]),
    ],
)
def test_a_typo_in_a_stage_lists_the_stages(override: str, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        stage_models(RECIPES / "porover.yaml", override)
    for part in parts:
        assert part in str(caught.value)


def test_an_empty_stage_beside_a_stage_s_key_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("task: pipeline\nstages:\n  dpo:\n")
    with pytest.raises(ValueError, match=r"trainer is no key of a pipeline.* stages are dpo\."):
        load_recipe(path, ["--trainer.beta=1"])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("bundled:smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("gpt2", "gpt2"),
        ("runs/dpo-1a2b/model/", "dpo-1a2b/model"),
        ("../out", "out"),
        ("/", "/"),
        ("@dpo.model", "dpo"),
        ("/c/hub/models--Qwen--Qwen2.5-0.5B/snapshots/ab12", "Qwen/Qwen2.5-0.5B"),
    ],
)
def test_a_run_has_its_models_own_name(model: str, name: str) -> None:
    assert own_name(model) == name
    body = load_recipe(EVALUATE, [f"--model={model}"]).body
    assert isinstance(body, EvaluateRecipe) and body.run_name == name


def test_a_given_name_stays_and_a_linked_stage_keeps_the_stages_name(tmp_path: Path) -> None:
    body = load_recipe(EVALUATE, ["--model=my/model", "--name=mine"]).body
    assert isinstance(body, EvaluateRecipe) and body.run_name == "mine"
    tuned = check_body({"task": "evaluate", "model": {"model_name_or_path": "@dpo.model"}}, "r")
    assert isinstance(tuned, EvaluateRecipe)
    linked = linked_stage(tuned, tmp_path)
    assert isinstance(linked, EvaluateRecipe) and linked.run_name == "dpo"


def test_one_judge_is_that_of_all_stages_that_name_none(tmp_path: Path) -> None:
    other = {"name": "llm", "model": "m", "api_key_env": None}
    stages = {
        "before": {"recipe": EVALUATE, "name": "before"},
        "own": {"recipe": EVALUATE, "name": "own", "judge": "refusal"},
        "curate": {"recipe": str(RECIPES / "curate.yaml")},
        "dpo": {"recipe": DPO},
    }
    path = pipeline(tmp_path, stages, judge=other)
    found = {name: body.judge for name, body in stage_bodies(load_recipe(path)).items()}
    assert found == {"before": other, "own": "refusal", "curate": other, "dpo": other}
    assert stage_origins(load_recipe(path), "dpo")["judge"] == "pipeline"
    plain = stage_bodies(load_recipe(pipeline(tmp_path, stages)))
    assert {body.judge for body in plain.values()} == {"refusal"}
