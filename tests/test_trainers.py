"""The factories: each gives TRL's trainer, ready to train, and refuses what it cannot train."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from conftest import Style
from factories import EATS, FACTORIES, lora, two_steps, weights

from overrefusal_po.model.chat import ChatTemplate, Turn
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.records import PreferencePair, Prompt, Triple
from overrefusal_po.train.cpo import CPOTrainer
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.orpo import ORPOTrainer, orpo_trainer
from overrefusal_po.train.sft import sft_trainer

TRL_TRAINERS = {
    "sft": trl.SFTTrainer,
    "derta": trl.SFTTrainer,
    "dpo": trl.DPOTrainer,
    "orpo": ORPOTrainer,
    "cpo": CPOTrainer,
    "kto": trl.KTOTrainer,
    "dro": trl.SFTTrainer,
}
ADAPTABLE = [name for name, row in METHODS.items() if not row.soft_tokens]
"""Methods that train all weights or an adapter; test_dro has the tests of the other one."""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return two_steps(tmp_path)


@pytest.fixture
def data(
    pairs: list[PreferencePair], triples: list[Triple], helpful: list[Prompt]
) -> dict[str, list[Any]]:
    """What each kind of method eats."""
    anchors = [*helpful, *(triple.prompt for triple in triples)]
    return {"pairs": pairs, "triples": triples, "prompts": helpful, "anchors": anchors}


def test_every_method_has_a_factory() -> None:
    assert FACTORIES.keys() == EATS.keys() == METHODS.keys()


@pytest.mark.parametrize("method", ADAPTABLE)
@pytest.mark.parametrize("how", ["full", "lora"])
def test_each_factory_trains_a_loaded_model(
    method: str,
    how: str,
    styles: dict[str, Style],
    data: dict[str, list[Any]],
    settings: dict[str, Any],
) -> None:
    """With LoRA the adapter alone changes, and the base stays as it was."""
    qwen, peft_config = styles["qwen"], lora() if how == "lora" else None
    model = qwen.make_model()
    eats = data[EATS[method]]
    trainer = FACTORIES[method](
        model, eats, args=settings, processing_class=qwen.tokenizer, peft_config=peft_config
    )
    assert isinstance(trainer, TRL_TRAINERS[method])
    assert type(trainer.args).__name__ == METHODS[method].config.rpartition(".")[2]
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(
        torch.isfinite(torch.tensor(log["loss"]))
        for log in trainer.state.log_history
        if "loss" in log
    )
    assert not torch.equal(weights(trainer.model), before)
    changed = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert changed and all("lora_" in n for n in changed) == (how == "lora")
    if how == "lora":
        base = trainer.model.unload()
        assert torch.equal(weights(base), weights(qwen.make_model()))


@pytest.mark.parametrize("method", ADAPTABLE)
@pytest.mark.parametrize("how", ["full", "lora"])
def test_each_factory_trains_a_model_from_a_path(
    method: str,
    how: str,
    styles: dict[str, Style],
    data: dict[str, list[Any]],
    settings: dict[str, Any],
) -> None:
    """The tokenizer is the one in the folder."""
    folder, eats = styles["llama"].folder, data[EATS[method]]
    trainer = FACTORIES[method](
        str(folder), eats, args=settings, peft_config=lora() if how == "lora" else None
    )
    assert isinstance(trainer, TRL_TRAINERS[method])
    assert trainer.processing_class.chat_template == styles["llama"].tokenizer.chat_template
    before = weights(trainer.model)
    trainer.train()
    assert not torch.equal(weights(trainer.model), before)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_names_its_config_class(method: str) -> None:
    module, _, name = METHODS[method].config.rpartition(".")
    assert dataclasses.is_dataclass(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_key_is_an_error(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]]
) -> None:
    with pytest.raises(
        ValueError,
        match=r"learning_rat is not a known key of \w+Config. Did you mean learning_rate",
    ):
        FACTORIES[method](
            str(styles["qwen"].folder), data[EATS[method]], args={"learning_rat": 1e-3}
        )


@pytest.mark.parametrize("method", METHODS)
def test_args_of_another_kind_are_an_error(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]]
) -> None:
    with pytest.raises(ValueError, match="a mapping of its keys or None; got int"):
        FACTORIES[method](str(styles["qwen"].folder), data[EATS[method]], args=3)


@pytest.mark.parametrize("method", METHODS)
def test_no_data_is_an_error(
    method: str, styles: dict[str, Style], settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"at least one .*got none"):
        FACTORIES[method](str(styles["qwen"].folder), [], args=settings)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_name_in_place_of_a_loaded_reference_or_tokenizer_is_an_error(
    method: str, pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    make = FACTORIES[method]
    with pytest.raises(TypeError, match="ref_model is a str; allowed is a loaded model"):
        make("/no/such/model", pairs, args=settings, ref_model="my/model")
    with pytest.raises(TypeError, match="processing_class is the text 'my/model'"):
        make("/no/such/model", pairs, args=settings, processing_class="my/model")


@pytest.mark.parametrize("opening", [0, -1, 1.5, "8", True])
def test_an_opening_that_is_no_number_of_tokens_is_an_error(
    opening: Any, pairs: list[PreferencePair], styles: dict[str, Style], settings: dict[str, Any]
) -> None:
    for method in ("dpo", "orpo", "kto"):
        with pytest.raises(ValueError, match="allowed is a whole number of tokens above 0"):
            FACTORIES[method](str(styles["qwen"].folder), pairs, args=settings, opening=opening)


@pytest.mark.parametrize("method", ["sft", "derta", "orpo", "dro"])
def test_methods_without_a_reference_refuse_one(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]], settings: dict[str, Any]
) -> None:
    qwen = styles["qwen"]
    with pytest.raises(ValueError, match="no reference model; ref_model must be None"):
        FACTORIES[method](
            qwen.make_model(),
            data[EATS[method]],
            args=settings,
            processing_class=qwen.tokenizer,
            ref_model=qwen.make_model(1),
        )


def test_a_config_object_is_taken_as_it_is_and_stays_as_it_was(
    styles: dict[str, Style], helpful: list[Prompt], settings: dict[str, Any]
) -> None:
    """The caller may use it again for an SFTTrainer of their own, which must then prepare its
    data."""
    from trl import SFTConfig

    config = SFTConfig(**settings, bf16=False, gradient_checkpointing=False)
    before = dict(vars(config))
    trainer = sft_trainer(
        styles["qwen"].make_model(), helpful, args=config, processing_class=styles["qwen"].tokenizer
    )
    assert trainer.args.learning_rate == 1e-2
    assert (config.dataset_kwargs, config.remove_unused_columns) == (
        before["dataset_kwargs"],
        before["remove_unused_columns"],
    )


@pytest.mark.parametrize("method", ADAPTABLE)
def test_a_tokenizer_without_a_pad_token_pads_with_its_eos(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]], settings: dict[str, Any]
) -> None:
    """As a tokenizer comes from the hub for Llama-3 and Mistral, when the caller has loaded it."""
    qwen = styles["qwen"]
    tokenizer = type(qwen.tokenizer).from_pretrained(qwen.folder)
    tokenizer.pad_token = None
    eats = data[EATS[method]]
    args = {**settings, "per_device_train_batch_size": 4}
    trainer = FACTORIES[method](qwen.make_model(), eats, args=args, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    name = next(key for key in ("input_ids", "chosen_input_ids") if key in batch)
    mask = batch[name.replace("input_ids", "attention_mask")]
    assert (mask == 0).any()
    assert set(batch[name][mask == 0].tolist()) == {tokenizer.eos_token_id}


# --------------------------------------------------------------------------------------------------
# preference pairs


def with_pair(pairs: list[PreferencePair], **fields: Any) -> list[PreferencePair]:
    return [*pairs, pairs[0].model_copy(update={"id": "odd-one", **fields})]


@pytest.mark.parametrize("method", ["dpo", "orpo", "cpo", "kto"])
def test_a_pair_with_equal_sides_is_an_error(
    method: str, styles: dict[str, Style], pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    with pytest.raises(
        ValueError, match=r"Pair odd-one: chosen equals rejected.*nothing to prefer"
    ):
        same = with_pair(pairs, chosen="It is.", rejected=" It is.\n")
        FACTORIES[method](str(styles["qwen"].folder), same, args=settings)


@pytest.mark.parametrize("method", ["dpo", "orpo", "cpo", "kto"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_pair_that_is_too_long_is_an_error(
    method: str,
    side: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    settings: dict[str, Any],
) -> None:
    with pytest.raises(
        ValueError,
        match=r"Pair odd-one: prompt and response are .* more than max_length 256.*Raise",
    ):
        FACTORIES[method](
            str(styles["qwen"].folder),
            with_pair(pairs, **{side: "Sorry, no. " * 60}),
            args=settings,
        )


@pytest.mark.parametrize("method", ["dpo", "orpo", "cpo", "kto"])
def test_without_max_length_nothing_is_too_long(
    method: str, styles: dict[str, Style], pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    long = with_pair(pairs, chosen="Sorry, no. " * 120)
    FACTORIES[method](str(styles["qwen"].folder), long, args={**settings, "max_length": None})


@pytest.fixture(params=["plain", "system prompt", "thinking off"])
def template_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "plain": {},
        "system prompt": {"system_prompt": "Answer briefly."},
        "thinking off": {"template_kwargs": {"enable_thinking": False}},
    }[request.param]


def expected_sides(template: ChatTemplate, pair: PreferencePair) -> list[Turn]:
    return [template.turn(pair.prompt.messages, text) for text in (pair.chosen, pair.rejected)]


@pytest.mark.parametrize("make", [dpo_trainer, orpo_trainer])
def test_dpo_and_orpo_see_the_tokens_of_the_turn(
    make: Callable[..., Any],
    style: Style,
    template_options: dict[str, Any],
    pairs: list[PreferencePair],
    settings: dict[str, Any],
) -> None:
    """Prompt and both sides, with what the template writes behind them."""
    template = ChatTemplate(style.tokenizer, **template_options)
    spelled = pairs[0].model_copy(
        update={"chosen": f" Here is {style.tokenizer.eos_token}, of course.\n"}
    )
    trainer = make(style.make_model(), [*pairs[:2], spelled], args=settings, template=template)
    for row, pair in zip(trainer.train_dataset, [*pairs[:2], spelled], strict=True):
        chosen, rejected = expected_sides(template, pair)
        assert row["prompt_ids"] == chosen.prompt_ids
        assert row["chosen_ids"] == chosen.response_ids
        assert row["rejected_ids"] == rejected.response_ids
