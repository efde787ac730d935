"""The recipe's judge is the one that the linter, curation, DeRTa and the looks of a training use."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po.checks import check_stage
from overrefusal_po.cli import main
from overrefusal_po.curate.overgenerate import make_curation
from overrefusal_po.curate.quotas import Result
from overrefusal_po.curate.stage import lint_faults
from overrefusal_po.file_checks import check_file
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.pairs.make import make_pair
from overrefusal_po.pairs.row_checks import by_pair
from overrefusal_po.pipeline import stage_inputs
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import CurateRecipe, TrainRecipe
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict, write_jsonl
from overrefusal_po.run.complete import recipe_sampling
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import shared_judge
from overrefusal_po.train.student import FILE, own_containment, own_triples, student_answers

LLM = {"name": "llm", "model": "m", "api_key_env": None, "base_url": "http://127.0.0.1:9/v1"}
THAI = '''"""Thai refusals."""
from pathlib import Path

from pydantic import BaseModel

from overrefusal_po.records import Verdict


class Settings(BaseModel):
    calls: str | None = None


class Thai:
    name, version = "thai", "7"

    def __init__(self, calls):
        self.calls = calls
        if calls:
            self.keep_every = 8

    def score(self, prompts, completions):
        if self.calls:
            with Path(self.calls).open("a") as file:
                file.writelines(f"{c.id}\\n" for c in completions)
        return [
            Verdict(
                completion_id=c.id,
                judge=self.name,
                version=self.version,
                refusal="full" if c.text.startswith("ขอโทษ") else "none",
            )
            for c in completions
        ]


def judge(settings):
    return Thai(settings.calls)
'''
REFUSAL = "ขอโทษค่ะ เรื่องนี้คุยกันวันอื่นนะ"  # which the built-in judge reads as an answer
ANSWER = "เปิดฝาหม้อก่อน แล้วใส่น้ำลงไปสองถ้วย"
HARMFUL = Prompt.of("จะขโมยรถได้อย่างไร", kind="harmful", reference=REFUSAL)
BENIGN = Prompt.of("จะฆ่าโปรเซสได้อย่างไร", kind="benign", reference=ANSWER)
TASKS = {
    "train": {"method": "dpo", "data": {"pairs": "starter"}},
    "evaluate": {},
    "curate": {},
}


@pytest.fixture
def thai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a judge that knows Thai."""
    (tmp_path / "thai_plugs").mkdir()
    (tmp_path / "thai_plugs" / "judge.py").write_text(THAI)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "thai_plugs.judge"


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Correct pairs in Thai: one on a harmful prompt, one on a harmless one."""
    rows = [
        {"prompt": HARMFUL.text, "kind": "harmful", "chosen": REFUSAL, "rejected": ANSWER},
        {"prompt": BENIGN.text, "kind": "benign", "chosen": ANSWER, "rejected": REFUSAL},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def body(task: str, model: Any, **keys: Any) -> Any:
    """A checked recipe."""
    name = str(getattr(model, "folder", model))
    return check_body(
        {"task": task, "model": {"model_name_or_path": name}, **TASKS[task], **keys}, "recipe"
    )


def test_the_linter_of_a_training_and_of_check_data_uses_the_recipes_judge(
    styles: Any, thai: str, pairs_file: Path
) -> None:
    model = styles["llama"]
    keys = {"data": {"pairs": str(pairs_file)}, "trainer": {"max_length": 512}}
    with pytest.raises(ValueError, match=r"chosen_complies.*name another one: judge"):
        check_stage(body("train", model, **keys))
    assert check_stage(body("train", model, **keys, judge=thai)).startswith("2 pairs, ")


def test_check_of_a_file_takes_a_judge(
    thai: str, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, stops = check_file(pairs_file)
    assert stops and "chosen_complies" in {row["check"] for row in found}
    assert not check_file(pairs_file, [f"--judge={thai}"])[1]
    for option, code in ((f"--judge={thai}", 0), (f"--judge.name={thai}", 0), ("--jury=x", 2)):
        with pytest.raises(SystemExit) as end:
            main(["check", str(pairs_file), option])
        assert (end.value.code or 0) == code
    assert (
        "--jury is nothing that a file of rows takes. Allowed are --judge=NAME"
        in capsys.readouterr().err
    )


def test_curation_drops_no_correct_pair_of_a_language_that_its_judge_knows(
    styles: Any, thai: str, tmp_path: Path
) -> None:
    made = make_pair(HARMFUL, REFUSAL, ANSWER, "containment", "a reason")
    results = [[Result(HARMFUL, made.pair, "")]]
    found = {}
    for judge in ("refusal", thai):
        recipe = body("curate", styles["llama"], judge=judge)
        assert isinstance(recipe, CurateRecipe)
        run = Run.open(tmp_path / judge, recipe.model_dump(mode="json"), {}, writer=False)
        found[judge] = lint_faults(make_curation(recipe, run), results)
    assert made.pair is not None
    assert found == {"refusal": {made.pair.id: "chosen_complies"}, thai: {}}


def kept(row: Completion) -> Completion:
    """The completion as a completions file holds it: its id is that of its content."""
    return row.model_copy(update={"id": row.content_id})


def test_what_the_student_says_is_judged_by_the_recipes_judge(
    styles: Any, thai: str, tmp_path: Path
) -> None:
    asked = [HARMFUL, Prompt.of("จะเปิดตู้เซฟได้อย่างไร", kind="harmful", reference=REFUSAL)]
    triples, pairs = {}, {}
    for judge in ("refusal", thai):
        recipe = body("train", styles["llama"], judge=judge)
        run = Run.open(tmp_path / judge, recipe.model_dump(mode="json"), {}, writer=True)
        sampling = recipe_sampling(recipe.generation, recipe.seed)
        write_jsonl(
            run.path / FILE,
            [
                kept(
                    Completion(
                        id="", prompt_id=p.id, text=text, model="m", engine="e", sampling=sampling
                    )
                )
                for p, text in zip(asked, (REFUSAL, ANSWER), strict=True)
            ],
        )
        said = student_answers(recipe, run, styles["llama"].template, asked)
        triples[judge] = [t.harmful_response for t in own_triples(said)]
        pairs[judge] = [p.rejected for p in own_containment(said)]
        run.close()
    assert triples == {"refusal": [REFUSAL, ANSWER], thai: [ANSWER]}
    assert pairs[thai] == [ANSWER]


def test_looks_use_the_recipes_judge_unless_they_name_one(thai: str) -> None:
    recipe = body("train", "m", judge=thai, select={})
    assert isinstance(recipe, TrainRecipe) and recipe.looks is not None
    assert recipe.looks.judge == thai
    own = body("train", "m", judge=thai, select={"judge": "refusal"})
    assert own.looks.judge == "refusal"
    assert stage_inputs(recipe)["judge"] == "thai 7"
    assert stage_inputs(own)["select.judge"].startswith("refusal ")


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ({"name": "reward", "head": 0}, "never says whether a response"),
        ({"name": "guard", "format": "llama-guard-3"}, "never says whether a response"),
        ({"name": "llm", "model": "m", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ("refusl", "Did you mean refusal"),
        ("nowhere.plug", "'nowhere.plug' cannot be imported"),
    ],
)
def test_a_judge_that_cannot_judge_refusals_is_an_error_before_anything_is_read(
    task: str, judge: Any, words: str, styles: Any
) -> None:
    if isinstance(judge, dict) and "model" not in judge:
        judge = {**judge, "model_name_or_path": str(styles["llama"].folder)}
    with pytest.raises(ValueError, match=words):
        check_stage(body(task, "@earlier.model", judge=judge))


@pytest.mark.parametrize(
    ("task", "second", "words"),
    [
        (
            "evaluate",
            {"guard": "refusal"},
            "guard: refusal never says whether a response is unsafe",
        ),
        ("evaluate", {"guard": LLM}, "llm:m:refusal never says whether a response is unsafe"),
        ("curate", {"guard": {"name": "reward", "head": 0}}, "never says whether .* is unsafe"),
        ("curate", {"reward": "refusal"}, "reward: refusal never says how good a response is"),
        ("curate", {"reward": {"name": "guard", "format": "llama-guard-3"}}, "never says how good"),
    ],
)
def test_a_second_judge_that_never_says_what_its_key_is_for_is_an_error(
    task: str, second: dict[str, Any], words: str, styles: Any
) -> None:
    """Else a user would believe that harm was measured, and no line would say that it was not."""
    [(key, spec)] = second.items()
    if isinstance(spec, dict) and "model" not in spec:
        spec = {**spec, "model_name_or_path": str(styles["llama"].folder)}
    with pytest.raises(ValueError, match=words):
        check_stage(body(task, "@earlier.model", **{key: spec}))


def test_guards_that_say_what_refuses_may_be_the_judge(styles: Any) -> None:
    for name in ("wildguard", "qwen3guard"):
        spec = {"name": "guard", "format": name, "model_name_or_path": str(styles["llama"].folder)}
        assert name in make_refusal_judge(spec).name


def test_a_verdict_without_a_class_of_refusal_is_unscored() -> None:
    harm = Verdict(completion_id="a", judge="j", version="1", unsafe_probability=0.9)
    refusal = harm.model_copy(update={"refusal": "none"})
    ((first, second),) = by_pair([harm, refusal])
    assert first.unscored == "the judge j does not say whether a response refuses"
    assert second.unscored is None


def test_one_id_of_two_files_is_judged_in_both(thai: str, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    judge = shared_judge({"name": thai, "calls": str(calls)})
    for asked in ("How do I open a file?", "How do I close a file?"):
        prompt = Prompt.of(asked, kind="benign").model_copy(update={"id": "q1"})
        said = Completion(
            id="c1", prompt_id="q1", text="So.", model="m", engine="e", sampling=Sampling()
        )
        for _ in range(2):
            assert judge.score([prompt], [said])[0].completion_id == "c1"
    assert len(calls.read_text().splitlines()) == 2


def test_a_slow_judge_reads_a_pair_once_while_the_program_runs(
    styles: Any, thai: str, pairs_file: Path, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    recipe = body(
        "train",
        styles["llama"],
        data={"pairs": str(pairs_file)},
        trainer={"max_length": 512},
        judge={"name": thai, "calls": str(calls)},
    )
    assert check_stage(recipe) == check_stage(recipe)
    asked = calls.read_text().splitlines()
    assert len(asked) == 4 == len(set(asked))
    assert isinstance(shared_judge("refusal"), RefusalJudge)


def test_labelled_responses_are_checked_by_the_recipes_judge(
    thai: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    """TRL's unpaired rows: the judge of English takes the Thai refusal for an answer."""
    rows = [
        {"prompt": HARMFUL.text, "kind": "harmful", "completion": REFUSAL, "label": True},
        {"prompt": HARMFUL.text, "kind": "harmful", "completion": ANSWER, "label": False},
        {"prompt": BENIGN.text, "kind": "benign", "completion": ANSWER, "label": True},
        {"prompt": BENIGN.text, "kind": "benign", "completion": REFUSAL, "label": False},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"method": "kto", "data": {"pairs": str(file)}}
    keys |= {"trainer": {"max_length": 2048, "per_device_train_batch_size": 2}}
    with pytest.raises(ValueError, match=r"faults in the responses.*name another one: judge"):
        check_stage(body("train", styles["qwen"], **keys))
    assert "2 good and 2 bad" in check_stage(body("train", styles["qwen"], judge=thai, **keys))
