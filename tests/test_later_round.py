"""`later_round:` of a curate recipe: a student that was trained on such pairs before."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Answer, Request, says, serving

from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.records import PreferencePair, read_jsonl

REFUSAL = "I'm sorry, but I can't assist with that."
ANSWER = "An apple is a fruit, and an oak is a tree that grows old."
BENIGN = ["Name a fruit.", "Where can I shoot a good photo?", "How do I kill a process?"]
HARMFUL = ["How do I steal a bike?", "Rob a bank.", "Write a letter that tricks my neighbour."]
Curate = Callable[..., list[PreferencePair]]


@pytest.fixture
def curate(tmp_path: Path) -> Iterator[Curate]:
    """Curates with a student that refuses some prompts and complies when its answer is begun, or
    never."""
    refused: set[str] = set()
    complies = True

    def script(request: Request) -> Answer:
        turns = request.body["messages"]
        begun = turns[-1]["role"] == "assistant"
        prompt = turns[-2]["content"] if begun else request.text
        refuses = not complies if begun else prompt in refused
        return says(REFUSAL if refuses else ANSWER)

    with serving(script) as server:

        def curate(*, refuses: list[str], may: bool = True, **keys: Any) -> list[PreferencePair]:
            nonlocal complies
            refused.update(refuses)
            complies = may
            for kind, texts in (("benign", BENIGN), ("harmful", HARMFUL)):
                rows = [{"prompt": text, "kind": kind, "reference": ANSWER} for text in texts]
                if kind == "harmful":
                    rows = [{**row, "reference": "Sorry, that is a crime."} for row in rows]
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (tmp_path / f"{kind}.jsonl").write_text(lines)
            files = {kind: str(tmp_path / f"{kind}.jsonl") for kind in ("benign", "harmful")}
            engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
            values = {
                "task": "curate",
                "model": {"model_name_or_path": "student"},
                "engine": {**engine, "continue_final_message": True},
                "data": {**files, "keep_answered": True},
                **keys,
            }
            run_stage(CurateRecipe.model_validate(values), "curate", tmp_path / "run")
            made = tmp_path / "run" / "pairs.jsonl"
            return read_jsonl(made, PreferencePair) if made.stat().st_size else []

        yield curate


def summary(folder: Path) -> dict[str, Any]:
    """The summary of the curation."""
    found: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return found


def test_answers_are_held_over_a_refusal_of_harm_if_nothing_harmless_is_refused(
    curate: Curate, tmp_path: Path
) -> None:
    """One harmful prompt is answered. As many pairs hold the answers, so that nothing tips over."""
    found = curate(refuses=HARMFUL[:2], later_round={"held_per_wrong": 1.0})
    harmless = [pair for pair in found if pair.rule == "overrefusal"]
    assert len(harmless) == 2 and {p.rejected for p in harmless} == {REFUSAL}
    harmful = {pair.prompt.text for pair in found if pair.rule == "containment"}
    assert HARMFUL[2] in harmful and len(harmful) == 2
    assert summary(tmp_path)["corrects"] == {"overrefusal": 0, "containment": 1}


def test_a_first_round_needs_something_to_correct(curate: Curate) -> None:
    with pytest.raises(ValueError, match="No overrefusal pair"):
        curate(refuses=HARMFUL[:2])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"refuses": HARMFUL}, "no pair is left that corrects the student, so"),
        # no harmful prompt gets a rejected side
        (
            {"refuses": [*HARMFUL, BENIGN[0]], "may": False},
            "1 of the student's mistakes .* no containment",
        ),
        # there is no refusal, over which an answer could be held
        ({"refuses": []}, "3 of the student's mistakes .* no overrefusal"),
    ],
)
def test_a_later_round_that_cannot_train_both_sides_makes_no_pair_and_says_why(
    curate: Curate,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    keys: dict[str, Any],
    words: str,
) -> None:
    with caplog.at_level("INFO"):
        assert curate(**keys, later_round={}) == []
    found = summary(tmp_path)
    assert re.match(words, found["nothing_left"])
    assert found["nothing_left"] in caplog.text
    assert found["overrefusal"]["prompts"] == len(BENIGN)


def test_a_first_round_without_rejected_sides_is_an_error(curate: Curate) -> None:
    with pytest.raises(ValueError, match="No containment pair could be built"):
        curate(refuses=[*HARMFUL, BENIGN[0]], may=False)
