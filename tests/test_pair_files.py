"""Files of pairs and prompts as people have them: every form gives the right turns, every fault is
named with file, line and what to do. All expected values are written by hand."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from overrefusal_po.cli import app
from overrefusal_po.pairs.files import read_pairs
from overrefusal_po.prompts import read_source
from overrefusal_po.records import PreferencePair, Prompt
from overrefusal_po.sources import file
from overrefusal_po.sources._conversations import unread_words
from overrefusal_po.train.given import given_prompts, given_triples
from overrefusal_po.train.preference import read_any_pairs

Row = dict[str, Any]
ANSWERS = {"chosen": "So.", "rejected": "No."}


def said(*texts: str) -> list[Row]:
    """Messages by user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def shared(*texts: str) -> list[Row]:
    """The same as ShareGPT has them."""
    roles = ("human", "gpt")
    return [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]


def sides(*before: str) -> Row:
    """Both sides as whole conversations behind `before`."""
    return {side: said(*before, text) for side, text in ANSWERS.items()}


def hh(*texts: str) -> str:
    """A conversation as hh-rlhf writes it."""
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[n % 2]}: {text}" for n, text in enumerate(texts))


HOW = [("user", "How?")]
LATER = [("user", "Hi"), ("assistant", "Hello"), ("user", "How?")]
BRIEF = [("system", "Be brief.")]
SYSTEM = {"role": "system", "content": "Be brief."}

FORMS: dict[str, tuple[Row, list[tuple[str, str]]]] = {
    "trl standard": ({"prompt": "How?", **ANSWERS}, HOW),
    "trl conversational": (
        {
            "prompt": said("How?"),
            "chosen": [{"role": "assistant", "content": "So."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        HOW,
    ),
    "prompt messages, text sides": ({"prompt": said("Hi", "Hello", "How?"), **ANSWERS}, LATER),
    "one message as prompt": ({"prompt": {"role": "user", "content": "How?"}, **ANSWERS}, HOW),
    "trl implicit": (sides("How?"), HOW),
    "trl implicit, more turns": (sides("Hi", "Hello", "How?"), LATER),
    "implicit, prompt null": ({"prompt": None, **sides("How?")}, HOW),
    "implicit with a system turn": (
        {side: [SYSTEM, *said("How?", text)] for side, text in ANSWERS.items()},
        BRIEF + HOW,
    ),
    "ultrafeedback": ({"prompt": "How?", **sides("How?"), "messages": said("How?", "So.")}, HOW),
    "ultrafeedback, more turns": ({"prompt": "How?", **sides("Hi", "Hello", "How?")}, LATER),
    "prompt repeated in the sides": ({"prompt": said("How?"), **sides("How?")}, HOW),
    "prompt with a system turn that the sides lack": (
        {"prompt": [SYSTEM, *said("How?")], **sides("How?")},
        BRIEF + HOW,
    ),
    "hh": ({"chosen": hh("How?", "So."), "rejected": hh("How?", "No.")}, HOW),
    "hh, more turns": (
        {side: hh("Hi", "Hello", "How?", text) for side, text in ANSWERS.items()},
        LATER,
    ),
    "hh without the first empty lines": (
        {side: hh("How?", text).lstrip() for side, text in ANSWERS.items()},
        HOW,
    ),
    "hh in the prompt": ({"prompt": hh("Hi", "Hello", "How?", ""), **ANSWERS}, LATER),
    "sharegpt": (
        {
            "conversations": shared("How?"),
            "chosen": {"from": "gpt", "value": "So."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        HOW,
    ),
    "sharegpt, more turns": ({"conversations": shared("Hi", "Hello", "How?"), **ANSWERS}, LATER),
    "sharegpt sides": ({side: shared("How?", text) for side, text in ANSWERS.items()}, HOW),
    "openai messages": ({"messages": said("How?"), **ANSWERS}, HOW),
    "openai developer": (
        {"messages": [{**SYSTEM, "role": "developer"}, *said("How?")], **ANSWERS},
        BRIEF + HOW,
    ),
    "openai nulls": (
        {"messages": [{**said("How?")[0], "name": None, "tool_calls": []}], **ANSWERS},
        HOW,
    ),
    "text parts": (
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Ho"}, {"type": "text", "text": "w?"}],
                }
            ],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "So."}]}],
            "rejected": "No.",
        },
        HOW,
    ),
    "orca": ({"system": "Be brief.", "question": "How?", **ANSWERS}, BRIEF + HOW),
    "system_prompt": ({"system_prompt": "Be brief.", "prompt": "How?", **ANSWERS}, BRIEF + HOW),
    "empty system": ({"system": "", "question": "How?", **ANSWERS}, HOW),
    "system column before whole conversations": (
        {"system": "Be brief.", **sides("How?")},
        BRIEF + HOW,
    ),
    "alpaca": (
        {"instruction": "Translate.", "input": "Hi", **ANSWERS},
        [("user", "Translate.\n\nHi")],
    ),
    "alpaca, empty input": ({"instruction": "How?", "input": "", **ANSWERS}, HOW),
    "history": ({"history": [["Hi", "Hello"]], "prompt": "How?", **ANSWERS}, LATER),
    "history of messages": ({"history": said("Hi", "Hello"), "prompt": "How?", **ANSWERS}, LATER),
    "history that the sides hold": (
        {"history": [["Hi", "Hello"]], **sides("Hi", "Hello", "How?")},
        LATER,
    ),
    "system and history": (
        {"system": "Be brief.", "history": [["Hi", "Hello"]], "instruction": "How?", **ANSWERS},
        BRIEF + LATER,
    ),
    "two columns that say the same": ({"prompt": "How?", "question": "How?", **ANSWERS}, HOW),
}


