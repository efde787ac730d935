"""What a fit's recipe, or a model's config, shows to be wrong is said before any weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Style
from test_fit import values_of
from test_remedies_run import command
from test_unfit_models import gemma
from tiny_subject import lora

from overrefusal_po.checks import check_stage
from overrefusal_po.pipeline import run_stage
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.stage_recipes import stage_bodies

ROOT = Path(__file__).parents[1]
FEDERATED = ROOT / "recipes" / "studies" / "federated.yaml"


def weightless(style: Style, folder: Path) -> Path:
    """A model's folder with config and tokenizer alone: what loads weights fails there."""
    style.make_model().save_pretrained(folder)
    style.tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("remedy", "said"),
    [
        ({"name": "steering", "strengths": [0]}, "strengths"),
        ({"name": "steering", "strengths": [float("nan")]}, "strengths"),
        ({"name": "steering", "strengths": [float("inf")]}, "strengths"),
        ({"name": "steering", "layers": [5, 9]}, "layers"),
        ({"name": "steering", "layers": [0.6, 0.3]}, "two rising shares"),
        ({"name": "ablation", "strengths": [-0.5]}, "strengths"),
        ({"name": "debias", "strengths": [0.5, 0.0]}, "strengths"),
        ({"name": "contrast", "strengths": [-1]}, "strengths"),
        ({"name": "gated", "change": "threshold", "strengths": [-2]}, "strengths"),
        ({"name": "dial", "adapter": "a", "shares": [2]}, "shares"),
        ({"name": "dial", "adapter": "a", "shares": [-0.1]}, "shares"),
        ({"name": "fusion", "adapters": {"a": "x"}, "weights": {"a": [float("nan")]}}, "weights"),
        ({"name": "threshold", "shares": [float("nan")]}, "shares"),
    ],
)
def test_values_that_mean_nothing_are_faults_of_a_recipe(remedy: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"remedies '{remedy['name']}'.*{said}"):
        find_plug("remedies", remedy)


@pytest.mark.parametrize("rule", ["median", "krum"])
def test_a_federated_pipeline_counts_its_adapters_before_any_client_trains(rule: str) -> None:
    given: Any = load_recipe(str(FEDERATED), [f"--stages.fused.remedy.rule={rule}"])
    adapters = given.body.stages["fused"]["remedy"]["adapters"]
    for name in list(adapters)[2:]:
        del adapters[name]
    least = {"median": 3, "krum": 5}[rule]
    with pytest.raises(ValueError, match=f"rule is {rule} and there are 2 adapters.*least {least}"):
        stage_bodies(given)


@pytest.mark.parametrize(
    ("kind", "remedy", "said"),
    [
        ("gemma", {"name": "threshold", "as_weights": True}, r"as_weights: no bias can be folded"),
        ("llama", {"name": "steering", "layers": [0.6, 0.7]}, "no blocks of a model with 2"),
    ],
)
def test_a_setting_that_does_not_fit_the_config_is_found_without_weights(
    styles: dict[str, Style], tmp_path: Path, kind: str, remedy: dict[str, Any], said: str
) -> None:
    style = styles["llama"] if kind == "llama" else gemma(styles["llama"])
    model = weightless(style, tmp_path / "model")
    body: Any = check_body(values_of(model, tmp_path / "data", remedy=remedy), "test")
    with pytest.raises(ValueError, match=said):
        check_stage(body)
    with pytest.raises(ValueError, match=said):
        run_stage(body, "fit", tmp_path / "run")


