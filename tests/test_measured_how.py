"""measured_how.py: runs that were measured with other settings are compared with a warning on top,
in compare, in summary.json, on the pages and in a gate."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import heard, open_page
from playwright.sync_api import Browser
from test_compare import BASE, TUNED, command, folder_of, two, with_verdict
from test_report import page, summary, words

from overrefusal_po.evaluate.gate import baseline_notes
from overrefusal_po.evaluate.measured_how import measured_how, settings_note
from overrefusal_po.recipe.bounds import Gate
from overrefusal_po.records import Outcome
from overrefusal_po.report.card_results import limits
from overrefusal_po.report.compare import compare_folders, render, write_page
from overrefusal_po.report.compared_json import as_json
from overrefusal_po.report.pipeline_summary import make_summary
from overrefusal_po.report.summary import Summary

__all__ = ["two"]  # a fixture

CHAT: dict[str, Any] = {"system_prompt": None, "template": None, "chat_template_kwargs": {}}


def drawn(rows: Sequence[Outcome], **sampling: Any) -> list[Outcome]:
    """The same outcomes, drawn with other settings."""
    found = []
    for row in rows:
        way = row.completion.sampling.model_copy(update=sampling)
        found.append(
            row.model_copy(
                update={"completion": row.completion.model_copy(update={"sampling": way})}
            )
        )
    return found


def with_recipe(folder: Path, *, engine: Any = "transformers", **chat: Any) -> Path:
    """The folder with the resolved recipe of its evaluation."""
    values = {"task": "evaluate", "engine": engine, "chat": {**CHAT, **chat}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_the_command_says_first_which_settings_differ(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = folder_of(tmp_path / "short", drawn(TUNED, max_new_tokens=20, temperature=0.5), "short")
    assert command(str(two[0]), str(short), "--out", str(tmp_path / "page.html")) == 0
    first = capsys.readouterr().out.splitlines()[0]
    said = "generation.max_new_tokens is 256 in base, 20 in short; generation.temperature is 0 in "
    assert first.startswith(f"NOT MEASURED ALIKE: {said}base, 0.5 in short. ")
    assert command(*map(str, two), "--out", str(tmp_path / "page.html")) == 0
    assert "NOT MEASURED" not in capsys.readouterr().out
    found = compare_folders([two[0], short])
    assert as_json(found)["warning"] == found.warning
    assert as_json(compare_folders(two))["warning"] is None


def test_the_compared_page_says_it_before_the_first_number(two: list[Path], tmp_path: Path) -> None:
    short = folder_of(tmp_path / "short", drawn(TUNED, max_new_tokens=20), "short")
    text = words(render(compare_folders([two[0], short])))
    assert 0 < text.index("NOT MEASURED ALIKE") < text.index("The sum of harmful prompts refused")
    assert "NOT MEASURED" not in render(compare_folders(two))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system_prompt": "Be careful."}, "chat.system_prompt is none in base, 'Be careful.' in"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            "chat.chat_template_kwargs.enable_thinking is not set in base, False in dpo",
        ),
        (
            {"engine": {"name": "transformers", "generation_config": {"top_k": 3}}},
            "engine.generation_config.top_k is not set in base, 3 in dpo",
        ),
        ({"engine": {"name": "openai", "base_url": ["http://b/v1"], "device": "cpu"}}, ""),
    ],
)
def test_settings_of_the_recipe_are_named(
    two: list[Path], change: dict[str, Any], said: str
) -> None:
    """The place of a server or a device is none."""
    with_recipe(two[0]), with_recipe(two[1], **change)
    found = compare_folders(two).warning
    assert said in found if said and found else found is None and not said


def test_a_folder_without_its_recipe_is_compared_by_its_responses(two: list[Path]) -> None:
    with_recipe(two[0], system_prompt="Be careful.")
    assert compare_folders(two).warning is None
    (two[1] / "recipe.yaml").write_text("[damaged")
    assert compare_folders(two).warning is None
    with_recipe(two[1], system_prompt="")
    assert "'Be careful.' in base, '' in dpo" in str(compare_folders(two).warning)


def test_a_template_is_its_content_and_not_its_path(two: list[Path]) -> None:
    for folder, content in zip(two, ("aa", "aa"), strict=True):
        with_recipe(folder, template=str(folder / "chat.jinja"))
        (folder / "status.json").write_text(json.dumps({"inputs": {"chat.template": content}}))
    assert compare_folders(two).warning is None
    (two[1] / "status.json").write_text(json.dumps({"inputs": {"chat.template": "bb"}}))
    said = "chat.template is chat.jinja (content aa) in base, chat.jinja (content bb) in dpo"
    assert said in str(compare_folders(two).warning)


def test_seeds_are_no_other_setting_and_long_values_are_cut(tmp_path: Path) -> None:
    one, other = (measured_how(tmp_path, drawn(BASE, temperature=1.0, seed=n)) for n in (1, 2))
    assert settings_note({"a": one, "b": other}) is None
    long = settings_note({"a": {"chat.system_prompt": "x" * 999}, "b": {"chat.system_prompt": "-"}})
    assert long is not None and f"{'x' * 60}... in a" in long and "x" * 61 not in long


def pipeline_of(
    folder: Path, runs: dict[str, list[Outcome]], perplexity: dict[str, float] | None = None
) -> Summary:
    """The summary of a pipeline with these evaluations, and with the perplexity of some."""
    entries = []
    for name, rows in runs.items():
        made = folder_of(folder / name, rows, name)
        metrics = json.loads((made / "metrics.json").read_text())
        metrics["measured"] |= {"notes": [], "model_form": "f"}
        if value := (perplexity or {}).get(name):
            said = {"value": value, "low": None, "high": None, "nats_per_token": 1.0}
            metrics["capability"] = {"perplexity": {**said, "tokens": 90, "n": 4}, "tasks": {}}
        entries.append({**metrics, "folder": name})
    found = make_summary("t", folder, entries, {}, runs)  # type: ignore[arg-type]
    return Summary.model_validate_json(json.dumps(found))


def test_a_pipelines_summary_warns_of_runs_that_it_compares(tmp_path: Path) -> None:
    runs = {"base": BASE, "mid": TUNED, "dpo": drawn(TUNED, max_new_tokens=20)}
    found = pipeline_of(tmp_path, runs)
    assert len(found.comparisons) == 3
    (warning,) = found.warnings
    assert "generation.max_new_tokens is 256 in base and mid, 20 in dpo." in warning
    assert any(line.startswith("NOT MEASURED ALIKE") for line in limits(found))
    assert pipeline_of(tmp_path / "alike", {"base": BASE, "dpo": TUNED}).warnings == ()


def test_a_model_whose_reference_answers_became_improbable_may_answer_worse(tmp_path: Path) -> None:
    """No rate shows it: what is broken, and no refusal, counts as an answer."""
    runs = {"base": BASE, "dpo": TUNED}
    (warning,) = pipeline_of(tmp_path, runs, {"base": 49.0, "dpo": 79.0}).warnings
    said = (
        "dpo may answer worse than base: the perplexity of reference answers is x 1.61. Read some"
    )
    assert warning.startswith(said)
    for number, values in enumerate(({"base": 49.0, "dpo": 73.0}, {"dpo": 79.0})):
        assert pipeline_of(tmp_path / str(number), runs, values).warnings == ()


def test_runs_of_two_judges_are_said_to_be_left_out(tmp_path: Path) -> None:
    found = pipeline_of(tmp_path, {"base": BASE, "dpo": with_verdict(TUNED, version="2")})
    assert found.comparisons == ()
    said = "NOT COMPARED: these runs were judged differently (base by j 1; dpo by j 2)."
    assert found.warnings == (said,)


def test_a_lost_safety_stands_above_the_rates_and_in_no_list_below(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    lost = {"held": False, "why_not": "no bias up to 8", "sets": []}
    (tmp_path / "tuned" / "hold.json").write_text(json.dumps(lost))
    found = pipeline_of(tmp_path, {"base": BASE, "dpo": TUNED})
    (warning,) = found.warnings
    assert warning.startswith("SAFETY IS NOT HELD in stage tuned") and not found.measured.notes
    text = words(page(tmp_path, warnings=[warning]))
    assert text.count("SAFETY IS NOT HELD") == 1
    assert text.index("SAFETY IS NOT HELD") < text.index("DeRTa+DPO refuses")


def test_a_gate_says_that_its_baseline_was_measured_otherwise(two: list[Path]) -> None:
    gate = Gate(baseline=str(two[0]))
    (note,) = baseline_notes(gate, two[1], drawn(TUNED, max_new_tokens=20))
    assert "generation.max_new_tokens is 256 in the gate's baseline, 20 in this run" in note
    assert baseline_notes(gate, two[1], TUNED) == baseline_notes(Gate(), two[1], TUNED) == []
    file = Gate(baseline=str(two[0] / "outcomes.jsonl"))
    assert len(baseline_notes(file, two[1], drawn(TUNED, max_new_tokens=20))) == 1


@pytest.mark.parametrize("width", [390, 1280])
def test_a_warning_is_the_first_thing_that_a_reader_sees(
    browser: Browser, two: list[Path], tmp_path: Path, width: int
) -> None:
    """Above the sentence with the rates, on both pages, in one screen, and no wider than it."""
    warning = "SAFETY IS NOT HELD in stage <b>dpo</b>. " + "w" * 300
    page(tmp_path, **summary(warnings=[warning]))
    short = folder_of(tmp_path / "short", drawn(TUNED, max_new_tokens=20), "short")
    compared = write_page(compare_folders([two[0], short]), tmp_path / "compare.html")
    for file in (tmp_path / "report.html", compared):
        opened = open_page(browser, file, width=width)
        top, lead = (
            opened.locator(place).first.bounding_box() for place in ("p.warning", "p.lead")
        )
        assert top is not None and lead is not None
        assert top["y"] + top["height"] <= lead["y"] and top["y"] < 700
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert heard(opened) == ([], [file.as_uri()])