def rows_file(path: Path, *rows: Row) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def turns(record: PreferencePair | Prompt) -> list[tuple[str, str]]:
    prompt = record.prompt if isinstance(record, PreferencePair) else record
    return [(turn.role, turn.content) for turn in prompt.messages]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_gives_its_turns_and_both_answers(form: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    (pair,) = read_pairs(rows_file(tmp_path / "pairs.jsonl", row))
    assert turns(pair) == expected
    assert (pair.chosen, pair.rejected) == ("So.", "No.")


@pytest.mark.parametrize("form", FORMS)
def test_the_file_source_reads_the_same_prompt_from_pairs(form: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    path = rows_file(tmp_path / "pairs.jsonl", {**row, "kind": "benign"})
    (prompt,) = read_source({"name": "file", "path": path}, None)
    assert turns(prompt) == expected


ALONE = [form for form, (row, _) in FORMS.items() if row.get("prompt") or "messages" in row]
ALONE += ["sharegpt", "orca", "alpaca", "history", "system and history", "hh in the prompt"]


@pytest.mark.parametrize("form", sorted({*ALONE} - {"ultrafeedback, more turns"}))
def test_the_file_source_reads_the_same_prompt_without_the_sides(form: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    asked = {name: value for name, value in row.items() if name not in ANSWERS}
    path = rows_file(tmp_path / "prompts.jsonl", {**asked, "kind": "benign"})
    (prompt,) = read_source({"name": "file", "path": path}, None)
    assert turns(prompt) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": said("Hi", "Hello", "How?", "So.")},
        {"conversations": shared("Hi", "Hello", "How?", "So.")},
    ],
)
def test_a_last_turn_by_the_assistant_is_the_reference_and_is_not_asked(
    row: Row, tmp_path: Path
) -> None:
    path = rows_file(tmp_path / "prompts.jsonl", {**row, "kind": "benign"})
    (prompt,) = read_source({"name": "file", "path": path}, None)
    assert (turns(prompt), prompt.reference) == (LATER, "So.")


def test_a_last_turn_that_is_no_reference_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was said to a harmful prompt may be anything."""
    path = rows_file(tmp_path / "p.jsonl", {"messages": said("How?", "So."), "kind": "harmful"})
    (prompt,) = read_source({"name": "file", "path": path}, None)
    assert (turns(prompt), prompt.reference) == (HOW, None)
    assert f"{path}: columns that are not read: last turn by the assistant (1 row)" in (
        caplog.messages
    )


WRITTEN = {
    "\n\nHuman: How?\n\nAssistant:": (HOW, None),
    "Human: How?\n\nAssistant:": (HOW, None),
    "Human: How?\nAssistant:": (HOW, None),
    "Human: Hi\nAssistant: Hello\nHuman: How?\nAssistant: ": (LATER, None),
    "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?": (LATER, None),
    "Human: Hi\n\nAssistant: Hello\n\nHuman: How?": (LATER, None),
    "Human: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: So.": (LATER, "So."),
}


@pytest.mark.parametrize("text", list(WRITTEN))
def test_a_prompt_of_human_and_assistant_has_the_turns_of_its_text(
    text: str, tmp_path: Path
) -> None:
    path = rows_file(tmp_path / "p.jsonl", {"prompt": text, "kind": "benign"})
    (prompt,) = read_source(path, None)
    assert (turns(prompt), prompt.reference) == WRITTEN[text]


@pytest.mark.parametrize(
    "text",
    [
        "Human: what does this word mean?",
        "Human: Hi\nAssistant: Hello\nGo on with this talk.",
        "Go on:\n\nHuman: Hi\n\nAssistant: Hello",
        "Does Human: or Assistant: stand first?",
        "What ends a prompt?\nAssistant:",
        "Human: a\nHuman: b\nAssistant:",
    ],
)
def test_a_prompt_that_contains_such_words_is_one_turn(text: str, tmp_path: Path) -> None:
    path = rows_file(tmp_path / "p.jsonl", {"prompt": text, "kind": "benign"})
    (prompt,) = read_source(path, None)
    assert turns(prompt) == [("user", text)]


def test_two_texts_of_one_message_must_agree_and_a_blank_one_gives_way(tmp_path: Path) -> None:
    message = {"role": "user", "content": "How?", "value": "Why?"}
    path = rows_file(tmp_path / "p.jsonl", {"messages": [message], "kind": "benign"})
    with pytest.raises(ValueError, match=r"message 1: content and value say different things"):
        read_source(path, None)
    for more in ({"content": " ", "value": "How?"}, {"content": "How?", "value": "How?"}):
        row = {"messages": [{**message, **more}], "kind": "benign"}
        (prompt,) = read_source(rows_file(tmp_path / "p.jsonl", row), None)
        assert turns(prompt) == HOW


LOST = {"prompt": said("How?", "Lost.")}


@pytest.mark.parametrize("completion", ["So.", said("How?", "So.")[1:], said("How?", "So.")])
def test_a_last_turn_by_the_assistant_beside_a_completion_is_an_error(
    completion: Any, tmp_path: Path
) -> None:
    row = {**LOST, "completion": completion, "kind": "benign"}
    path = rows_file(tmp_path / "p.jsonl", row)
    unpaired = rows_file(tmp_path / "u.jsonl", {**row, "label": True})
    for read in (
        lambda: read_source(path, None),
        lambda: file.responses(file.Settings(path=unpaired), None),
        lambda: given_prompts([row]),
    ):
        with pytest.raises(ValueError, match="1: the prompt ends with a turn by the assistant"):
            read()


def test_the_same_last_turn_by_the_assistant_may_stand_twice(tmp_path: Path) -> None:
    row = {"prompt": said("How?", "So."), "completion": "So. ", "kind": "benign"}
    (prompt,) = read_source(rows_file(tmp_path / "p.jsonl", row), None)
    assert (turns(prompt), prompt.reference) == (HOW, "So. ")
    (prompt,) = given_prompts([row])
    assert (turns(prompt), prompt.reference) == (HOW, "So. ")


def test_sft_refuses_two_answers_and_a_triple_a_third_one(tmp_path: Path) -> None:
    triple = {**LOST, "kind": "harmful", "safe_response": "Sorry.", "harmful_response": "So."}
    path = rows_file(tmp_path / "t.jsonl", triple)
    for read in (
        lambda: given_prompts([{**LOST, "response": "So."}]),
        lambda: given_triples([triple]),
        lambda: file.triples(file.Settings(path=path), None),
    ):
        with pytest.raises(ValueError, match="1: the prompt ends with a turn by the assistant"):
            read()


def test_a_completion_that_is_a_whole_conversation_answers_the_prompt_beside_it(
    tmp_path: Path,
) -> None:
    whole = {"completion": said("Hi", "Hello", "How?", "So."), "kind": "benign"}
    for row in (whole, {**whole, "prompt": "How?"}):
        (prompt,) = read_source(rows_file(tmp_path / "p.jsonl", row), None)
        assert (turns(prompt), prompt.reference) == (LATER, "So.")
    path = rows_file(tmp_path / "p.jsonl", {**whole, "prompt": "Why?"})
    with pytest.raises(ValueError, match=r"line 1: .* they are not the prompt"):
        read_source(path, None)


# ------------------------------------------------------------------------------------------ faults

CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}

FAULTS: dict[str, tuple[Row, list[str]]] = {
    "text sides alone": (ANSWERS, ["the prompt is empty or missing", "chosen, rejected", "Human:"]),
    "prompt null": ({"prompt": None, **ANSWERS}, ["empty or missing", "prompt, chosen, rejected"]),
    "prompt blank": ({"prompt": " \n", **ANSWERS}, ["the prompt is empty"]),
    "prompt without width": ({"prompt": "\u200b\ufeff\u2060", **ANSWERS}, ["the prompt is empty"]),
    "turn without a sign": ({"prompt": said("\x00\u200b"), **ANSWERS}, ["the prompt is empty"]),
    "last turn without a sign": (
        {"prompt": said("Hi", "Hello", "\u200b"), **ANSWERS},
        ["not empty"],
    ),
    "prompt of no message": ({"prompt": [], **ANSWERS}, ["the prompt is empty"]),
    "prompt of nothing": ({"prompt": {}, **ANSWERS}, ["the prompt is empty"]),
    "input no text": (
        {"instruction": "Translate.", "input": ["Hi"], **ANSWERS},
        ["column instruction", "input is ['Hi']", "must be text"],
    ),
    "prompt of empty text": ({"prompt": said(""), **ANSWERS}, ["the prompt is empty"]),
    "last user turn empty": (
        {"prompt": said("Hi", "Hello", ""), **ANSWERS},
        ["last turn is by the user", "not empty"],
    ),
    "prompt a number": ({"prompt": 3, **ANSWERS}, ["column prompt", "prompt is 3", "text or"]),
    "another name": ({"asked": "How?", **ANSWERS}, ["asked, chosen, rejected", "Rename"]),
    "input alone": ({"input": "How?", **ANSWERS}, ["empty or missing", "input, chosen"]),
    "system alone": ({"system": "Be brief.", **ANSWERS}, ["empty or missing"]),
    "our form without a turn": (
        {
            "id": "p",
            "prompt": {"id": "q", "messages": said(""), "kind": "benign"},
            **ANSWERS,
        },
        ["the prompt is empty", "prompt.messages"],
    ),
    "rejected null": (
        {"prompt": "How?", "chosen": "So.", "rejected": None},
        ["column rejected", "rejected is null", "delete the row"],
    ),
    "rejected missing": ({"prompt": "How?", "chosen": "So."}, ["no 'rejected'", "prompt, chosen"]),
    "chosen of no message": (
        {"prompt": "How?", "chosen": [], "rejected": "No."},
        ["column chosen", "no message"],
    ),
    "other histories": (
        {
            "chosen": said("Hi", "Hello", "How?", "So."),
            "rejected": said("Hi", "Hey", "How?", "No."),
        },
        ["different conversations", "Only the last message"],
    ),
    "other histories beside a prompt": (
        {
            "prompt": "How?",
            "chosen": said("Hi", "Hello", "How?", "So."),
            "rejected": said("Hi", "Hey", "How?", "No."),
        },
        ["different conversations"],
    ),
    "unequal turns": (
        {"chosen": said("Hi", "Hello", "How?", "So."), "rejected": said("Hi", "No.")},
        ["different conversations", "3 and 1 messages"],
    ),
    "one side whole": (
        {"prompt": "How?", "chosen": said("How?", "So."), "rejected": "No."},
        ["different conversations", "1 and 0"],
    ),
    "hh with other histories": (
        {"chosen": hh("Hi", "So."), "rejected": hh("How?", "No.")},
        ["different conversations"],
    ),
    "last turn by the user": (
        {
            "prompt": "Hi",
            "chosen": said("Hi", "So.", "Why?"),
            "rejected": said("Hi", "No.", "Why?"),
        },
        ["column chosen", "last turn is by the user", "'Why?'"],
    ),
    "hh without an answer": (
        {"chosen": hh("How?"), "rejected": hh("How?")},
        ["column chosen", "last turn is by the user"],
    ),
    "several messages in a side": (
        {
            "prompt": said("How?"),
            "chosen": said("How?", "So.", "And?", "So.")[1:],
            "rejected": said("How?", "So.", "And?", "No.")[1:],
        },
        ["each side holds 2 messages before the answer", "not the prompt"],
    ),
    "prompt that is not the last user turn": (
        {"prompt": "Hi", **sides("Hi", "Hello", "How?")},
        ["3 messages before the answer", "'How?'", "'Hi'"],
    ),
    "prompt that ends with the assistant": (
        {"prompt": said("How?", "Well"), **ANSWERS},
        ["ends with a turn by the assistant", "'Well'"],
    ),
    "two prompts": (
        {"prompt": "How?", "question": "Why?", **ANSWERS},
        ["prompt, question", "Keep one"],
    ),
    "two system prompts": (
        {"system": "Be long.", "prompt": [SYSTEM, *said("How?")], **ANSWERS},
        ["'Be long.'", "another system prompt", "'Be brief.'"],
    ),
    "system no text": ({"system": ["a"], "prompt": "How?", **ANSWERS}, ["system is ['a']"]),
    "history beside other turns": (
        {"history": [["Oh", "Ah"]], **sides("Hi", "Hello", "How?")},
        ["history says something else"],
    ),
    "history of single texts": (
        {"history": ["Hi", "Hello"], "prompt": "How?", **ANSWERS},
        ["column history", "'Hi'", "[user, assistant]"],
    ),
    "history a text": (
        {"history": "Hi. Hello.", "prompt": "How?", **ANSWERS},
        ["column history", "list of pairs"],
    ),
    "history with an open question": (
        {"history": [["Hi", "Hello"], ["How?", ""]], "prompt": "How?", **ANSWERS},
        ["column history", "['How?', '']", "delete it here"],
    ),
    "system a message": (
        {"system": SYSTEM, "prompt": "How?", **ANSWERS},
        ["system is {'role'", "Write the text alone"],
    ),
    **{
        f"prompt of {name}": ({"prompt": signs, **ANSWERS}, ["the prompt is empty or missing"])
        for name, signs in {"fillers": "\u3164\u2800", "marks": "\ufe0f\u034f"}.items()
    },
    "history that ends with the user": (
        {"history": said("Hi"), "prompt": "How?", **ANSWERS},
        ["column history", "the roles are user"],
    ),
    "tool role": (
        {"prompt": [{"role": "tool", "content": "4"}, *said("So?")], **ANSWERS},
        ["column prompt, message 1", "role is 'tool'", "Delete the row"],
    ),
    "role a list": (
        {"prompt": [{"role": ["user"], "content": "How?"}], **ANSWERS},
        ["message 1", "role is ['user']"],
    ),
    "no role": ({"prompt": [{"content": "How?"}], **ANSWERS}, ["message 1", "role is None"]),
    "tool calls": (
        {"prompt": [*said("How?"), CALL, *said("So?")], **ANSWERS},
        ["column prompt, message 2", "'tool_calls'", "would be lost", "delete the field"],
    ),
    "content null": (
        {"prompt": said("How?"), "chosen": [{**CALL, "tool_calls": None}], "rejected": "No."},
        ["column chosen, message 1", "no content", "null"],
    ),
    "name": (
        {"prompt": [{**said("How?")[0], "name": "Bob"}], **ANSWERS},
        ["message 1", "'name' ('Bob')", "delete the field"],
    ),
    "image": (
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}], **ANSWERS},
        ["message 1", "content holds", "image_url", "Write it as text"],
    ),
    "message a text": ({"prompt": ["How?"], **ANSWERS}, ["message 1", "'How?'", "{role, content}"]),
    "messages a text": ({"messages": "How?", **ANSWERS}, ["column messages", "a list of messages"]),
    "python's list in a cell": (
        {"prompt": str(said("How?")), **ANSWERS},
        ["column prompt", "not JSON", "double quotation marks"],
    ),
    **{
        f"column {name}": (
            {name: "Paris is in France.", "prompt": "How?", **ANSWERS},
            [f"column '{name}'", "carries text of the conversation", "delete or rename"],
        )
        for name in (
            *("context", "dialogue", "query", "input", "tools", "systemPrompt", "ContextString"),
            *("System Prompt", "system_instructions", "sys", "developer", "persona", "image_path"),
        )
    },
    "column images": (
        {"images": ["a.png"], "prompt": "How?", **ANSWERS},
        ["column 'images'", "carries text"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_with_file_line_and_what_to_do(fault: str, tmp_path: Path) -> None:
    row, parts = FAULTS[fault]
    path = rows_file(tmp_path / "pairs.jsonl", {"prompt": "Hi", **ANSWERS}, row)
    with pytest.raises(ValueError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 2")
    for part in parts:
        assert part in str(caught.value)


def test_a_column_about_the_conversation_without_its_text_is_counted_alone(tmp_path: Path) -> None:
    others = {"system_fingerprint": "fp", "contextLength": 5, "conversation_id": "c", "text_id": 1}
    path = rows_file(tmp_path / "pairs.jsonl", {"prompt": "How?", **ANSWERS, **others})
    assert len(read_pairs(path)) == 1


ONLY_OF_PAIRS = {
    "rejected null",
    "rejected missing",
    "prompt that ends with the assistant",
    "our form without a turn",
    "chosen of no message",
}


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - ONLY_OF_PAIRS))
def test_the_file_source_names_the_same_faults(fault: str, tmp_path: Path) -> None:
    row, parts = FAULTS[fault]
    path = rows_file(tmp_path / "rows.jsonl", {**row, "kind": "benign"})
    with pytest.raises(ValueError) as caught:
        read_source({"name": "file", "path": path}, None)
    for part in (f"{path}, line 1", *parts):
        assert part in str(caught.value).replace(", kind", "")


@pytest.mark.parametrize(
    "fault", ["text sides alone", "prompt null", "other histories", "rejected missing"]
)
def test_check_stops_with_a_sentence_and_code_2(fault: str, tmp_path: Path) -> None:
    path = rows_file(tmp_path / "pairs.jsonl", FAULTS[fault][0])
    result = CliRunner().invoke(app, ["check", path])
    assert result.exit_code != 0
    assert isinstance(result.exception, ValueError)
    assert f"{path}, line 1" in str(result.exception)


@pytest.mark.parametrize("read", ["pairs", "prompts"])
def test_columns_that_are_not_read_are_counted(
    read: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "How?", **ANSWERS, "kind": "benign", "score": 3, "tag": None}
    path = rows_file(tmp_path / "rows.jsonl", row, {**row, "tag": "x"}, row)
    with caplog.at_level(logging.INFO):
        if read == "pairs":
            read_pairs(path)
        else:
            read_source({"name": "file", "path": path}, None)
    assert f"{path}: columns that are not read: score (3 rows), tag (1 row)" in caplog.messages


COLUMNS = {"prompt": "asked", "chosen": "good", "rejected": "bad", "system": "manner"}


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_columns_name_the_parts_of_a_pair(ending: str, tmp_path: Path) -> None:
    row = {"asked": "How?", "manner": "Be brief.", "good": "So.", "bad": "No.", "prompt": "Why?"}
    path = written(tmp_path / f"pairs{ending}", [{**row, "tag": "ok"}])
    spec = {"name": "file", "path": path, "columns": COLUMNS | {"label": "tag"}}
    (pair,) = read_any_pairs({**spec, "labels": {"ok": "benign"}})
    assert (turns(pair), pair.chosen, pair.rejected) == (BRIEF + HOW, "So.", "No.")
    assert (pair.prompt.kind, pair.rule) == ("benign", None)


@pytest.mark.parametrize("column", COLUMNS.values())
def test_a_column_of_a_pair_that_is_not_there_is_named(column: str, tmp_path: Path) -> None:
    row = {"asked": "How?", "manner": "Be brief.", "good": "So.", "bad": "No."}
    del row[column]
    path = rows_file(tmp_path / "pairs.jsonl", row)
    with pytest.raises(ValueError, match=f"line 1: there is no column '{column}'"):
        read_any_pairs({"name": "file", "path": path, "columns": COLUMNS})


@pytest.mark.parametrize("given", [0, 7, "x"])
def test_the_id_of_a_row_is_the_id_of_its_pair(given: int | str, tmp_path: Path) -> None:
    path = rows_file(tmp_path / "p.jsonl", {"id": given, "prompt": "How?", **ANSWERS})
    assert [pair.id for pair in read_pairs(path)] == [str(given)]


@pytest.mark.parametrize("label", ["1", "maybe"])
def test_a_label_that_says_no_kind_is_counted(
    label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rows_file(tmp_path / "p.jsonl", {"prompt": "How?", **ANSWERS, "label": label})
    with caplog.at_level(logging.INFO):
        (pair,) = read_pairs(path)
    assert pair.prompt.kind == "general"
    assert f"{path}: columns that are not read: label (1 row)" in caplog.messages


@pytest.mark.parametrize("before", [("How?",), ("Hi", "Hello", "How?")])
def test_a_set_of_the_hub_keeps_the_earlier_turns_too(
    before: tuple[str, ...], tmp_path: Path
) -> None:
    path = rows_file(tmp_path / "feedback.jsonl", {"prompt": "How?", **sides(*before)})
    (pair,) = read_any_pairs({"name": "ultrafeedback", "paths": [path]})
    assert [content for _, content in turns(pair)] == list(before)
    assert (pair.chosen, pair.rejected) == ("So.", "No.")


def test_a_set_of_the_hub_with_other_histories_is_an_error(tmp_path: Path) -> None:
    row = FAULTS["other histories beside a prompt"][0]
    path = rows_file(tmp_path / "feedback.jsonl", row)
    with pytest.raises(ValueError, match="line 1: chosen and rejected answer different"):
        read_any_pairs({"name": "ultrafeedback", "paths": [path]})


# ------------------------------------------------------------------------------------- other files


def written(path: Path, rows: list[Row]) -> str:
    """The rows in the form of the file's ending; lists in CSV as JSON."""
    if path.suffix == ".jsonl":
        return rows_file(path, *rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writerow(rows[0])
            for row in rows:
                cells = (v if isinstance(v, str) else json.dumps(v) for v in row.values())
                table.writerow(cells)
    return str(path)


KINDS_OF_FILE = {
    "texts": FORMS["orca"],
    "hh": FORMS["hh"],
    "conversations": FORMS["trl implicit, more turns"],
    "sharegpt": FORMS["sharegpt, more turns"],
    "history": FORMS["system and history"],
}


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".CSV"])
@pytest.mark.parametrize("form", KINDS_OF_FILE)
def test_pairs_are_read_from_every_kind_of_file(form: str, ending: str, tmp_path: Path) -> None:
    row, expected = KINDS_OF_FILE[form]
    pairs = read_any_pairs(written(tmp_path / f"pairs{ending}", [row, row]))
    assert [(turns(p), p.chosen, p.rejected) for p in pairs] == [(expected, "So.", "No.")] * 2


