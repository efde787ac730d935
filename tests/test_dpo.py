"""dpo.py: TRL's DPOTrainer with the start policy, as it is now, for its reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from factories import lora, two_steps, weights

from overrefusal_po.records import PreferencePair, Triple
from overrefusal_po.train.derta import derta_trainer
from overrefusal_po.train.dpo import dpo_trainer


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return two_steps(tmp_path)


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
    row = dict(trainer.train_dataset[0])
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


@pytest.mark.slow
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
