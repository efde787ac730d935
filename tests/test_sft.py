"""sft.py: TRL's SFTTrainer with loss on reference responses alone."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Style
from factories import two_steps

from overrefusal_po.records import Message, PreferencePair, Prompt
from overrefusal_po.train.derta_rows import prompt_turns
from overrefusal_po.train.given import given_prompts
from overrefusal_po.train.sft import prepared_prompts, sft_trainer


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return two_steps(tmp_path)


@pytest.mark.parametrize("key", ["packing", "padding_free"])
def test_packing_is_an_error(
    key: str, styles: dict[str, Style], helpful: list[Prompt], settings: Any
) -> None:
    with pytest.raises(ValueError, match="packing and padding_free cannot be used"):
        sft_trainer(str(styles["qwen"].folder), helpful, args={**settings, key: True})


def test_sft_has_loss_on_the_response_only(
    styles: dict[str, Style], helpful: list[Prompt], settings: dict[str, Any]
) -> None:
    qwen = styles["qwen"]
    trainer = sft_trainer(
        qwen.make_model(), helpful[:1], args=settings, processing_class=qwen.tokenizer
    )
    prompt, response, *_ = qwen.template.turn(helpful[0].messages, helpful[0].reference or "")
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].tolist() == [prompt + response]
    assert batch["labels"].tolist() == [[-100] * len(prompt) + response]


def test_workers_of_sft_stay_as_asked(
    styles: dict[str, Style], helpful: list[Prompt], settings: dict[str, Any]
) -> None:
    """Nothing is drawn again at each pass, as for DeRTa's RTO rows."""
    qwen = styles["qwen"]
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = sft_trainer(
        qwen.make_model(),
        helpful,
        args={**settings, **workers},
        processing_class=qwen.tokenizer,
    )
    assert trainer.args.dataloader_persistent_workers


def test_sft_leaves_out_what_is_too_long_and_says_so(
    styles: dict[str, Style],
    helpful: list[Prompt],
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    qwen = styles["qwen"]
    long = Prompt.of("What is long?", kind="general", reference="It is long. " * 50)
    make = partial(
        sft_trainer,
        qwen.make_model(),
        [*helpful, long],
        args=settings,
        processing_class=qwen.tokenizer,
    )
    with pytest.raises(
        ValueError, match=r"more than max_length 256 \(as 1 of all 5 prompts, .* no row is cut"
    ):
        make()
    with caplog.at_level(logging.WARNING, logger="overrefusal_po.train.lengths"):
        trainer = make(too_long="drop")
    assert len(trainer.train_dataset) == len(helpful)
    assert "1 of 5 prompts left out as too long" in caplog.text


def test_sft_with_nothing_short_enough_is_an_error(
    styles: dict[str, Style], helpful: list[Prompt], settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"max_length 5\b.*Raise trainer.max_length"):
        sft_trainer(str(styles["qwen"].folder), helpful, args={**settings, "max_length": 5})


def test_a_conversation_of_several_turns_trains(
    styles: dict[str, Style], settings: dict[str, Any]
) -> None:
    messages = (
        Message(role="user", content="What is a fox?"),
        Message(role="assistant", content="A dog."),
        Message(role="user", content="Is it lazy?"),
    )
    prompt = Prompt(id="talk", messages=messages, kind="general", reference="Yes, it is.")
    llama = styles["llama"]
    trainer = sft_trainer(
        llama.make_model(), [prompt], args={**settings, "max_steps": 1}, template=llama.template
    )
    labels = trainer.train_dataset[0]["labels"]
    assert llama.tokenizer.decode([i for i in labels if i != -100]) == "Yes, it is.<|eot_id|>"
    trainer.train()


def test_a_prompt_that_is_given_twice_is_two_rows(
    styles: dict[str, Style], helpful: list[Prompt], settings: dict[str, Any]
) -> None:
    qwen = styles["qwen"]
    trainer = sft_trainer(
        qwen.make_model(), helpful[:2] * 3, args=settings, processing_class=qwen.tokenizer
    )
    ids = [row["row_id"] for row in trainer.train_dataset]
    assert ids == [prompt.id for prompt in helpful[:2]] * 3


def learned(prompts: list[Prompt], style: Style, opening: int | None = None) -> list[list[int]]:
    """The labels of each prompt's row that carry loss."""
    rows = prepared_prompts(prompts, style.template, max_length=None, opening=opening).rows
    assert rows is not None
    return [[label for label in labels if label != -100] for labels in rows["labels"]]


def test_an_opening_is_learned_without_an_end_unless_the_response_is_shorter(style: Style) -> None:
    whole = "A fox is an animal of the family of dogs, and hunts at night."
    prompts = [Prompt.of("What is a fox?", kind="general", reference=text) for text in (whole, "A")]
    turns = [style.template.turn(prompt.messages, prompt.reference or "") for prompt in prompts]
    assert len(turns[0].answer_ids) > 8 > len(turns[1].answer_ids)
    first = turns[0].response_ids[:8]
    assert learned(prompts, style, 8) == [first, turns[1].response_ids[:8]]
    assert learned(prompts, style) == [turn.response_ids for turn in turns]


def test_no_end_is_learned_behind_an_unfinished_side(style: Style, tmp_path: Path) -> None:
    prompt = Prompt.of("What is a fox?", kind="general")
    cut = PreferencePair(id="a", prompt=prompt, chosen="A fox is", rejected="No.")
    cut = cut.model_copy(update={"unfinished": ("chosen",)})
    ended = cut.model_copy(update={"id": "b", "unfinished": ("rejected",)})
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(one.model_dump_json(exclude_defaults=True) + "\n" for one in (cut, ended))
    )
    turn = style.template.turn(prompt.messages, "A fox is")
    assert turn.answer_ids != turn.response_ids
    for given in (str(file), [cut.model_dump(), ended.model_dump()]):
        found = given_prompts(given)
        assert isinstance(found, list)
        assert learned(found, style) == [turn.answer_ids, turn.response_ids]
    assert prompt_turns([cut.answered], style.template) == [turn.unended]
    assert turn.unended.text == turn.text
