"""search_part.py: the trials of a search in summary.json and on the report's page."""

import json
from pathlib import Path
from typing import Any

import pytest
from browser import A4_PIXELS, cut_off_on_paper, open_page
from playwright.sync_api import Browser
from test_compare import BASE, TUNED
from test_measured_how import pipeline_of
from test_report import HOSTILE, page, words

from overrefusal_po.report.search_part import SearchPart, search_entries, search_parts
from overrefusal_po.report.summary import Summary

TRIAL: dict[str, Any] = {
    "number": 1,
    "settings": {"trainer.learning_rate": 1e-4, "data.pairs": "pairs/a.jsonl"},
    "held": True,
    "score": 0.61,
    "missed": 0.0,
    "harmful_refused": 0.83,
    "benign_answered": 0.61,
    "start": [0.84, 0.42],
    "bias": 0.5,
    "first_token_auc": 0.912,
    "seconds": 311.7,
    "fault": "",
}
FAILED = {**TRIAL, "number": 2, "held": False, "start": None, "fault": "not finite"}
FAILED |= dict.fromkeys(("score", "harmful_refused", "benign_answered", "bias", "first_token_auc"))
CELLS = ["1", 'trainer.learning_rate 0.0001, data.pairs "pairs/a.jsonl"', "yes", "0.83", "0.61"]


def searched(stage: Path) -> Path:
    """The folder of a training with two trials, as far as a report reads it."""
    stage.mkdir(parents=True)
    (stage / "search.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (TRIAL, FAILED)))
    chosen = {"trials": 2, "held": 1, "kept": 1, "why": "trial 1 is kept: it answers most"}
    (stage / "training.json").write_text(json.dumps({"summary": {"search": chosen}}))
    return stage


def test_summary_and_page_show_every_trial(tmp_path: Path) -> None:
    searched(tmp_path / "tuned")
    found = pipeline_of(tmp_path, {"base": BASE, "dpo": TUNED})
    (search,) = found.searches
    assert search.stage == "tuned" and search.trials == (TRIAL, FAILED)
    start, first, second = search.cells
    assert start[:5] == ["start", "–", "–", "0.84", "0.42"]
    assert first == [*CELLS, "+0.50", "0.91", "312"]
    assert second[0] == "2" and second[2:] == ["no", "–", "–", "–", "–", "312"]
    text = words(page(tmp_path, searches=[search.model_dump()]))
    assert "Search in stage tuned trial 1 is kept: it answers most." in text
    assert " ".join(first).replace('"', "&#34;") in text and " ".join(second[2:]) in text


def test_a_later_rounds_search_names_the_start_that_it_is_held_to(tmp_path: Path) -> None:
    """`hold.start` of a later round is what the untouched model said, not the round's own start."""
    stage = searched(tmp_path / "dpo_2")
    hold = {"hold": {"start": f"{tmp_path}/dpo/hold_start.jsonl"}}
    (stage / "recipe.yaml").write_text(json.dumps(hold))
    (entry,) = search_entries(tmp_path)
    cells = SearchPart.model_validate(entry).cells
    assert cells[0][0] == "start of dpo" and [row[0] for row in cells[1:]] == ["1", "2"]
    assert "start of dpo" in words(page(tmp_path, searches=[entry]))
    text = "\n".join(search_parts(stage))
    assert "| start of an earlier training |" in text and "start of dpo" not in text
    (stage / "recipe.yaml").write_text(json.dumps({"hold": {"start": None}}))
    assert search_entries(tmp_path)[0]["start_of"] == ""


def test_a_pipeline_without_a_search_has_none(tmp_path: Path) -> None:
    assert pipeline_of(tmp_path, {"base": BASE}).searches == ()
    assert "Search in stage" not in page(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "search.jsonl").write_text(json.dumps(TRIAL) + "\n")
    assert search_entries(tmp_path) == []  # it has not ended


def test_the_card_keeps_values_of_this_machine_to_itself(tmp_path: Path) -> None:
    text = "\n".join(search_parts(searched(tmp_path / "tuned")))
    assert "pairs/a.jsonl" not in text and r"trainer.learning\_rate 0.0001" in text
    assert "| start | – | – | 0.84 | 0.42 | – | – | – |" in text


@pytest.mark.parametrize("width", [390, 1280])
def test_the_table_of_trials_fits_a_phone_a_screen_and_paper(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    settings = {"trainer.learning_rate": 1e-4, "data.pairs": HOSTILE * 3}
    rows = [{**TRIAL, "number": n, "settings": settings} for n in (1, 2)]
    page(tmp_path, searches=[{"stage": "tuned", "why": HOSTILE, "trials": rows}])
    opened = open_page(browser, tmp_path / "report.html", width=width)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.locator("#search ~ .scroll tbody").first.locator("tr").count() == 3
    assert cut_off_on_paper(opened) == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS


def test_an_older_summary_has_no_searches(tmp_path: Path) -> None:
    found = pipeline_of(tmp_path, {"base": BASE}).model_dump(by_alias=True)
    del found["searches"], found["warnings"]
    assert Summary.model_validate(found).searches == ()
