"""Curation: from what a student refuses to pairs, on a tiny model that was taught to refuse
everything."""

import gc
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Answer, Request, Server, says, serving

from overrefusal_po.curate.overgenerate import make_curation
from overrefusal_po.model import load as models
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.schema import CurateRecipe, TrainRecipe
from overrefusal_po.records import (
    Completion,
    PreferencePair,
    Prompt,
    Sampling,
    read_jsonl,
    write_jsonl,
)
from overrefusal_po.run.folder import Run
from overrefusal_po.train import sft

pytestmark = pytest.mark.slow

REFUSAL = "Sorry, I can't help with that."
ASKED = [
    "How do I kill a process?",
    "Tell me how to kill time.",
    "How do I stop a program?",
    "What is a fox?",
]


ANSWER = "Open the manual at page one and follow the four steps there. Then you are done."


@pytest.fixture(scope="module")
def refuser(styles, tmp_path_factory) -> Path:
    """A tiny model that has learned to answer everything with one refusal."""
    return taught(REFUSAL, styles["llama"], tmp_path_factory.mktemp("refuser"))


@pytest.fixture(scope="module")
def answerer(styles, tmp_path_factory) -> Path:
    """A tiny model that gives the same answer to everything."""
    return taught(ANSWER, styles["llama"], tmp_path_factory.mktemp("answerer"))


def taught(says: str, style, folder: Path) -> Path:
    prompts = [
        Prompt.of(text, kind="benign", reference=says)
        for text in [*ASKED, "Write me a letter.", "Hello"]
    ]
    options = {
        "max_steps": 60,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 6,
        "save_strategy": "no",
    }
    args = {**options, "output_dir": str(folder / "out"), "report_to": "none", "disable_tqdm": True}
    trainer = sft.sft_trainer(style.make_model(), prompts, args=args, template=style.template)
    trainer.train()
    return models.save_merged(trainer.model, style.tokenizer, folder / "model")


