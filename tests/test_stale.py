"""stale.py: what follows from verdicts is computed again, or said to be stale, when they change."""

import importlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from test_compare import BASE, TUNED, folder_of, with_log_odds
from test_first_token import HASHING_JUDGE, recipe
from test_metrics import attacked

from overrefusal_po import json_files
from overrefusal_po.evaluate.first_token_rows import FirstTokens, read_first_tokens
from overrefusal_po.evaluate.metrics import run_metrics
from overrefusal_po.evaluate.stale import FROM_VERDICTS, fresh_metrics, is_stale, verdicts_id
from overrefusal_po.pipeline import is_finished, run_pipeline
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.records import Outcome, read_jsonl, write_jsonl
from overrefusal_po.report.compare import compare_folders, render
from overrefusal_po.report.page import write_report
from overrefusal_po.report.pipeline_summary import make_summary
from overrefusal_po.report.summary import Metrics, read_summary


def by_judge(rows: list[Outcome], version: str, flip: int = 0) -> list[Outcome]:
    """The outcomes as another version of their judge sees them: it takes the first `flip` refusals
    for answers."""
    found = []
    for row in rows:
        verdict = row.verdict.model_copy(update={"version": version})
        if flip and verdict.refusal == "full":
            verdict, flip = verdict.model_copy(update={"refusal": "none"}), flip - 1
        found.append(row.model_copy(update={"verdict": verdict}))
    return found


def signed(folder: Path, rows: list[Outcome], **more: Any) -> Path:
    """The folder with the hash that an evaluation writes into metrics.json."""
    metrics = json.loads((folder / "metrics.json").read_text())
    file = json.dumps({**metrics, "verdicts": verdicts_id(rows), **more})
    (folder / "metrics.json").write_text(file)
    return folder


def test_the_hash_is_that_of_responses_and_verdicts_in_any_order() -> None:
    assert verdicts_id(BASE) == verdicts_id(reversed(BASE)) != verdicts_id(TUNED)
    assert verdicts_id(BASE) != verdicts_id(by_judge(BASE, "2"))
    assert verdicts_id(BASE) != verdicts_id(by_judge(BASE, "1", flip=1))
    assert verdicts_id(BASE) != verdicts_id([*BASE, *attacked("harmful", "1", "pair")])


def test_metrics_of_other_verdicts_have_rates_of_these_and_nothing_else_of_those() -> None:
    old = run_metrics(BASE).as_dict("base", "my/base")
    measured = {"judge": "j 1", "sets": ["s"], "engine": "e", "guard": None}
    metrics: dict[str, Any] = {**old, "measured": measured, "verdicts": verdicts_id(BASE)}
    metrics |= {key: {"some": 1} for key in FROM_VERDICTS}
    metrics |= {"capability": {"tasks": {}}, "harmful_not_unsafe": 0.5}
    assert fresh_metrics(metrics, BASE) == (metrics, "")
    unsigned = {key: value for key, value in metrics.items() if key != "verdicts"}
    assert fresh_metrics(unsigned, TUNED) == (unsigned, "")  # of an older version
    now = by_judge(BASE, "2", flip=2)
    found, note = fresh_metrics(metrics, now)
    assert (
        found["harmful_refused"] == run_metrics(now).harmful_refused.value != old["harmful_refused"]
    )
    assert not FROM_VERDICTS.keys() & found.keys() and "harmful_not_unsafe" not in found
    assert found["capability"] == {"tasks": {}} and found["measured"]["judge"] == "j 2"
    assert "first tokens, tampered copies and the gate" in note and "j 2" in note


def test_compare_and_report_say_that_a_run_was_judged_again(tmp_path: Path) -> None:
    folders = []
    for name, rows in (("base", BASE), ("dpo", TUNED)):
        folder = with_log_odds(folder_of(tmp_path / name, rows, name), rows)
        folders.append(signed(folder, rows))
    found = compare_folders(folders)
    assert found.curves and "AUC" in "".join(found.first_token_lines) and not found.notes
    assert read_first_tokens(folders[0]).log_odds and not read_summary(folders[0]).warnings
    for folder, rows in zip(folders, (BASE, TUNED), strict=True):
        write_jsonl(folder / "outcomes.jsonl", by_judge(rows, "2", flip=2))
        assert is_stale(folder) and read_first_tokens(folder) == FirstTokens({})
    found = compare_folders(folders)
    assert not found.curves and not found.first_token_lines
    assert [note.partition(":")[0] for note in found.notes] == ["JUDGED AGAIN"] * 2
    assert found.runs[0].metrics.harmful_refused == pytest.approx(0.4)
    assert "JUDGED AGAIN: base was measured with other verdicts" in render(found)
    summary = read_summary(folders[0])
    assert summary.warnings[0].startswith("JUDGED AGAIN: base")
    assert summary.runs[0].harmful_refused == pytest.approx(0.4)
    assert summary.runs[0].first_token is None and summary.measured.judge == "j 2"
    assert "JUDGED AGAIN" in write_report(folders[0]).read_text()


