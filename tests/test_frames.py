"""One meaning of a row's end, for all methods and all chat templates that TRL ships; and a way to
ask for no system prompt."""

import copy
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from conftest import Style, trainer_settings
from factories import EATS, FACTORIES, WRITTEN

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Message, PreferencePair, Prompt, Triple

TEMPLATES = {
    Path(str(file)).stem: file.read_text(encoding="utf-8")
    for file in sorted(files("trl").joinpath("chat_templates").iterdir(), key=str)
    if file.name.endswith(".jinja")
}
PARTS = ("idefics3", "smolvlm", "llava_next")
"""Templates of vision models: a message's content is a list of parts."""
MARK = re.compile(
    r"<[|\uff5c][^<>\s'\"|]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|</?think>|\[gMASK\]|<sop>"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% else %}"
    "{{ '### Response:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
DOLLY = ALPACA.replace(
    "m['content'] + '\n\n' }}{% endif %}", "m['content'] + '\n\n### End' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
ALWAYS_OPEN = CHATML + "{{ '<|im_start|>assistant\n' }}"
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
QUESTION = (Message(role="user", content="How do I kill a process?"),)
TALK = (*QUESTION, Message(role="assistant", content="Use kill."), *QUESTION)


def with_template(style: Style, text: str, **options: Any) -> ChatTemplate:
    """The style's tokenizer with another template, whose marks are control tokens."""
    tokenizer = copy.deepcopy(style.tokenizer)
    marks = sorted(set(MARK.findall(text)))
    if "end_of_turn" in text:
        marks += ["<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(marks))})
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, **options)


def text_templates() -> Iterator[Any]:
    """The templates of language models, by name."""
    for name, text in TEMPLATES.items():
        if not name.startswith(PARTS):
            yield pytest.param(text, id=name)


@pytest.mark.parametrize("text", list(text_templates()))
def test_both_kinds_of_rows_end_alike_and_where_generation_stops(
    text: str, styles: dict[str, Style]
) -> None:
    template = with_template(styles["llama"], text)
    tokenizer = template.tokenizer
    for messages in (QUESTION, TALK):
        turn = template.turn(messages, "Use kill.")
        [row] = template.pair_tokens([(messages, "Use kill.", "No.")])
        assert (turn.prompt_ids, turn.response_ids) == row[:2]
        assert row[2] == template.turn(messages, "No.").response_ids
        assert turn.prompt_ids[: len(template.prompt_ids(messages))] == template.prompt_ids(
            messages
        )
        said = tokenizer.decode(turn.response_ids)
        assert said == f"Use kill.{template.end}"
        # no other turn is opened, and a token ends it that generation stops at
        stop = template.end_of_turn_id
        assert stop is not None and turn.response_ids.count(stop) == 1
        assert "kill a process" not in said
    shown = tokenizer.apply_chat_template(
        [*template.messages(QUESTION), {"role": "assistant", "content": "Use kill."}],
        tokenize=False,
    )
    own = shown.rpartition("Use kill.")[2]
    assert template.end == (own or tokenizer.eos_token)  # GLM's writes none


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n.startswith(PARTS)])
def test_templates_of_vision_models_are_a_sentence(name: str, styles: dict[str, Style]) -> None:
    with pytest.raises(ValueError, match=r"list of parts|chat template refuses"):
        with_template(styles["llama"], TEMPLATES[name]).turn(QUESTION, "Use kill.")


def test_a_torn_template_is_a_sentence_that_names_the_line(styles: dict[str, Style]) -> None:
    with pytest.raises(ValueError, match=r"template is damaged \(line 2: .*chat\.template: FILE"):
        with_template(styles["llama"], "{{ bos_token }}\n{% for m in").turn(QUESTION, "Use kill.")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (ALPACA, "<|im_end|>"),
        (DOLLY, "\n\n### End<|im_end|>"),
        (ALWAYS_OPEN, "<|im_end|>"),
        (PHI, "<|im_end|>\n<|im_end|>"),
        (CHATML, "<|im_end|>\n"),
    ],
    ids=["no end", "an end in words", "always opens a turn", "an eos behind", "no opening"],
)
@pytest.mark.parametrize("method", WRITTEN)
def test_the_end_is_the_same_in_all_methods(
    method: str,
    text: str,
    end: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    helpful: list[Prompt],
    tmp_path: Path,
) -> None:
    style = styles["qwen"]
    template = with_template(style, text)
    assert template.end == end
    data = {"prompts": helpful, "triples": triples, "pairs": pairs}[EATS[method]]
    model = style.make_model()
    model.resize_token_embeddings(len(template.tokenizer))
    settings = trainer_settings(tmp_path, 2)
    trainer = FACTORIES[method](model, data, template=template, args=settings)
    expected = template.tokenizer(end, add_special_tokens=False)["input_ids"]
    for row in trainer.train_dataset:
        if row.get("kind") == "rto":
            continue  # its labels are the refusal token
        names = [n for n in row if n in ("chosen_ids", "rejected_ids", "completion_ids")]
        sides = [row[n] for n in names] or [[i for i in row["labels"] if i != -100]]
        assert all(side[-len(expected) :] == expected for side in sides)


def test_without_any_token_that_ends_a_turn_there_is_no_training(styles: dict[str, Style]) -> None:
    template = with_template(styles["qwen"], ALPACA)
    template.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="a token that ends a turn"):
        template.turn(QUESTION, "Use kill.")


NO_SYSTEM = {
    "qwen2_5": "<|im_start|>user\nHow do I kill a process?<|im_end|>\n<|im_start|>assistant\n",
    "qwen2_5_vl": "<|im_start|>user\nHow do I kill a process?<|im_end|>\n<|im_start|>assistant\n",
    "llama3_1": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    "How do I kill a process?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_an_empty_system_prompt_is_none_at_all(name: str, styles: dict[str, Style]) -> None:
    template = with_template(styles["llama"], TEMPLATES[name], system_prompt="")
    assert template.prompt_text(QUESTION) == NO_SYSTEM[name]
    turn = template.turn(TALK, "Use kill.")
    text = template.tokenizer.decode(turn.prompt_ids + turn.response_ids)
    assert "system" not in text and text.count("How do I kill") == 2
    briefed = (Message(role="system", content="Be brief."), *QUESTION)
    assert "Be brief." in template.prompt_text(briefed)  # a conversation's own one stays
    default = with_template(styles["llama"], TEMPLATES[name])
    assert "system" in default.prompt_text(QUESTION)


@pytest.mark.parametrize("name", ["gemma", "qwen3", "phi3", "llama3", "glm4moe", "deepseekv3"])
def test_a_template_without_a_default_is_unchanged_by_an_empty_system_prompt(
    name: str, styles: dict[str, Style]
) -> None:
    asked, left = (
        with_template(styles["llama"], TEMPLATES[name], system_prompt=given) for given in ("", None)
    )
    for messages in (QUESTION, TALK):
        assert asked.prompt_text(messages) == left.prompt_text(messages)


@pytest.mark.parametrize("name", ["cohere2", "gptoss", "qwen3_8"])
def test_a_template_that_cannot_be_asked_for_none_says_so(
    name: str, styles: dict[str, Style]
) -> None:
    template = with_template(styles["llama"], TEMPLATES[name], system_prompt="")
    with pytest.raises(ValueError, match=r"cannot be asked for none.*chat\.template"):
        template.prompt_text(QUESTION)