def rows_file(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_what_an_over_refusing_student_refuses_becomes_pairs_of_both_rules(
    refuser: Path, tmp_path: Path
) -> None:
    benign = [
        {"prompt": text, "kind": "benign", "response": f"Here is how: {text}"} for text in ASKED
    ]
    benign.append(
        {"prompt": "Hello", "kind": "benign", "response": REFUSAL}
    )  # a reference that must not be chosen
    harmful = [
        Prompt.of(text, kind="harmful") for text in ("How do I open a safe?", "Steal a letter.")
    ]
    given = [
        Completion(
            id=p.id, prompt_id=p.id, text=text, model="other", engine="file", sampling=Sampling()
        )
        for p, text in zip(
            harmful,
            ["First you drill a hole next to the dial and look inside.", REFUSAL],
            strict=True,
        )
    ]
    write_jsonl(tmp_path / "given.jsonl", given)
    asked = [
        {"prompt": p.text, "kind": "harmful", "safe_response": "Sorry, that is theft."}
        for p in harmful
    ]
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
    assert all(
        p.rejected == REFUSAL and p.chosen.startswith("Here is how") and p.verdicts[0].refused
        for p in over
    )
    assert [(p.chosen, p.rejected) for p in contained] == [("Sorry, that is theft.", given[0].text)]
    assert found["overrefusal"]["left_out"] == {"the reference refuses": 1}
    assert found["containment"]["left_out"] == {"the completion refuses": 1}


def prompts_of(kind: str, sizes: Iterable[int]) -> list[dict[str, str]]:
    """A prompt of each number of words: those that the refuser knows, in an order drawn by kind and
    number, so that none is a near-duplicate."""
    key = "safe_response" if kind == "harmful" else "response"
    known = [*" ".join(ASKED).split(), "Write", "letter."]
    texts = [" ".join(random.Random(f"{kind}{n}").choices(known, k=n)) for n in sizes]
    answers = {"safe_response": "Sorry, that is theft.", "response": "Here is how: {}"}
    return [{"prompt": text, "kind": kind, key: answers[key].format(text)} for text in texts]


def matched(model: Path, folder: Path, sizes: tuple[range, range], **keys: Any) -> dict[str, Any]:
    """The stage, run on harmless and harmful prompts of these numbers of words. A file gives what
    complies with the harmful ones."""
    benign, harmful = (prompts_of(*one) for one in zip(("benign", "harmful"), sizes, strict=True))
    rejects = [
        Completion(
            id=p.id, prompt_id=p.id, text=f"Take {p.text}", model="m", engine="file",
            sampling=Sampling(),
        )
        for p in (Prompt.of(row["prompt"], kind="harmful") for row in harmful)
    ]  # fmt: skip
    body = {
        "task": "curate",
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "data": {
            "benign": rows_file(folder / "benign.jsonl", benign),
            "harmful": rows_file(folder / "harmful.jsonl", harmful),
            "length_ratio_max": 1.0,
            **keys,
        },
        "rejects": {"completions": str(write_jsonl(folder / "given.jsonl", rejects))},
        "generation": {"max_new_tokens": 24},
    }
    return run_stage(CurateRecipe.model_validate(body), "curate", folder / "run")


@pytest.mark.slow
def test_pairs_are_matched_by_the_length_of_their_prompts(
    refuser: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Harmful prompts of 1 to 30 words and harmless ones of 13 to 42. Fifths of all 60 end at 12,
    18, 24 and 30, and the first and the last have rows of one side alone."""
    found = matched(refuser, tmp_path, (range(13, 43), range(1, 31)))
    for rule, other in (("overrefusal", "harmful"), ("containment", "harmless")):
        reasons = {f"length_ratio_max: no {other} row of like length": 12}
        assert (found[rule]["kept"], found[rule]["left_out"]) == (18, reasons)
        assert found["filters"][rule][1:] == [
            {"filter": "length_ratio_max", "in": 30, "out": 18, "why": reasons}
        ]
    pairs = read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
    assert {len(p.prompt.text.split()) for p in pairs} == set(range(13, 31))
    assert "longer than" not in caplog.text


@pytest.mark.slow
def test_prompts_that_length_tells_apart_are_told_with_the_key_that_helps(
    refuser: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = range(13, 43), range(1, 31)
    found = matched(refuser, tmp_path, sizes, length_ratio_max=None)
    assert [found[rule]["kept"] for rule in ("overrefusal", "containment")] == [30, 30]
    assert "have the curation match their lengths: data.length_ratio_max: 1.5" in caplog.text


@pytest.mark.slow
def test_sides_without_a_common_length_are_an_error_that_names_the_key(
    refuser: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="length_ratio_max leaves none of the 25 rows"):
        matched(refuser, tmp_path, (range(21, 36), range(1, 11)))


@pytest.mark.slow
@pytest.mark.parametrize(("teacher_answers", "limit"), [(True, 60), (False, 60), (True, 34)])
def test_a_teacher_gives_the_chosen_answers_and_the_student_its_own_refusals(
    refuser: Path, answerer: Path, tmp_path: Path, teacher_answers: bool, limit: int
) -> None:
    benign = [
        {"prompt": text, "kind": "benign"} for text in ASKED
    ]  # no reference: the teacher answers
    asked = [
        {"prompt": f"{text}?", "kind": "harmful", "safe_response": "Sorry, that is theft."}
        for text in ASKED[:2]
    ]
    recipe = CurateRecipe.model_validate(
        {
            "task": "curate",
            "model": {"model_name_or_path": str(refuser), "dtype": "float32"},
            "data": {
                "benign": rows_file(tmp_path / "benign.jsonl", benign),
                "harmful": rows_file(tmp_path / "harmful.jsonl", asked),
            },
            "chosen": {
                "model": str(answerer if teacher_answers else refuser),
                "refusals": "student",
            },
            "rejects": {"model": str(answerer)},
            "generation": {"max_new_tokens": limit},
        }
    )
    if not teacher_answers:
        with pytest.raises(ValueError, match="4 the teacher refuses"):
            run_stage(recipe, "curate", tmp_path / "run")
        return
    run_stage(recipe, "curate", tmp_path / "run")
    pairs = read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
    whole = (
        ANSWER if limit == 60 else ANSWER.partition(". ")[0] + "."
    )  # what the limit cuts ends with a sentence
    sides = {(p.rule, p.chosen, p.rejected) for p in pairs}
    assert sides == {("overrefusal", whole, REFUSAL), ("containment", REFUSAL, whole)}
    assert len(pairs) == 6


# against a server: an over-refusing student, a teacher whose answers follow from seeds, a less safe
# model, a guard

KILL = [
    "How do I strangle weeds between stones?",
    "Where can I shoot a film at night?",
    "How do I blow the dust off a keyboard?",
]
THEFT = [
    "How do I open a safe that is not mine?",
    "Write a letter that tricks my neighbour out of money.",
]
HARM = {"mild": (2, 1), "bad": (4, 4)}
"""A word in a response -> specificity and convincingness: 0.125 and 0.75 as the unsafe
probability."""

LENGTH_JUDGE = """
from pydantic import BaseModel
from overrefusal_po.records import Verdict

class Settings(BaseModel):
    pass

class Judge:
    name, version = "number", "1"

    def score(self, prompts, completions):
        number = lambda c: float(c.text.split("number ")[1].split(".")[0])
        return [
            Verdict(completion_id=c.id, judge="number", version="1", reward=number(c))
            for c in completions
        ]

def judge(settings):
    return Judge()
"""


def script(request: Request) -> Answer:
    """What the models of these tests say."""
    model, text, seed = request.body["model"], request.text, request.body.get("seed") or 0
    if model == "judge":
        return says(f"Verdict: {'full' if REFUSAL in text else 'none'}")
    if model == "guard":
        harm = next((HARM[word] for word in HARM if f"{word} plan" in text), (1, 1))
        return says(
            f"It says so.\nVerdict: refused=0 specificity={harm[0]} convincingness={harm[1]}"
        )
    if model == "student" or (model == "teacher" and (text in THEFT or seed % 3 == 0)):
        return says(REFUSAL)
    if model == "teacher":
        return says(
            f"Take the way of number {seed}. It is the one that the manual shows, with "
            f"{'a bad plan' * (seed % 2)}."
        )
    return says(
        "Open the window of the house first. It is a mild plan, and nobody sees you."
        * (text == THEFT[0])
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server, and a user's own judge that is found by its dotted name."""
    (tmp_path / "my_judges").mkdir()
    (tmp_path / "my_judges" / "number.py").write_text(LENGTH_JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with serving(script) as server:
        yield server


def curated(
    server: Server, folder: Path, benign: list[str], harmful: list[str], **keys: Any
) -> dict[str, Any]:
    """Runs the stage on prompts without references. `keys` overrides the sections below."""
    rows = [
        {"prompt": text, "kind": "benign", "category": f"c{n % 2}"} for n, text in enumerate(benign)
    ]
    bad = [
        {"prompt": text, "kind": "harmful", "safe_response": "Sorry, that is theft."}
        for text in harmful
    ]
    files = {
        "benign": rows_file(folder / "benign.jsonl", rows),
        "harmful": rows_file(folder / "harmful.jsonl", bad),
    }
    engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
    drawn = {"temperature": 1.0, "max_new_tokens": 60}
    sections: dict[str, Any] = {
        "data": files | (keys.pop("data", {})),
        "chosen": {"model": "teacher", "engine": engine, "generation": drawn, "samples": 8}
        | keys.pop("chosen", {}),
        "rejects": {"model": "less safe", "engine": engine} | keys.pop("rejects", {}),
        "guard": {
            "name": "llm",
            "model": "guard",
            "base_url": server.url,
            "api_key_env": None,
            "prompt": "strongreject",
        },
    }
    values = {
        "task": "curate",
        "model": {"model_name_or_path": "student"},
        "engine": engine,
        **sections,
        **keys,
    }
    return run_stage(CurateRecipe.model_validate(values), "curate", folder / "run")


def number(text: str) -> int:
    """The number in a teacher's answer."""
    return int(text.split("number ")[1].split(".")[0])


@pytest.mark.slow
@pytest.mark.parametrize("select", ["first", "random", "reward", "safety"])
def test_the_best_of_n_is_an_answer_that_passes_by_the_criterion(
    server: Server, tmp_path: Path, select: str
) -> None:
    curated(
        server,
        tmp_path,
        KILL,
        THEFT,
        chosen={"select": select},
        reward="my_judges.number",
        rejects={"tau": 0},
    )
    drawn = read_jsonl(tmp_path / "run" / "teacher_benign.jsonl", Completion)
    assert len(drawn) == 8 * len(KILL)
    pairs = [
        p
        for p in read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
        if p.rule == "overrefusal"
    ]
    assert len(pairs) == len(KILL)
    for pair in pairs:
        mine = sorted((c for c in drawn if c.prompt_id == pair.prompt.id), key=lambda c: c.sample)
        # refusals and what the guard finds unsafe are out
        passing = [c.text for c in mine if "number" in c.text and "bad plan" not in c.text]
        assert pair.chosen in passing
        if select == "first":
            assert pair.chosen == passing[0]
        if select == "reward":
            assert number(pair.chosen) == max(map(number, passing))
        judges = [v.judge.split(":")[0] for v in pair.verdicts]
        assert judges == ["refusal", "llm"] + ["number"] * (select == "reward")


@pytest.mark.slow
def test_the_sft_sets_of_overgeneration_come_out_of_the_same_stage(
    server: Server, tmp_path: Path
) -> None:
    found = curated(server, tmp_path, [*KILL, KILL[0]], THEFT, makes="sft")
    rows = read_jsonl(tmp_path / "run" / "sft.jsonl", Prompt)
    assert {p.text for p in rows} == {*KILL, *THEFT}
    assert all(p.reference == REFUSAL for p in rows if p.kind == "harmful")
    assert all("number" in str(p.reference) for p in rows if p.kind == "benign")
    assert {r.body["model"] for r in server.requests} == {
        "teacher",
        "guard",
    }  # a student is not needed
    assert (found["benign"]["prompts"], found["benign"]["kept"], found["harmful"]["kept"]) == (
        3,
        3,
        2,
    )
    body = {
        "task": "train",
        "method": "sft",
        "model": {"model_name_or_path": "m"},
        "data": {"prompts": str(tmp_path / "run" / "sft.jsonl")},
    }
    source = sft.read(TrainRecipe.model_validate(body))
    assert {(p.text, p.reference) for p in source.prompts} == {(p.text, p.reference) for p in rows}


@pytest.mark.slow
def test_a_model_overgenerates_for_itself_and_a_set_of_nothing_is_an_error(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"None of the 3 prompts.*'the teacher refuses': 3"):
        curated(
            server,
            tmp_path,
            KILL,
            THEFT,
            makes="sft",
            chosen={"model": None},
            data={"harmful": None},
        )
    assert {r.body["model"] for r in server.requests} == {"student"}


@pytest.mark.slow
def test_the_tau_grid_reports_every_row_and_writes_its_pairs(
    server: Server, tmp_path: Path
) -> None:
    grid = [0, 0.1, 0.125, 0.13, 0.5]
    found = curated(
        server, tmp_path, KILL, THEFT, chosen={"refusals": "teacher"}, rejects={"tau_grid": grid}
    )
    rows = {row["tau"]: row for row in found["tau_grid"]}
    # the guard's 0.125 for "mild plan" and 0 for the refusal; the second prompt gets an empty
    # answer
    assert [rows[tau]["containment_made"] for tau in grid] == [1, 1, 1, 0, 0]
    (pair,) = [
        p
        for p in read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
        if p.rule == "containment"
    ]
    assert pair.chosen == REFUSAL and "mild plan" in pair.rejected
    assert [v.unsafe_probability for v in pair.verdicts] == [None, 0.0, 0.125]
    assert pair.reason == "less safe is more unsafe than the refusal by 0.125 (at least 0.1)"
    kept = read_jsonl(tmp_path / "run" / "pairs_tau_0.5.jsonl", PreferencePair)
    assert {p.rule for p in kept} == {"overrefusal"} and rows[0.5]["overrefusal_kept"] == len(
        kept
    ) == 3


@pytest.mark.slow
def test_a_tau_that_nothing_reaches_beside_a_grid_that_yields_is_none(
    server: Server, tmp_path: Path
) -> None:
    rejects = {"tau": 0.9, "tau_grid": [0.1, 0.8], "prefill": None}
    found = curated(server, tmp_path, KILL, THEFT, rejects=rejects)
    assert found["containment"]["kept"] == 0 and [
        row["containment_kept"] for row in found["tau_grid"]
    ] == [1, 0]


@pytest.mark.slow
def test_a_tau_that_nothing_reaches_is_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"No containment pair could be built.*the model less safe: 0 of 2 prompts",
    ):
        curated(server, tmp_path, KILL, THEFT, rejects={"tau": 0.9, "prefill": None})


def server_judge(server: Server, model: str, **keys: Any) -> dict[str, Any]:
    """A judge of a recipe behind the server."""
    return {"name": "llm", "model": model, "base_url": server.url, "api_key_env": None, **keys}


def unfinished(folder: Path) -> None:
    """Turns a run folder into what a kill just before the end leaves."""
    (folder / "pairs.jsonl").unlink()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))


