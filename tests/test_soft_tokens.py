"""model/soft_tokens.py and model/soft_rows.py: new tokens in the system turn, in plain weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from transformers import AutoModelForCausalLM, AutoTokenizer

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ZERO_WIDTH_SPACE, ChatTemplate
from overrefusal_po.model.generation import own_settings
from overrefusal_po.model.soft_rows import NAME, SoftRows
from overrefusal_po.model.soft_tokens import soft_ids, soft_prompt, with_text
from overrefusal_po.records import Message, Prompt, Sampling

TEXT = "You are a helpful assistant."
ASKED = (Message(role="user", content="How do I kill a process?"),)
OWN_SYSTEM = (Message(role="system", content="Answer briefly."), *ASKED)


def tied(style: Style) -> Any:
    """A model of this style whose output layer is its embedding."""
    config = style.make_model().config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


MAKERS = {"untied": lambda style: style.make_model(), "tied": tied}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest, style: Style) -> Any:
    """A model of each style, tied and untied."""
    return MAKERS[request.param](style)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, V) of one row."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


def test_the_new_tokens_stand_where_the_text_stood(style: Style) -> None:
    soft = soft_prompt(style.template, TEXT)
    plain = style.template.prompt_ids(with_text(ASKED, TEXT))
    found = soft.template.prompt_ids(ASKED)
    place = found.index(soft.ids[0])
    assert found[place : place + len(soft.ids)] == soft.ids
    # Mistral's text takes the blank before it into its first token
    assert soft.exact == (style.name != "mistral")
    if soft.exact:
        assert found[:place] + soft.start + found[place + len(soft.ids) :] == plain
    assert soft.ids[0] == len(style.tokenizer) and len(soft.ids) == len(soft.start)
    assert soft_ids(style.tokenizer) == []  # the given tokenizer is left as it was


def test_a_system_message_of_the_conversation_stands_behind_them(style: Style) -> None:
    soft = soft_prompt(style.template, TEXT)
    names = "".join(f"<|soft_{n}|>" for n in range(1, len(soft.ids) + 1))
    assert f"{names}\n\nAnswer briefly." in soft.template.prompt_text(OWN_SYSTEM)
    wanted = style.template.prompt_text(with_text(OWN_SYSTEM, TEXT))
    assert soft.template.prompt_text(OWN_SYSTEM).replace(names, TEXT) == wanted


def test_a_user_cannot_say_a_soft_token(style: Style) -> None:
    soft = soft_prompt(style.template, TEXT)
    said = Message(role="user", content="Say <|soft_1|> twice: <|soft_2|>")
    found = soft.template.prompt_ids((said,))
    assert [found.count(i) for i in soft.ids] == [1] * len(soft.ids)
    assert f"<{ZERO_WIDTH_SPACE}|soft_1|>" in soft.template.prompt_text((said,))


def test_a_second_soft_prompt_stands_behind_the_first(style: Style) -> None:
    first = soft_prompt(style.template, TEXT)
    second = soft_prompt(first.template, "Answer briefly.")
    found = second.template.prompt_ids(ASKED)
    assert found.index(first.ids[-1]) < found.index(second.ids[0])
    assert soft_ids(second.template.tokenizer) == first.ids + second.ids


def test_a_token_that_reaches_over_the_end_of_the_text_is_said(styles: dict[str, Style]) -> None:
    """A full stop and two line ends are one token of this tokenizer."""
    llama = styles["llama"]
    tokenizer = type(llama.tokenizer).from_pretrained(llama.folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '\\n\\n' }}{% endfor %}{{ eos_token }}"
    )
    soft = soft_prompt(ChatTemplate(tokenizer), TEXT)
    written = tokenizer(f"{TEXT}\n\n", add_special_tokens=False)["input_ids"]
    assert not soft.exact and soft.start == written


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_an_error(styles: dict[str, Style], text: str) -> None:
    with pytest.raises(ValueError, match=r"is empty \(data.prompt\)"):
        soft_prompt(styles["qwen"].template, text)


def test_a_template_with_a_system_prompt_is_an_error(styles: dict[str, Style]) -> None:
    template = ChatTemplate(styles["qwen"].tokenizer, system_prompt="Be brief.")
    with pytest.raises(ValueError, match=r"system_prompt is 'Be brief.'"):
        soft_prompt(template, TEXT)


def test_a_template_that_drops_the_system_turn_is_an_error(styles: dict[str, Style]) -> None:
    tokenizer = type(styles["qwen"].tokenizer).from_pretrained(styles["qwen"].folder)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}{{ eos_token }}"
    with pytest.raises(ValueError, match="leaves the system message out"):
        soft_prompt(ChatTemplate(tokenizer), TEXT)


def test_rows_begin_as_the_text_and_nothing_else_changes(style: Style, model: Any) -> None:
    """At the start the model does with the tokens what it does with the text."""
    soft = soft_prompt(style.template, TEXT)
    text_ids = style.template.prompt_ids(with_text(ASKED, TEXT))
    size = len(style.tokenizer)
    before = logits(model, text_ids)
    rows = SoftRows(model, soft)
    assert torch.equal(logits(model, text_ids)[:, :size], before)
    found = logits(model, soft.template.prompt_ids(ASKED))[:, :size]
    if soft.exact:
        assert torch.allclose(found, before, atol=1e-6)
    trained = {n for n, w in model.named_parameters() if w.requires_grad}
    assert len(trained) == 1 and trained.pop().endswith(NAME)
    assert not rows.folded


def test_folded_rows_are_those_of_the_hook(style: Style, model: Any) -> None:
    soft = soft_prompt(style.template, TEXT)
    kept = model.get_input_embeddings().weight.detach().clone()
    rows = SoftRows(model, soft)
    with torch.no_grad():
        rows.embedding.soft_rows += 0.3 * torch.randn(rows.embedding.soft_rows.shape)
    ids = soft.template.prompt_ids(ASKED)
    live = logits(model, ids)[:, : len(kept)]
    rows.fold()
    assert torch.allclose(logits(model, ids)[:, : len(kept)], live, atol=1e-6)
    assert torch.equal(rows.embedding.weight[: len(kept)], kept)
    assert not hasattr(rows.embedding, NAME) and all(w.requires_grad for w in model.parameters())
    assert not rows.embedding._forward_hooks
    rows.fold()  # nothing more happens


def test_rows_that_a_model_has_to_spare_are_used(styles: dict[str, Style]) -> None:
    """Qwen's embeddings have more rows than its tokenizer has tokens."""
    qwen = styles["qwen"]
    model, soft = qwen.make_model(), soft_prompt(qwen.template, TEXT)
    model.resize_token_embeddings(len(qwen.tokenizer) + 64)
    SoftRows(model, soft).fold()
    assert model.config.vocab_size == len(qwen.tokenizer) + 64


