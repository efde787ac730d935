"""The fits of a pipeline measure the untouched model once, and a model that does not over-refuse
ends the pipeline."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from test_fit import own_plugs, sensible, values_of, wary
from test_remedies_run import command, recipe_of

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.fit.measured import Measuring
from overrefusal_po.fit.untreated import Untreated, untreated_key
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.pipeline import is_finished, run_pipeline, run_stage
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.records import Prompt, Sampling, read_objects, read_state
from overrefusal_po.report.remedies_made import Stages
from overrefusal_po.report.summary import read_summary

__all__ = ["own_plugs", "sensible", "wary"]  # fixtures

SAME = ("status", "chosen", "strength", "before", "after", "candidates")


def fit_in(folder: Path, values: dict[str, Any], *fits: Path) -> dict[str, Any]:
    """The summary of a fit that runs in a folder, beside others."""
    return run_stage(check_body(values, "test"), "fit", folder, fits=fits)  # type: ignore[arg-type]


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    """What of a summary must be the same every time."""
    rows = {key: {**row, "seconds": None} for key, row in found["candidates"].items()}
    return {**{key: found[key] for key in SAME}, "candidates": rows}


def test_a_fit_takes_what_another_one_measured_and_ends_the_same(
    wary: Path, tmp_path: Path, own_plugs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    gated = {"name": "gated", "change": "threshold"}
    fit_in(first, values_of(wary, tmp_path))
    alone = fit_in(tmp_path / "alone", values_of(wary, tmp_path, remedy=gated))
    caplog.clear()
    with caplog.at_level(logging.INFO, "overrefusal_po"):
        found = fit_in(second, values_of(wary, tmp_path, remedy=gated), second, first)
    assert "without a remedy: taken from stage first" in caplog.text
    assert "without a remedy: 12 dev prompts" not in caplog.text  # nothing was asked again
    assert found["before_measured_by"] == "first" and "before_measured_by" not in alone
    assert without_seconds(found) == without_seconds(alone)
    kept = read_state(second / "remedy" / "remedy.json")
    assert kept["before_measured_by"] == "first"
    files = [folder / "dev" / "untreated.jsonl" for folder in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
    third = fit_in(tmp_path / "third", values_of(wary, tmp_path), second)
    assert third["before_measured_by"] == "first"  # a copy of a copy names who measured


@pytest.mark.parametrize(
    "change",
    [
        {"generation": {"max_new_tokens": 15, "batch_size": 8}},
        {"generation": {"max_new_tokens": 16, "batch_size": 4}},
        {"seed": 1},
        {"judge": {"name": "fit_plugs.judge"}},
        {"chat": {"system_prompt": "Answer."}},
    ],
)
def test_a_fit_that_measures_otherwise_takes_nothing(
    wary: Path, tmp_path: Path, own_plugs: Path, change: dict[str, Any]
) -> None:
    first, values = tmp_path / "first", values_of(wary, tmp_path)
    fit_in(first, values)
    assert "before_measured_by" not in fit_in(tmp_path / "other", {**values, **change}, first)


def test_other_weights_and_other_dev_prompts_are_another_measurement(tmp_path: Path) -> None:
    body = check_body(values_of(tmp_path, tmp_path), "test")
    assert isinstance(body, FitRecipe)
    prompts = [Prompt.of(text, kind="benign") for text in ("one", "two")]

    def key(weights: str, rows: list[Prompt]) -> str:
        inputs = {"model.model_name_or_path": weights, "data.harmful": weights}
        return untreated_key(body, inputs, rows, RefusalJudge())

    known = key("a", prompts)
    assert key("a", prompts) == known
    assert len({known, key("b", prompts), key("a", prompts[:1]), key("a", prompts[::-1])}) == 4
    assert untreated_key(body, {"model.model_name_or_path": "a"}, prompts, RefusalJudge()) == known


def test_half_a_measurement_is_not_taken(wary: Path, tmp_path: Path) -> None:
    first, values = tmp_path / "first", values_of(wary, tmp_path)
    fit_in(first, values)
    rows = first / "dev" / "untreated.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    assert "before_measured_by" not in fit_in(tmp_path / "second", values, first)
    assert not (tmp_path / "none" / "dev").exists()
    assert Untreated(tmp_path / "none", "key").taken_from is None


def test_a_prompt_that_is_too_long_does_not_keep_others_from_what_was_measured(
    style: Style, tmp_path: Path
) -> None:
    model = style.make_model()
    engine = TransformersEngine(model, style.template, name="tiny", batch_size=4, device="cpu")
    engine.context = 60
    prompts = [Prompt.of("Why?", kind="benign"), Prompt.of("Why? " * 200, kind="harmful")]
    sampling = Sampling(max_new_tokens=2)
    first, second = (
        Untreated(tmp_path / name, "key", [tmp_path / "one"]) for name in ("one", "two")
    )
    for shared in (first, second):
        shared.folder.mkdir()
        dev = Measuring(shared, engine, RefusalJudge(), prompts, sampling)
        said = [outcome.completion.error for outcome in dev.untreated()]
        assert said[0] is None and "too long" in str(said[1])
    assert (first.taken_from, second.taken_from) == (None, "one")


def test_a_killed_fit_goes_on_with_what_it_took(
    wary: Path, tmp_path: Path, own_plugs: Path
) -> None:
    import importlib

    first, second = tmp_path / "first", tmp_path / "second"
    values = values_of(wary, tmp_path, judge="fit_plugs.judge")
    whole = fit_in(first, values)
    counter: Any = importlib.import_module("fit_plugs.judge")
    counter.looks, counter.stop_at = 0, 3
    with pytest.raises(KeyboardInterrupt):
        fit_in(second, values, first)
    counter.stop_at = None
    found = fit_in(second, values, first)
    assert found["before_measured_by"] == "first"
    assert without_seconds(found) == without_seconds(whole)


def test_the_fits_of_a_pipeline_measure_the_untouched_model_once(
    wary: Path, tmp_path: Path
) -> None:
    fits = {
        "one": values_of(wary, tmp_path),
        "two": values_of(wary, tmp_path, remedy={"name": "gated", "change": "threshold"}),
        "three": values_of(wary, tmp_path, seed=5),
    }
    path = tmp_path / "fits.yaml"
    body = {"task": "pipeline", "run_dir": str(tmp_path / "run"), "stages": fits}
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    folder = run_pipeline(load_recipe(str(path), []), lambda made: made)
    taken = {
        name: read_state(folder / name / "summary.json").get("before_measured_by") for name in fits
    }
    assert taken == {"one": None, "two": "one", "three": None}


# --- a model that does not over-refuse ------------------------------------------------------------


def with_training(recipe: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The recipe of a pipeline, with another fit behind the first one."""
    values = yaml.safe_load(recipe.read_text())
    stages = values["stages"]
    stages["late"] = {**stages["fit"], "remedy": {"name": "gated", "change": "threshold"}}
    stages["late_after"] = {
        **stages["after"],
        "name": "late",
        "model": {"dtype": "float32", "remedy": "@late.remedy"},
    }
    # the fit first: what is behind it depends on how it ends
    values["stages"] = {"fit": stages.pop("fit"), **stages}
    change(values)
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    return recipe