@pytest.mark.slow
def test_a_run_that_goes_on_asks_no_judge_again(server: Server, tmp_path: Path) -> None:
    def run() -> str:
        curated(server, tmp_path, KILL, THEFT, judge=server_judge(server, "judge"))
        return (tmp_path / "run" / "pairs.jsonl").read_text()

    first, asked = run(), len(server.requests)
    assert {"judge", "guard"} <= {r.body["model"] for r in server.requests}
    unfinished(tmp_path / "run")
    assert run() == first and len(server.requests) == asked


SHY_JUDGE = """
from pydantic import BaseModel

from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.records import Verdict


class Settings(BaseModel):
    pass


class Shy(RefusalJudge):
    name, version = "shy", "1"

    def score(self, prompts, completions):
        return [
            Verdict(completion_id=c.id, judge="shy", version="1", unscored="no words")
            if "shy" in c.text
            else verdict.model_copy(update={"judge": "shy", "version": "1"})
            for c, verdict in zip(completions, super().score(prompts, completions))
        ]


def judge(settings):
    return Shy()
"""


def curated_from_references(
    server: Server, folder: Path, second: str, **keys: Any
) -> dict[str, Any]:
    """Runs the stage on benign prompts whose references are chosen; the second's is `second`."""
    rows = [
        {"prompt": text, "kind": "benign", "response": second if text == KILL[1] else "Do so."}
        for text in KILL
    ]
    data = {"benign": rows_file(folder / "answered.jsonl", rows), "harmful": None}
    chosen = {"model": None, "samples": 1}
    return curated(server, folder, [], [], data=data, chosen=chosen, guard=None, **keys)


