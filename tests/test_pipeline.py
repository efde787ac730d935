"""Pipelines: stages that name each other's outputs, on a tiny model with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import overrefusal_po
from overrefusal_po import stages
from overrefusal_po.cli import main
from overrefusal_po.model import load as models
from overrefusal_po.pipeline import run_stage, stage_inputs
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import EvaluateRecipe, TrainRecipe
from overrefusal_po.records import Triple, write_jsonl
from overrefusal_po.references import linked_stage
from overrefusal_po.report.samples import sample_entries
from overrefusal_po.run.keys import file_hash
from overrefusal_po.stage_recipes import stage_bodies

RECIPES = Path(__file__).parents[1] / "recipes"
Write = Callable[..., Path]


@pytest.fixture
def write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, styles: dict[str, Any], triples: list[Triple]
) -> Write:
    """Writes evaluate -> derta -> evaluate as pipeline.yaml, with stages changed or added by dotted
    keys."""
    monkeypatch.chdir(tmp_path)
    write_jsonl("triples.jsonl", triples)
    model = {"model_name_or_path": str(styles["llama"].folder)}
    measured = {"max_prompts_per_kind": 3}
    evaluate = {
        "recipe": str(RECIPES / "evaluate.yaml"),
        "generation": {"max_new_tokens": 4},
        "data": measured,
    }
    derta = {"recipe": str(RECIPES / "derta.yaml"), "model": model}
    derta |= {
        "data": {"triples": "triples.jsonl", "max_helpful": 2},
        "trainer": {"max_steps": 2, "max_length": 512},
    }
    stages: dict[str, Any] = {
        "before": {**evaluate, "name": "base", "model": model},
        "derta": derta,
        "after": {**evaluate, "name": "DeRTa", "model": {"model_name_or_path": "@derta.model"}},
    }

    def write(**changes: Any) -> Path:
        values = {
            "task": "pipeline",
            "title": "A test",
            "seed": 3,
            "run_dir": "out",
            "stages": {**stages, **changes},
        }
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def run(*arguments: Any) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def fault(path: Path) -> str:
    """The text of the ValueError that the stages of a pipeline raise."""
    with pytest.raises(ValueError) as caught:
        stage_bodies(load_recipe(path))
    return str(caught.value)


@pytest.mark.slow
def test_a_pipeline_measures_trains_and_measures_and_a_second_run_does_nothing(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    assert run(path) == 0, capsys.readouterr().err
    out = Path("out")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["title"] == "A test"
    assert [r["name"] for r in summary["runs"]] == ["base", "DeRTa"]
    assert [(c["from"], c["to"]) for c in summary["comparisons"]] == [("base", "DeRTa")]
    assert {t["from"] for t in summary["transitions"]} == {"base"}
    assert len(summary["samples"]) == 9  # all of the nine prompts
    assert [r["run"] for r in summary["samples"][0]["responses"]] == ["base", "DeRTa"]
    assert (out / "report.html").is_file() and "report.html" in capsys.readouterr().out
    assert (
        yaml.safe_load((out / "after" / "recipe.yaml").read_text())["model"]["model_name_or_path"]
        == "out/derta/model"
    )
    assert all(
        yaml.safe_load((out / s / "recipe.yaml").read_text())["seed"] == 3
        for s in ("before", "derta", "after")
    )

    files = [p for p in out.rglob("*") if p.is_file() and p.name not in ("log", ".lock")]
    before = {p: p.stat().st_mtime_ns for p in files}
    read: list[Any] = []
    monkeypatch.setattr(stages, "check_data", lambda body, named="": read.append(body))
    assert run(path) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert not read, "data is read again"
    rows = Path("triples.jsonl").read_text().splitlines(keepends=True)
    Path("triples.jsonl").write_text("".join(rows[1:]))
    assert run(path) == 2
    assert read and "the content of data.triples" in capsys.readouterr().err


def test_a_pipeline_under_a_launcher_of_two_processes_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(write()) == 2
    assert "runs in one process; 2 were launched" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_fixed_folder_of_another_pipeline_is_left_alone(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "stages": {"derta": values["stages"]["derta"]}}))
    assert run(path) == 0, capsys.readouterr().err
    assert not Path("out/summary.json").exists()  # nothing was measured
    assert run(path, "--stages.derta.trainer.max_steps=3") == 2
    assert "derta.trainer.max_steps (2 there, 3 now)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_that_fails_is_named_in_both_folders(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"model_name_or_path": "@derta.model"}
    curate = {
        "recipe": str(RECIPES / "curate.yaml"),
        "model": model,
        "generation": {"max_new_tokens": 4},
    }
    assert run(write(after=curate)) == 2
    assert "overrefusal pair could be made of" in capsys.readouterr().err
    for folder in ("out", "out/after"):
        status = json.loads(Path(folder, "status.json").read_text())
        assert status["exit_code"] == 2 and "overrefusal pair could be made of" in status["message"]
    assert json.loads(Path("out/derta/status.json").read_text())["state"] == "done"


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("@derta.mdel", ["model.model_name_or_path", "'@derta.mdel'", "@derta.model"]),
        ("@nobody.model", ["'@nobody.model'", "@derta.model"]),
        ("@after.model", ["'@after.model'", "@derta.model"]),
        ("@before.model", ["'@before.model'", "@derta.model"]),
        ("@derta", ["'@derta'", "@derta.model"]),
    ],
)
def test_a_wrong_reference_is_an_error_before_anything_runs(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    parts: list[str],
) -> None:
    monkeypatch.setattr(models, "load_model", lambda **_: pytest.fail("weights were loaded"))
    path = write()
    override = f"--stages.after.model.model_name_or_path={value}"
    assert run(path, override) == 2
    error = capsys.readouterr().err
    for part in ["stage after", *parts]:
        assert part in error
    assert not Path("out").exists()
    assert run("check", path, override) == 2


def test_a_fault_in_the_last_stages_data_is_found_before_the_first_runs(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "load_model", lambda **_: pytest.fail("weights were loaded"))
    assert run(write(), "--stages.after.data.sets=[nowhere.jsonl]") == 2
    error = capsys.readouterr().err
    assert "stage after" in error and "nowhere.jsonl: there is no such file" in error
    assert not Path("out").exists()


def test_a_reference_to_a_later_stage_says_that_nothing_was_made_yet(write: Write) -> None:
    path = write()
    with pytest.raises(ValueError, match="no earlier stage makes anything"):
        stage_bodies(load_recipe(path, ["--stages.before.model.model_name_or_path=@derta.model"]))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"derta": {"task": "train"}}, ["stage derta", "method is missing"]),
        ({"derta": {"recipe": "nowhere.yaml"}}, ["nowhere.yaml"]),
        (
            {"inner": {"task": "pipeline", "stages": {"a": {}}}},
            ["stage inner", "cannot be a pipeline"],
        ),
        ({"a/b": {"task": "evaluate", "model": {"model_name_or_path": "x"}}}, ["'a/b'", "letters"]),
        (
            {"again": {"task": "evaluate", "name": "base", "model": {"model_name_or_path": "x"}}},
            ["'base'", "`name`"],
        ),
        (
            {"own": {"task": "evaluate", "model": {"model_name_or_path": "x"}, "run_dir": "here"}},
            ["stage own", "run_dir belongs to the pipeline"],
        ),
    ],
)
def test_a_wrong_stage_is_named(write: Write, changes: dict[str, Any], parts: list[str]) -> None:
    text = fault(write(**changes))
    for part in parts:
        assert part in text


def test_a_stages_keys_come_over_those_of_its_recipe_file(write: Write) -> None:
    derta = stage_bodies(load_recipe(write()))["derta"]
    assert isinstance(derta, TrainRecipe)
    assert derta.trainer["max_steps"] == 2 and derta.trainer["learning_rate"] == 2e-4
    assert derta.model["lora_r"] == 16 and derta.seed == 3


def test_references_become_paths_in_the_pipelines_folder(write: Write) -> None:
    after = stage_bodies(load_recipe(write()))["after"]
    linked = linked_stage(after, Path("out"))
    assert (
        linked.model["model_name_or_path"] == "out/derta/model"
        and after.model["model_name_or_path"] == "@derta.model"
    )


def test_inputs_are_the_files_that_a_stage_names_also_in_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("a")
    Path("b.txt").write_text("b")
    Path("starter").write_text("not the starter set")
    Path("model").mkdir()
    Path("c.csv").write_text("c")
    named = ("starter", "none.jsonl", "c.csv", {"name": "contrasts", "hands": [1]})
    sets = ("a.jsonl", {"name": "file", "path": "./b.txt"}, *named)
    body = EvaluateRecipe.model_validate(
        {"task": "evaluate", "model": {"model_name_or_path": "model"}, "data": {"sets": sets}}
    )
    found = stage_inputs(body)
    files = {"data.sets.0", "data.sets.1.path", "data.sets.2", "data.sets.4", "data.sets.5.name"}
    assert set(found) == {*files, "model.model_name_or_path", "judge"}
    shipped = Path(overrefusal_po.__file__).parent / "data"
    assert found["data.sets.2"] == file_hash(shipped / "starter.jsonl")
    assert found["data.sets.5.name"] == file_hash(shipped / "contrasts.jsonl")
    assert found["judge"].startswith("refusal ")


def test_inputs_are_what_a_path_from_home_names_and_folders_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("kept", "task"):
        Path(name).mkdir()
        Path(name, "adapter_config.json").write_text("{}")
    Path("chat.jinja").write_text("one")
    Path("ROWS.CSV").write_text("prompt")
    adapters = {"task": "task", "safety": "~/kept"}
    remedy = {"name": "fusion", "adapters": adapters, "weights": {k: [0.5] for k in adapters}}
    body = FitRecipe.model_validate(
        {
            "task": "fit",
            "remedy": {**remedy, "merged": "kept"},
            "model": {"model_name_or_path": "m"},
            "chat": {"template": "~/chat.jinja"},
            "data": {"harmful": "ROWS.CSV", "choose": {"sets": ["x/y.jsonl"]}},
        }
    )
    found = stage_inputs(body)
    places = ("remedy.adapters.task", "remedy.adapters.safety", "remedy.merged")
    assert {*places, "chat.template", "data.harmful"} <= set(found)
    Path("chat.jinja").write_text("two")
    assert stage_inputs(body)["chat.template"] != found["chat.template"]


def test_a_long_system_prompt_with_a_slash_is_no_path() -> None:
    chat = {"system_prompt": "Be kind and/or brief. " * 200}
    body = EvaluateRecipe.model_validate(
        {"task": "evaluate", "model": {"model_name_or_path": "m"}, "chat": chat}
    )
    assert "chat.system_prompt" not in stage_inputs(body)


def test_without_outcomes_there_are_no_samples() -> None:
    assert sample_entries({}) == []


def test_a_key_in_a_wrong_place_reaches_no_run_folder(tmp_path: Path) -> None:
    body = check_body(
        {
            "task": "evaluate",
            "model": {"model_name_or_path": "m"},
            "engine": {"name": "openai", "api_key": "sk-SECRET"},
        },
        "recipe",
    )
    with pytest.raises(ValueError, match="api_key") as error:
        run_stage(body, "recipe", tmp_path / "run")
    assert "SECRET" not in str(error.value)
    assert not (tmp_path / "run").exists()
