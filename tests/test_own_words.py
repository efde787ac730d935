"""Curation in the student's own words: each prompt takes the first source that yields a pair."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import judged_outcome
from openai_server import Answer, Request, Server, says, serving

from overrefusal_po.curate.checks import check_settings
from overrefusal_po.curate.own_answers import usual_refusal
from overrefusal_po.named_plugs import check_plugs
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.records import PreferencePair, Prompt, read_jsonl

USUAL = "I'm sorry, but I can't assist with that."
RARE = "I cannot help with this request."
PREFILL = "Sure, here"
REFUSED = ["How do I kill a process?", "Where can I shoot a good photo?"]
ANSWERED = ["Name a fruit.", "Name a tree."]
SAFE = ["How do I steal a bike?", "How do I open a safe that is not mine?", "Rob a bank."]
UNSAFE = ["Write a letter that tricks my neighbour out of money."]
PLAIN = "An apple is a fruit, and an oak is a tree that grows old."


def script(request: Request) -> Answer:
    """A student that refuses REFUSED and SAFE, and complies when its answer is begun."""
    prompt = request.text
    begun = request.body["messages"][-1]["role"] == "assistant"
    if begun:
        prompt = request.body["messages"][-2]["content"]
    if begun and prompt == REFUSED[1]:
        return says(f" is why not. {RARE}")
    if begun:
        return says(" is the way that the manual shows, with all of its steps.")
    if prompt == SAFE[2]:
        return says(RARE)
    return says(USUAL if prompt in REFUSED + SAFE else PLAIN)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(script) as server:
        yield server


def pairs_of(server: Server, folder: Path, **keys: Any) -> dict[str, PreferencePair]:
    """{prompt: its pair} of the stage in the student's own words."""
    rows = [
        {"prompt": text, "kind": "benign", "reference": f"The reference answers: {text}"}
        for text in REFUSED + ANSWERED
    ]
    bad = [
        {"prompt": text, "kind": "harmful", "safe_response": "Sorry, that is theft."}
        for text in SAFE + UNSAFE
    ]
    for name, given in (("benign", rows), ("harmful", bad)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    data = {name: str(folder / f"{name}.jsonl") for name in ("benign", "harmful")}
    values = {
        "task": "curate",
        "model": {"model_name_or_path": "student"},
        "engine": {
            "name": "openai",
            "base_url": server.url,
            "api_key_env": None,
            "continue_final_message": True,
        },
        "chosen": {"answers": "student", "refusals": "student"},
        "rejects": {"prefill": PREFILL},
        **keys,
    }
    values["data"] = {**data, **values.get("data", {})}
    run_stage(CurateRecipe.model_validate(values), "curate", folder / "run")
    made = read_jsonl(folder / "run" / "pairs.jsonl", PreferencePair)
    return {pair.prompt.text: pair for pair in made}


def test_a_curation_that_goes_on_with_other_prompts_says_so_and_does_not_mix_them(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a version leaves that sampled other prompts: same recipe, same files, same key."""
    few, all_of_them = tmp_path / "few", tmp_path / "all"
    for folder in (few, all_of_them):
        folder.mkdir()
    limit = {"max_prompts": 2}
    before = pairs_of(server, few, data=limit)
    assert 0 < len(before) < len(pairs_of(server, all_of_them))
    run = few / "run"
    for name in ("student_benign.jsonl", "student_harmful.jsonl"):
        (run / name).write_bytes((all_of_them / "run" / name).read_bytes())
    (run / "pairs.jsonl").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    assert "does not ask" not in caplog.text
    assert pairs_of(server, few, data=limit) == before
    warned = [r.getMessage() for r in caplog.records if "does not ask" in r.getMessage()]
    assert [text.partition(" holds")[0] for text in warned] == [
        str(run / name) for name in ("student_benign.jsonl", "student_harmful.jsonl")
    ]
    assert "answers to 2 prompts that this curation does not ask (2 of its 2 are" in warned[0]


def test_each_harmful_prompt_takes_the_first_source_that_complies(
    server: Server, tmp_path: Path
) -> None:
    found = pairs_of(server, tmp_path)
    assert {p for p in found if found[p].rule == "containment"} == {*SAFE, *UNSAFE}
    assert found[UNSAFE[0]].rejected == PLAIN
    assert all(found[prompt].rejected.startswith(PREFILL) for prompt in SAFE)
    begun = [r for r in server.requests if r.body["messages"][-1]["role"] == "assistant"]
    asked = [r.body["messages"][-2]["content"] for r in begun]
    assert sorted(asked) == sorted(REFUSED + SAFE)  # who complied is not asked again


def test_refusals_are_the_student_s_own_or_its_usual_one(server: Server, tmp_path: Path) -> None:
    found = pairs_of(server, tmp_path)
    chosen = {prompt: found[prompt].chosen for prompt in SAFE + UNSAFE}
    assert chosen == {SAFE[0]: USUAL, SAFE[1]: USUAL, SAFE[2]: RARE, UNSAFE[0]: USUAL}


def test_an_answer_that_does_not_pass_falls_through_to_the_reference(
    server: Server, tmp_path: Path
) -> None:
    found = pairs_of(server, tmp_path)
    assert found[REFUSED[0]].chosen.startswith(PREFILL)
    assert found[REFUSED[1]].chosen == f"The reference answers: {REFUSED[1]}"
    assert not set(ANSWERED) & found.keys()


def test_a_prompt_that_the_student_answers_needs_no_reference(
    server: Server, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.jsonl"
    rows = [{"prompt": text, "kind": "benign"} for text in REFUSED]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = pairs_of(server, tmp_path, data={"benign": str(bare)})
    assert found[REFUSED[0]].chosen.startswith(PREFILL) and REFUSED[1] not in found
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["overrefusal"]["left_out"] == {"the prefilled student refuses": 1}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rejects": {"prefill": None}}, "rejects.prefill"),
        ({"engine": {"name": "openai", "base_url": "http://h"}}, "continue_final_message: true"),
    ],
)
def test_own_answers_that_nothing_begins_are_an_error(keys: dict[str, Any], words: str) -> None:
    values = {
        "task": "curate",
        "model": {"model_name_or_path": "student"},
        "chosen": {"answers": "student"},
        **keys,
    }
    with pytest.raises(ValueError, match=f"chosen.answers: student needs.*{words}"):
        check_settings(CurateRecipe.model_validate(values))


def test_prompts_may_come_from_several_sources(server: Server, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    row = {"prompt": "Draw a shot of espresso.", "kind": "benign", "reference": "Grind the beans."}
    more.write_text(json.dumps(row) + "\n")
    both = [str(tmp_path / "benign.jsonl"), str(more)]
    found = pairs_of(server, tmp_path, data={"benign": both, "keep_answered": True})
    assert {*REFUSED, *ANSWERED, row["prompt"]} <= found.keys()


def test_a_source_that_is_not_there_is_named_in_a_list() -> None:
    with pytest.raises(ValueError, match=r"data\.benign.*no_such_source"):
        values = {"task": "curate", "model": {"model_name_or_path": "m"}}
        names = {"benign": ["starter", "no_such_source"]}
        check_plugs(CurateRecipe.model_validate({**values, "data": names}))


def test_prompts_without_references_are_answered_by_the_student(
    server: Server, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"prompt": p, "kind": "benign"}) + "\n" for p in REFUSED))
    found = pairs_of(server, tmp_path, data={"benign": str(bare)})
    assert found[REFUSED[0]].chosen.startswith(PREFILL)
    assert REFUSED[1] not in found  # the student's answer refuses, and there is nothing else
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["overrefusal"]["left_out"] == {"the prefilled student refuses": 1}


def test_what_is_answered_today_is_held_if_asked(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = pairs_of(server, tmp_path, data={"keep_answered": True})
    few = f"{len(REFUSED)} of {len(REFUSED + ANSWERED)} overrefusal pairs are of prompts that the"
    assert few in caplog.text
    for prompt in ANSWERED:
        pair = found[prompt]
        assert (pair.chosen, pair.rejected, pair.rule) == (PLAIN, USUAL, "overrefusal")
        assert pair.reason == "student answers this harmless prompt, and should go on to"


@pytest.mark.parametrize("seed", range(3))
def test_a_limit_takes_prompts_that_the_student_gets_wrong_first(
    server: Server, tmp_path: Path, seed: int
) -> None:
    data = {"keep_answered": True, "max_pairs": 2}
    found = pairs_of(server, tmp_path, data=data, seed=seed)
    assert {p for p in found if found[p].rule == "overrefusal"} == set(REFUSED)
    contained = {p for p in found if found[p].rule == "containment"}
    assert UNSAFE[0] in contained and len(contained & set(SAFE)) == 1


@pytest.mark.parametrize("refusals", ["reference", "student"])
def test_written_refusals_without_answers_that_are_held_are_drawn_as_ever(
    server: Server, tmp_path: Path, refusals: str
) -> None:
    drawn = []
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        chosen = {"answers": "student", "refusals": refusals}
        found = pairs_of(server, folder, data={"max_pairs": 1}, chosen=chosen, seed=seed)
        drawn += [p for p in found if found[p].rule == "containment"]
    assert (set(drawn) == set(UNSAFE)) == (refusals == "student")


@pytest.mark.parametrize("openings", [False, True])
def test_ordinary_prompts_are_held_too(server: Server, tmp_path: Path, openings: bool) -> None:
    mixed = tmp_path / "mixed.jsonl"
    rows = [{"prompt": p, "kind": "benign", "reference": "Do it so."} for p in REFUSED]
    rows += [{"prompt": p, "kind": "general"} for p in ANSWERED]
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"benign": str(mixed), "kinds": ["benign", "general"], "keep_answered": True}
    found = pairs_of(server, tmp_path, data={**data, "openings": openings})
    assert {(found[p].chosen, found[p].rejected) for p in ANSWERED} == {(PLAIN, USUAL)}


def cut_script(request: Request) -> Answer:
    """A student, and a teacher, whose second sentence the limit cuts. SAFE[2] gets its own
    refusal."""
    if request.body["model"] == "teacher":
        return says("Use kill. It takes the", "length")
    if request.text in UNSAFE:
        return says("Write to the neighbour. Then ask", "length")
    return says(
        "I can't help with that. You" if request.text == SAFE[2] else f"{USUAL} It", "length"
    )


@pytest.mark.parametrize("openings", [False, True])
def test_sides_of_every_source_are_cut_back_or_kept(tmp_path: Path, openings: bool) -> None:
    with serving(cut_script) as server:
        engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
        found = pairs_of(
            server,
            tmp_path,
            data={"openings": openings},
            engine=engine,
            chosen={"model": "teacher", "engine": engine, "refusals": "student"},
            rejects={"prefill": None, "model": "teacher", "engine": engine},
        )

    def side(whole: str, rest: str) -> str:
        return whole + rest if openings else whole

    answer = side("Use kill.", " It takes the")
    assert all(
        (found[p].chosen, found[p].rejected) == (answer, side(USUAL, " It")) for p in REFUSED
    )
    assert all(found[p].rejected == answer for p in SAFE + UNSAFE)
    chosen = [found[p].chosen for p in (SAFE[0], SAFE[2], UNSAFE[0])]
    own = side("I can't help with that.", " You")
    assert chosen == [side(USUAL, " It"), own, side(USUAL, " It")]


def taught_script(request: Request) -> Answer:
    """The student of `script`, and a teacher that refuses one harmless prompt and helps with one
    harmful one."""
    if request.body["model"] != "teacher":
        return script(request)
    return says(RARE if request.text in (REFUSED[1], *SAFE[1:], *UNSAFE) else PLAIN)


@pytest.mark.parametrize("answers", [None, "student"])
def test_a_teacher_s_prompt_without_a_good_answer_is_left_out_and_takes_no_reference(
    tmp_path: Path, answers: str | None
) -> None:
    """All prompts have references. The student's own answer to REFUSED[1] does not pass."""
    with serving(taught_script) as server:
        engine = {"name": "openai", "base_url": server.url, "api_key_env": None}
        chosen = {"model": "teacher", "engine": engine, "refusals": "teacher", "answers": answers}
        found = pairs_of(server, tmp_path, chosen=chosen)
    assert {p for p in found if found[p].rule == "overrefusal"} == {REFUSED[0]}
    assert found[REFUSED[0]].chosen.startswith(PREFILL) is (answers == "student")
    assert {p: found[p].chosen for p in found if found[p].rule == "containment"} == dict.fromkeys(
        (*SAFE[1:], *UNSAFE), RARE
    )
    left_out = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert left_out["overrefusal"]["left_out"]["the teacher refuses"] == 1
    assert left_out["containment"]["left_out"] == {"the answer does not refuse in full": 1}


# --- one usual refusal ----------------------------------------------------------------------------


def split_script(request: Request) -> Answer:
    """Most harmless prompts get USUAL, all refused harmful ones RARE, which is the commonest."""
    said = script(request)
    return says(RARE) if request.text in SAFE else said


def test_both_rules_share_one_usual_refusal(tmp_path: Path) -> None:
    with serving(split_script) as server:
        found = pairs_of(server, tmp_path, data={"keep_answered": True})
    assert {found[p].rejected for p in ANSWERED} == {RARE} == {found[UNSAFE[0]].chosen}
    assert {found[p].rejected for p in REFUSED} == {USUAL}  # what it says to them itself


def test_answers_are_held_over_the_refusal_of_harmless_prompts_if_it_is_the_only_one_needed(
    tmp_path: Path,
) -> None:
    with serving(split_script) as server:
        chosen = {"answers": "student", "refusals": "reference"}
        found = pairs_of(server, tmp_path, data={"keep_answered": True}, chosen=chosen)
    assert {found[p].rejected for p in ANSWERED} == {USUAL}


def partly(request: Request) -> Answer:
    """A student that refuses one harmless prompt in part, and nothing else."""
    if request.text == REFUSED[0] and request.body["messages"][-1]["role"] == "user":
        return says(f"{PLAIN} {PLAIN} However, {RARE}")
    return says(PLAIN)


def test_a_student_without_a_usual_refusal_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(partly) as server:
        chosen = {"answers": "student", "refusals": "reference"}
        found = pairs_of(server, tmp_path, data={"keep_answered": True}, chosen=chosen)
    assert not set(ANSWERED) & found.keys() and REFUSED[0] in found
    assert "keep_answered has no effect: the student gives none of its prompts, 4 of" in caplog.text


@pytest.mark.parametrize(
    ("texts", "usual"),
    [([PLAIN], ""), ([RARE, USUAL, RARE, USUAL, PLAIN], RARE), ([USUAL, f"{PLAIN} {RARE}"], USUAL)],
)
def test_the_usual_refusal_is_the_commonest_full_one(texts: list[str], usual: str) -> None:
    prompts = [Prompt.of(f"Ask {n}", kind="benign") for n in range(len(texts))]
    rows = [judged_outcome(*both) for both in zip(prompts, texts, strict=True)]
    assert usual_refusal(rows) == usual


# --- no overrefusal pair --------------------------------------------------------------------------


def never_refuses(request: Request) -> Answer:
    """A student that refuses harmful prompts alone."""
    return script(request) if request.text in SAFE else says(PLAIN)


def refuses_always(request: Request) -> Answer:
    """A student that refuses also when its answer is begun."""
    return says(USUAL)


def asked_harmful(server: Server) -> set[str]:
    """The harmful prompts that the student was asked as they are, or with its answer begun."""
    asked = [message["content"] for r in server.requests for message in r.body["messages"]]
    return {*asked} & {*SAFE, *UNSAFE}


def test_a_student_that_refuses_no_harmless_prompt_is_said_before_harmful_ones_are_drawn(
    tmp_path: Path,
) -> None:
    words = "benign prompts: the student refuses none of them.*model.model_name_or_path"
    with serving(never_refuses) as server:
        with pytest.raises(ValueError, match=f"^No overrefusal pair could be made.*4 {words}"):
            pairs_of(server, tmp_path, data={"keep_answered": True})
        assert len(server.requests) == 4 and not asked_harmful(server)


def test_a_student_without_own_words_is_said_before_harmful_texts_are_drawn(
    tmp_path: Path,
) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"prompt": p, "kind": "benign"}) + "\n" for p in REFUSED))
    with serving(refuses_always) as server:
        chosen = {"answers": "student", "refusals": "reference"}
        with pytest.raises(ValueError, match=r"2 the prefilled student refuses.*chosen\.model"):
            pairs_of(server, tmp_path, data={"benign": str(bare)}, chosen=chosen)
        assert len(server.requests) == 2 * len(REFUSED) and not asked_harmful(server)


def test_a_shard_without_an_overrefusal_pair_is_no_error(tmp_path: Path) -> None:
    with serving(never_refuses) as server:
        with pytest.raises(ValueError, match=r"pairs\.jsonl: there is no such file"):
            pairs_of(server, tmp_path, shard="1/1")
        assert asked_harmful(server) == {*SAFE, *UNSAFE}
