"""records.py: JSON Lines in and out, errors that say where, ids that are the same everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from overrefusal_po.cli import main
from overrefusal_po.identity import bare_words
from overrefusal_po.records import (
    Completion,
    Message,
    Outcome,
    PreferencePair,
    Prompt,
    Record,
    Sampling,
    Triple,
    Verdict,
    content_id,
    read_jsonl,
    read_objects,
    write_atomic,
    write_jsonl,
)

PROMPT = Prompt(
    id="p1",
    messages=(
        Message(role="system", content="Answer briefly."),
        Message(
            role="user", content="What is \u201cna\u00efve\u201d?\nAnd \u2028 this? \U0001f642"
        ),
        Message(role="assistant", content="A word."),
        Message(role="user", content="Another?"),
    ),
    kind="general",
    category="facts",
    split="dev",
    topic="words",
    reference="Yes.",
    assistant_prefix="Sure",
)
COMPLETION = Completion(
    id="c1",
    prompt_id="p1",
    text="",
    model="tiny",
    engine="transformers",
    sampling=Sampling(max_new_tokens=8, temperature=0.7, seed=3),
    sample=2,
    finish_reason="length",
)
VERDICT = Verdict(
    completion_id="c1", judge="refusal", version="1", refusal="partial", refusal_start=0
)
RECORDS: list[Record] = [
    PROMPT,
    Prompt.of("Hi", kind="benign"),
    COMPLETION,
    Triple(prompt=PROMPT, safe_response="Sorry, no.", harmful_response="Sure."),
    VERDICT,
    Verdict(completion_id="c2", judge="guard", version="1", unscored="no verdict in the reply"),
    PreferencePair(
        id="x", prompt=PROMPT, chosen="a", rejected="b", rule="containment", verdicts=(VERDICT,)
    ),
    PreferencePair(id="y", prompt=PROMPT, chosen="a", rejected="b"),
    Outcome(prompt=PROMPT, completion=COMPLETION, verdict=VERDICT),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_comes_back_as_it_was_written(record: Record, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [record, record])
    assert read_jsonl(file, type(record)) == [record, record]
    assert file.read_text(encoding="utf-8").count("\n") == 2


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('\n{"a": 1}\n   \n{"a": 2}')
    assert list(read_objects(file)) == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """As Windows tools write it."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n', encoding="utf-8-sig")
    assert list(read_objects(file)) == [(1, {"a": 1})]


def test_a_malformed_line_is_named_by_file_line_and_column(tmp_path: Path) -> None:
    """The comma that is missing stands at column 9 of the third line."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 1 "b": 2}\n')
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, line 3, column 9: this is not JSON \(.*delimiter.*fix"
    ):
        list(read_objects(file))


def test_a_line_that_is_no_object_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n[1, 2]\n')
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, line 2, column 1: expected a JSON object .* got list"
    ):
        list(read_objects(file))


def test_a_file_that_is_no_utf8_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2, byte 11: this is not UTF-8"):
        list(read_objects(file))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_an_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"rows\.jsonl: the file holds no rows"):
        read_jsonl(file, Prompt)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = {"none.jsonl": "there is no such file", ".": "this is a folder"}
    for name, words in {**found, "pipe.jsonl": "this is a pipe or a device"}.items():
        with pytest.raises(ValueError, match=f"{words}.*Give the path"):
            read_jsonl(tmp_path / name, Prompt)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"id": "a", "messages": [{"role": "user", "content": "x"}], "kind": "benign", '
            '"catgory": "y"}',
            "catgory",
        ),
        ('{"id": "a", "messages": [{"role": "user", "content": "x"}]}', "kind: Field required"),
        ('{"id": "a", "messages": [], "kind": "benign"}', "messages: .*at least 1 item"),
        (
            '{"id": "a", "messages": [{"role": "user", "content": "x"}], "kind": "toxic"}',
            r"kind: .*given: 'toxic'",
        ),
        (
            '{"id": "a", "messages": [{"role": "bot", "content": "x"}], "kind": "benign"}',
            r"messages\.0\.role: ",
        ),
    ],
)
def test_a_row_of_another_form_is_named_by_file_line_and_field(
    line: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [PROMPT])
    file.write_text(file.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: not a Prompt: {said}"):
        read_jsonl(file, Prompt)


def test_ids_come_from_content_alone() -> None:
    """The hash is that of `printf '["benign", "How do I kill a Python process?"]' | sha256sum`."""
    assert content_id("benign", "How do I kill a Python process?") == "3f8102ea5aaa4b5f"
    assert content_id({"b": 1, "a": 2}) == content_id({"a": 2, "b": 1})
    assert (
        len({content_id("a", "b"), content_id("b", "a"), content_id("ab"), content_id("a", "b", 0)})
        == 4
    )
    assert Prompt.of("x", kind="benign").id == Prompt.of("x", kind="benign", category="facts").id
    assert Prompt.of("x", kind="benign").id != Prompt.of("x", kind="harmful").id


def test_the_text_of_a_prompt_is_its_last_user_message() -> None:
    assert PROMPT.text == "Another?"
    begun = PROMPT.model_copy(update={"messages": (Message(role="system", content="Be brief."),)})
    assert (begun.text, begun.asked) == ("", "")


@pytest.mark.parametrize(
    "text", ["How do I kill five?", "  HOW—do I\nkill “ﬁve”!!", "how do i kill five"]
)
def test_words_are_the_same_whatever_case_punctuation_and_blanks(text: str) -> None:
    assert bare_words(text) == "how do i kill five"


def test_a_text_without_words_stays_as_it_is() -> None:
    assert bare_words("¿…?") == "¿…?"


@pytest.mark.parametrize(
    ("refusal", "refused"), [("none", False), ("partial", True), ("full", True), (None, False)]
)
def test_partial_counts_as_refusal(refusal: str | None, refused: bool) -> None:
    assert Verdict(completion_id="c", judge="j", version="1", refusal=refusal).refused == refused  # type: ignore[arg-type]


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PROMPT.kind = "harmful"  # type: ignore[misc]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = write_atomic(tmp_path / "deep" / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "new \ud800")
    assert file.read_text() == "old"
    assert write_atomic(file, "new").read_text() == "new"


@pytest.mark.parametrize("module", ["records", "pairs", "sources.starter"])
def test_neither_torch_nor_transformers_is_imported(module: str) -> None:
    heavy = "('torch', 'transformers', 'trl')"
    code = f"import sys, overrefusal_po.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", f"{'x' * 300}.jsonl"],
        ["check", f"{'x' * 300}.yaml"],
        ["run", "x" * 300],
        ["judge", "refusal", f"{'x' * 300}.jsonl"],
        ["certify", "refusal", "--labels", f"{'x' * 300}.jsonl"],
        ["report", "x" * 300],
        ["compare", "x" * 300, "y"],
        ["card", "x" * 300],
        ["merge", "x" * 300],
    ],
)
def test_a_name_of_300_letters_is_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Linux takes at most 255 bytes; pathlib raises OSError for more."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "overrefusal-po: " in capsys.readouterr().err
