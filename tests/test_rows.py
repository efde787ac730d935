"""rows.py and `ChatTemplate.pair_tokens`: token rows are to the id those that TRL makes of
conversations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Style, trainer_settings
from factories import conversations

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Message, PreferencePair, Prompt
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.kto import kto_trainer, side_rows
from overrefusal_po.train.rows import (
    BATCH,
    COLUMNS,
    check_sides,
    fit_pairs,
    longest_rows,
    pair_table,
    prepared_pairs,
    side_lengths,
)
from overrefusal_po.train.settings import trainer_config

TALK = (
    Message(role="user", content="What is a bank? "),
    Message(role="assistant", content="<think>\nA place.\n</think>\n\nA place with money."),
    Message(role="user", content="How do I open it?"),
)
BRIEFED = (Message(role="system", content="Answer briefly."), *TALK)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system prompt": {"system_prompt": "You are a dog."},
    "thinking off": {"template_kwargs": {"enable_thinking": False}},
    "both": {"system_prompt": "Be brief.", "template_kwargs": {"enable_thinking": False}},
}


@pytest.fixture(params=list(OPTIONS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each set of chat options in turn."""
    return OPTIONS[request.param]


def varied(style: Style, uneven: list[PreferencePair]) -> list[PreferencePair]:
    """Pairs of odd lengths, with several turns, a system message, other scripts and control tokens
    in all texts."""
    spelled = f"Here is {style.tokenizer.eos_token}, of course.\n"

    def pair(name: str, chosen: str, rejected: str, messages: Any) -> PreferencePair:
        prompt = Prompt(id=name, kind="benign", messages=messages)
        return PreferencePair(id=name, prompt=prompt, chosen=chosen, rejected=rejected)

    asked = (Message(role="user", content=f"  What does {style.tokenizer.eos_token} mean?\n\n"),)
    return [
        *uneven,
        pair("talk", " You can do that at home. ", "Sorry, no.", TALK),
        pair("briefed", "Sure.\n\nFirst push the pin.\n", "\nI will not.", BRIEFED),
        pair("script", "Voil\u00e0 \U0001f642: \u00e9t\u00e9.", "\u4e0d\u884c\u3002", asked),
        pair("spelled", spelled, f"{spelled}No.", asked),
        pair("thought", "<think>\nHm.\n</think>\n\nUse kill.", "<think>\nSorry.", asked),
    ]


def trls(style: Style, template: ChatTemplate, pairs: list[PreferencePair], folder: Path) -> Any:
    """The rows that TRL's own DPOTrainer makes of the pairs as conversations."""
    from trl import DPOConfig, DPOTrainer

    args = trainer_config(DPOConfig, trainer_settings(folder, 2, max_length=None))
    return DPOTrainer(
        model=style.make_model(),
        ref_model=style.make_model(),
        args=args,
        train_dataset=conversations(pairs, template),
        processing_class=style.tokenizer,
    ).train_dataset