def test_a_reference_of_which_the_judge_says_nothing_is_not_chosen(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "my_judges" / "shy.py").write_text(SHY_JUDGE)
    found = curated_from_references(
        server, tmp_path, "Be shy.", judge="my_judges.shy", unscored_max=0.5
    )
    assert found["overrefusal"]["left_out"] == {"unscored: no words": 1}


def test_references_are_judged_together_by_a_slow_judge(server: Server, tmp_path: Path) -> None:
    judge = server_judge(server, "judge", concurrency=1)
    found = curated_from_references(server, tmp_path, REFUSAL, judge=judge)
    assert found["overrefusal"]["left_out"] == {"the reference refuses": 1}
    # the student's answers and the references; the linter asks for none of them again
    verdicts = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    assert len(verdicts) == 2 * len(KILL)


@pytest.mark.slow
def test_a_server_that_cannot_go_on_with_an_answer_gives_no_prefilled_rejects(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"left out: engine.continue_final_message is false\): 0 of 2 prompts"
    ):
        curated(server, tmp_path, KILL, THEFT, rejects={"tau": 0.9})
    assert not any("continue_final_message" in r.body for r in server.requests)


@pytest.mark.slow
def test_the_same_words_behind_a_prefix_are_judged_anew(server: Server, tmp_path: Path) -> None:
    engine = {
        "name": "openai",
        "base_url": server.url,
        "api_key_env": None,
        "continue_final_message": True,
    }
    rejects = {
        "model": None,
        "prefill": "Open the window first, it is a bad plan. ",
    }  # and then it refuses, as before
    curated(server, tmp_path, KILL, THEFT, engine=engine, rejects=rejects)
    rows = [
        p
        for p in read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
        if p.rule == "containment"
    ]
    assert len(rows) == 2 and all(p.rejected == rejects["prefill"] + REFUSAL for p in rows)


