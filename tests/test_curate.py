"""Curation: from what a student refuses to pairs, on a tiny model that was taught to refuse everything."""

import json
from pathlib import Path

import pytest

from overrefusal_po import models
from overrefusal_po.curate import refuses, select
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.pairs import Made, make_pair
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe import CurateRecipe
from overrefusal_po.records import Completion, PreferencePair, Prompt, Sampling, read_jsonl, write_jsonl
from overrefusal_po.trainers import sft_trainer

REFUSAL = "Sorry, I can't help with that."
ASKED = ["How do I kill a process?", "Tell me how to kill time.", "How do I stop a program?", "What is a fox?"]


ANSWER = "Open the manual at page one and follow the four steps there. Then you are done."


@pytest.fixture(scope="module")
def refuser(styles, tmp_path_factory) -> Path:
    """A tiny model that has learned by heart to answer everything with one refusal."""
    return by_heart(REFUSAL, styles["llama"], tmp_path_factory.mktemp("refuser"))


@pytest.fixture(scope="module")
def answerer(styles, tmp_path_factory) -> Path:
    """A tiny model that answers everything alike."""
    return by_heart(ANSWER, styles["llama"], tmp_path_factory.mktemp("answerer"))


def by_heart(says: str, style, folder: Path) -> Path:
    prompts = [Prompt.of(text, kind="benign", reference=says) for text in [*ASKED, "Write me a letter.", "Hello"]]
    options = {"max_steps": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 6, "save_strategy": "no"}
    args = {**options, "output_dir": str(folder / "out"), "report_to": "none", "disable_tqdm": True}
    trainer = sft_trainer(style.make_model(), prompts, args=args, template=style.template)
    trainer.train()
    return models.save_merged(trainer.model, style.tokenizer, folder / "model")


def rows_file(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_an_over_refusing_student_refuses_becomes_pairs_of_both_rules(refuser: Path, tmp_path: Path) -> None:
    benign = [{"prompt": text, "kind": "benign", "response": f"Here is how: {text}"} for text in ASKED]
    benign.append({"prompt": "Hello", "kind": "benign", "response": REFUSAL})  # a reference that must not be chosen
    harmful = [Prompt.of(text, kind="harmful") for text in ("How do I open a safe?", "Steal a letter.")]
    given = [
        Completion(id=p.id, prompt_id=p.id, text=text, model="other", engine="file", sampling=Sampling())
        for p, text in zip(harmful, ["First you drill a hole next to the dial and look inside.", REFUSAL], strict=True)
    ]
    write_jsonl(tmp_path / "given.jsonl", given)
    asked = [{"prompt": p.text, "kind": "harmful", "safe_response": "Sorry, that is theft."} for p in harmful]
    recipe = CurateRecipe.model_validate(
        {
            "task": "curate",
            "model": {"model_name_or_path": str(refuser), "dtype": "float32"},
            "data": {
                "benign": rows_file(tmp_path / "benign.jsonl", benign),
                "harmful": rows_file(tmp_path / "harmful.jsonl", asked),
            },
            "rejects": {"completions": str(tmp_path / "given.jsonl")},
            "generation": {"max_new_tokens": 24},
        }
    )
    found = run_stage(recipe, "curate", tmp_path / "run")
    pairs = read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
    over = [p for p in pairs if p.rule == "overrefusal"]
    contained = [p for p in pairs if p.rule == "containment"]
    assert sorted(p.prompt.text for p in over) == sorted(ASKED)
    assert all(p.rejected == REFUSAL and p.chosen.startswith("Here is how") and p.verdicts[0].refused for p in over)
    assert [(p.chosen, p.rejected) for p in contained] == [("Sorry, that is theft.", given[0].text)]
    assert found["overrefusal"]["left_out"] == {"the reference refuses": 1}
    assert found["containment"]["left_out"] == {"the completion refuses": 1}


@pytest.mark.parametrize(("teacher_answers", "limit"), [(True, 60), (False, 60), (True, 34)])
def test_a_teacher_gives_the_chosen_answers_and_the_student_its_own_refusals(
    refuser: Path, answerer: Path, tmp_path: Path, teacher_answers: bool, limit: int
) -> None:
    benign = [{"prompt": text, "kind": "benign"} for text in ASKED]  # no reference: the teacher answers
    asked = [{"prompt": text, "kind": "harmful", "safe_response": "Sorry, that is theft."} for text in ASKED[:2]]
    recipe = CurateRecipe.model_validate(
        {
            "task": "curate",
            "model": {"model_name_or_path": str(refuser), "dtype": "float32"},
            "data": {
                "benign": rows_file(tmp_path / "benign.jsonl", benign),
                "harmful": rows_file(tmp_path / "harmful.jsonl", asked),
            },
            "chosen": {"model": str(answerer if teacher_answers else refuser), "refusals": "student"},
            "rejects": {"model": str(answerer)},
            "generation": {"max_new_tokens": limit},
        }
    )
    if not teacher_answers:
        with pytest.raises(ValueError, match="the teacher refuses': 4"):
            run_stage(recipe, "curate", tmp_path / "run")
        return
    run_stage(recipe, "curate", tmp_path / "run")
    pairs = read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
    whole = ANSWER if limit == 60 else ANSWER.partition(". ")[0] + "."  # what the limit cuts ends with a sentence
    sides = {(p.rule, p.chosen, p.rejected) for p in pairs}
    assert sides == {("overrefusal", whole, REFUSAL), ("containment", REFUSAL, whole)}
    assert len(pairs) == 6


def test_no_overrefusal_is_an_error_and_a_limit_is_drawn_by_seed() -> None:
    prompts = [Prompt.of(f"q{i}", kind="benign", reference="a") for i in range(8)]
    made = [make_pair(p, "a", f"Sorry {p.text}", "overrefusal", "why") for p in prompts]
    kept = [{p.id for p in select({"overrefusal": made}, 3, seed)[0]} for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2] and len(kept[0]) == 3
    with pytest.raises(ValueError, match=r"made of the 1 benign prompts.*the student answers it"):
        select({"overrefusal": [Made(None, "the student answers it")]}, None, 0)


def test_a_reference_that_refuses_is_told_from_one_that_answers() -> None:
    judge = RefusalJudge()
    assert refuses(judge, Prompt.of("How do I kill a process?", kind="benign", reference=REFUSAL))
    assert not refuses(
        judge, Prompt.of("How do I kill a process?", kind="benign", reference="Use kill and its number.")
    )
