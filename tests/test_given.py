"""What TRL's people bring to the factories: every form of theirs gives the rows and the loss that a
file gives, and a wrong form is an error at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from conftest import Style
from datasets import Dataset, DatasetDict
from factories import EATS, FACTORIES, WRITTEN, two_steps

from overrefusal_po.records import PreferencePair, Prompt, Triple, write_jsonl
from overrefusal_po.train.given import given_pairs, given_prompts, given_responses, given_triples
from overrefusal_po.train.preference import read_any_pairs

SYSTEM = {"role": "system", "content": "Answer briefly."}
Row = dict[str, Any]


@pytest.fixture
def data(
    pairs: list[PreferencePair], triples: list[Triple], helpful: list[Prompt]
) -> dict[str, list[Any]]:
    return {"pairs": pairs, "triples": triples, "prompts": helpful}


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def standard(pair: PreferencePair) -> Row:
    return {"prompt": pair.prompt.text, "chosen": pair.chosen, "rejected": pair.rejected}


def conversational(pair: PreferencePair) -> Row:
    return {
        "prompt": [user(pair.prompt.text)],
        "chosen": [assistant(pair.chosen)],
        "rejected": [assistant(pair.rejected)],
    }


def implicit(pair: PreferencePair) -> Row:
    asked = [user(pair.prompt.text)]
    return {
        "chosen": [*asked, assistant(pair.chosen)],
        "rejected": [*asked, assistant(pair.rejected)],
    }


PAIR_FORMS = {"standard": standard, "conversational": conversational, "implicit": implicit}
PAIR_METHODS = [method for method, eats in EATS.items() if eats == "pairs"]


def losses(
    method: str, style: Style, given: Any, folder: Path, **more: Any
) -> tuple[list[Any], list[float]]:
    """The rows of a factory, and the losses of two steps."""
    trainer = FACTORIES[method](
        style.make_model(), given, args=two_steps(folder), processing_class=style.tokenizer, **more
    )
    trainer.train()
    found = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(found) == 2
    return [dict(row) for row in trainer.train_dataset], found


@pytest.mark.slow
@pytest.mark.parametrize("form", PAIR_FORMS)
@pytest.mark.parametrize("method", PAIR_METHODS)
def test_a_dataset_a_list_and_a_file_of_pairs_train_alike(
    method: str,
    form: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    tmp_path: Path,
) -> None:
    """The rows of the records are those of each form: TRL's forms lose nothing and add nothing."""
    rows = [PAIR_FORMS[form](pair) for pair in pairs]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = losses(method, styles["qwen"], pairs, tmp_path)
    assert losses(method, styles["qwen"], Dataset.from_list(rows), tmp_path) == wanted
    assert losses(method, styles["qwen"], rows, tmp_path) == wanted
    assert losses(method, styles["qwen"], str(file), tmp_path) == wanted


@pytest.mark.parametrize(("label", "kind"), [("Safe", "benign"), ("UNSAFE", "harmful")])
def test_a_label_says_the_kind_in_a_list_as_in_a_file(
    label: str, kind: str, tmp_path: Path
) -> None:
    row = {"prompt": "How?", "chosen": "So.", "rejected": "No.", "label": label}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    kinds = [given_pairs([row])[0].prompt.kind, read_any_pairs(str(file))[0].prompt.kind]
    assert kinds == [kind, kind]


def test_ids_of_rows_are_those_of_the_file(pairs: list[PreferencePair], tmp_path: Path) -> None:
    rows = [standard(pair) for pair in pairs]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(rows))
    found = given_pairs(Dataset.from_list(rows))
    assert found == given_pairs(rows) == given_pairs(file)
    assert [(p.prompt.text, p.chosen, p.rejected) for p in found] == [
        (p.prompt.text, p.chosen, p.rejected) for p in pairs
    ]