@pytest.mark.parametrize("name", ["dial", "gated", "fusion", "safelora"])
def test_an_adapter_of_another_model_is_found_without_weights(
    styles: dict[str, Style], tmp_path: Path, name: str
) -> None:
    model, before = weightless(styles["llama"], tmp_path / "model"), tmp_path / "before"
    lora(styles["llama"].make_model(), tmp_path / "adapter")
    styles["llama"].make_model(1).save_pretrained(before)
    styles["llama"].tokenizer.save_pretrained(before)
    config = json.loads((model / "config.json").read_text()) | {"hidden_size": 32}
    for folder in (model, before):
        (folder / "config.json").write_text(json.dumps(config))
    adapter = str(tmp_path / "adapter")
    own: dict[str, Any] = {"adapter": adapter}
    if name == "fusion":
        own = {"adapters": {"a": adapter}, "weights": {"a": [1.0]}}
    more = {"reference": {"model_name_or_path": str(before)}} if name == "safelora" else {}
    values = values_of(model, tmp_path / "data", remedy={"name": name, **own}, **more)
    with pytest.raises(ValueError, match="this adapter belongs to another model"):
        check_stage(check_body(values, "test"))  # type: ignore[arg-type]


def test_what_no_setting_mends_stops_no_check(styles: dict[str, Style], tmp_path: Path) -> None:
    """Ablation cannot work on a Gemma 2: the fit says so, and a pipeline goes on."""
    model = weightless(gemma(styles["llama"]), tmp_path / "model")
    for name in ("ablation", "steering", "threshold"):
        body: Any = check_body(values_of(model, tmp_path / "data", remedy=name), "test")
        assert "fitted on" in check_stage(body)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--remedy=debias"], "Name that one: reference: {model_name_or_path: NAME}"),
        (["--generation.temperature=0.7"], "a fit measures greedily"),
        (["--model.remedy=some/remedy"], "fitted on a model without one"),
        (["--reference={model_name_or_path: a, remedy: b}", "--remedy=debias"], "reference.remedy"),
    ],
)
def test_plain_check_finds_what_the_recipe_alone_shows(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("check", str(ROOT / "recipes" / "fit.yaml"), *given) == 2
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split()) and "is valid" not in shown.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--remedy.name=dial"],
            ": remedy 'dial': adapter is missing. Give the folder of the LoRA adapter that made the "
            "model safe, and that its weights hold; or `@stage.adapter` in a pipeline.",
        ),
        (
            ["--remedy.name=steering", "--remedy.strengths=[]"],
            ": remedy 'steering': strengths is []; give at least 1",
        ),
        (
            ["--remedy=steerin"],
            ": remedy: steerin is no remedy that is known. Did you mean steering",
        ),
        (["--judge=refusl"], ": judge: refusl is no judge that is known. Did you mean refusal"),
        (["--data.choose.sets=[]"], "data.choose.sets is []; give at least 1."),
        (
            ["--remedy.name=fusion", "--remedy.adapters.a=x", "--remedy.rule=krum"],
            ": remedy 'fusion': rule is krum and there are 1 adapters; it needs at least 5",
        ),
    ],
)
def test_a_fault_of_a_plug_is_said_once_and_in_plain_words(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("check", str(ROOT / "recipes" / "fit.yaml"), *given) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown and "after validation" not in shown and "Value error" not in shown


LACKING = {
    "model": ("evaluate", ["--model.model_name_or_path=no/where"]),
    "adapter": ("fit", ["--remedy.name=dial", "--remedy.adapter=no/adapter"]),
    "remedy": ("evaluate", ["--model.remedy=no/remedy"]),
    "rows": ("evaluate", ["--data.sets=[no.jsonl]"]),
    "tamper": ("evaluate", ["--tamper.tiers=[1]", "--tamper.harmful=no.jsonl"]),
}
"""Recipes that are valid and name what is not there."""


@pytest.mark.parametrize("what", LACKING)
def test_a_check_that_looked_at_no_file_says_so_and_with_data_it_looks(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, given = LACKING[what]
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    assert command("check", recipe, *given) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        "valid. Models, prompts and other files were not looked at: --data does that."
    )
    assert command("check", "--data", recipe, *given) == 2
    assert "is valid" not in capsys.readouterr().out


def test_a_check_of_data_does_not_say_that_it_did_not_look(
    styles: dict[str, Style], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = weightless(styles["llama"], tmp_path / "model")
    given = ["--data", str(ROOT / "recipes" / "fit.yaml"), f"--model.model_name_or_path={model}"]
    assert command("check", *given) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("fit.yaml is valid.")
