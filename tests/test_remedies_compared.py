"""`overrefusal-po compare` on runs with remedies: the table of a pipeline's page, from folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import heard, open_page
from playwright.sync_api import Browser
from test_compare import folder_of
from test_remedies_part import BEFORE, GOOD, SMALL, pipeline
from test_remedies_run import command

from overrefusal_po.recipe.report import Report
from overrefusal_po.report.compare import compare_folders, render, write_page
from overrefusal_po.report.compared_json import as_json
from overrefusal_po.report.given_folders import evaluations_in
from overrefusal_po.report.remedies_compared import RunFolders, maker_of, rule_for
from overrefusal_po.report.summary import read_summary

OWN = {"model_name_or_path": "m"}


def with_recipe(folder: Path, **values: Any) -> Path:
    """The folder with a recipe.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The folder of a pipeline that ran: `good` is what `steer` fitted on the model of `dpo`."""
    run = tmp_path / "run"
    pipeline(run, rivals=["small"])
    for name in ("lost", "before", "small"):
        with_recipe(run / name, task="evaluate", model=OWN)
    changed = {"model_name_or_path": str(run / "dpo" / "model")}
    remedied = {**changed, "remedy": str(run / "steer" / "remedy")}
    with_recipe(run / "good", task="evaluate", model=remedied)
    with_recipe(run / "dpo", task="train", model=OWN, data={"pairs": "my/pairs.jsonl"})
    with_recipe(run / "steer", task="fit", model=changed, run_dir=str(run / "steer"))
    stages = ("lost", "dpo", "steer", "before", "small", "good")
    return with_recipe(run, task="pipeline", **{name: {} for name in stages})


def test_the_folder_of_a_pipeline_gives_the_table_of_its_page(ran: Path) -> None:
    found, page = compare_folders([ran]).remedies, read_summary(ran).remedies
    assert found is not None and page is not None
    assert [run.name for run in compare_folders([ran]).runs] == ["before", "lost", "small", "good"]
    assert (found.sentence, found.best, found.baseline) == (page.sentence, page.best, page.baseline)
    same = {"run", "rival", "gain", "p", "p_holm", "off_curve", "holds", "surely", "why_not"}
    same |= {"refused_change", "fit_seconds", "perplexity_ratio", "sets", "changed"}
    same |= {"speed_ratio", "speed_note"}
    for here, there in zip(found.rows, page.rows, strict=True):
        assert here.model_dump(include=same) == there.model_dump(include=same)
    good = found.rows[0]
    assert good.run == "good" and good.served == "hooks" and good.gate_auc == 0.81
    assert good.made_by == (str(ran / "dpo"), str(ran / "steer"))
    assert [row.rival for row in found.rows] == [False, True, False]


def test_single_folders_are_compared_with_the_first_by_the_usual_rule(ran: Path) -> None:
    found = compare_folders([ran / "small", ran / "good"]).remedies
    assert found is not None and found.baseline == "small" and found.drop_max == 0.05
    assert [row.run for row in found.rows] == ["good"] and not found.rows[0].rival
    assert compare_folders([ran / "before", ran / "small"]).remedies is None  # no remedy among them
    assert compare_folders([ran / "good", ran / "small"]).remedies is None


def test_the_rule_is_that_of_the_pipeline_if_its_baseline_comes_first(ran: Path) -> None:
    summary = json.loads((ran / "summary.json").read_text())
    summary["remedies"]["rule"] |= {"hold_drop_max": 0.5, "on": "interval"}
    (ran / "summary.json").write_text(json.dumps(summary))
    known = rule_for([ran / "before", ran / "good"])
    assert (known.hold_drop_max, known.on) == (0.5, "interval")
    assert known.rivals == (str(ran / "small"),)
    assert rule_for([ran / "good"]) == Report(baseline=str(ran / "good"))


def test_a_folder_that_was_moved_still_knows_what_made_it(ran: Path, tmp_path: Path) -> None:
    moved = ran.rename(tmp_path / "moved")
    assert RunFolders(()).makers(str(moved / "good")) == [str(moved / "dpo"), str(moved / "steer")]


def test_recipes_that_name_each_other_end(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with_recipe(one, task="train", model={"model_name_or_path": str(two / "model")})
    with_recipe(two, task="train", model={"model_name_or_path": str(one / "model")})
    assert RunFolders(()).makers(str(one)) == [str(two)]


@pytest.mark.parametrize("text", ["m", "my/model", "a system prompt: yes/no\nfoo/bar", ""])
def test_what_names_no_run_folder_made_nothing(tmp_path: Path, text: str) -> None:
    assert maker_of(text, tmp_path) is None


def test_a_pipeline_with_one_evaluation_has_nothing_to_compare(tmp_path: Path) -> None:
    run = with_recipe(tmp_path / "run", task="pipeline", before={}, fit={})
    folder_of(run / "before", BEFORE, "before")
    assert evaluations_in(run) == [run / "before"]
    with pytest.raises(ValueError, match="at least two evaluations, and 1 were found"):
        compare_folders([run])


def test_the_command_prints_the_sentence_and_the_table(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert command("compare", str(ran), "--out", str(page)) == 0
    shown = capsys.readouterr().out
    found = compare_folders([ran])
    assert found.remedies is not None and found.remedies.sentence in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["good", "yes", "0.95", "0.88"] in [row[:4] for row in rows]
    assert ["lost", "no", "0.50", "1.00"] in [row[:4] for row in rows]
    assert command("compare", str(ran), "--json", "--out", str(page)) == 0
    told = json.loads(capsys.readouterr().out)["remedies"]
    assert told["rows"][0]["run"] == "good" and told == as_json(found)["remedies"]


def test_the_page_has_the_table_and_numbers_all_tables(ran: Path) -> None:
    text = render(compare_folders([ran]))
    assert text.count('id="remedies"') == 1 and "plain weights" not in text
    numbers = [int(part.partition(".")[0]) for part in text.split("<b>Table ")[1:]]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 4
    assert 'id="remedies"' not in render(compare_folders([ran / "before", ran / "small"]))


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_window_and_asks_for_nothing(
    browser: Browser, ran: Path, tmp_path: Path, width: int
) -> None:
    file = write_page(compare_folders([ran]), tmp_path / "page.html")
    page = open_page(browser, file, width=width)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert heard(page) == ([], [file.as_uri()])


def test_two_runs_of_one_name_keep_their_own_rates(ran: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", SMALL, "good")
    with_recipe(other, task="evaluate", model=OWN)
    found = compare_folders([ran / "before", ran / "good", other])
    assert found.remedies is not None
    assert {row.run for row in found.remedies.rows} == {run.name for run in found.runs[1:]}
    assert found.named_metrics[1].benign_answered != found.named_metrics[2].benign_answered
    assert GOOD != SMALL