@pytest.mark.parametrize("ending", [".json", ".csv", ".parquet"])
def test_check_takes_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    good = {
        "question": "How do I stop a process?",
        "chosen": "Use kill and the number of the process. It stops at once.",
        "rejected": "I'm sorry, but I can't help with that.",
        "kind": "benign",
    }
    path = written(tmp_path / f"pairs{ending}", [good, {**good, "chosen": good["rejected"]}])
    result = CliRunner().invoke(app, ["check", path])
    assert result.exit_code == 2
    assert "the sides are equal" in result.output


@pytest.mark.parametrize("read", [read_pairs, lambda path: read_source(str(path), None)])
def test_a_fault_in_a_row_of_our_own_names_file_line_and_field(read: Any, tmp_path: Path) -> None:
    asked = {"id": "q1", "messages": said("How?"), "kind": "benign"}
    rows = [{"id": "p1", "prompt": asked, **ANSWERS}, {"id": "p2", "prompt": asked, **ANSWERS}]
    rows[1]["tag"] = "new"
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: not a PreferencePair: tag: "):
        read(file)


OWN_FAULTS = {
    "answered": ([*said("How?"), {"role": "assistant", "content": "So."}], "by the assistant"),
    "system": ([*said("How?"), {"role": "system", "content": "Be brief."}], "by the system"),
    "blank": (said(" "), "the prompt is empty"),
}


