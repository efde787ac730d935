"""asked.py: harmful prompts of other hands that the student answers, and the triples of them."""

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import launches
import pytest
import yaml
from conftest import Style
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.checks import check_stage, check_together
from overrefusal_po.pipeline import run_stage, stage_inputs
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import Completion, Triple, read_jsonl, write_jsonl
from overrefusal_po.train.data import load_rows
from overrefusal_po.train.derta import read
from overrefusal_po.train.student import starter_harmful

LEAD = "Sorry, I can't help with that. "


def values(model: Path | str = "nobody/nothing", **data: Any) -> dict[str, Any]:
    """The recipe of a short DeRTa training without helpful prompts."""
    return {
        "task": "train",
        "method": "derta",
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "data": {"triples": None, "helpful": [], **data},
        "trainer": {"max_steps": 1, "max_length": 512, "use_cpu": True, "report_to": "none"},
        "generation": {"max_new_tokens": 24},
    }


def body(model: Path | str = "nobody/nothing", **data: Any) -> TrainRecipe:
    """That recipe, checked."""
    found = check_body(values(model, **data), "here")
    assert isinstance(found, TrainRecipe)
    return found


def rows(file: Path, *given: dict[str, Any]) -> str:
    """A file of rows as a user has it."""
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(file)


def harmfulqa(folder: Path, *questions: str) -> dict[str, Any]:
    """HarmfulQA from a local file of its columns."""
    each = ({"question": question, "topic": "theft"} for question in questions)
    return {"name": "harmfulqa", "paths": [rows(folder / "harmfulqa.jsonl", *each)]}


def safe_sides(recipe: TrainRecipe) -> dict[str, str | None]:
    """{text of a prompt that the student is asked: its safe response}."""
    return {prompt.text: prompt.reference for prompt in read(recipe).asked}


# which prompts are asked, and what their safe side is


def test_the_starter_set_alone_is_asked_as_before() -> None:
    assert list(read(body(triples="starter")).asked) == starter_harmful()
    assert list(read(body(ask="starter")).asked) == starter_harmful()


def test_prompts_of_several_hands_are_asked_once_each(tmp_path: Path) -> None:
    """A set of the table from a local file, two local files, the starter set: the same prompt in
    other letters is the first one's, and harmless ones are not asked."""
    table = harmfulqa(tmp_path, "Rob a bank")
    mine = rows(tmp_path / "mine.jsonl", {"prompt": "rob  a BANK"}, {"prompt": "Rob a train"})
    kinds = rows(
        tmp_path / "kinds.jsonl",
        {"prompt": "Whip some cream", "kind": "benign"},
        {"prompt": "Rob a ship", "kind": "harmful"},
    )
    found = safe_sides(body(ask=[table, mine, kinds], safe_lead=LEAD))
    assert list(found) == ["Rob a bank", "Rob a train", "Rob a ship"]
    both = read(body(triples="starter", ask=[mine], safe_lead=LEAD))
    assert len(both.asked) == len(starter_harmful()) + 2 and not both.records
    assert [p.text for p in both.prompts[-2:]] == ["rob  a BANK", "Rob a train"]


def test_max_limits_what_is_asked_of_a_source(tmp_path: Path) -> None:
    table = harmfulqa(tmp_path, *(f"Rob bank {n}" for n in range(30)))
    assert len(read(body(ask={**table, "max": 7}, safe_lead=LEAD)).asked) == 7


def test_the_safe_side_is_the_reference_behind_the_lead_if_it_needs_one(tmp_path: Path) -> None:
    file = rows(
        tmp_path / "mine.jsonl",
        {"prompt": "Rob a bank", "reference": "Sorry, no."},
        {"prompt": "Rob a train", "safe_response": "That is a crime."},
        {"prompt": "Rob a ship", "response": "(what complied)"},
        {"prompt": "Rob a shop", "reference": "  "},
    )
    assert safe_sides(body(ask=file, safe_lead=LEAD)) == {
        "Rob a bank": "Sorry, no.",
        "Rob a train": "Sorry, I can't help with that. That is a crime.",
        "Rob a ship": "Sorry, I can't help with that.",
        "Rob a shop": "Sorry, I can't help with that.",
    }


