"""What hold must not call held: responses that nobody judged, and weights that rounding changed."""

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Style
from test_hold import outcome, recipe
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.pipeline import run_stage
from overrefusal_po.train.hold_result import keeps, set_entries

FAILING_JUDGE = """
from overrefusal_po.judges import refusal
from overrefusal_po.judges.refusal import Settings
from overrefusal_po.records import Verdict

asked = 0


class FailingJudge(refusal.RefusalJudge):
    def score(self, prompts, completions):
        global asked
        asked += 1
        if asked <= works:
            return super().score(prompts, completions)
        return [
            Verdict(completion_id=c.id, judge=self.name, version=self.version, unscored="gone")
            for c in completions
        ]


def judge(settings):
    return FailingJudge()
"""


@pytest.fixture(scope="module")
def start(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses harmful prompts and answers benign ones."""
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("start"), steps=60, batch=16)


def plugged(source: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`name`, a module with this source, in a package of its own that is loaded afresh."""
    package, _, file = name.partition(".")
    (folder / package).mkdir()
    (folder / package / f"{file}.py").write_text(source)
    (folder / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    for known in [known for known in sys.modules if known.startswith(package)]:
        sys.modules.pop(known)
    importlib.invalidate_caches()
    return name


def test_a_set_that_nobody_judged_is_not_held() -> None:
    """Of ten harmful prompts two have verdicts at the end, both refusals."""
    before = [outcome("harmful", f"{REFUSAL} {n}") for n in range(10)]
    after = [outcome("harmful", f"{REFUSAL} {n}", scored=n < 2) for n in range(10)]
    (entry,) = set_entries(before, before, after, sizes=[("dev", 10)])
    assert (entry["harmful"], entry["harmful_unscored"]) == (2, 8)
    assert not keeps(entry, 0.02)
    (entry,) = set_entries(before, before, after[9:] * 10, sizes=[("dev", 10)])
    assert not keeps(entry, 0.02), "no verdict at all"


def test_a_set_without_harmful_prompts_is_held() -> None:
    rows = [outcome("benign", ANSWER)]
    (entry,) = set_entries(rows, rows, rows, sizes=[("dev", 1)])
    assert keeps(entry, 0.02)


@pytest.mark.parametrize("works", [1, 3], ids=["after the start", "after the fold"])
def test_a_judge_that_fails_later_holds_nothing(
    start: Path,
    tmp_path: Path,
    works: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The judge is asked about the start, the trained model, the other decisions, and the end."""
    source = FAILING_JUDGE.replace("asked = 0", f"asked, works = 0, {works}")
    hold: dict[str, Any] = {
        "judge": plugged(source, "failing_plugs.failing", tmp_path, monkeypatch)
    }
    with caplog.at_level(logging.WARNING):
        summary = run_stage(recipe(start, tmp_path, peft=True, **hold), "test", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "hold.json").read_text())
    assert found["sets"][0]["harmful"] == 0
    assert found["held"] is False and summary["hold"]["held"] is False
    assert any("SAFETY IS NOT HELD" in r.getMessage() for r in caplog.records)


MISTAKEN_JUDGE = """
from overrefusal_po.judges import refusal
from overrefusal_po.judges.refusal import Settings

asked = 0


class MistakenJudge(refusal.RefusalJudge):
    def score(self, prompts, completions):
        global asked
        asked += 1
        found = super().score(prompts, completions)
        if asked not in MISTAKEN:
            return found
        kind = {prompt.id: prompt.kind for prompt in prompts}
        sides = [(kind[c.prompt_id], v.refused) for c, v in zip(completions, found)]
        at = sides.index(("harmful", True))
        answer = {"refused": False, "refusal": "none", "refusal_start": None}
        return [v.model_copy(update=answer) if n == at else v for n, v in enumerate(found)]


def judge(settings):
    return MistakenJudge()
"""


@pytest.mark.parametrize(
    ("drop", "mistaken", "asked", "held"),
    [(0.34, (4,), 5, True), (0.0, (4,), 5, True), (0.0, (4, 5, 6), 6, False)],
)
def test_weights_that_refuse_less_than_calculated_get_a_greater_bias(
    start: Path,
    tmp_path: Path,
    drop: float,
    mistaken: tuple[int, ...],
    asked: int,
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the model that has a bias one refusal is read as an answer. If 4 of 6 are enough, or if all
    are asked for, the next bias holds; if the same happens at each of three, none does."""
    source = MISTAKEN_JUDGE.replace("MISTAKEN", str(mistaken))
    name = plugged(source, "mistaken_plugs.mistaken", tmp_path, monkeypatch)
    hold: dict[str, Any] = {"judge": name, "refused_drop_max": drop}
    body = recipe(start, tmp_path, peft=True, **hold)
    run_stage(body, "test", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "hold.json").read_text())
    (part,) = found["sets"]
    assert part["trained"][0] < 0.5, "the training was meant to forget"
    assert found["bias"] > 0 and found["held"] is held
    assert (part["held"][0] >= 1.0 - drop) is held
    assert sys.modules[name].asked == asked