def test_rows_are_those_that_trl_makes_of_conversations(
    style: Style, options: dict[str, Any], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    template = ChatTemplate(style.tokenizer, **options)
    pairs = varied(style, uneven)[:-1]
    made = trls(style, template, pairs, tmp_path)
    expected = [{name: row[name] for name in COLUMNS} for row in made]
    assert len(expected) == len(pairs) == 8
    table = pair_table(pairs, template)
    assert table.column_names == list(COLUMNS)
    assert table.to_pylist() == expected
    items = [(p.prompt.messages, p.chosen, p.rejected) for p in pairs]
    assert [dict(zip(COLUMNS, row, strict=True)) for row in template.pair_tokens(items)] == expected
    rows = prepared_pairs(pairs, template, max_length=None).rows
    assert rows is not None and rows.to_list() == expected


def test_an_assistant_prefix_stands_in_the_prompt_and_the_sides_go_on_behind_it(
    style: Style, options: dict[str, Any]
) -> None:
    template = ChatTemplate(style.tokenizer, **options)
    prompt = Prompt(id="x", kind="benign", messages=TALK)
    begun = prompt.model_copy(update={"assistant_prefix": "Sure,"})
    whole = PreferencePair(id="w", prompt=prompt, chosen="Sure, use it.", rejected="Sure, not I.")
    parts = PreferencePair(id="p", prompt=begun, chosen=" use it.", rejected=" not I.")
    expected, found = (pair_table([pair], template).to_pylist()[0] for pair in (whole, parts))
    assert found["prompt_ids"] == template.prompt_ids(TALK, "Sure,")
    assert style.tokenizer.decode(found["prompt_ids"]).endswith("Sure,")
    for side in COLUMNS[1:]:
        assert found["prompt_ids"] + found[side] == expected["prompt_ids"] + expected[side]
    # some tokenizers leave a first blank out
    assert style.tokenizer.decode(found["chosen_ids"]).lstrip().startswith("use it.")


def test_an_assistant_prefix_that_the_template_would_change_is_an_error(style: Style) -> None:
    prompt = Prompt(id="x", kind="benign", messages=TALK, assistant_prefix="\n Sure,")
    pair = PreferencePair(id="odd", prompt=prompt, chosen=" use it.", rejected=" not I.")
    with pytest.raises(ValueError, match=r"Pair odd: assistant_prefix .* Sure"):
        pair_table([pair], style.template)


def test_a_thinking_block_in_a_side_is_left_out(style: Style, uneven: list[PreferencePair]) -> None:
    """And what is left of a thought that never ends is nothing but the end of turn."""
    *_, pair = varied(style, uneven)
    [row] = pair_table([pair], style.template).to_pylist()
    decode = style.tokenizer.decode
    assert decode(row["chosen_ids"]).strip().startswith("Use kill.")
    assert row["rejected_ids"][-2 if style.name == "qwen" else -1] == style.end_of_turn
    assert "Sorry" not in decode(row["rejected_ids"])


def test_a_table_of_several_batches_has_the_rows_of_single_pairs(
    styles: dict[str, Style], uneven: list[PreferencePair]
) -> None:
    template = styles["qwen"].template
    many = [
        pair.model_copy(update={"chosen": f"{pair.chosen} {number}"})
        for number in range(BATCH // len(uneven) + 20)
        for pair in uneven
    ]
    assert BATCH < len(many) < 2 * BATCH
    table = pair_table(many, template)
    assert table["chosen_ids"].num_chunks == 2 and str(table["chosen_ids"].type).endswith("int32>")
    alone = [row for pair in many for row in pair_table([pair], template).to_pylist()]
    assert table.to_pylist() == alone
    rows = prepared_pairs(many, template, max_length=None).rows
    assert rows is not None and rows.to_list() == alone


def test_lengths_are_those_of_the_rows(style: Style, uneven: list[PreferencePair]) -> None:
    pairs = varied(style, uneven)
    table = pair_table(pairs, style.template)
    expected = [[len(row[name]) for name in COLUMNS] for row in table.to_pylist()]
    lengths = side_lengths(table)
    assert lengths.dtype == np.int64 and lengths.tolist() == expected
    longest = [prompt + max(sides) for prompt, *sides in expected]
    assert longest_rows(lengths).tolist() == longest
    prepared = prepared_pairs(pairs, style.template, max_length=None)
    assert prepared.lengths.tolist() == expected and list(prepared.records) == pairs
    limit = sorted(longest)[-2]
    fitting = fit_pairs(pairs, table, max_length=limit, too_long="drop")
    assert fitting.kept == [at for at, length in enumerate(longest) if length <= limit]
    dropped = prepared_pairs(pairs, style.template, max_length=limit, too_long="drop")
    assert dropped.rows is not None
    assert dropped.rows.to_list() == [table.to_pylist()[at] for at in fitting.kept]
    assert dropped.lengths.tolist() == [expected[at] for at in fitting.kept]
    assert [p.id for p in dropped.records] == [pairs[at].id for at in fitting.kept]


def test_rows_that_are_prepared_already_are_returned_unchanged(
    styles: dict[str, Style], pairs: list[PreferencePair]
) -> None:
    template = styles["llama"].template
    prepared = prepared_pairs(pairs, template, max_length=None)
    assert prepared_pairs(prepared, template, max_length=1, opening=2) is prepared


def test_no_pair_and_equal_sides_are_errors(
    styles: dict[str, Style], pairs: list[PreferencePair]
) -> None:
    same = pairs[0].model_copy(update={"id": "same", "rejected": f" {pairs[0].chosen}\n"})
    for given, match in (
        ([], "at least one pair; got none"),
        ([*pairs, same], "Pair same: chosen"),
    ):
        for make in (check_sides, lambda some: pair_table(some, styles["llama"].template)):
            with pytest.raises(ValueError, match=match):
                make(given)


# ------------------------------------------------------------------------------------------- sides


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sides_are_the_rows_that_trls_kto_trainer_makes_in_the_same_order(
    size: int, style: Style, options: dict[str, Any], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """Completions, labels and the responses of the KL term, from conversational sides in our
    order."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    template = ChatTemplate(style.tokenizer, **options)
    pairs = varied(style, uneven)[:-1]
    pairs.remove(next(pair for pair in pairs if pair.id == "spelled"))  # the prompt of "script"
    args = trainer_config(KTOConfig, trainer_settings(tmp_path, size, max_length=None))
    ours = kto_trainer(style.make_model(), pairs, args=args, template=template).train_dataset
    told = {
        (*row[0], 0, *side): (talk["prompt"], talk[name])
        for row, talk in zip(
            (template.pair_tokens([(p.prompt.messages, p.chosen, p.rejected)])[0] for p in pairs),
            conversations(pairs, template),
            strict=True,
        )
        for side, name in zip(row[1:], ("chosen", "rejected"), strict=True)
    }
    kwargs = {"chat_template_kwargs": template.template_kwargs} if template.template_kwargs else {}
    rows = []
    for row in ours:
        prompt, completion = told[(*row["prompt_ids"], 0, *row["completion_ids"])]
        rows.append({"prompt": prompt, "completion": completion, "label": row["label"], **kwargs})
    theirs = KTOTrainer(
        model=style.make_model(),
        ref_model=style.make_model(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=style.tokenizer,
    ).train_dataset
    names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    assert len(ours) == 14 - (14 % size == 1)
    assert ours.column_names == ["prompt_ids", "completion_ids", "label", "KL_completion_ids"]
    assert [[row[name] for name in names] for row in ours] == [
        [row[name] for name in names] for row in theirs
    ]


def test_sides_of_a_loss_without_a_kl_term_have_no_other_response(
    styles: dict[str, Style], pairs: list[PreferencePair]
) -> None:
    table = pair_table(pairs, styles["llama"].template)
    settings = {"per_device_train_batch_size": 2, "seed": 0, "loss_type": "apo_zero_unpaired"}
    made = side_rows(pairs, table, settings, None)
    assert isinstance(made, Prepared) and made.rows is not None
    assert made.rows.column_names == ["prompt_ids", "completion_ids", "label"]
    assert len(made.rows) == 2 * len(pairs)
    assert made.lengths.tolist() == side_lengths(table).tolist()