@pytest.fixture
def judged(styles: dict[str, Style], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of one evaluation, by a judge whose version a test can raise."""
    (tmp_path / "judging_by_version").mkdir()
    (tmp_path / "judging_by_version" / "hashing.py").write_text(
        HASHING_JUDGE.replace(
            'name, version = "hashing", "1"', 'name, version = "hashing", VERSION'
        )
        .replace('version="1"', "version=VERSION")
        .replace("class Settings", 'VERSION = "1"\n\nclass Settings')
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = recipe(tmp_path, styles, judge="judging_by_version.hashing", name="base")
    body = {"task": "pipeline", "run_dir": str(tmp_path / "run"), "stages": {"before": stage}}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


def test_a_stage_that_is_measured_again_makes_the_summary_anew(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version of the judge stops the pipeline, and the error says to delete the stage."""
    made: list[Path] = []

    def report(folder: Path) -> Path:
        made.append(folder)
        return folder

    folder = run_pipeline(load_recipe(judged), report)
    summary = folder / "summary.json"
    before = summary.read_text()
    assert run_pipeline(load_recipe(judged), report) == folder
    assert summary.read_text() == before and len(made) == 1  # a finished one is only read
    plug = importlib.import_module("judging_by_version.hashing")
    monkeypatch.setattr(plug, "VERSION", "2")
    monkeypatch.setattr(plug.Hashing, "version", "2")
    monkeypatch.setattr(plug, "refuses", lambda text: True)
    with pytest.raises(ValueError, match="the content of judge"):
        run_pipeline(load_recipe(judged), report)
    shutil.rmtree(folder / "before")
    assert not is_finished(load_recipe(judged))
    run_pipeline(load_recipe(judged), report)
    assert len(made) == 2
    found = read_summary(folder)
    assert found.measured.judge.startswith("hashing 2") and not found.warnings
    assert found.runs[0].harmful_refused == 1.0
    # until then, and if a stage is judged again by hand, the summary says that it is stale
    stage = folder / "before"
    metrics = (stage / "metrics.json").read_text()
    summary.write_text(before)
    assert read_summary(folder).warnings[0].startswith("STALE: base was measured or judged again")
    run_pipeline(load_recipe(judged), report)
    assert len(made) == 3 and not read_summary(folder).warnings
    rows = read_jsonl(stage / "outcomes.jsonl", Outcome)
    write_jsonl(stage / "outcomes.jsonl", by_judge(rows, "3", flip=1))
    assert (stage / "metrics.json").read_text() == metrics
    assert read_summary(folder).warnings[0].startswith("STALE")
    # the recipe makes it anew once, as the warning says
    run_pipeline(load_recipe(judged), report)
    found = read_summary(folder)
    assert len(made) == 4 and found.warnings[0].startswith("JUDGED AGAIN: base")
    assert (
        found.runs[0].harmful_refused
        == run_metrics(
            [row for row in by_judge(rows, "3", flip=1) if row.prompt.attack is None]
        ).harmful_refused.value
    )
    assert len(found.warnings) == 1
    run_pipeline(load_recipe(judged), report)
    (stage / "outcomes.jsonl").unlink()
    run_pipeline(load_recipe(judged), report)
    assert len(made) == 4


def test_outcomes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a comparison; by a pipeline's summary, which gets them, not at all. First tokens need the
    verdicts too."""
    folders = [
        signed(with_log_odds(folder_of(tmp_path / name, rows, name), rows), rows)
        for name, rows in (("base", BASE), ("dpo", TUNED))
    ]
    read, read_objects = Counter[str](), json_files.read_objects

    def counted(path: Any, *rest: Any) -> Any:
        read[str(path)] += Path(path).name == "outcomes.jsonl"
        return read_objects(path, *rest)

    monkeypatch.setattr(json_files, "read_objects", counted)
    assert compare_folders(folders).curves
    assert [read[str(folder / "outcomes.jsonl")] for folder in folders] == [1, 1]
    read.clear()
    metrics = [
        Metrics.model_validate_json((folder / "metrics.json").read_bytes()) for folder in folders
    ]
    runs = [{**one.model_dump(mode="json", by_alias=True), "folder": one.name} for one in metrics]
    made = make_summary("t", tmp_path, runs, {}, {"base": BASE, "dpo": TUNED})  # type: ignore[arg-type]
    assert made["curves"] and made["runs"][0]["name"] == "base" and not read.total()


def test_a_run_that_is_passed_on_without_its_outcomes_keeps_its_rates(tmp_path: Path) -> None:
    folder = signed(with_log_odds(folder_of(tmp_path / "base", BASE, "base"), BASE), BASE)
    whole = read_summary(folder)
    (folder / "outcomes.jsonl").unlink()
    found = read_summary(folder)
    assert found.runs == whole.runs and not found.warnings and not found.samples
    assert not is_stale(folder)


def test_an_evaluation_writes_the_hash_of_its_own_outcomes(
    judged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = run_pipeline(load_recipe(judged), lambda path: path) / "before"
    metrics = Metrics.model_validate_json((stage / "metrics.json").read_bytes())
    assert metrics.verdicts == verdicts_id(read_jsonl(stage / "outcomes.jsonl", Outcome))
    assert not is_stale(stage)
    run_pipeline(load_recipe(judged), lambda path: path)
    assert "of other verdicts" not in caplog.text
    rows = read_jsonl(stage / "outcomes.jsonl", Outcome)
    write_jsonl(stage / "outcomes.jsonl", by_judge(rows, "2"))
    run_pipeline(load_recipe(judged), lambda path: path)
    assert "these rates are of other verdicts than outcomes.jsonl holds now" in caplog.text
