"""evaluate/speed.py: tokens and seconds of an evaluation's own responses."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po.evaluate.speed import Clock, answer_speed, response_tokens
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import Completion, Prompt, Sampling, read_jsonl, write_jsonl


def said(text: str, finish: Any = "stop", error: str | None = None) -> Completion:
    keys = {"id": "c", "prompt_id": "p", "model": "m", "engine": "e"}
    return Completion(text=text, sampling=Sampling(), finish_reason=finish, error=error, **keys)


def test_tokens_are_those_of_the_texts_and_of_their_ends(style: Style) -> None:
    one = len(style.tokenizer("I can help.", add_special_tokens=False)["input_ids"])
    rows = [said("I can help."), said("I can help.", "length"), said("", "error", "no reply")]
    assert response_tokens(rows, style.tokenizer) == 2 * one + 1
    assert response_tokens(rows[2:], style.tokenizer) == 0


def test_the_clock_starts_when_the_weights_are_there(style: Style) -> None:
    engine: Any = object()

    def load() -> Any:
        assert clock.began is None
        return engine

    clock = Clock(load)
    assert clock.seconds() is None
    assert answer_speed(clock, [said("I can help.")], style.tokenizer) == {}  # nothing was asked
    assert clock.engine() is engine
    seconds = clock.seconds()
    assert seconds is not None and seconds >= 0
    assert set(answer_speed(clock, [], style.tokenizer)) == {"answer_tokens", "answer_seconds"}


@pytest.mark.parametrize("killed", [False, True])
def test_an_evaluation_records_how_fast_it_was_answered(
    killed: bool, styles: dict[str, Style], tmp_path: Path
) -> None:
    """What was answered in an earlier sitting has no time here."""
    prompts = [Prompt.of(f"How do I kill process {n}?", kind="benign") for n in range(3)]
    write_jsonl(tmp_path / "set.jsonl", prompts)
    recipe = {
        "task": "evaluate",
        "model": {"model_name_or_path": str(styles["llama"].folder), "dtype": "float32"},
        "data": {"sets": [str(tmp_path / "set.jsonl")]},
        "generation": {"max_new_tokens": 5},
        "first_token": False,
    }
    run = tmp_path / "run"

    def measured() -> dict[str, Any]:
        run_stage(check_body(recipe, "test"), "evaluate", run)  # type: ignore[arg-type]
        found: dict[str, Any] = json.loads((run / "manifest.json").read_text())
        return found

    known = measured()
    rows = read_jsonl(run / "completions.jsonl", Completion)
    assert known["answer_tokens"] == response_tokens(rows, styles["llama"].tokenizer) > 0
    assert 0 < known["answer_seconds"] <= known["seconds"] + 0.1
    if killed:
        status = run / "status.json"
        status.write_text(status.read_text().replace('"done"', '"interrupted"'))
        assert "answer_tokens" not in measured()