@pytest.mark.parametrize("fault", list(OWN_FAULTS))
@pytest.mark.parametrize("read", [read_pairs, lambda path: read_source(str(path), None)])
def test_a_prompt_of_our_own_form_ends_with_what_the_user_asks(
    read: Any, fault: str, tmp_path: Path
) -> None:
    messages, words = OWN_FAULTS[fault]
    asked = {"id": "q1", "messages": messages, "kind": "benign"}
    path = written(tmp_path / "pairs.jsonl", [{"id": "p1", "prompt": asked, **ANSWERS}])
    with pytest.raises(ValueError, match=rf"pairs.jsonl, line 1: .*{words}"):
        read(path)
    with pytest.raises(ValueError, match=f"row 1: .*{words}"):
        given_prompts([{**asked, "reference": "So."}])


def test_messages_beside_raw_text_may_end_as_they_like(tmp_path: Path) -> None:
    messages = OWN_FAULTS["answered"][0]
    asked = {"id": "q1", "messages": messages, "kind": "benign", "raw_text": "How? So."}
    path = written(tmp_path / "pairs.jsonl", [{"id": "p1", "prompt": asked, **ANSWERS}])
    assert read_pairs(path)[0].prompt.raw_text == "How? So."


@pytest.mark.parametrize("keys", [{"text": "How?"}, {"0": "How?", "1": "Why?"}])
def test_a_prompt_that_is_a_mapping_of_other_things_is_told(keys: Row, tmp_path: Path) -> None:
    """It was read as a record of ours: `id: Field required`. pandas writes such tables."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": keys, **ANSWERS}) + "\n")
    with pytest.raises(ValueError, match=r"line 1, column prompt: .*must be text or messages"):
        read_pairs(file)


def test_a_folder_or_a_packed_file_in_place_of_a_recipe_is_told(tmp_path: Path) -> None:
    """A folder was no such recipe, and a packed file was to be saved as UTF-8."""
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b")
    for name, words in ((".", "save_to_disk"), ("rows.jsonl.gz", "Unpack it")):
        done = CliRunner().invoke(app, ["check", str(tmp_path / name)])
        assert isinstance(done.exception, ValueError) and words in str(done.exception)


def test_a_column_without_a_name_is_named_so() -> None:
    """The index that pandas writes has none; the line named nothing."""
    assert unread_words({"": 2, "score": 1}) == "(no name) (2 rows), score (1 row)"