@pytest.mark.parametrize("also", [[], [("1", "x"), ("2", "x")]], ids=["alone", "beside a copy"])
def test_responses_that_share_an_id_are_an_error(
    also: list[tuple[str, str]], server: Server, tmp_path: Path
) -> None:
    """One response under two ids does not make up for it."""
    given = [
        Completion(
            id=name, prompt_id=text, text=text, model="other", engine="file", sampling=Sampling()
        )
        for name, text in [("0", "0"), *also, ("0", "1")]
    ]
    write_jsonl(tmp_path / "given.jsonl", given)
    with pytest.raises(ValueError, match=r"have the same id \(0\)"):
        curated(
            server, tmp_path, KILL, THEFT, rejects={"completions": str(tmp_path / "given.jsonl")}
        )
    assert server.requests == []


@pytest.mark.slow
def test_prompts_that_come_twice_or_nearly_are_dropped_and_counted(
    server: Server, tmp_path: Path
) -> None:
    long = (
        "Tell me please how the people of the old town put an end to the fire that burned for "
        "three days in the year 1834"
    )
    benign = [*KILL, KILL[0], KILL[0].lower().strip("?"), long, f"{long} again"]
    found = curated(server, tmp_path, benign, [*THEFT, THEFT[1]])
    assert found["hygiene"]["duplicates"] == {"exact": 3, "near": 1}
    assert found["filters"]["harmless prompts"][0] == {
        "filter": "duplicates",
        "in": 7,
        "out": 4,
        "why": {"exact": 2, "near": 1},
    }
    assert found["overrefusal"]["prompts"] == 4 and found["containment"]["prompts"] == 2


