"""What plugs give is checked: a fault names the plug and the row, and what was valid is kept."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overrefusal_po.evaluate.certificates import certify
from overrefusal_po.evaluate.labels import Labelled
from overrefusal_po.judges import Judge, scored
from overrefusal_po.judges._weights import check_finite
from overrefusal_po.prompts import attacked_prompts, checked_rows
from overrefusal_po.records import Completion, Outcome, Prompt, Sampling, Verdict, read_jsonl
from overrefusal_po.run.complete import complete
from overrefusal_po.run.judged import fresh_verdicts, resumable_verdicts

SAMPLING = Sampling()
PROMPTS = [Prompt.of(f"question {n}", kind="harmful") for n in range(6)]


def said(prompt: Prompt, text: str = "Fine.", **changes: Any) -> Completion:
    """A response as an engine gives it."""
    values = {"id": f"c-{prompt.id}", "prompt_id": prompt.id, "text": text, "model": "m"}
    return Completion(**{**values, "engine": "tests", "sampling": SAMPLING, **changes})


SAID = [said(prompt) for prompt in PROMPTS]


class Scripted:
    """A judge that changes right verdicts by a function."""

    name, version = "scripted", "1"

    def __init__(self, change: Callable[[list[Any]], Any] = lambda rows: rows) -> None:
        self.change = change
        self.calls = 0

    def score(self, prompts: Any, completions: Any) -> Any:
        self.calls += 1
        return self.change([self.verdict(c.id) for c in completions])

    def verdict(self, completion_id: str, **changes: Any) -> Verdict:
        values = {"completion_id": completion_id, "judge": self.name, "version": self.version}
        return Verdict(**{**values, "refusal": "full", **changes})


class Slow(Scripted):
    keep_every = 4


def third(**changes: Any) -> Callable[[list[Verdict]], list[Verdict]]:
    """Changes a field of the third verdict, as a copy that nothing checks."""
    return lambda rows: [*rows[:2], rows[2].model_copy(update=changes), *rows[3:]]


FAULTS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "one too few": (lambda rows: rows[:2] + rows[3:], "there is no verdict"),
    "one twice": (lambda rows: [*rows, rows[2]], "there are 2 verdicts"),
    "another completion": (third(completion_id="foreign"), "there is no verdict"),
    "one too many": (
        lambda rows: [*rows, rows[0].model_copy(update={"completion_id": "foreign"})],
        "completion 'foreign', which was not given",
    ),
    "no list": (lambda rows: iter(rows), "gave a list_iterator"),
    "nothing": (lambda rows: None, "gave a NoneType"),
    "no verdict": (lambda rows: [*rows[:2], {"refusal": "full"}, *rows[3:]], "there is no verdict"),
    "another version": (third(version="0"), "of judge scripted 0"),
    "another judge": (third(judge="other"), "of judge other 1"),
    "a wrong class": (third(refusal="maybe"), "refusal: "),
    "a wrong type": (third(degenerate="often"), "degenerate: "),
    "beyond 1": (third(refusal=None, unsafe_probability=1.5), "unsafe_probability: "),
    "below 0": (third(unsafe_probability=-0.1), "unsafe_probability: "),
    "nan": (third(unsafe_probability=float("nan")), "unsafe_probability: "),
    "an infinite reward": (third(reward=float("inf")), "reward: "),
    "beyond the text": (third(refusal_start=6), "refusal_start is 6; the response has 5"),
    "before the text": (third(refusal_start=-1), "refusal_start: "),
    "nothing said": (third(refusal=None), "neither a score nor"),
    "both said": (third(unscored="no reply"), "a score beside"),
    "no reason": (third(refusal=None, unscored=""), "unscored: "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_judge_names_it_and_the_completion(name: str) -> None:
    change, fault = FAULTS[name]
    with pytest.raises(ValueError) as caught:
        fresh_verdicts(Scripted(change), PROMPTS, SAID)
    text = str(caught.value)
    assert text.startswith("judge scripted 1 (of test_plug_outputs): ") and fault in text
    if name not in ("no list", "nothing", "one too many"):
        assert f"completion {SAID[2].id} (prompt {PROMPTS[2].id})" in text


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("no list", "nothing")])
def test_the_valid_verdicts_of_a_slow_judge_are_kept(name: str, tmp_path: Path) -> None:
    change, _ = FAULTS[name]
    path = tmp_path / "verdicts.jsonl"
    with pytest.raises(ValueError):
        resumable_verdicts(path, Slow(change), PROMPTS, SAID)
    kept = [v.completion_id for v in read_jsonl(path, Verdict)]
    bad = () if name == "one too many" else (SAID[2].id,)
    assert kept == [c.id for c in SAID[:4] if c.id not in bad]
    again = Slow()
    assert len(resumable_verdicts(path, again, PROMPTS, SAID)) == 6
    assert len(read_jsonl(path, Verdict)) == 6


def test_verdicts_belong_to_the_completion_whose_id_they_have() -> None:
    """A judge that sorts its work gives them in another order."""
    for judge in (Scripted(lambda rows: rows[::-1]), Slow(lambda rows: rows[::-1])):
        found = scored(judge, PROMPTS, SAID)
        assert [v.completion_id for v in found] == [c.id for c in SAID]


def test_a_response_that_is_given_twice_is_judged_once() -> None:
    judge = Scripted()
    found = scored(judge, PROMPTS[:2] * 2, SAID[:2] * 2)
    assert found[:2] == found[2:] and len(found) == 4


def test_two_responses_with_one_id_are_refused(tmp_path: Path) -> None:
    other = SAID[1].model_copy(update={"id": SAID[0].id})
    rows = [PROMPTS[0], PROMPTS[1]], [SAID[0], other]
    for judge in (Scripted(), Slow()):
        with pytest.raises(ValueError, match="two responses have the id"):
            resumable_verdicts(tmp_path / "v.jsonl", judge, *rows)


def test_a_certificate_needs_a_judge_that_says_what_it_judged() -> None:
    rows = [
        Labelled(prompt=f"p{n}", response=f"r{n}", human="full", model="m", kind="harmful")
        for n in range(4)
    ]
    with pytest.raises(ValueError, match=r"judge scripted 1 .*there is no verdict"):
        certify(Scripted(lambda found: found[1:]), rows)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_judge_model_that_says_nan_is_an_error_that_names_the_response(score: float) -> None:
    with pytest.raises(ValueError, match=f"completion {SAID[0].id}.*dtype: float32"):
        check_finite("guard:x", SAID[0], score)
    check_finite("guard:x", SAID[0], 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"unsafe_probability": 1.7},
        {"unsafe_probability": float("nan")},
        {"reward": float("inf")},
        {"unscored": ""},
        {"refusal_start": -3},
    ],
)
def test_a_file_of_outcomes_with_such_a_verdict_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    import json

    outcome = Outcome(
        prompt=PROMPTS[0], completion=SAID[0], verdict=Scripted().verdict(SAID[0].id)
    ).model_dump()
    outcome["verdict"] |= change
    path = tmp_path / "outcomes.jsonl"
    path.write_text(json.dumps(outcome) + "\n")
    with pytest.raises(ValueError, match=rf"line 1: not a Outcome: verdict\.{next(iter(change))}"):
        read_jsonl(path, Outcome)


# --- a verdicts file ------------------------------------------------------------------------------


def test_verdicts_of_two_versions_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    resumable_verdicts(path, Slow(), PROMPTS, SAID)
    newer = Slow(lambda rows: [row.model_copy(update={"version": "2"}) for row in rows])
    newer.version = "2"
    with pytest.raises(ValueError, match=r"line 1: a verdict of scripted 1, and this run has"):
        resumable_verdicts(path, newer, PROMPTS, SAID)
    assert newer.calls == 0


def test_verdicts_of_several_judges_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    resumable_verdicts(path, Slow(), PROMPTS, SAID)
    other = Slow()
    other.name = "other"
    assert [v.judge for v in resumable_verdicts(path, other, PROMPTS, SAID)] == ["other"] * 6
    assert len(read_jsonl(path, Verdict)) == 12


def test_two_verdicts_that_differ_on_one_completion_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    resumable_verdicts(path, Slow(), PROMPTS, SAID)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))  # a merge of shards may repeat one
    resumable_verdicts(path, Slow(), PROMPTS, SAID)
    path.write_text("".join([*lines, lines[0].replace("full", "none")]))
    with pytest.raises(ValueError, match=r"line 7: another verdict of scripted"):
        resumable_verdicts(path, Slow(), PROMPTS, SAID)


# --- engines --------------------------------------------------------------------------------------


class Table:
    """An engine that changes right completions by a function."""

    name = "table"

    def __init__(self, change: Callable[[list[Any]], Any] = lambda rows: rows) -> None:
        self.change = change

    def complete(
        self, prompts: Any, sampling: Any, *, samples: int = 1, had: Any = (), **_: Any
    ) -> Iterator[Any]:
        rows = [said(p, sample=n) for p in prompts for n in range(samples) if (p.id, n) not in had]
        yield from self.change(rows)


ENGINE_FAULTS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "one too few": (lambda rows: rows[:2] + rows[3:], "ended without 1 completions"),
    "one twice": (lambda rows: [*rows[:3], rows[2], *rows[3:]], "was not asked for"),
    "another prompt": (third(prompt_id="foreign"), "was not asked for"),
    "another sample": (third(sample=5), "was not asked for"),
    "no completion": (lambda rows: [*rows[:2], "Fine.", *rows[3:]], "gave a str"),
    "other sampling": (third(sampling=Sampling(seed=9)), "has other sampling"),
    "no text": (third(text=None), "is none: text"),
    "an error that is a stop": (third(error="down"), "has finish_reason 'stop' and error 'down'"),
    "an error and a text": (third(error="down", finish_reason="error"), "has an error and a text"),
    "an error without words": (
        third(error="", text="", finish_reason="error"),
        "has an error without words",
    ),
}


@pytest.mark.parametrize("name", ENGINE_FAULTS)
def test_a_fault_of_an_engine_names_it_and_keeps_what_came_before(
    name: str, tmp_path: Path
) -> None:
    change, fault = ENGINE_FAULTS[name]
    path = tmp_path / "completions.jsonl"
    with pytest.raises(ValueError) as caught:
        complete(path, PROMPTS, SAMPLING, lambda: Table(change), "x")
    assert str(caught.value).startswith("engine 'table' (of test_plug_outputs)")
    assert fault in str(caught.value)
    assert len(read_jsonl(path, Completion)) == {"one too few": 5, "one twice": 3}.get(name, 2)
    found = complete(path, PROMPTS, SAMPLING, Table, "x")
    assert [c.prompt_id for c in found] == [p.id for p in PROMPTS]


def test_a_completion_has_the_id_of_its_content(tmp_path: Path) -> None:
    """Whatever id an engine gives, an edited text is found."""
    path = tmp_path / "completions.jsonl"
    found = complete(path, PROMPTS, SAMPLING, Table, "x", samples=2)
    assert all(c.id == c.content_id for c in found) and len({c.id for c in found}) == 12


def test_a_text_that_was_changed_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    complete(path, PROMPTS, SAMPLING, Table, "x")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("Fine.", "No."), *lines[2:]]))
    with pytest.raises(ValueError, match=r"completions\.jsonl, line 2: the id .* is not that of"):
        complete(path, PROMPTS, SAMPLING, Table, "x")
    path.write_text("".join([lines[0], *lines[2:]]))  # deleted, and asked again
    assert len(complete(path, PROMPTS, SAMPLING, Table, "x")) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines, lines[0].replace("Fine.", "No.")],
        lambda lines: [lines[0].replace('"model"', '"modell"'), *lines[1:]],
        lambda lines: [lines[0].replace('"prompt_id"', '"prompt"'), *lines[1:]],
        lambda lines: [lines[0].replace('"sampling"', '"how"'), *lines[1:]],
    ],
)
def test_a_damaged_file_of_completions_is_refused(
    change: Callable[[list[str]], list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "completions.jsonl"
    complete(path, PROMPTS, SAMPLING, Table, "x")
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=r"completions\.jsonl, line \d"):
        complete(path, PROMPTS, SAMPLING, Table, "x")


def test_the_engines_of_this_package_give_the_id_of_the_content() -> None:
    from overrefusal_po.engines.transformers import TransformersEngine

    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "Fine.")
    engine = TransformersEngine.__new__(TransformersEngine)
    engine.template = SimpleNamespace(tokenizer=tokenizer, thought_opener="")  # type: ignore[assignment]
    engine.name, engine.revision, engine.stop_tokens = "m", "main", []
    engine.model = SimpleNamespace()  # type: ignore[assignment]
    row = engine.completion(PROMPTS[0], [1], SAMPLING, sample=3)
    assert row.id == row.content_id
    failed = engine.completion(PROMPTS[0], [], SAMPLING, sample=3, error="too long")
    assert failed.id == failed.content_id


# --- sources and attacks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "gives NoneType"),
        ("a text", "gives str"),
        ({"a": 1}, "gives dict"),
        (PROMPTS[0], "gives Prompt"),
        ([PROMPTS[0], {"text": "x"}], "gives dict"),
        ([PROMPTS[0], PROMPTS[1].model_copy(update={"kind": "bad"})], "gives a row 2 with kind: "),
        ([PROMPTS[0].model_copy(update={"messages": ()})], "gives a row 1 with messages: "),
    ],
)
def test_what_is_no_list_of_prompts_is_named(given: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^The source: prompts\\(\\) {fault}"):
        checked_rows(Prompt, given, "The source: prompts()")


def attacked(prompt: Prompt, **changes: Any) -> Prompt:
    """A form of a prompt as an attack gives it."""
    named = {"id": f"a-{prompt.id}", "attack": "x", "original_id": prompt.id}
    return prompt.model_copy(update={**named, **changes})


@pytest.mark.parametrize(
    ("forms", "fault"),
    [
        (lambda p: [attacked(p, attack=None)], "has no `attack`"),
        (lambda p: [attacked(p, original_id=None)], "has original_id None"),
        (lambda p: [attacked(p, original_id="other")], "has original_id 'other'"),
        (lambda p: [attacked(p, id=p.id)], "has the id"),
        (lambda p: [attacked(p), attacked(p, question="x")], "has the id"),
        (lambda p: [attacked(p, kind="benign")], "is of kind benign"),
        (lambda p: attacked(p), "gives Prompt"),
        (lambda p: None, "gives NoneType"),
    ],
)
def test_a_fault_of_an_attack_names_it_and_the_prompt(
    forms: Callable[[Prompt], Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    name = "attack_of_the_test"
    (tmp_path / f"{name}.py").write_text(
        "from pydantic import BaseModel\n\n\nclass Settings(BaseModel):\n    pass\n\n\n"
        "def attacked(settings, prompt):\n    return FORMS(prompt)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    import importlib

    vars(importlib.import_module(name))["FORMS"] = forms
    package = tmp_path / "attacks_of_the_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(f"from {name} import *\n")
    with pytest.raises(ValueError) as caught:
        attacked_prompts(PROMPTS[:1], ["attacks_of_the_test.one"])
    sys.modules.pop("attacks_of_the_test.one"), sys.modules.pop("attacks_of_the_test")
    assert fault in str(caught.value) and PROMPTS[0].id in str(caught.value)


def test_the_scripted_judge_is_one() -> None:
    judge: Judge = Scripted()
    assert scored(judge, [], []) == []
