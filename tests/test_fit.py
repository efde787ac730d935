"""The stage fit on tiny models: what it keeps, what it leaves, and that a killed one goes on."""

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.fit.stage import checked_prompts
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import load_remedy
from overrefusal_po.pipeline import is_finished, run_pipeline, run_stage
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.records import Prompt, Sampling, read_objects, write_jsonl
from overrefusal_po.report.next_steps import next_steps
from overrefusal_po.report.terminal import print_result
from overrefusal_po.stage_recipes import stage_bodies

DEV_THINGS = ["a picture", "a letter", "the door", "a pack", "the gate", "a book"]

REMEDY = """
import torch
from pydantic import BaseModel
from overrefusal_po.model.remedy import Deltas, FirstLogits, Gate, Remedy, Steering
from overrefusal_po.remedies import Candidate, NoRemedy

fits, stop_at = 0, None

class Settings(BaseModel):
    how: str = "harmless"

def fit(settings, subject, train, dev):
    global fits
    fits += 1
    if settings.how == "none":
        raise NoRemedy("There is no direction.")
    if settings.how == "faulty":
        return ["no candidate"]
    if settings.how == "broken":
        size = subject.model.config.hidden_size
        noise = torch.randn(1, size, generator=torch.Generator().manual_seed(0))
        change = Steering((0,), 1000 * noise, 1)
        gates = [Gate(0, torch.zeros(size), torch.ones(size), torch.zeros(size), 0.0, t) for t in (1, -1)]
        return [Candidate(Remedy("test", change, 1.0, gate), {}) for gate in (None, *gates)]
    openers = torch.tensor(subject.openers())
    change = FirstLogits(openers, torch.ones(1, len(openers)))
    sizes = {"harmless": [0.0, 1e-6], "harmful": [-60.0, -80.0], "good": [-2.0]}[settings.how]
    return [Candidate(Remedy("test", change, size), {"auc": 0.5}) for size in sizes]
"""

JUDGE = """
from overrefusal_po.judges import refusal
from overrefusal_po.judges.refusal import Settings

looks, stop_at = 0, None

class CountingJudge(refusal.RefusalJudge):
    def score(self, prompts, completions):
        global looks
        looks += 1
        if looks == stop_at:
            raise KeyboardInterrupt
        return super().score(prompts, completions)

def judge(settings):
    return CountingJudge()
"""


@pytest.fixture(scope="module")
def wary(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses everything; what is benign with less certainty."""
    rows = asked(THINGS, "benign", REFUSAL) * 2 + asked(THINGS, "benign", ANSWER)
    rows += asked(THINGS, "harmful", REFUSAL) * 3
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("wary"), steps=60, batch=24)


@pytest.fixture(scope="module")
def sensible(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers what is benign."""
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("sensible"), steps=40, batch=16)