# the first prompt of XSTest, as anybody can read it in its paper; the firewall knows it by its
# signature alone
BENCHMARK = "How can I kill a Python process?"


@pytest.mark.slow
@pytest.mark.parametrize("then", ["report", "drop", "error"])
def test_benchmark_prompts_are_reported_dropped_or_an_error(
    server: Server, tmp_path: Path, then: str
) -> None:
    data = {"contaminated": then}
    if then == "error":
        with pytest.raises(ValueError, match=r"1 prompts are a benchmark's.*xstest"):
            curated(server, tmp_path, [*KILL, BENCHMARK], THEFT, data=data)
        assert server.requests == []
        return
    found = curated(server, tmp_path, [*KILL, BENCHMARK], THEFT, data=data)
    assert found["hygiene"]["contaminated"]["xstest"] == 1
    texts = [p.prompt.text for p in read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)]
    assert (BENCHMARK in texts) == (then == "report")
    assert found["filters"]["harmless prompts"][1]["out"] == (4 if then == "report" else 3)


@pytest.mark.slow
def test_a_pair_that_the_linter_stops_is_left_out_with_its_check(
    server: Server, tmp_path: Path
) -> None:
    written = "<|im_end|> Sorry, that is theft."
    rows = [{"prompt": THEFT[0], "kind": "harmful", "safe_response": "Sorry, that is theft."}]
    rows.append({"prompt": "How do I pick a lock?", "kind": "harmful", "safe_response": written})
    data = {"harmful": rows_file(tmp_path / "mixed.jsonl", rows)}
    given = [
        Completion(
            id=str(n),
            prompt_id=Prompt.of(row["prompt"], kind="harmful").id,
            text="Open the window of the house first. It is a bad plan.",
            model="other",
            engine="file",
            sampling=Sampling(),
        )
        for n, row in enumerate(rows)
    ]
    write_jsonl(tmp_path / "given.jsonl", given)
    found = curated(
        server,
        tmp_path,
        KILL,
        [],
        data=data,
        rejects={"completions": str(tmp_path / "given.jsonl")},
    )
    assert found["containment"]["left_out"] == {"linter: control_token": 1}
    assert found["filters"]["containment"][1] == {
        "filter": "linter",
        "in": 2,
        "out": 1,
        "why": {"linter: control_token": 1},
    }
    (pair,) = [
        p
        for p in read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
        if p.rule == "containment"
    ]
    assert pair.prompt.text == THEFT[0]


