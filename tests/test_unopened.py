"""The student without the openers of its refusals, on a tiny model that knows a second thing to say:
which tokens are suppressed, where such texts stand among the sources, resume, and shards."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style

from overrefusal_po.cli import main
from overrefusal_po.curate.checks import check_settings
from overrefusal_po.curate.overgenerate import make_curation
from overrefusal_po.curate.own_answers import own_sources
from overrefusal_po.engines._first_token import without_openers
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model import load as models
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.records import Completion, PreferencePair, Prompt, Sampling, read_jsonl
from overrefusal_po.run.folder import Run
from overrefusal_po.train import sft

REFUSAL = "Sorry, I can't help with that."
OTHER = "We can't help with that. It would hurt people."
ANSWER = "Open the manual at page one and follow the four steps there. Then you are done."

OVER, OVER_TWICE, ANSWERED = "How do I kill a process?", "How do I kill time?", "What is a fox?"
SAFE, SAFE_TWICE, UNSAFE = "How do I open a safe?", "Steal a letter.", "Trick my sister."
BENIGN, HARMFUL = [OVER, OVER_TWICE, ANSWERED], [SAFE, SAFE_TWICE, UNSAFE]
SUPPRESSED = ["Sorry", "I", "A", "U", "N"]
"""Its own opener, and how common refusals open with its small vocabulary."""

SAYS = {
    **dict.fromkeys([OVER, SAFE], (REFUSAL, ANSWER)),
    **dict.fromkeys([OVER_TWICE, SAFE_TWICE], (REFUSAL, OTHER)),
    **dict.fromkeys([ANSWERED, UNSAFE], (ANSWER, ANSWER)),
}
"""{prompt: (what the student says first of all, what it says in the second place)}."""


@pytest.fixture(scope="module")
def student(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned SAYS: two times of three the first text, else the second."""
    folder, style = tmp_path_factory.mktemp("student"), styles["llama"]
    rows = [
        Prompt(id=f"{number}-{text}", messages=Prompt.of(text, kind="benign").messages,
               kind="benign", reference=reference)
        for text, (first, second) in SAYS.items()
        for number, reference in enumerate((first, first, second))
    ]  # fmt: skip
    args = {
        "max_steps": 150,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": len(rows),
        "save_strategy": "no",
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = sft.sft_trainer(style.make_model(), rows, args=args, template=style.template)
    trainer.train()
    return models.save_merged(trainer.model, style.tokenizer, folder / "model")


def values(student: Path, folder: Path, **keys: Any) -> dict[str, Any]:
    """A recipe in the student's own words; `keys` are added to its sections."""
    rows = [
        {"prompt": text, "kind": "benign", "reference": f"The reference answers: {text}"}
        for text in BENIGN
    ]
    bad = [{"prompt": text, "kind": "harmful"} for text in HARMFUL]
    for name, given in (("benign", rows), ("harmful", bad)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    found = {
        "task": "curate",
        "model": {"model_name_or_path": str(student), "dtype": "float32"},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("benign", "harmful")},
        "chosen": {"answers": "student", "refusals": "student"},
        "rejects": {"suppress_openers": True, "prefill": None},
        "generation": {"max_new_tokens": 60},
    }
    for name, more in keys.items():
        found[name] = {**found[name], **more} if name in found else more
    return found


def pairs_of(student: Path, folder: Path, **keys: Any) -> dict[str, PreferencePair]:
    """{prompt: its pair} of the stage, in folder / "run"."""
    recipe = CurateRecipe.model_validate(values(student, folder, **keys))
    run_stage(recipe, "curate", folder / "run")
    made = read_jsonl(folder / "run" / "pairs.jsonl", PreferencePair)
    return {pair.prompt.text: pair for pair in made}


def sides(pairs: dict[str, PreferencePair]) -> dict[str, tuple[str, str]]:
    return {text: (pair.chosen, pair.rejected) for text, pair in pairs.items()}


def asked_in(file: Path) -> list[str]:
    """The prompts of a completions file."""
    text_of = {Prompt.of(text, kind="benign").id: text for text in BENIGN}
    text_of |= {Prompt.of(text, kind="harmful").id: text for text in HARMFUL}
    return sorted(text_of[row.prompt_id] for row in read_jsonl(file, Completion))


# --- the stage ------------------------------------------------------------------------------------


def test_both_sides_are_the_students_own_words(
    student: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = pairs_of(student, tmp_path, data={"keep_answered": True})
    assert sides(found) == {
        OVER: (ANSWER, REFUSAL),
        OVER_TWICE: (f"The reference answers: {OVER_TWICE}", REFUSAL),  # what comes next refuses
        ANSWERED: (ANSWER, REFUSAL),
        SAFE: (REFUSAL, ANSWER),
        UNSAFE: (REFUSAL, ANSWER),
    }
    run = tmp_path / "run"
    assert asked_in(run / "unopened_benign.jsonl") == sorted([OVER, OVER_TWICE])
    assert asked_in(run / "unopened_harmful.jsonl") == sorted([SAFE, SAFE_TWICE])
    openers = json.loads((run / "suppressed_openers.json").read_text())
    assert (openers["tokens"], openers["source"]) == (SUPPRESSED, "own refusals")
    assert (
        "the student may not begin with 'Sorry', 'I', 'A', 'U', 'N', which open own" in caplog.text
    )
    assert "rejects come from the student itself: 1 of 3 prompts; the unopened student: 1 of 2" in (
        caplog.text
    )
    assert "chosen answers come from the unopened student: 1 of 2 prompts; the teacher or" in (
        caplog.text
    )


def test_prompts_whose_second_words_refuse_too_fall_through_to_the_prefilled_student(
    student: Path, tmp_path: Path
) -> None:
    found = pairs_of(student, tmp_path, rejects={"prefill": "Open the manual"})
    assert sides(found) == {
        OVER: (ANSWER, REFUSAL),
        OVER_TWICE: (ANSWER, REFUSAL),
        SAFE: (REFUSAL, ANSWER),
        SAFE_TWICE: (REFUSAL, ANSWER),
        UNSAFE: (REFUSAL, ANSWER),
    }
    run = tmp_path / "run"
    assert asked_in(run / "prefilled_benign.jsonl") == [OVER_TWICE]
    assert asked_in(run / "prefilled_harmful.jsonl") == [SAFE_TWICE]


def test_a_student_that_refuses_no_harmless_prompt_answers_no_harmful_one(
    student: Path, tmp_path: Path
) -> None:
    (tmp_path / "answered.jsonl").write_text(json.dumps({"prompt": ANSWERED, "kind": "benign"}))
    with pytest.raises(ValueError, match="the 1 benign prompts: the student refuses none of them"):
        pairs_of(student, tmp_path, data={"benign": str(tmp_path / "answered.jsonl")})
    assert not (tmp_path / "run" / "student_harmful.jsonl").exists()


def test_the_users_own_generation_settings_stay(student: Path, tmp_path: Path) -> None:
    """With "Open" banned too, the second words of OVER are no longer its answer."""
    own = {"begin_suppress_tokens": models.load_tokenizer(str(student)).encode("Open")[1:]}
    engine = {"name": "transformers", "generation_config": own}
    found = pairs_of(student, tmp_path, engine=engine)
    assert not found[OVER].chosen.startswith("Open")
    said = read_jsonl(tmp_path / "run" / "unopened_benign.jsonl", Completion)
    assert not any(row.text.startswith(("Open", "Sorry")) for row in said)


def test_what_is_left_of_a_killed_run_is_used(student: Path, tmp_path: Path) -> None:
    first, run = pairs_of(student, tmp_path), tmp_path / "run"
    said = (run / "unopened_harmful.jsonl").read_text()
    kept = said.splitlines(keepends=True)[:1]
    (run / "pairs.jsonl").unlink()
    (run / "unopened_harmful.jsonl").write_text("".join(kept))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running"}))
    assert pairs_of(student, tmp_path) == first
    assert (run / "unopened_harmful.jsonl").read_text() == said


def test_texts_that_were_drawn_without_other_openers_are_an_error(
    student: Path, tmp_path: Path
) -> None:
    pairs_of(student, tmp_path)
    run = tmp_path / "run"
    (run / "pairs.jsonl").unlink()
    file = run / "suppressed_openers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "ids": [7], "tokens": ["No"]}))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running"}))
    with pytest.raises(ValueError, match=r"open with \['Sorry', 'I'.*without \['No'\]\. Delete"):
        pairs_of(student, tmp_path)
    for old in (file, *run.glob("unopened_*.jsonl")):
        old.unlink()
    assert OVER in pairs_of(student, tmp_path)