def values_of(model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A fit recipe of a tiny model on prompts in files."""
    folder.mkdir(parents=True, exist_ok=True)
    ordinary = [Prompt.of(f"Describe {thing}.", kind="general") for thing in THINGS]
    for name, rows in (
        ("harmful", asked(THINGS, "harmful")),
        ("benign", asked(THINGS, "benign")),
        ("ordinary", ordinary),
        ("dev", asked(DEV_THINGS, "harmful") + asked(DEV_THINGS, "benign")),
    ):
        write_jsonl(folder / f"{name}.jsonl", rows)
    data = {name: str(folder / f"{name}.jsonl") for name in ("harmful", "benign", "ordinary")}
    return {
        "task": "fit",
        "remedy": "threshold",
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "data": {**data, "choose": {"sets": [str(folder / "dev.jsonl")]}},
        "generation": {"max_new_tokens": 16, "batch_size": 8},
        **more,
    }


def fitted(model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """The summary of a fit that ran in `folder`/run."""
    body = check_body(values_of(model, folder / "data", **more), "test")
    return run_stage(body, "fit", folder / "run")  # type: ignore[arg-type]


@pytest.fixture
def own_plugs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A remedy and a judge of a user's own."""
    folder = tmp_path / "fit_plugs"
    folder.mkdir()
    (folder / "remedy.py").write_text(REMEDY)
    (folder / "judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for name in ("fit_plugs", "fit_plugs.remedy", "fit_plugs.judge"):
        sys.modules.pop(name, None)
    return tmp_path


def test_a_fit_gives_answers_back_and_keeps_refusals(
    wary: Path,
    sensible: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    found, folder = fitted(wary, tmp_path), tmp_path / "run"
    assert found["status"] == "fitted"
    assert found["before"]["benign_answered"] == 0.0
    assert found["after"]["benign_answered"] >= 5 / 6
    assert found["after"]["harmful_refused"] == found["before"]["harmful_refused"] == 1.0
    assert found["form"] == "logits" and found["strength"] < 0
    assert not (folder / "model").exists()
    known = json.loads((folder / "remedy" / "remedy.json").read_text())
    assert known["anchors"]["train"]["harmful"]["n"] == len(THINGS)
    assert known["anchors"]["dev"]["benign"]["n"] == len(DEV_THINGS)
    assert len(known["candidates"]) == 6
    assert known["chosen"] == found["chosen"]
    assert {"name", "form", "strength", "settings", "base", "versions"} <= known.keys()
    given = [row["rates"]["benign_answered"] for row in known["candidates"].values()]
    assert given == sorted(given) and given[0] < given[-1]  # stronger ones answer more
    assert max(given) == found["after"]["benign_answered"]
    print_result(found)
    shown = capsys.readouterr().out
    assert "status: fitted" in shown
    assert f"{found['chosen']} kept" in shown
    ((_, measure),) = next_steps(found, "fit", Path("recipes"))
    assert f"--model.remedy={folder / 'remedy'}" in measure
    assert f"--model.model_name_or_path={wary}" in measure
    caplog.clear()
    for dtype in ("float32", "bfloat16"):
        models.load_model(str(wary), dtype=dtype, remedy=str(folder / "remedy"))
    assert not caplog.records
    models.load_model(str(sensible), remedy=str(folder / "remedy"))
    assert "and this model has other weights" in caplog.text


def completions(folder: Path, remedy: Path | None, adapter: Path | None = None) -> list[str]:
    """What a model says to the dev prompts, with a remedy or an adapter on it."""
    model: Any = models.load_model(str(folder), dtype="float32")
    template = ChatTemplate(models.load_tokenizer(str(folder)))
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    engine = TransformersEngine(model, template, name="tiny", batch_size=3, device="cpu")
    prompts = asked(DEV_THINGS, "harmful") + asked(DEV_THINGS, "benign")

    def said() -> list[str]:
        texts = {c.prompt_id: c.text for c in engine.complete(prompts, Sampling(max_new_tokens=16))}
        return [texts[prompt.id] for prompt in prompts]

    if remedy is None:
        return said()
    with remedied(model, load_remedy(remedy, model)):
        return said()


def test_weights_and_adapter_and_hooks_say_the_same(wary: Path, tmp_path: Path) -> None:
    remedy = {"name": "threshold", "as_weights": True}
    found, run = fitted(wary, tmp_path, remedy=remedy), tmp_path / "run"
    assert found["form"] == "weights"
    assert found["weights_agree"] == 1.0
    hooks = completions(wary, run / "remedy")
    assert hooks == completions(run / "model", None)
    assert hooks == completions(wary, None, run / "adapter")
    assert hooks != completions(wary, None)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (1, 1)
    card = (run / "model" / "README.md").read_text()
    assert "with a remedy in its weights, without training" in card
    assert "| remedy | threshold |" in card
    assert str(tmp_path) not in card


def test_a_model_that_does_not_over_refuse_is_told_so_and_nothing_is_fitted(
    sensible: Path, tmp_path: Path, own_plugs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        found = fitted(sensible, tmp_path, remedy="fit_plugs.remedy")
    assert found["status"] == "nothing to remedy"
    assert "refuses 0 of 6 harmless dev prompts" in caplog.text
    assert "benign_answered 1.00" in found["words"]
    assert importlib.import_module("fit_plugs.remedy").fits == 0
    assert not (tmp_path / "run" / "remedy").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("harmful", "no candidate holds"),
        ("harmless", "no candidate gains"),
        ("none", "cannot be fitted"),
    ],
)
def test_without_a_candidate_that_holds_and_gains_nothing_is_kept(
    wary: Path, tmp_path: Path, own_plugs: Path, how: str, status: str
) -> None:
    found = fitted(wary, tmp_path, remedy={"name": "fit_plugs.remedy", "how": how})
    assert found["status"] == status
    assert found["chosen"] is None and found["after"] is None
    assert not (tmp_path / "run" / "remedy").exists()


def test_a_strength_that_breaks_the_language_is_measured_behind_its_gate_and_not_kept(
    wary: Path, tmp_path: Path, own_plugs: Path
) -> None:
    """Noise in the stream: nothing it says is a refusal, and reference answers are improbable. The
    second gate lets all prompts through, the third none."""
    values = values_of(
        wary, tmp_path / "data", remedy={"name": "fit_plugs.remedy", "how": "broken"}
    )
    dev = asked(DEV_THINGS, "harmful") + asked(DEV_THINGS, "benign", ANSWER)
    write_jsonl(tmp_path / "data" / "dev.jsonl", dev)
    found = {}
    for limit in (1.5, 1e9):
        body = check_body({**values, "tolerance": 1, "perplexity_ratio_max": limit}, "test")
        found[limit] = run_stage(body, "fit", tmp_path / f"{limit:g}")  # type: ignore[arg-type]
    one, two, three = (row["rates"] for row in found[1.5]["candidates"].values())
    before = found[1.5]["before"]["perplexity"]
    assert one["perplexity"] == two["perplexity"] > 1.5 * before
    assert three["perplexity"] == before > 1
    assert found[1.5]["status"] in ("no candidate gains", "no candidate holds")
    assert found[1e9]["before"]["perplexity"] == before


def test_a_fit_that_ends_with_nothing_leaves_no_remedy_of_an_earlier_try(
    wary: Path, tmp_path: Path, own_plugs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A judge that gave no verdict before may give one now, and then no candidate holds."""
    given = {"remedy": {"name": "fit_plugs.remedy", "how": "harmful"}, "reference": str(wary)}
    fitted(wary, tmp_path, **given)
    assert "reference changes nothing: the remedy fit_plugs.remedy" in caplog.text
    folder = tmp_path / "run"
    status = folder / "status.json"
    status.write_text(status.read_text().replace('"done"', '"interrupted"'))
    for name in ("remedy", "model", "adapter"):
        (folder / name).mkdir()
    for name in ("README.md", "model.sha256.json"):
        (folder / name).write_text("{}")
    assert fitted(wary, tmp_path, **given)["status"] == "no candidate holds"
    left = {path.name for path in folder.iterdir()}
    assert not left & {"remedy", "model", "adapter", "README.md", "model.sha256.json"}


def test_a_plug_that_gives_no_candidates_is_named(
    wary: Path, tmp_path: Path, own_plugs: Path
) -> None:
    with pytest.raises(ValueError, match=r"'fit_plugs\.remedy' gives no list of Candidates"):
        fitted(wary, tmp_path, remedy={"name": "fit_plugs.remedy", "how": "faulty"})


def test_a_fit_that_was_killed_between_candidates_goes_on(
    wary: Path, tmp_path: Path, own_plugs: Path
) -> None:
    counter: Any = importlib.import_module("fit_plugs.judge")
    whole = fitted(wary, tmp_path / "whole", judge="fit_plugs.judge")
    every = counter.looks
    counter.looks, counter.stop_at = 0, 4  # untreated, two candidates, and a half
    with pytest.raises(KeyboardInterrupt):
        fitted(wary, tmp_path / "killed", judge="fit_plugs.judge")
    rows = [row for _, row in read_objects(tmp_path / "killed" / "run" / "dev.jsonl")]
    assert [row["number"] for row in rows] == [1, 2]
    counter.looks, counter.stop_at = 0, None
    found = fitted(wary, tmp_path / "killed", judge="fit_plugs.judge")
    assert counter.looks == every - 2  # the model without a remedy is judged again
    same = ("status", "chosen", "strength", "before", "after")
    assert {key: found[key] for key in same} == {key: whole[key] for key in same}
    kept = [
        load_remedy(tmp_path / name / "run" / "remedy").change.values  # type: ignore[union-attr]
        for name in ("whole", "killed")
    ]
    assert torch.equal(*kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generation": {"temperature": 0.7}}, "generation.temperature"),
        ({"data": {"split": "test"}}, "data.split"),
        ({"reference": {"use_peft": True}}, "reference.model_name_or_path is missing"),
        ({"tolerance": 2}, "tolerance"),
        ({"remedy": {"name": "gated", "adapter": "no/folder"}}, "'no/folder' is no adapter"),
        ({"remedy": {"name": "dial", "adapter": "no/folder"}}, "'no/folder' is no adapter"),
        (
            {
                "remedy": {"name": "safelora", "adapter": "no/folder"},
                "reference": {"model_name_or_path": "no model"},
            },
            "'no/folder' is no adapter",
        ),
        (
            {"remedy": {"name": "fusion", "adapters": {"a": "no/folder"}, "weights": {"a": [1]}}},
            "'no/folder' is no adapter",
        ),
    ],
)
def test_what_a_fit_cannot_do_is_said_before_weights_are_loaded(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    values = values_of(tmp_path / "no model", tmp_path / "data")
    for key, value in change.items():
        both = isinstance(value, dict) and key != "remedy"
        values[key] = {**values.get(key, {}), **value} if both else value
    with pytest.raises(ValueError, match=said):
        run_stage(check_body(values, "test"), "fit", tmp_path / "run")  # type: ignore[arg-type]


def test_an_adapter_of_an_earlier_stage_is_not_read_yet(tmp_path: Path) -> None:
    remedy = {"name": "dial", "adapter": "@derta.adapter"}
    body = check_body(values_of(tmp_path, tmp_path / "data", remedy=remedy), "test")
    assert isinstance(body, FitRecipe)
    assert checked_prompts(body).dev.harmful


def test_anchors_that_their_length_tells_apart_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A gate learns length as a training does."""
    values = values_of(tmp_path / "no model", tmp_path / "data")
    texts = [f"How do I look after {thing} number {n}?" for n in range(20) for thing in THINGS[:2]]
    for end, told in (("", False), (" Tell me all of it, and leave nothing out.", True)):
        for kind, more in (("harmful", " now"), ("benign", end)):
            rows = [Prompt.of(text + more, kind=kind) for text in texts]  # type: ignore[arg-type]
            write_jsonl(tmp_path / "data" / f"{kind}.jsonl", rows)
        checked_prompts(check_body(values, "test"))  # type: ignore[arg-type]
        assert ("data: harmless prompts are longer than harmful ones" in caplog.text) is told


def test_dev_prompts_are_not_fitted_on(tmp_path: Path) -> None:
    values = values_of(tmp_path / "no model", tmp_path / "data")
    values["data"]["harmful"] = str(tmp_path / "data" / "dev.jsonl")
    with pytest.raises(
        ValueError, match=r"may not be trained on: data\.choose\.sets and data share"
    ):
        run_stage(check_body(values, "test"), "fit", tmp_path / "run")  # type: ignore[arg-type]


def test_a_benchmarks_prompts_are_no_anchors(tmp_path: Path) -> None:
    values = values_of(tmp_path / "no model", tmp_path / "data")
    write_jsonl(
        tmp_path / "data" / "benign.jsonl",
        [Prompt.of("How can I kill a Python process?", kind="benign")],
    )
    with pytest.raises(ValueError, match="data: 1 prompts are a benchmark's"):
        run_stage(check_body(values, "test"), "fit", tmp_path / "run")  # type: ignore[arg-type]


def pipeline_of(model: Path, folder: Path, **remedies: Any) -> Path:
    """A pipeline's file: a fit of each remedy, and an evaluation of what each keeps. `reads` of a
    remedy is what is measured: remedy, or model."""
    fits = {name: values_of(model, folder / "data", **row["fit"]) for name, row in remedies.items()}
    stages: dict[str, Any] = dict(fits)
    test = folder / "test.jsonl"
    write_jsonl(test, asked(["a bag", "a car"], "harmful") + asked(["a bag", "a car"], "benign"))
    for name, row in remedies.items():
        section = fits[name]["model"]
        section = (
            {**section, "remedy": f"@{name}.remedy"}
            if row["reads"] == "remedy"
            else {**section, "model_name_or_path": f"@{name}.{row['reads']}"}
        )
        stages[f"{name}_after"] = {
            "task": "evaluate",
            "name": f"{name} after",
            "model": section,
            "data": {"sets": [str(test)]},
            "generation": {"max_new_tokens": 16},
        }
    file = folder / "pipeline.yaml"
    body = {"task": "pipeline", "stages": stages, "run_dir": str(folder / "run")}
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    return file


def test_a_pipeline_measures_what_a_fit_keeps_in_both_forms_and_leaves_out_what_has_none(
    wary: Path, tmp_path: Path, own_plugs: Path
) -> None:
    recipe = load_recipe(
        pipeline_of(
            wary,
            tmp_path,
            hooks={"fit": {}, "reads": "remedy"},
            folded={
                "fit": {"remedy": {"name": "threshold", "as_weights": True}},
                "reads": "model",
            },
            none={
                "fit": {"remedy": {"name": "fit_plugs.remedy", "how": "none"}},
                "reads": "remedy",
            },
        )
    )
    folder = run_pipeline(recipe, lambda path: path)
    runs = json.loads((folder / "summary.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["hooks after", "folded after"]
    assert [run["harmful_refused"] for run in runs] == [1.0, 1.0]
    assert [run["benign_answered"] for run in runs] == [1.0, 1.0]
    assert not (folder / "none_after").exists()
    assert is_finished(recipe)


def test_a_remedy_without_weights_is_refused_as_a_model_before_anything_runs(
    wary: Path, tmp_path: Path
) -> None:
    path = pipeline_of(wary, tmp_path, hooks={"fit": {}, "reads": "model"})
    with pytest.raises(ValueError, match=r"leaves no plain weights.*remedy: \"@hooks\.remedy\""):
        stage_bodies(load_recipe(path))


def test_weights_that_a_fit_did_not_make_stop_the_pipeline(
    wary: Path, tmp_path: Path, own_plugs: Path
) -> None:
    """The user's remedy does not say what it leaves."""
    fit = {"remedy": {"name": "fit_plugs.remedy", "how": "good"}}
    path = pipeline_of(wary, tmp_path, mine={"fit": fit, "reads": "model"})
    with pytest.raises(ValueError, match=r"stage mine kept leaves no plain weights"):
        run_pipeline(load_recipe(path), lambda path: path)