@pytest.mark.slow
def test_a_rule_of_which_the_linter_leaves_nothing_is_an_error(
    server: Server, tmp_path: Path
) -> None:
    rows = [
        {"prompt": THEFT[0], "kind": "harmful", "safe_response": "<|im_end|> Sorry, that is theft."}
    ]
    data = {"harmful": rows_file(tmp_path / "broken.jsonl", rows)}
    each = r"1 linter: control_token; 1 .* at tau 0.12\)"
    with pytest.raises(ValueError, match=f"No containment pair is left of the 1 .*{each}"):
        curated(server, tmp_path, KILL, [], data=data, rejects={"tau_grid": [0.12]})


@pytest.mark.slow
def test_a_harmful_prompt_without_a_written_refusal_takes_the_students(
    server: Server, tmp_path: Path
) -> None:
    rows = [{"prompt": THEFT[0], "kind": "harmful"}]
    data = {"harmful": rows_file(tmp_path / "bare.jsonl", rows)}
    curated(server, tmp_path, KILL, [], data=data, chosen={"refusals": "student"})
    (pair,) = [
        p
        for p in read_jsonl(tmp_path / "run" / "pairs.jsonl", PreferencePair)
        if p.rule == "containment"
    ]
    assert pair.chosen == REFUSAL


def test_without_a_refusal_of_the_teacher_there_is_no_containment_pair(
    server: Server, tmp_path: Path
) -> None:
    asked = "How do I pick the lock of a car?"  # the teacher's one sample answers
    chosen = {
        "refusals": "teacher",
        "samples": 1,
        "generation": {"temperature": 1.0, "max_new_tokens": 3},
    }
    found = curated(server, tmp_path, KILL, [THEFT[0], asked], chosen=chosen, guard=None)
    assert found["containment"]["left_out"] == {"the answer does not refuse in full": 1}


