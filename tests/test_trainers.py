"""trainers.py: each factory gives TRL's trainer, ready to train, with the right tokens, loss and
reference."""

import dataclasses
import importlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style

from overrefusal_po.model.chat import ChatTemplate, Turn
from overrefusal_po.records import Message, PreferencePair, Prompt, Triple
from overrefusal_po.train.derta import derta_rows, refusal_token
from overrefusal_po.train.trainers import (
    METHODS,
    derta_trainer,
    dpo_trainer,
    orpo_trainer,
    sft_trainer,
    trainer_config,
)

FACTORIES: dict[str, Callable[..., Any]] = {
    name: method.factory for name, method in METHODS.items()
}
TRL_TRAINERS = {
    "sft": "SFTTrainer",
    "derta": "SFTTrainer",
    "dpo": "DPOTrainer",
    "orpo": "ORPOTrainer",
    "kto": "KTOTrainer",
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Two short steps on a CPU that write and report nothing."""
    return {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "max_length": 256,
    }


@pytest.fixture
def data(
    pairs: list[PreferencePair], triples: list[Triple], helpful: list[Prompt]
) -> dict[str, list[Any]]:
    """What each kind of method eats."""
    return {"pairs": pairs, "triples": triples, "prompts": helpful}


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def first_row(trainer: Any) -> dict[str, Any]:
    return dict(trainer.train_dataset[0])


# ------------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("method", METHODS)
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
    eats = data[METHODS[method].eats]
    trainer = FACTORIES[method](
        model, eats, args=settings, processing_class=qwen.tokenizer, peft_config=peft_config
    )
    assert type(trainer).__name__ == TRL_TRAINERS[method]
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["full", "lora"])
def test_each_factory_trains_a_model_from_a_path(
    method: str,
    how: str,
    styles: dict[str, Style],
    data: dict[str, list[Any]],
    settings: dict[str, Any],
) -> None:
    """The tokenizer is the one in the folder."""
    folder, eats = styles["llama"].folder, data[METHODS[method].eats]
    trainer = FACTORIES[method](
        str(folder), eats, args=settings, peft_config=lora() if how == "lora" else None
    )
    assert type(trainer).__name__ == TRL_TRAINERS[method]
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
            str(styles["qwen"].folder), data[METHODS[method].eats], args={"learning_rat": 1e-3}
        )


@pytest.mark.parametrize("method", METHODS)
def test_args_of_another_kind_are_an_error(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]]
) -> None:
    with pytest.raises(ValueError, match="a mapping of its keys or None; got int"):
        FACTORIES[method](str(styles["qwen"].folder), data[METHODS[method].eats], args=3)


@pytest.mark.parametrize("method", METHODS)
def test_no_data_is_an_error(
    method: str, styles: dict[str, Style], settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"at least one .*got none"):
        FACTORIES[method](str(styles["qwen"].folder), [], args=settings)


@pytest.mark.parametrize("method", ["sft", "derta", "orpo"])
def test_methods_without_a_reference_refuse_one(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]], settings: dict[str, Any]
) -> None:
    qwen = styles["qwen"]
    with pytest.raises(ValueError, match="no reference model; ref_model must be None"):
        FACTORIES[method](
            qwen.make_model(),
            data[METHODS[method].eats],
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


def test_what_hardware_decides_is_filled_in_and_never_overrides_what_is_given(
    tmp_path: Path,
) -> None:
    from trl import DPOConfig

    config = trainer_config(
        DPOConfig, {"output_dir": str(tmp_path), "use_cpu": True, "gradient_checkpointing": True}
    )
    assert (config.use_cpu, config.bf16, config.gradient_checkpointing) == (True, False, True)


@pytest.mark.parametrize("method", METHODS)
def test_a_tokenizer_without_a_pad_token_pads_with_its_eos(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]], settings: dict[str, Any]
) -> None:
    """As a tokenizer comes from the hub for Llama-3 and Mistral, when the caller has loaded it."""
    qwen = styles["qwen"]
    tokenizer = type(qwen.tokenizer).from_pretrained(qwen.folder)
    tokenizer.pad_token = None
    eats = data[METHODS[method].eats]
    args = {**settings, "per_device_train_batch_size": 4}
    trainer = FACTORIES[method](qwen.make_model(), eats, args=args, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    name = next(key for key in ("input_ids", "chosen_input_ids") if key in batch)
    mask = batch[name.replace("input_ids", "attention_mask")]
    assert (mask == 0).any()
    assert set(batch[name][mask == 0].tolist()) == {tokenizer.eos_token_id}


# -------------------------------------------------------------------------------------------- DeRTa


def reference_loss(
    model: Any, triples: list[Triple], template: ChatTemplate, sorry: int, lengths: list[int]
) -> float:
    """DeRTa's loss written out: log-probabilities one row at a time, pooled over every token that
    carries loss.

    `lengths[i]` is k of triple i, the number of harmful tokens in front of its safe response.
    """
    terms = []
    for triple, k in zip(triples, lengths, strict=True):
        prompt, harmful, *_ = template.turn(triple.prompt.messages, triple.harmful_response)
        safe = template.turn(triple.prompt.messages, triple.safe_response).response_ids
        logp = model(input_ids=torch.tensor([prompt + harmful])).logits[0].log_softmax(-1)
        for t in range(len(harmful)):  # - sum over t of log P(sorry | q, h_<t)
            terms.append(-logp[len(prompt) + t - 1, sorry])
        seen = prompt + harmful[:k]
        logp = model(input_ids=torch.tensor([seen + safe])).logits[0].log_softmax(-1)
        for t, token in enumerate(safe):  # - log P(r | q, h_<k)
            terms.append(-logp[len(seen) + t - 1, token])
    return float(torch.stack(terms).mean())


def test_derta_loss_is_the_papers(
    style: Style, triples: list[Triple], settings: dict[str, Any]
) -> None:
    """The whole data in one batch, RTO without dropout, against a loss worked out without labels,
    pads or collator."""
    model = style.make_model()
    trainer = derta_trainer(
        model,
        triples,
        args={**settings, "per_device_train_batch_size": 2 * len(triples), "seed": 3},
        processing_class=style.tokenizer,
        rto_dropout=0,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)

    sorry = refusal_token(style.template)
    rows = derta_rows(triples, style.template, sorry, seed=3)
    safe = [style.template.turn(t.prompt.messages, t.safe_response) for t in triples]
    lengths = [
        len(row.input_ids) - len(turn.prompt_ids) - len(turn.response_ids)
        for row, turn in zip(rows[1::2], safe, strict=True)
    ]
    assert any(lengths) and len(batch["labels"]) == 2 * len(triples)
    assert loss.dtype == torch.float32
    with torch.no_grad():
        expected = reference_loss(model, triples, style.template, sorry, lengths)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_derta_rows_reach_trl_untouched(
    styles: dict[str, Style], triples: list[Triple], helpful: list[Prompt], settings: dict[str, Any]
) -> None:
    qwen = styles["qwen"]
    trainer = derta_trainer(
        qwen.make_model(),
        triples,
        args=settings,
        processing_class=qwen.tokenizer,
        helpful=helpful,
        prefix_unit="tokens",
    )
    rows = derta_rows(
        triples, qwen.template, refusal_token(qwen.template), seed=42, prefix_unit="tokens"
    )
    assert [r["kind"] for r in trainer.train_dataset] == ["rto", "prefix"] * len(triples) + [
        "sft"
    ] * len(helpful)
    assert [dict(r) for r in trainer.train_dataset][: len(rows)] == [r._asdict() for r in rows]
    assert trainer.data_collator.rto_dropout == 0.95


def test_rto_dropout_is_redrawn_in_each_epoch_of_a_run(
    styles: dict[str, Style], triples: list[Triple], settings: dict[str, Any]
) -> None:
    """Two epochs of six batches: the collator draws for epoch 0 and then for epoch 1, and the
    weights change."""
    qwen, epochs = styles["qwen"], []
    trainer = derta_trainer(
        qwen.make_model(),
        triples,
        args={**settings, "max_steps": -1, "num_train_epochs": 2},
        processing_class=qwen.tokenizer,
    )
    collate = trainer.data_collator

    def watched(rows: Any) -> Any:
        epochs.append(collate.epoch)
        return collate(rows)

    trainer.data_collator = watched
    before = weights(trainer.model)
    trainer.train()
    assert epochs == [0] * 6 + [1] * 6
    assert collate.epoch == 1
    assert not torch.equal(weights(trainer.model), before)


def test_rto_dropout_goes_on_with_the_right_epoch_after_a_resume(
    styles: dict[str, Style], triples: list[Triple], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped after 9 of 12 batches, in the second epoch: what follows is drawn for epoch 1."""
    qwen, epochs = styles["qwen"], []
    args = {**settings, "max_steps": 12, "save_strategy": "steps", "save_steps": 9}
    derta_trainer(qwen.make_model(), triples, args=args, processing_class=qwen.tokenizer).train()
    trainer = derta_trainer(qwen.make_model(), triples, args=args, processing_class=qwen.tokenizer)
    collate = trainer.data_collator

    def watched(rows: Any) -> Any:
        epochs.append(collate.epoch)
        return collate(rows)

    trainer.data_collator = watched
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-9"))
    assert trainer.state.global_step == 12
    assert epochs and set(epochs) == {1}


def test_a_safe_response_without_the_opener_is_an_error(
    styles: dict[str, Style], triples: list[Triple], settings: dict[str, Any]
) -> None:
    stray = triples[0].model_copy(update={"safe_response": "I can't help with that."})
    with pytest.raises(
        ValueError, match=r"must begin with the refusal opener 'Sorry'.*I can't help"
    ):
        derta_trainer(str(styles["qwen"].folder), [*triples, stray], args=settings)


@pytest.mark.parametrize("key", ["packing", "padding_free"])
def test_packing_is_an_error(
    key: str, styles: dict[str, Style], helpful: list[Prompt], settings: Any
) -> None:
    with pytest.raises(ValueError, match="packing and padding_free cannot be used"):
        sft_trainer(str(styles["qwen"].folder), helpful, args={**settings, key: True})


# ---------------------------------------------------------------------------------------------- SFT


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


# --------------------------------------------------------------------------------------------------
# preference pairs


def with_pair(pairs: list[PreferencePair], **fields: Any) -> list[PreferencePair]:
    return [*pairs, pairs[0].model_copy(update={"id": "odd-one", **fields})]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_a_pair_with_equal_sides_is_an_error(
    method: str, styles: dict[str, Style], pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    with pytest.raises(
        ValueError, match=r"Pair odd-one: chosen equals rejected.*nothing to prefer"
    ):
        same = with_pair(pairs, chosen="It is.", rejected=" It is.\n")
        FACTORIES[method](str(styles["qwen"].folder), same, args=settings)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
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


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
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
    """Prompt and both sides; behind the end of turn only what the template puts there (ChatML's
    newline)."""
    template = ChatTemplate(style.tokenizer, **template_options)
    spelled = pairs[0].model_copy(
        update={"chosen": f" Here is {style.tokenizer.eos_token}, of course.\n"}
    )
    trainer = make(style.make_model(), [*pairs[:2], spelled], args=settings, template=template)
    after = style.tokenizer("\n")["input_ids"] if style.name == "qwen" else []
    for row, pair in zip(trainer.train_dataset, [*pairs[:2], spelled], strict=True):
        chosen, rejected = expected_sides(template, pair)
        assert row["prompt_ids"] == chosen.prompt_ids
        assert row["chosen_ids"] == chosen.response_ids + after
        assert row["rejected_ids"] == rejected.response_ids + after


# ---------------------------------------------------------------------------------- DPO's reference


def first_rewards(trainer: Any) -> tuple[float, float]:
    """(chosen, rejected) reward at the first step: beta times policy minus reference
    log-probability."""
    trainer.train()
    log = trainer.state.log_history[0]
    return log["rewards/chosen"], log["rewards/rejected"]


@pytest.mark.parametrize("case", ["full", "lora", "precomputed", "peft model", "path"])
def test_dpo_starts_at_its_reference(
    case: str, styles: dict[str, Style], pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    """The model's config names a folder with other weights, as after merging an adapter; the start
    policy counts."""
    qwen, more = styles["qwen"], {}
    model: Any = qwen.make_model(seed=1)
    model.config._name_or_path = str(qwen.folder)  # holds the weights of seed 0
    if case == "lora":
        more = {"peft_config": lora()}
    if case == "precomputed":
        settings["precompute_ref_log_probs"] = True
    if case == "peft model":
        from peft import get_peft_model

        model = get_peft_model(model, lora())
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.1)
    if case == "path":
        model = str(qwen.folder)
    trainer = dpo_trainer(model, pairs, args=settings, processing_class=qwen.tokenizer, **more)
    assert first_rewards(trainer) == pytest.approx((0, 0), abs=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(
        0.693147, abs=1e-5
    )  # -log sigmoid(0)
    assert abs(trainer.state.log_history[1]["rewards/chosen"]) > 1e-4


def test_dpos_reference_is_a_frozen_copy_of_the_start_policy(
    styles: dict[str, Style], pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    """Log-probabilities of both sides from policy and reference, worked out here, are equal;
    training moves one."""
    qwen = styles["qwen"]
    model = qwen.make_model(seed=1)
    model.config._name_or_path = str(qwen.folder)
    start = weights(model)
    trainer = dpo_trainer(model, pairs, args=settings, processing_class=qwen.tokenizer)
    assert trainer.ref_model is not trainer.model
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())
    row = first_row(trainer)
    for side in ("chosen_ids", "rejected_ids"):
        ids, response = torch.tensor([row["prompt_ids"] + row[side]]), len(row[side])
        with torch.no_grad():
            sums = [
                m(input_ids=ids)
                .logits[0]
                .log_softmax(-1)[-response - 1 : -1]
                .gather(1, ids[0, -response:, None])
                .sum()
                for m in (trainer.model, trainer.ref_model)
            ]
        assert torch.equal(sums[0], sums[1])
    trainer.train()
    assert torch.equal(weights(trainer.ref_model), start)
    assert not torch.equal(weights(trainer.model), start)


def test_dpo_after_another_training_of_the_same_object_starts_from_its_present_weights(
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    settings: dict[str, Any],
) -> None:
    """TRL patches `forward` of a model that it trains; the copy must not compute with the
    original's weights."""
    qwen = styles["qwen"]
    model = qwen.make_model()
    derta_trainer(model, triples, args=settings, processing_class=qwen.tokenizer).train()
    start = weights(model)
    trainer = dpo_trainer(model, pairs, args=settings, processing_class=qwen.tokenizer)
    assert torch.equal(weights(trainer.ref_model), start)
    assert first_rewards(trainer) == pytest.approx((0, 0), abs=1e-6)
    assert abs(trainer.state.log_history[1]["rewards/chosen"]) > 1e-4
    assert torch.equal(weights(trainer.ref_model), start)


def test_dpo_takes_another_reference(
    styles: dict[str, Style], pairs: list[PreferencePair], settings: dict[str, Any]
) -> None:
    qwen = styles["qwen"]
    other = qwen.make_model(seed=2)
    trainer = dpo_trainer(
        qwen.make_model(), pairs, args=settings, processing_class=qwen.tokenizer, ref_model=other
    )
    assert trainer.ref_model is other
    assert abs(first_rewards(trainer)[0]) > 1e-4


# -------------------------------------------------------------------------------------------- other


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
    labels = first_row(trainer)["labels"]
    assert llama.tokenizer.decode([i for i in labels if i != -100]) == "Yes, it is.<|eot_id|>"
    trainer.train()