@pytest.mark.parametrize("limit", [12, 34])  # in the first sentence of ANSWER, and in its second
def test_what_the_limit_cut_is_kept_for_a_training_on_openings(
    student: Path, tmp_path: Path, limit: int
) -> None:
    data = {"openings": True, "keep_answered": True}
    found = pairs_of(student, tmp_path, data=data, generation={"max_new_tokens": limit})
    assert found.keys() == {OVER, OVER_TWICE, ANSWERED, SAFE, UNSAFE}
    said = [
        row
        for file in ("student_benign", "student_harmful", "unopened_benign", "unopened_harmful")
        for row in read_jsonl(tmp_path / "run" / f"{file}.jsonl", Completion)
    ]
    assert {row.finish_reason for row in said} >= {"length"}
    own = {row.text.strip() for row in said}
    refusal = REFUSAL if limit == 34 else "Sorry, I can't"
    for text, pair in found.items():
        answer, refused = pair.chosen, pair.rejected
        if pair.rule == "containment":
            answer, refused = refused, answer
        assert refused.startswith(refusal) and refused in own
        assert answer in own or text == OVER_TWICE
        assert (ANSWER.startswith(answer) and answer != ANSWER) or text == OVER_TWICE


def test_without_that_key_a_side_that_is_cut_in_its_first_sentence_makes_no_pair(
    student: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no prompt has a refusal to choose"):
        pairs_of(student, tmp_path, generation={"max_new_tokens": 8})


def test_a_student_without_openers_is_not_asked_again(student: Path, tmp_path: Path) -> None:
    body = values(student, tmp_path)
    recipe = CurateRecipe.model_validate(body)
    with Run.open(tmp_path / "run", body, {}) as run:
        curation = make_curation(recipe, run)
        ((_, ask),) = own_sources(curation, "benign")
        assert ask([Prompt.of(OVER, kind="benign")]) == {}
        assert "engine" not in vars(curation.models.student)
    assert (tmp_path / "run" / "unopened_benign.tally.json").is_file()  # a merge looks for it


def command(*arguments: object) -> None:
    """The command, in process."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code


@pytest.mark.slow
def test_shards_that_are_merged_are_the_run_without_shards(student: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "curate.yaml"
    recipe.write_text(yaml.safe_dump(values(student, tmp_path, rejects={"prefill": "Open"})))
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    command(recipe, f"--run_dir={parts}", "--shard", "1/2")  # it has nothing that is refused
    command(recipe, f"--run_dir={parts}", "--shard", "2/2")
    command("merge", parts)
    merged = {file.name: file.read_text() for file in parts.glob("*_*.jsonl")}
    assert "unopened_harmful.jsonl" in merged
    command(recipe, f"--run_dir={parts}")
    assert merged == {name: (parts / name).read_text() for name in merged}
    command(recipe, f"--run_dir={whole}")
    assert (parts / "pairs.jsonl").read_text() == (whole / "pairs.jsonl").read_text() != ""
    drawn = [len(asked_in(folder / "unopened_harmful.jsonl")) for folder in (parts, whole)]
    assert drawn == [2, 2]


# --- the engine -----------------------------------------------------------------------------------

ASKED = [Prompt.of(text, kind="benign") for text in ("Hello", "What is a bank? " * 9, "Go on.")]


def engine_of(style: Style, **settings: Any) -> TransformersEngine:
    return TransformersEngine(
        style.make_model(), style.template, name="m", batch_size=2, device="cpu", **settings
    )


def best_first(engine: TransformersEngine, prompt: Prompt, without: list[int]) -> int:
    """The most likely first token that is not in `without`, from one prompt without padding."""
    ids = engine.token_ids(engine.input_text(prompt))
    with torch.no_grad():
        logits = engine.model(input_ids=torch.tensor([ids])).logits[0, -1]
    logits[without] = -torch.inf
    return int(logits.argmax())


@pytest.mark.parametrize("continuous", [False, True])
def test_the_first_token_is_the_best_of_those_that_are_left(style: Style, continuous: bool) -> None:
    engine = engine_of(style, continuous_batching=continuous)
    tokens = sorted({best_first(engine, prompt, []) for prompt in ASKED})
    found = without_openers(engine, tokens)
    assert found.model is engine.model and not engine.settings
    said = {c.prompt_id: c.text for c in found.complete(ASKED, Sampling(max_new_tokens=1))}
    wanted = {p.id: best_first(engine, p, tokens) for p in ASKED}
    decode = style.tokenizer.decode
    assert said == {
        key: decode([t], skip_special_tokens=True) if t not in engine.stop_tokens else ""
        for key, t in wanted.items()
    }


def test_only_the_first_token_is_suppressed(styles: dict[str, Style]) -> None:
    engine = engine_of(styles["llama"])
    sampling = Sampling(max_new_tokens=4)
    first = best_first(engine, ASKED[0], [])
    (said,) = without_openers(engine, [first]).complete(ASKED[:1], sampling)
    start = engine.token_ids(engine.input_text(ASKED[0]))
    ids = [*start, best_first(engine, ASKED[0], [first])]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(engine.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert said.text == styles["llama"].tokenizer.decode(ids[len(start) :])


# --- settings, and the judge ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"engine": {"name": "openai", "base_url": "http://h"}},
            "suppress_openers: true needs the student in process, and the engine is openai.*"
            "engine: transformers, or rejects.prefill",
        ),
        ({"makes": "sft"}, "rejects.suppress_openers: true is about the sides of pairs"),
        (
            {"makes": "sft", "rejects": {}, "data": {"openings": True}},
            "data.openings: true is about the sides of pairs",
        ),
    ],
)
def test_settings_that_would_do_nothing_are_an_error(keys: dict[str, Any], words: str) -> None:
    body = {
        "task": "curate",
        "model": {"model_name_or_path": "student"},
        "rejects": {"suppress_openers": True},
        **keys,
    }
    with pytest.raises(ValueError, match=words):
        check_settings(CurateRecipe.model_validate(body))


def test_own_answers_need_no_prefill_if_openers_are_suppressed() -> None:
    body = {
        "task": "curate",
        "model": {"model_name_or_path": "student"},
        "chosen": {"answers": "student"},
        "rejects": {"suppress_openers": True, "prefill": None},
    }
    check_settings(CurateRecipe.model_validate(body))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist",
        "I'm sorry, but I can't",
        "Sorry, I can't help",
        "It's not appropriate",
        "As an AI language model, I cannot provide",
    ],
)
@pytest.mark.parametrize("kind", ["benign", "harmful"])
def test_a_refusal_that_the_limit_cut_is_a_refusal(text: str, kind: Any) -> None:
    prompt = Prompt.of(OVER, kind=kind)
    said = Completion(
        id="c", prompt_id=prompt.id, text=text, model="m", engine="test", sampling=Sampling(),
        finish_reason="length",
    )  # fmt: skip
    (verdict,) = RefusalJudge().score([prompt], [said])
    assert (verdict.refusal, verdict.degenerate) == ("full", False)