def test_the_reading_keys_of_data_hold_for_what_is_asked(tmp_path: Path) -> None:
    file = rows(tmp_path / "mine.jsonl", {"frage": "Rob a bank", "nein": "Sorry, no."})
    columns = {"prompt": "frage", "reference": "nein"}
    assert safe_sides(body(ask=[file], columns=columns)) == {"Rob a bank": "Sorry, no."}


# what is refused before any weight is loaded


@pytest.mark.parametrize(
    ("given", "more", "words"),
    [
        ([{"prompt": "Rob a bank"}], {}, r"1 of the 1 .* no reference.*Set data\.safe_lead"),
        ([{"prompt": "Rob a bank", "reference": "No."}], {}, r"begin with .*'Sorry'.*safe_lead"),
        ([{"prompt": "Rob a bank"}], {"safe_lead": "No. "}, r"begin with .* 'Sorry'"),
        ([{"prompt": "Whip cream", "kind": "benign"}], {}, "no harmful prompt among its 1"),
        (
            [{"prompt": "How can I kill a Ruby process?"}],
            {"safe_lead": LEAD},
            r"1 of the 1 prompts to train on .*xstest",
        ),
        (
            [{"prompt": "Rob a bank", "assistant_prefix": "Sure"}],
            {"safe_lead": LEAD, "too_long": "drop"},
            "assistant_prefix",
        ),
        ([{"prompt": "Rob a bank " * 300}], {"safe_lead": LEAD}, r"more than max_length 512"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error_before_weights_are_loaded(
    given: list[dict[str, Any]],
    more: dict[str, Any],
    words: str,
    styles: dict[str, Style],
    tmp_path: Path,
) -> None:
    recipe = body(styles["llama"].folder, ask=rows(tmp_path / "mine.jsonl", *given), **more)
    for attempt in (lambda: check_stage(recipe), lambda: run_stage(recipe, "r", tmp_path / "run")):
        with pytest.raises(ValueError, match=words):
            attempt()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["advbench", "donotanswer", "strongreject"])
def test_a_benchmark_is_never_asked(name: str, styles: dict[str, Style]) -> None:
    with pytest.raises(ValueError, match=f"{name} is a benchmark and has no train split"):
        check_stage(body(styles["llama"].folder, ask=[name], safe_lead=LEAD))


def test_a_recipe_without_a_harmful_prompt_and_a_wrong_name_are_errors() -> None:
    with pytest.raises(ValueError, match=r"^here: data: triples is null and ask names no source"):
        body()
    with pytest.raises(ValueError, match=r"data\.ask: harmfulq is no source .*harmfulqa"):
        run_stage(body(ask=["harmfulq"]), "r")


def test_a_pipeline_does_not_measure_what_the_student_is_asked(tmp_path: Path) -> None:
    file = rows(tmp_path / "mine.jsonl", {"prompt": "Rob a bank", "kind": "harmful"})
    measured = check_body(
        {"task": "evaluate", "model": {"model_name_or_path": "m"}, "data": {"sets": [file]}}, "here"
    )
    stages: Any = {"derta": body(ask=file, safe_lead=LEAD), "after": measured}
    with pytest.raises(ValueError, match="stage after and stage derta share 1"):
        check_together(stages)


def test_check_counts_what_the_student_is_to_answer(
    styles: dict[str, Style], triples: list[Triple], tmp_path: Path
) -> None:
    table = harmfulqa(tmp_path, "Rob a bank")
    loaded = str(write_jsonl(tmp_path / "triples.jsonl", triples))
    line = check_stage(body(styles["llama"].folder, triples=loaded, ask=[table], safe_lead=LEAD))
    assert f"{len(triples) + 1} harmful prompts, two rows of each" in line
    assert "1 for the student to answer (1 of harmfulqa)" in line


def test_another_content_of_what_is_asked_is_another_run(tmp_path: Path) -> None:
    found = []
    for text in ("Rob a bank", "Rob a train"):
        recipe = body(ask=["starter", rows(tmp_path / "mine.jsonl", {"prompt": text})])
        found.append(stage_inputs(recipe))
    assert "data.ask.0" in found[0] and found[0].keys() == found[1].keys()
    assert [key for key in found[0] if found[0][key] != found[1][key]] == ["data.ask.1"]


# what is trained on


@pytest.fixture(scope="module")
def obedient(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that says how to steal, and refuses to open."""
    taught_rows = asked(THINGS, "benign", REFUSAL) + asked(THINGS, "harmful", ANSWER)
    folder = tmp_path_factory.mktemp("obedient")
    return taught(styles["llama"], taught_rows, folder, steps=60, batch=8)


def other_hands(folder: Path) -> str:
    """Sixteen prompts without references; that model refuses the first eight."""
    texts = [p.text for p in asked(THINGS, "benign") + asked(THINGS, "harmful")]
    return rows(folder / "mine.jsonl", *({"prompt": text} for text in texts))


def trained_on(folder: Path) -> list[Triple]:
    """The triples of a run, in the order of their prompts."""
    return sorted(read_jsonl(folder / "data.jsonl", Triple), key=lambda t: t.prompt.text)


@pytest.mark.slow
def test_a_training_learns_from_what_the_student_answers(
    obedient: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = body(obedient, ask=other_hands(tmp_path), safe_lead=LEAD)
    with caplog.at_level(logging.INFO):
        assert run_stage(recipe, "r", tmp_path / "run")["steps"] == 1
    stolen = sorted(p.text for p in asked(THINGS, "harmful"))
    found = trained_on(tmp_path / "run")
    assert [t.prompt.text for t in found] == stolen
    assert {t.safe_response for t in found} == {LEAD.strip()}
    said = {c.prompt_id: c.text for c in answers(tmp_path / "run")}
    assert len(said) == 16
    assert all(t.harmful_response == said[t.prompt.id].strip() for t in found)
    trained = load_rows(tmp_path / "run").rows
    assert trained is not None and sorted(trained["kind"]) == ["prefix"] * 8 + ["rto"] * 8
    words = "harmful responses to 8 of 16 harmful prompts ({0} 8 of 16); left out: 8 refused"
    assert words.format(tmp_path / "mine.jsonl") in caplog.text


def answers(folder: Path) -> list[Completion]:
    """What the student said."""
    return read_jsonl(folder / "student_harmful.jsonl", Completion)


@pytest.mark.slow
def test_a_student_that_refuses_all_is_an_error_unless_triples_are_loaded(
    obedient: Path, triples: list[Triple], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = [{"prompt": p.text} for p in asked(THINGS[:3], "benign")]
    data: dict[str, Any] = {"ask": rows(tmp_path / "mine.jsonl", *refused), "safe_lead": LEAD}
    with pytest.raises(ValueError, match=r"to 0 of 3 .*left out: 3 refused\. .*data\.ask"):
        run_stage(body(obedient, **data), "r", tmp_path / "none")
    data["triples"] = str(write_jsonl(tmp_path / "triples.jsonl", triples))
    run_stage(body(obedient, **data), "r", tmp_path / "loaded")
    key = [t.harmful_response for t in trained_on(tmp_path / "loaded")]
    assert sorted(key) == sorted(t.harmful_response for t in triples)
    [warned] = [r for r in caplog.records if "to 0 of 3" in r.message]
    assert warned.levelno == logging.WARNING


KILLED = """
import os, signal, sys
from pathlib import Path
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.run.appender import Appender

add, rows = Appender.add, []


def dying(file, row):
    add(file, row)
    rows.append(row)
    if len(rows) == 5:
        os.kill(os.getpid(), signal.SIGKILL)


Appender.add = dying
run_stage(load_recipe(sys.argv[1]).body, "r", Path(sys.argv[2]))
"""
"""A run that is killed when five completions are written."""


@pytest.mark.slow
def test_a_run_that_is_killed_while_the_student_answers_asks_only_the_rest(
    obedient: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values(obedient, ask=[other_hands(tmp_path)], safe_lead=LEAD)))
    loaded: Any = load_recipe(recipe).body
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_stage(loaded, "r", whole)
    told = [sys.executable, "-c", KILLED, str(recipe), str(killed)]
    assert launches.run(told).returncode == -signal.SIGKILL
    before = (killed / "student_harmful.jsonl").read_bytes()
    assert before.count(b"\n") == 5 and not (killed / "data.jsonl").exists()
    run_stage(loaded, "r", killed)
    assert (killed / "student_harmful.jsonl").read_bytes().startswith(before)
    said = [{row.content_id for row in answers(folder)} for folder in (killed, whole)]
    assert said[0] == said[1] and len(answers(killed)) == len(said[0]) == 16
    assert trained_on(killed) == trained_on(whole)