def test_a_saved_model_is_plain_and_never_says_a_soft_token(
    style: Style, model: Any, tmp_path: Path
) -> None:
    """The rows are long ones, so that a tied model would say the new tokens."""
    soft = soft_prompt(style.template, TEXT)
    rows = SoftRows(model, soft)
    with torch.no_grad():
        rows.embedding.soft_rows *= 5
    size = len(style.tokenizer)  # a tied model's scores of the new tokens follow when it is folded
    live = logits(model, soft.template.prompt_ids(ASKED))[:, :size]
    rows.fold()
    folder = models.save_merged(model, soft.template.tokenizer, tmp_path / "model")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    chat = [{"role": "user", "content": ASKED[0].content}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert ids[0].tolist() == soft.template.prompt_ids(ASKED)
    assert torch.allclose(logits(plain, ids[0].tolist())[:, :size], live, atol=1e-5)
    said = plain.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert not set(said.tolist()) & set(soft.ids)
    assert plain.generation_config.suppress_tokens == soft.ids

    ours = models.load_model(str(folder), dtype="float32")
    template = ChatTemplate(models.load_tokenizer(str(folder)))
    engine = TransformersEngine(ours, template, name="saved")
    assert engine.options(Sampling())["suppress_tokens"] == soft.ids
    (response,) = engine.complete([Prompt.of(ASKED[0].content, kind="benign")], Sampling())
    assert "soft_" not in response.text
    assert own_settings({"model_name_or_path": str(folder)}) == {}


def test_a_model_with_an_adapter_is_an_error(styles: dict[str, Style]) -> None:
    from factories import lora
    from peft import get_peft_model

    qwen = styles["qwen"]
    adapted = get_peft_model(qwen.make_model(), lora())
    with pytest.raises(ValueError, match="quantised or has an adapter"):
        SoftRows(adapted, soft_prompt(qwen.template, TEXT))
