"""The first rows of a training are compared with the template before weights are loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import Style, trainer_settings
from factories import EATS, FACTORIES, WRITTEN

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import PreferencePair, Prompt, Triple
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.first_rows import check_first_rows
from overrefusal_po.train.rows import prepared_pairs
from overrefusal_po.train.sft import prepared_prompts


@pytest.mark.parametrize("opening", [None, 3])
def test_rows_of_this_template_pass(
    style: Style, uneven: list[PreferencePair], opening: int | None
) -> None:
    begun = uneven[0].prompt.model_copy(update={"assistant_prefix": "Sure,", "id": "begun"})
    more = PreferencePair(id="b", prompt=begun, chosen=" use it.", rejected=" not I.")
    prepared = prepared_pairs([more, *uneven], style.template, max_length=None, opening=opening)
    check_first_rows(prepared, style.template)


def question_in_the_side(row: dict[str, Any]) -> dict[str, Any]:
    """What TRL makes of a template that renders the prompt otherwise once it is answered."""
    keep, rest = row["prompt_ids"][:4], row["prompt_ids"][4:]
    sides = {name: rest + row[name] for name in ("chosen_ids", "rejected_ids")}
    return {"prompt_ids": keep, **sides}


def sides_swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}


def no_prompt(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "prompt_ids": []}


@pytest.mark.parametrize("damage", [question_in_the_side, sides_swapped, no_prompt])
def test_rows_that_are_split_elsewhere_are_refused(
    damage: Any, style: Style, pairs: list[PreferencePair]
) -> None:
    prepared = prepared_pairs(pairs, style.template, max_length=None)
    assert prepared.rows is not None
    wrong = prepared._replace(rows=prepared.rows.map(damage))
    with pytest.raises(ValueError, match=r"Row 1 .* not what the chat template renders"):
        check_first_rows(wrong, style.template)


@pytest.mark.parametrize("method", WRITTEN)
def test_every_factory_looks_before_it_loads_weights(
    method: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    helpful: list[Prompt],
    tmp_path: Path,
) -> None:
    """Rows of one template, given with another."""
    style = styles["qwen"]
    data: Any = {"prompts": helpful, "triples": triples, "pairs": pairs}[EATS[method]]
    settings = trainer_settings(tmp_path, 2)
    made = FACTORIES[method](style.make_model(), data, template=style.template, args=settings)
    prepared = Prepared(made.train_dataset, data)
    tokenizer = copy.deepcopy(style.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("a helpful", "a rude")
    with pytest.raises(ValueError, match="not what the chat template renders"):
        FACTORIES[method]("no-model", prepared, template=ChatTemplate(tokenizer), args=settings)


def test_a_label_on_the_prompt_is_refused(style: Style, helpful: list[Prompt]) -> None:
    prepared = prepared_prompts(helpful, style.template, max_length=None)
    assert prepared.rows is not None
    wrong = prepared.rows.map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(ValueError, match="Row 1 of this training"):
        check_first_rows(prepared._replace(rows=wrong), style.template)


MERGING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] + ' => ' }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
"""A prompt that ends with a blank, which is one token with a following word."""


@pytest.mark.parametrize("method", WRITTEN)
def test_a_boundary_that_merges_on_one_side_only_names_the_record(
    method: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    """ " Sorry" or " the" is one token; a blank and a digit are two."""
    tokenizer = copy.deepcopy(styles["llama"].tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = MERGING
    template = ChatTemplate(tokenizer)
    prompt = Prompt.of("How do I stop it?", kind="harmful", reference="the end")
    ids = tokenizer("=> 1", add_special_tokens=False)["input_ids"]
    assert ids[:-1] == tokenizer("=> ", add_special_tokens=False)["input_ids"]
    data: dict[str, Any] = {
        "prompts": [prompt],
        "pairs": [PreferencePair(id="p", prompt=prompt, chosen="1. Go", rejected="the end")],
        "triples": [
            Triple(prompt=prompt, safe_response="1. No", harmful_response="the end is here")
        ],
    }
    settings = trainer_settings(tmp_path, 2)
    own = {"refusal_opener": "1"} if method == "derta" else {}
    # DeRTa looks for the refusal's first token before it reads a record
    name = "" if method == "derta" else f"(Pair p|Prompt {prompt.id}): "
    with pytest.raises(ValueError, match=rf"{name}.*tokens merge"):
        FACTORIES[method]("no-model", data[EATS[method]], template=template, args=settings, **own)


def test_a_boundary_that_merges_names_the_labelled_row_too(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """The same template, and rows of TRL's unpaired form."""
    tokenizer = copy.deepcopy(styles["llama"].tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = MERGING
    rows = [
        {"id": name, "prompt": f"How do I stop {name}?", "completion": text, "label": name == "one"}
        for name, text in (("one", "1. Go"), ("two", "the end"))
    ]
    settings = trainer_settings(tmp_path, 2)
    with pytest.raises(ValueError, match=r"Response to prompt two.*tokens merge"):
        FACTORIES["kto"]("no-model", rows, template=ChatTemplate(tokenizer), args=settings)


@pytest.mark.parametrize("method", WRITTEN)
def test_every_factory_warns_of_prompts_without_bos(
    method: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    helpful: list[Prompt],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    style = styles["llama"]
    tokenizer = copy.deepcopy(style.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    data: Any = {"prompts": helpful, "triples": triples, "pairs": pairs}[EATS[method]]
    settings = trainer_settings(tmp_path, 2)
    FACTORIES[method](style.make_model(), data, template=ChatTemplate(tokenizer), args=settings)
    assert caplog.text.count("missing_bos: the tokenizer begins plain text with") == 1


@pytest.mark.slow
def test_a_missing_bos_is_said_once_by_a_recipe_whose_student_writes_data(
    styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows are made and checked twice: before and after the student has answered."""
    style, folder = styles["llama"], tmp_path / "model"
    tokenizer = copy.deepcopy(style.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    style.make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": str(folder)},
        "data": {"pairs": "starter", "containment": "student", "max_pairs": 2},
        "generation": {"max_new_tokens": 4},
        "trainer": {"max_steps": 1, "report_to": "none", "use_cpu": True, "max_length": None}
        | {"per_device_train_batch_size": 2, "save_strategy": "no"},
    }
    run_stage(check_body(recipe, "recipe"), "recipe", tmp_path / "run")
    assert caplog.text.count("missing_bos: ") == 1


def test_a_template_that_drops_the_system_message_is_a_sentence(styles: dict[str, Style]) -> None:
    tokenizer = copy.deepcopy(styles["qwen"].tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    template = ChatTemplate(tokenizer, system_prompt="Answer briefly.")
    with pytest.raises(ValueError, match=r"leaves the system message out \('Answer briefly\.'\)"):
        template.prompt_text(Prompt.of("Hi", kind="general").messages)