def test_a_model_that_does_not_over_refuse_ends_the_pipeline_at_its_own_measurement(
    sensible: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = with_training(recipe_of(sensible, tmp_path), lambda values: None)
    assert command(str(recipe)) == 0
    run = tmp_path / "run"
    made = sorted(path.parent.name for path in run.glob("*/status.json"))
    assert made == ["before", "fit"]
    part = read_summary(run).remedies
    assert part is not None and part.rows == ()
    assert "does not over-refuse, and nothing is fitted" in part.sentence
    assert "benign_answered 1.00 [" in part.sentence
    shown = capsys.readouterr().out
    assert part.sentence in shown and f"report: {run / 'report.html'}" in shown
    assert "does not over-refuse" in (run / "report.html").read_text()
    assert is_finished(load_recipe(str(recipe), []))
    # who wants the table all the same gets it from the same folder
    off = "--report.needs_overrefusal=false"
    assert not is_finished(load_recipe(str(recipe), [off]))
    assert command(str(recipe), off) == 0
    made = sorted(path.parent.name for path in run.glob("*/status.json"))
    assert made == ["before", "fit", "late", "prompted"]
    found = json.loads((run / "summary.json").read_text())["remedies"]
    assert [row["run"] for row in found["rows"]] == ["system prompt"]


def test_what_a_fit_says_of_another_model_does_not_end_the_pipeline(
    sensible: Path, wary: Path, tmp_path: Path
) -> None:
    def other(values: dict[str, Any]) -> None:
        values["stages"]["fit"]["model"] = {"model_name_or_path": str(sensible)}

    recipe = with_training(recipe_of(wary, tmp_path), other)
    assert command(str(recipe)) == 0
    part = read_summary(tmp_path / "run").remedies
    assert part is not None and "does not over-refuse" not in part.sentence
    assert {row.run for row in part.rows} == {"system prompt", "late"}
    assert sum(1 for _ in read_objects(tmp_path / "run" / "late" / "dev.jsonl")) > 0


@pytest.mark.parametrize(
    ("statuses", "change", "said"),
    [
        (["nothing to remedy"], {}, ["one"]),
        (["nothing to remedy", "nothing to remedy"], {}, ["one", "two"]),
        # its dev prompts or its judge are others, and found that there is something
        (["nothing to remedy", "fitted"], {}, []),
        (["no candidate holds", "nothing to remedy"], {}, []),
        # another model: another revision, or one that a system prompt asks otherwise
        (["nothing to remedy"], {"chat": {"system_prompt": "Refuse."}}, []),
        (["nothing to remedy"], {"model": {"model_name_or_path": "m", "model_revision": "x"}}, []),
    ],
)
def test_a_model_is_healthy_if_every_fit_on_it_says_so(
    tmp_path: Path, statuses: list[str], change: dict[str, Any], said: list[str]
) -> None:
    section = {"model_name_or_path": "m"}
    bodies: dict[str, Any] = {"before": check_body({"task": "evaluate", "model": section}, "test")}
    for name, status in zip(("one", "two"), statuses, strict=False):
        values = {"task": "fit", "remedy": "threshold", "model": section, **change}
        bodies[name] = check_body(values, "test")
        (tmp_path / name).mkdir()
        found = {"status": status, "words": "W.", "remedy": "threshold", "candidates": {}}
        (tmp_path / name / "summary.json").write_text(json.dumps(found))
    healthy = Stages(tmp_path, bodies).healthy("before")
    assert [one["stage"] for one in healthy] == said
