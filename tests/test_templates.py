"""Chat templates that render a conversation in odd ways: trained rightly, or refused in words."""

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po import dpo_trainer, kto_trainer, orpo_trainer, sft_trainer
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import Message, PreferencePair, Prompt
from overrefusal_po.train.model_checks import missing_bos

LAST_USER_TURN = (
    "{% set ns = namespace(system='') %}{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}"
    "{{ '[INST] ' + (ns.system if loop.last else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral-7B-Instruct-v0.3's: the system prompt stands before the last user turn, but only if
that is the last message."""

NO_GENERATION_PROMPT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + NO_GENERATION_PROMPT + "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = (Message(role="user", content="How do I kill a process?"),)


def changed(style: Style, text: str, **options: Any) -> ChatTemplate:
    """The style's tokenizer with another template."""
    tokenizer = copy.deepcopy(style.tokenizer)
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, **options)


def settings(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "report_to": "none", "per_device_train_batch_size": 2}


@pytest.mark.parametrize("make", [dpo_trainer, orpo_trainer, kto_trainer])
def test_a_system_prompt_before_the_last_user_turn_stays_in_the_prompt(
    make: Any, styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    style = styles["mistral"]
    template = changed(style, LAST_USER_TURN, system_prompt="Answer briefly.")
    trainer = make(style.make_model(), pairs, template=template, args=settings(tmp_path))
    asked = {tuple(template.prompt_ids(p.prompt.messages)) for p in pairs}
    assert {tuple(row["prompt_ids"]) for row in trainer.train_dataset} == asked
    side = (
        "completion_ids" if "completion_ids" in trainer.train_dataset.column_names else "chosen_ids"
    )
    said = {template.tokenizer.decode(row[side]) for row in trainer.train_dataset}
    assert not any("INST" in text or "briefly" in text for text in said)
    assert all(text.endswith("</s>") for text in said)


def test_a_header_that_no_generation_prompt_gives_belongs_to_the_prompt(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    style = styles["qwen"]
    template = changed(style, NO_GENERATION_PROMPT)
    assert template.prompt_text(QUESTION).endswith("<|im_end|>\n<|im_start|>assistant\n")
    turn = template.turn(QUESTION, "Use kill.")
    assert template.tokenizer.decode(turn.response_ids) == "Use kill.<|im_end|>"
    model = style.make_model()
    row = dpo_trainer(model, pairs, template=template, args=settings(tmp_path)).train_dataset[0]
    assert template.tokenizer.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert template.tokenizer.decode(row["chosen_ids"]).startswith("Here is how")


def test_templates_with_a_generation_prompt_have_no_header(style: Style) -> None:
    assert style.template._frame.header == ""


@pytest.mark.parametrize("make", [dpo_trainer, orpo_trainer, kto_trainer])
def test_a_template_that_takes_no_system_message_is_a_sentence(
    make: Any, styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    template = changed(styles["qwen"], NO_SYSTEM, system_prompt="Answer briefly.")
    with pytest.raises(ValueError, match=r"Pair pair-0: .*System role not supported.*leave chat"):
        make("no-model", pairs, template=template, args=settings(tmp_path))


def test_a_prompt_with_a_system_message_is_named_too(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    template = changed(styles["qwen"], NO_SYSTEM)
    messages = (Message(role="system", content="Be brief."), *QUESTION)
    prompt = Prompt(id="a", messages=messages, kind="general", reference="Use kill.")
    with pytest.raises(ValueError, match="System role not supported"):
        sft_trainer("no-model", [prompt], template=template, args=settings(tmp_path))


def test_a_token_beyond_the_embedding_is_refused_before_weights_are_loaded(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    style, folder = styles["qwen"], tmp_path / "model"
    style.make_model().save_pretrained(folder)
    tokenizer = copy.deepcopy(style.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|extra|>")
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    recipe = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": str(folder)},
        "data": {"pairs": "starter", "max_pairs": 2, "allow_no_anchor": True},
        "trainer": {"max_length": None, "report_to": "none", "use_cpu": True},
    }
    with pytest.raises(ValueError, match=r"'<\|extra\|>' has the id \d+, but .* \d+ rows"):
        run_stage(check_body(recipe, "recipe"), "recipe", tmp_path / "run")


def test_a_template_without_bos_is_noticed(styles: dict[str, Style]) -> None:
    from tokenizers.processors import TemplateProcessing

    style = styles["llama"]
    tokenizer = copy.deepcopy(style.tokenizer)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert not missing_bos(ChatTemplate(tokenizer))
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    assert missing_bos(ChatTemplate(tokenizer))
    assert not missing_bos(styles["qwen"].template)