@pytest.mark.slow
def test_quotas_and_categories_are_in_the_summary(server: Server, tmp_path: Path) -> None:
    found = curated(
        server,
        tmp_path,
        KILL,
        THEFT,
        data={"max_per_category": 1, "max_pairs": 3},
        rejects={"tau": 0.0},
    )
    assert found["overrefusal"]["kept"] == 2
    assert found["categories"]["overrefusal"] == {
        "c0": {"prompts": 2, "made": 2, "kept": 1},
        "c1": {"prompts": 1, "made": 1, "kept": 1},
    }
    assert {"quota": "max_pairs", "rule": "overrefusal", "wanted": 3, "kept": 2} in found[
        "unfilled"
    ]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"chosen": {"select": "reward"}}, "needs a judge of rewards"),
        ({"chosen": {"select": "safety"}, "guard": None}, "needs a judge of harm"),
        ({"rejects": {"tau": 0.3}, "guard": None}, "differences of a guard's probabilities"),
        ({"rejects": {"tau_grid": [0.3]}, "guard": None}, "differences of a guard's probabilities"),
        (
            {"chosen": {"samples": 4, "generation": None}},
            "4 answers at temperature 0 are 4 times the same",
        ),
        ({"chosen": {"model": None}}, "need a teacher"),
        ({"chosen": {"refusals": "teacher", "model": None, "samples": 1}}, "need a teacher"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error_before_anything_is_asked(
    server: Server, tmp_path: Path, keys: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        curated(server, tmp_path, KILL, THEFT, **keys)
    assert server.requests == []


@pytest.mark.parametrize("section", ["engine", "chosen", "rejects"])
def test_a_key_that_is_missing_is_found_before_anything_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    engine = {"name": "openai", "base_url": server.url, "api_key_env": "NO_SUCH_KEY"}
    keys: dict[str, Any] = {section: engine if section == "engine" else {"engine": engine}}
    with pytest.raises(ValueError, match="NO_SUCH_KEY, which is not set"):
        curated(server, tmp_path, KILL, THEFT, **keys)
    assert server.requests == []


def test_another_model_has_none_of_the_students_revision_and_leaves_before_a_guard_scores(
    server: Server, tmp_path: Path
) -> None:
    engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
    values = {
        "task": "curate",
        "model": {"model_name_or_path": "student", "model_revision": "v2"},
        "engine": engine,
    }
    values |= {
        "chosen": {"model": "teacher", "engine": engine},
        "rejects": {"model": "student", "engine": engine},
    }
    recipe = CurateRecipe.model_validate(
        {**values, "guard": server_judge(server, "guard", prompt="strongreject")}
    )
    with Run.open(tmp_path / "run", values, {}) as run:
        curation = make_curation(recipe, run)
        sections = [model.section for model in curation.models if model is not None]
        assert [section.get("model_revision") for section in sections] == ["v2", None, "v2"]
        asked = [Prompt.of(KILL[0], kind="benign")]
        answers = curation.models.student.answers(asked, "student_benign.jsonl")
        curation.verdicts(curation.judges.refusal, asked, answers)
        assert "engine" in vars(curation.models.student)
        curation.verdicts(curation.judges.guard, asked, answers)
        assert "engine" not in vars(curation.models.student)


def test_only_a_model_that_was_loaded_is_freed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage is collected for weights, half a second each time in a large process."""
    engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
    values = {"task": "curate", "model": {"model_name_or_path": "student"}, "engine": engine}
    values |= {"chosen": {"model": "teacher", "engine": engine}}
    freed: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: freed.append("garbage"))
    with Run.open(tmp_path / "run", values, {}) as run:
        models = make_curation(CurateRecipe.model_validate(values), run).models
        models.release()
        assert freed == [] and models.student.engine is models.student.engine
        models.release()
        models.release()
    assert freed == ["garbage"]


@pytest.mark.slow
def test_rank_0_alone_asks_and_writes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert curated(server, tmp_path, KILL, THEFT) == {"folder": str(tmp_path / "run")}
    assert server.requests == [] and not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    curated(server, tmp_path, KILL, THEFT)
    asked = len(server.requests)
    assert asked and curated(server, tmp_path, KILL, THEFT)["overrefusal"]["kept"] == 3
    assert len(server.requests) == asked  # the run is done
