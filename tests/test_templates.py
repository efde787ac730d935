"""Chat templates that render a conversation in odd ways: trained rightly, or refused in words."""

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po import dpo_trainer, kto_trainer, orpo_trainer, sft_trainer
from overrefusal_po.checks import check_stage
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.load import load_tokenizer
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.files import read_recipe
from overrefusal_po.recipe.load import check_body, load_recipe
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


LATER = (
    *(Message(role="user", content="Hi"), Message(role="assistant", content="Hello.")),
    Message(role="user", content="How do I kill a process?"),
)


@pytest.mark.parametrize("code", ["1 / 0", "[][3].x", "''.x.y", "range(9 ** 9)", "'a' | int | abc"])
def test_whatever_a_template_raises_is_a_sentence(code: str, styles: dict[str, Style]) -> None:
    with pytest.raises(ValueError, match=r"template (?:refuses a conv|is damaged)"):
        text = f"{{{{ {code} }}}}" + NO_GENERATION_PROMPT
        changed(styles["qwen"], text).turn(QUESTION, "So.")


@pytest.mark.parametrize(("when", "alone"), [("== 1", "the first"), ("> 1", "later")])
def test_a_template_that_opens_some_answers_only_is_refused(
    when: str, alone: str, styles: dict[str, Style]
) -> None:
    template = changed(
        styles["qwen"],
        NO_GENERATION_PROMPT + f"{{% if add_generation_prompt and messages | length {when} %}}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}",
    )
    with pytest.raises(ValueError, match=f"opens the assistant's turn .* after {alone} question"):
        template.turn(LATER, "So.")


def test_the_blank_before_an_answer_stays_beside_a_system_prompt(styles: dict[str, Style]) -> None:
    def answer(**options: Any) -> list[int]:
        template = changed(styles["mistral"], LAST_USER_TURN, **options)
        return template.turn(QUESTION, "So it is.").response_ids

    assert answer() == answer(system_prompt="Answer briefly.")


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
    assert template.tokenizer.decode(turn.response_ids) == "Use kill.<|im_end|>\n"
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


TURNS = (*QUESTION, Message(role="assistant", content="So."), *QUESTION)


def showing(style: Style, user: str, assistant: str = "m['content']") -> ChatTemplate:
    """A template that shows the messages of both roles in this way."""
    text = (
        f"{{% for m in messages %}}{{{{ m['role'] + ':' + ({user} if m['role'] == 'user' else "
        f"{assistant}) + eos_token }}}}{{% endfor %}}"
        "{{ 'assistant:' if add_generation_prompt else '' }}"
    )
    return changed(style, text)


@pytest.mark.parametrize("shown", ["'...'", "m['content'].split()[0]", "m['content'][1:]"])
def test_a_template_that_loses_what_the_user_asks_is_refused(style: Style, shown: str) -> None:
    with pytest.raises(ValueError, match=r"leaves what the user asks out: .*FILE\.jinja"):
        showing(style, shown).turn(QUESTION, "Use kill.")


@pytest.mark.parametrize(
    ("user", "assistant", "lost"),
    [
        ("(m['content'] if loop.last or loop.length < 3 else '')", "m['content']", "what the user"),
        ("m['content']", "(m['content'] if loop.last else '')", "an earlier answer"),
    ],
)
def test_a_template_that_loses_an_earlier_turn_is_refused_where_there_is_one(
    style: Style, user: str, assistant: str, lost: str
) -> None:
    template = showing(style, user, assistant)
    assert template.turn(QUESTION, "Use kill.").text == "Use kill."
    with pytest.raises(ValueError, match=f"leaves {lost}"):
        template.turn(TURNS, "Use kill.")


@pytest.mark.parametrize(
    "shown", ["m['content'].strip()", "m['content'] | lower", "m['content'] + ' '"]
)
def test_a_template_may_change_blanks_and_case(style: Style, shown: str) -> None:
    assert showing(style, shown).turn(TURNS, "Use kill.").text == "Use kill."


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


def base_model(style: Style, folder: Path) -> None:
    """A model as base models are: its tokenizer has no chat template."""
    style.make_model().save_pretrained(folder)
    tokenizer = copy.deepcopy(style.tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)


def written_recipe(folder: Path, chat: str) -> Path:
    file = folder / "recipes" / "dpo.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        f"task: train\nmethod: dpo\nmodel: {{model_name_or_path: {folder / 'base'}}}\n{chat}\n"
        "data: {pairs: starter, max_pairs: 2, containment: none, allow_no_anchor: true}\n"
        "trainer: {max_length: null, max_steps: 1, report_to: none, use_cpu: true, "
        "save_strategy: 'no', per_device_train_batch_size: 2}\n"
    )
    return file


def test_a_base_model_is_trained_with_a_template_of_the_recipe_which_is_saved(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    base_model(styles["qwen"], tmp_path / "base")
    recipe = load_recipe(written_recipe(tmp_path, ""))
    with pytest.raises(ValueError, match=r"has no chat template.*chat\.template: FILE\.jinja"):
        run_stage(recipe.body, "none", tmp_path / "none")
    (tmp_path / "recipes" / "own.jinja").write_text(NO_GENERATION_PROMPT)
    recipe = load_recipe(written_recipe(tmp_path, "chat: {template: own.jinja}"))
    found = run_stage(recipe.body, "run", tmp_path / "run")
    saved = load_tokenizer(found["model"])
    assert saved.chat_template == NO_GENERATION_PROMPT
    assert ChatTemplate(saved).prompt_text(QUESTION).endswith("<|im_start|>assistant\n")
    # another text of the file is another run
    key = (tmp_path / "run" / "status.json").read_text()
    (tmp_path / "recipes" / "own.jinja").write_text(NO_GENERATION_PROMPT + " ")
    with pytest.raises(ValueError, match=r"another recipe: the content of chat\.template"):
        run_stage(recipe.body, "run", tmp_path / "run")
    assert (tmp_path / "run" / "status.json").read_text() == key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{% for m in messages %}", r"own\.jinja, line 1"),
        ("Hello", "does not read `messages`"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_template_file_that_is_none_is_a_sentence(
    text: str | bytes | None, says: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    base_model(styles["qwen"], tmp_path / "base")
    file = written_recipe(tmp_path, "chat: {template: own.jinja}")
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (file.parent / "own.jinja").write_bytes(data)
    with pytest.raises(ValueError, match=rf"chat\.template: .*{says}"):
        check_stage(load_recipe(file).body)


def test_a_template_of_the_recipe_is_refused_with_a_server(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(NO_GENERATION_PROMPT)
    recipe = {
        "task": "evaluate",
        "model": {"model_name_or_path": "m"},
        "engine": {"name": "openai", "base_url": "http://127.0.0.1:9/v1"},
        "chat": {"template": str(tmp_path / "own.jinja")},
        "data": {"sets": ["starter"]},
    }
    with pytest.raises(ValueError, match=r"chat\.template .*vllm serve --chat-template"):
        check_stage(check_body(recipe, "recipe"))


def test_stages_and_bases_find_their_template_beside_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.yaml").write_text("chat: {template: own.jinja}\ntask: train\n")
    (tmp_path / "top.yaml").write_text(
        "base: base/base.yaml\nstages: {a: {chat: {template: other.jinja}}}\n"
    )
    values = read_recipe(tmp_path / "top.yaml").values
    assert Path(values["chat"]["template"]) == tmp_path / "base" / "own.jinja"
    assert Path(values["stages"]["a"]["chat"]["template"]) == tmp_path / "other.jinja"
