"""A pipeline with a fit and a rival, run on a tiny model that refuses everything: its table."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_fit import DEV_THINGS, values_of, wary
from test_selection import asked

from overrefusal_po.cli import main
from overrefusal_po.pipeline import is_finished
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import read_state, write_jsonl
from overrefusal_po.report.summary import read_summary
from overrefusal_po.stage_recipes import stage_bodies

__all__ = ["wary"]  # a fixture

ROOT = Path(__file__).parents[1]
TEST_THINGS = [f"{word} of {thing}" for word in ("a part", "the end") for thing in DEV_THINGS]


def recipe_of(model: Path, folder: Path, **report: Any) -> Path:
    """A pipeline: the untouched model, a system prompt, a threshold, and one that cannot be had."""
    fit = values_of(model, folder)
    section = fit.pop("model")
    write_jsonl(folder / "test.jsonl", asked(TEST_THINGS, "harmful") + asked(TEST_THINGS, "benign"))
    measured = {
        "task": "evaluate",
        "data": {"sets": [str(folder / "test.jsonl")], "split": None},
        "generation": {"max_new_tokens": 16},
        "model": {"dtype": "float32"},
    }
    prompt = {"system_prompt": "Answer."}
    stages = {
        "before": {**measured, "name": "untouched", "first_token": "texts"},
        "prompted": {**measured, "name": "system prompt", "chat": prompt},
        "fit": fit,
        "after": {**measured, "name": "threshold", "model": {"remedy": "@fit.remedy"}},
    }
    values = {
        "task": "pipeline",
        "run_dir": str(folder / "run"),
        "model": section,
        "stages": stages,
        "report": {"baseline": "before", "rivals": ["prompted"], **report},
    }
    path = folder / "remedies.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def command(*words: str) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.slow
def test_a_pipeline_of_a_fit_and_a_rival_ends_in_the_table(
    wary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(wary, tmp_path)
    assert command(str(recipe)) == 0
    part = read_summary(tmp_path / "run").remedies
    assert part is not None and part.sentence in capsys.readouterr().out
    rows = {row.run: row for row in part.rows}
    assert rows["system prompt"].served == "prompt" and rows["system prompt"].rival
    threshold = rows["threshold"]
    assert threshold.served == "logits" and threshold.made_by == ("fit",)
    (fit,) = threshold.fits
    assert (fit.status, fit.name) == ("fitted", "threshold")
    assert [row["kept"] for row in fit.dev].count(True) == 1 and len(fit.points) == len(fit.dev)
    assert threshold.fit_seconds is not None and threshold.fit_seconds > 0
    assert threshold.off_curve.value is not None and threshold.off_curve.value <= 0
    assert part.exact_curve and "understates" not in part.curve_words
    manifest = json.loads((tmp_path / "run" / "before" / "manifest.json").read_text())
    assert manifest["first_token_texts_seconds"] > 0
    assert not any("ALIKE" in line for line in read_summary(tmp_path / "run").warnings)
    assert "Remedies" in (tmp_path / "run" / "report.html").read_text()
    # another rule is another table, from the same runs
    assert is_finished(load_recipe(str(recipe), []))
    ran = read_state(tmp_path / "run" / "fit" / "status.json")
    other = load_recipe(str(recipe), ["--report.hold_drop_max=0.5"])
    assert not is_finished(other)
    assert command(str(recipe), "--report.hold_drop_max=0.5") == 0
    assert read_state(tmp_path / "run" / "fit" / "status.json") == ran
    again = json.loads((tmp_path / "run" / "summary.json").read_text())["remedies"]
    assert again["rule"]["hold_drop_max"] == 0.5


def test_a_report_names_evaluate_stages_alone(tmp_path: Path) -> None:
    for report in ({"baseline": "fit"}, {"rivals": ["nobody"]}):
        recipe = recipe_of(Path("my/model"), tmp_path, **report)
        with pytest.raises(
            ValueError, match=r"which is no evaluate stage\. Allowed: before, prompt"
        ):
            stage_bodies(load_recipe(str(recipe), []))


@pytest.mark.parametrize(
    ("remedy", "asks", "said"),
    [
        ("ablation", {"tamper": {"tiers": [0]}}, r"after: tamper .*Measure @fit\.model, without"),
        ({"name": "threshold", "as_weights": True}, {"tamper": {"tiers": [0]}}, r"@fit\.model"),
        ("contrast", {"capability": {"perplexity": True}}, r"stage after: capability\.perplexity"),
        ("threshold", {"tamper": {"tiers": [0]}, "capability": {"perplexity": True}}, ""),
        ("contrast", {"tamper": {"tiers": [0]}}, ""),
    ],
)
def test_what_a_remedys_form_rules_out_is_known_before_it_is_fitted(
    tmp_path: Path, remedy: Any, asks: dict[str, Any], said: str
) -> None:
    recipe = recipe_of(Path("my/model"), tmp_path)
    values = yaml.safe_load(recipe.read_text())
    values["stages"]["fit"]["remedy"] = remedy
    values["stages"]["after"] |= asks
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    if not said:
        assert "after" in stage_bodies(load_recipe(str(recipe), []))
        return
    with pytest.raises(ValueError, match=said):
        stage_bodies(load_recipe(str(recipe), []))


def test_the_shipped_recipe_takes_any_model_and_measures_all_on_the_same_prompts() -> None:
    path = ROOT / "recipes" / "remedies.yaml"
    assert len(path.read_text().splitlines()) <= 70
    stages = stage_bodies(load_recipe(str(path), ["--model=my/model"]))
    measured = [body for body in stages.values() if body.task == "evaluate"]
    assert len({str(body.data) for body in measured}) == 1 and len(measured) >= 8
    own = [str(body.model["model_name_or_path"]) for body in stages.values()]
    assert {name for name in own if not name.startswith("@")} == {"my/model"}


def test_one_training_is_measured_alone_and_behind_a_gate() -> None:
    """`gated` takes the bias of `hold` out of its adapter, so no second training is needed."""
    path = ROOT / "recipes" / "remedies.yaml"
    stages = stage_bodies(load_recipe(str(path), ["--model=my/model"]))
    adapters = [
        body.remedy["adapter"]
        for body in stages.values()
        if body.task == "fit" and isinstance(body.remedy, dict) and "adapter" in body.remedy
    ]
    trainings = [name for name, body in stages.items() if isinstance(body, TrainRecipe)]
    assert trainings == ["dpo"] and adapters == ["@dpo.adapter"]
    measured = [body.model.get("model_name_or_path") for body in stages.values()]
    assert "@dpo.model" in measured