def test_our_own_rows_come_back_from_a_dataset(
    pairs: list[PreferencePair], triples: list[Triple], helpful: list[Prompt]
) -> None:
    """Arrow fills in null for fields that a row has not; they stay defaults."""

    def again(records: list[Any]) -> Dataset:
        return Dataset.from_list([r.model_dump(exclude_defaults=True) for r in records])

    mixed = [pairs[0].model_copy(update={"reason": "because"}), pairs[1]]
    assert given_pairs(again(mixed)) == mixed
    assert given_triples(again(triples)) == triples
    assert given_prompts(again(helpful)) == helpful


def sft_forms() -> dict[str, Callable[[Prompt], Row]]:
    return {
        "messages": lambda p: {"messages": [user(p.text), assistant(str(p.reference))]},
        "completion": lambda p: {"prompt": p.text, "completion": p.reference},
        "conversational completion": lambda p: {
            "prompt": [user(p.text)],
            "completion": [assistant(str(p.reference))],
        },
        "response": lambda p: {"prompt": p.text, "response": p.reference},
        "pair": lambda p: {"prompt": p.text, "chosen": p.reference, "rejected": "No."},
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", sft_forms())
def test_sft_takes_messages_and_completions(
    form: str, styles: dict[str, Style], helpful: list[Prompt], tmp_path: Path
) -> None:
    rows = [sft_forms()[form](prompt) for prompt in helpful]
    wanted = losses("sft", styles["qwen"], helpful, tmp_path)
    found = losses("sft", styles["qwen"], Dataset.from_list(rows), tmp_path)
    assert found[1] == wanted[1]
    assert [row["labels"] for row in found[0]] == [row["labels"] for row in wanted[0]]


def test_sft_keeps_the_turns_before_the_answer() -> None:
    turns = [SYSTEM, user("Hi"), assistant("Hello"), user("How?"), assistant("So.")]
    (prompt,) = given_prompts([{"messages": turns}])
    assert [(m.role, m.content) for m in prompt.messages] == [
        (turn["role"], turn["content"]) for turn in turns[:-1]
    ]
    assert prompt.reference == "So."


@pytest.mark.slow
def test_derta_takes_rows(styles: dict[str, Style], triples: list[Triple], tmp_path: Path) -> None:
    rows = [
        {
            "prompt": triple.prompt.text,
            "safe_response": triple.safe_response,
            "harmful_response": triple.harmful_response,
            "category": triple.prompt.category,
        }
        for triple in triples
    ]
    assert given_triples(rows) == triples
    wanted = losses("derta", styles["llama"], triples, tmp_path)
    assert losses("derta", styles["llama"], Dataset.from_list(rows), tmp_path) == wanted


# --- KTO's own form -------------------------------------------------------------------------------


def labelled(pairs: list[PreferencePair], conversations: bool) -> list[Row]:
    """TRL's unpaired rows of pairs: both sides of each."""
    rows = []
    for pair in pairs:
        for text, label in ((pair.chosen, True), (pair.rejected, False)):
            asked: Any = [user(pair.prompt.text)] if conversations else pair.prompt.text
            said: Any = [assistant(text)] if conversations else text
            rows.append({"prompt": asked, "completion": said, "label": label})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("conversations", [True, False])
def test_kto_takes_unpaired_rows(
    conversations: bool, styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """Both sides of pairs as rows of their own are the same training as the pairs."""
    rows = labelled(pairs, conversations)
    wanted = losses("kto", styles["llama"], pairs, tmp_path)
    assert losses("kto", styles["llama"], rows, tmp_path) == wanted
    assert losses("kto", styles["llama"], Dataset.from_list(rows), tmp_path) == wanted


def test_kto_takes_more_good_responses_than_bad_ones(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    rows = labelled(pairs, False)[:-2]
    del rows[1], rows[2]
    found, _ = losses("kto", styles["llama"], rows, tmp_path)
    assert sorted(row["label"] for row in found) == sorted(row["label"] for row in rows)


# --- evaluation sets ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WRITTEN)
def test_every_factory_evaluates_on_its_own_form(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]], tmp_path: Path
) -> None:
    """The loss on the training set, with batches of all rows, is that of the first step."""
    records = data[EATS[method]]
    settings = {**two_steps(tmp_path), "per_device_eval_batch_size": 2}
    trainer = FACTORIES[method](
        styles["llama"].make_model(),
        records,
        eval_dataset={"same": records, "half": records[: len(records) // 2 + 1]},
        args=settings,
        processing_class=styles["llama"].tokenizer,
    )
    found = trainer.evaluate()
    assert found["eval_same_loss"] > 0 and found["eval_half_loss"] > 0
    assert [dict(r) for r in trainer.eval_dataset["same"]] == [
        dict(r) for r in trainer.train_dataset
    ]


def test_an_evaluation_set_of_rows_is_read_like_the_training_set(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    trainer = FACTORIES["dpo"](
        styles["qwen"].make_model(),
        pairs,
        eval_dataset=Dataset.from_list([implicit(pair) for pair in pairs]),
        args=two_steps(tmp_path),
        processing_class=styles["qwen"].tokenizer,
    )
    assert [dict(row) for row in trainer.eval_dataset] == [
        dict(row) for row in trainer.train_dataset
    ]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(0.6931, abs=1e-3)


# --- wrong forms ----------------------------------------------------------------------------------

GOOD = {"prompt": "How?", "chosen": "So.", "rejected": "No."}
WRONG = {
    "no prompt": ([{"chosen": "So.", "rejected": "No."}], ValueError, "pairs, row 1.*prompt"),
    "null side": ([GOOD, {**GOOD, "chosen": None}], ValueError, "pairs, row 2.*chosen"),
    "empty side": ([{**GOOD, "rejected": " "}], ValueError, "pairs, row 1.*rejected is empty"),
    "one side": ([{"prompt": "How?", "chosen": "So."}], ValueError, "no 'rejected'"),
    "a mixture": ([GOOD, "How?"], TypeError, "pairs, row 2: got str"),
    "texts": (["How?"], TypeError, "pairs, row 1: got str"),
    "one row": (GOOD, TypeError, r"one mapping.*list: \[row\]"),
    "a number": (3, TypeError, "pairs is a int; allowed is a list"),
    "none": (None, TypeError, "pairs is a NoneType"),
    "a name": ("my/pairs", ValueError, "the text 'my/pairs'"),
    "no file": ("pairs.jsonl", ValueError, "no such file"),
    "records of others": ([Prompt.of("How?", kind="benign")], TypeError, "row 1: got a Prompt"),
    "tokens": (
        [{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}],
        ValueError,
        "pairs, row 1.*prompt_ids",
    ),
    "text alone": ([{"text": "How? So."}], ValueError, "pairs, row 1.*text"),
    "template options": (
        [{**GOOD, "chat_template_kwargs": {"enable_thinking": False}}],
        ValueError,
        "pairs, row 1: chat_template_kwargs",
    ),
    "tools": ([{**GOOD, "tools": ["search"]}], ValueError, "tools"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("method", PAIR_METHODS)
def test_a_wrong_form_is_an_error_before_a_model_is_looked_for(method: str, case: str) -> None:
    given, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        FACTORIES[method]("/no/such/model", given)


def test_splits_and_streams_say_the_way_out() -> None:
    rows = Dataset.from_list([GOOD])
    with pytest.raises(TypeError, match=r"splits \(train, test\).*data\['train'\]"):
        given_pairs(DatasetDict(train=rows, test=rows))
    with pytest.raises(TypeError, match=r"IterableDataset.*Load the stream as a whole"):
        given_pairs(rows.to_iterable_dataset())


@pytest.mark.parametrize(
    ("method", "rows", "words"),
    [
        ("dpo", [{"prompt": "How?", "completion": "So.", "label": True}], "kto_trainer"),
        ("sft", [{"prompt": "How?"}], "prompts, row 1: there is no answer to learn"),
        ("sft", [{"messages": [user("How?")]}], "prompts, row 1: there is no answer to learn"),
        ("sft", [{"text": "How? So."}], "prompts, row 1: the row has a text and no prompt"),
        ("sft", [{"prompt": "How?", "completion": " "}], "there is no answer to learn"),
        ("kto", [{"prompt": "How?", "completion": "So."}], "pairs, row 1: no label"),
        ("kto", [{"prompt": "How?", "completion": "", "label": 1}], "the completion is empty"),
        ("kto", [{"prompt": "How?", "completion": "So.", "label": "good"}], "label is 'good'"),
        ("kto", [{"completion": "So.", "label": True}], "pairs, row 1: the prompt is empty"),
        ("derta", [{"prompt": "How?", "safe_response": "Sorry"}], "triples, row 1: no harmful"),
        ("derta", "t.jsonl", "no such file"),
    ],
)
def test_rows_that_a_method_cannot_learn_from(method: str, rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FACTORIES[method]("/no/such/model", rows)


@pytest.mark.parametrize("method", WRITTEN)
def test_a_wrong_model_is_an_error(method: str, data: dict[str, list[Any]]) -> None:
    with pytest.raises(TypeError, match="model is a NoneType; allowed is a loaded"):
        FACTORIES[method](None, data[EATS[method]])
    with pytest.raises(ValueError, match="The model '/no/such/model' cannot be found"):
        FACTORIES[method]("/no/such/model", data[EATS[method]])


def test_a_model_without_a_name_needs_its_tokenizer(
    styles: dict[str, Style], pairs: list[PreferencePair]
) -> None:
    with pytest.raises(ValueError, match=r"tokenizer is not known.*processing_class"):
        FACTORIES["dpo"](styles["qwen"].make_model(), pairs)


def test_values_of_pandas_and_numpy_are_read(pairs: list[PreferencePair], tmp_path: Path) -> None:
    """A file of conversations that pandas read has arrays in its cells, and 1.0 for true."""
    file = tmp_path / "pairs.parquet"
    pandas.DataFrame([conversational(pair) for pair in pairs]).to_parquet(file)
    rows = pandas.read_parquet(file).to_dict("records")
    assert isinstance(rows[0]["chosen"], numpy.ndarray)
    assert given_pairs(rows) == given_pairs(file) == given_pairs([*map(conversational, pairs)])
    wanted = given_responses(labelled(pairs, False))
    for kind in (numpy.bool_, numpy.int64, float, str):
        rows = [{**row, "label": kind(row["label"])} for row in labelled(pairs, False)]
        assert given_responses(rows) == wanted


@pytest.mark.parametrize("empty", [[], {}, ()])
def test_an_empty_evaluation_set_is_named(
    empty: Any, styles: dict[str, Style], pairs: list[PreferencePair]
) -> None:
    with pytest.raises(ValueError, match="eval_dataset is empty"):
        FACTORIES["dpo"](str(styles["qwen"].folder), pairs, eval_dataset=empty)


def test_a_path_is_a_model(styles: dict[str, Style], pairs: list[PreferencePair]) -> None:
    settings = {"output_dir": "out", "use_cpu": True, "report_to": []}
    trainer = FACTORIES["dpo"](styles["qwen"].folder, pairs, args=settings)
    assert trainer.processing_class.chat_template == styles["qwen"].tokenizer.chat_template


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completion": "same"}, "6 responses are chosen in one row and rejected in another"),
        ({"label": True}, "all 12 responses have the label True"),
    ],
)
def test_kto_warns_of_labels_that_teach_nothing(
    change: Row,
    words: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{**row, **change} for row in labelled(pairs, False)]
    args = {**two_steps(tmp_path), "per_device_train_batch_size": 2}
    FACTORIES["kto"](str(styles["qwen"].folder), rows, args=args)
    assert words in caplog.text


def test_a_file_of_our_own_pairs_is_read(pairs: list[PreferencePair], tmp_path: Path) -> None:
    assert given_pairs(write_jsonl(tmp_path / "pairs.jsonl", pairs)) == pairs
