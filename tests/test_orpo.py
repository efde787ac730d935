"""orpo.py: for as long as `trl.experimental.orpo` exists, the same loss, gradient, metrics and
training."""

import dataclasses
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings
from factories import conversations, gradient

from overrefusal_po.records import PreferencePair
from overrefusal_po.train.orpo import ORPOConfig, log_odds, orpo_terms, orpo_trainer
from overrefusal_po.train.policy import load_policy
from overrefusal_po.train.settings import trainer_config

ALIKE = [
    *("nll_loss", "log_odds_ratio", "log_odds_chosen", "logps/chosen", "logps/rejected"),
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
]
"""Metrics that both trainers log."""

settings = partial(trainer_settings, max_steps=3, learning_rate=0.1, optim="sgd")


def policy(style: Style, how: str) -> Any:
    """A model with random weights, or an adapter that is no identity on it."""
    from peft import LoraConfig, get_peft_model

    model: Any = style.make_model()
    if how == "lora":
        torch.manual_seed(2)
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        )
    return model


def theirs(style: Style, rows: list[PreferencePair], how: str, args: dict[str, Any]) -> Any:
    """TRL's experimental trainer on the same rows."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer(
        model=load_policy(policy(style, how), None),
        args=trainer_config(ORPOConfig, args),
        train_dataset=conversations(rows, style.template),
        processing_class=style.tokenizer,
    )


@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize(("name", "batch"), [("llama", 4), ("llama", 1), ("mistral", 3)])
@pytest.mark.parametrize("shared_prefix", [True, False], ids=["shared", "plain"])
def test_loss_gradient_and_metrics_are_those_of_trl(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    how: str,
    name: str,
    batch: int,
    shared_prefix: bool,
) -> None:
    style, args = styles[name], settings(tmp_path, batch)
    old = theirs(style, uneven, how, args)
    new = orpo_trainer(
        policy(style, how),
        uneven,
        args=args,
        processing_class=style.tokenizer,
        shared_prefix=shared_prefix,
    )
    assert new.ref_model is None
    model = new.model.get_base_model() if how == "lora" else new.model
    assert hasattr(model, "_shares_prefix") == shared_prefix
    for before, after in zip(old.get_train_dataloader(), new.get_train_dataloader(), strict=True):
        old._stored_metrics["train"].clear(), new._metrics["train"].clear()
        (loss, grad), (loss2, grad2) = gradient(old, before), gradient(new, after)
        assert loss2 == pytest.approx(loss, abs=1e-5)
        assert grad.abs().max() > 0
        assert torch.allclose(grad, grad2, atol=1e-5)
        for metric in ALIKE:
            assert new._metrics["train"][metric] == pytest.approx(
                old._stored_metrics["train"][metric], abs=1e-4
            ), metric


def test_training_is_that_of_trl(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """Without accumulation: TRL's own update depends on how a batch is cut (see test_windows)."""
    args = settings(tmp_path, 2)
    old = theirs(styles["llama"], uneven, "full", args)
    new = orpo_trainer(
        styles["llama"].make_model(), uneven, args=args, processing_class=styles["llama"].tokenizer
    )
    old.train(), new.train()
    for a, b in zip(old.model.parameters(), new.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (old, new)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert new.state.log_history[0]["num_tokens"] > 0


def test_evaluation_gives_the_loss_and_metrics(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    args = settings(tmp_path, 4, per_device_eval_batch_size=4)
    old = theirs(styles["llama"], uneven, "full", args)
    new = orpo_trainer(
        styles["llama"].make_model(), uneven, args=args, processing_class=styles["llama"].tokenizer
    )
    found = new.evaluate(new.train_dataset)
    assert found["eval_loss"] == pytest.approx(
        old.evaluate(old.train_dataset)["eval_loss"], abs=1e-5
    )
    assert "eval_log_odds_ratio" in found


def test_the_two_terms_by_hand() -> None:
    """Chosen: -1 (prompt), -2, -3; rejected: 0 (prompt, not scored), -4, padding. NLL 6/3, means
    -2.5 and -4."""
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [0.0, -4.0, 0.0]])
    scored = torch.tensor([[True, True, True], [False, True, False]])
    completion = torch.tensor([[0, 1, 1], [0, 1, 0]])
    likelihood, means = orpo_terms(log_probs, scored, completion)
    assert likelihood.item() == 2.0
    assert means.tolist() == [-2.5, -4.0]


@pytest.mark.parametrize("probability", [1e-6, 0.2, 0.5, 0.9, 1 - 1e-5])
def test_log_odds_and_their_slope_are_exact_at_both_ends(probability: float) -> None:
    """The slope of log(p/(1-p)) in log p is 1/(1-p)."""
    value = torch.tensor(math.log(probability), dtype=torch.float64, requires_grad=True)
    odds = log_odds(value)
    assert odds.item() == pytest.approx(
        math.log(probability / (1 - probability)), rel=1e-9, abs=1e-9
    )
    (slope,) = torch.autograd.grad(odds, value)
    assert slope.item() == pytest.approx(1 / (1 - probability), rel=1e-9)


def test_a_sure_token_has_finite_odds_and_no_slope() -> None:
    """float32 rounds the log-prob of an opening of one sure token to 0."""
    value = torch.tensor([0.0, -1e-9, -0.5], requires_grad=True)
    odds = log_odds(value)
    (slope,) = torch.autograd.grad(torch.nn.functional.logsigmoid(odds).sum(), value)
    assert odds.isfinite().all() and slope.isfinite().all() and slope[0] == 0
    (slope,) = torch.autograd.grad(log_odds(value).neg().sum(), value)
    assert slope.isfinite().all() and slope[0] == 0


def test_the_config_has_no_keys_of_dpo(tmp_path: Path) -> None:
    """Its keys are those of TRL's ORPOConfig that a causal model uses, and those of how DPOTrainer
    makes rows."""
    with pytest.raises(ValueError, match="loss_type"):
        trainer_config(ORPOConfig, {"loss_type": "ipo", "output_dir": str(tmp_path)})
    given = {f.name for f in dataclasses.fields(ORPOConfig) if f.init}
    assert {"beta", "max_length", "disable_dropout", "dataset_num_proc", "learning_rate"} <= given
    assert not given & {
        "ld_alpha",
        "precompute_ref_log_probs",
        "sync_ref_model",
        "use_weighting",
        "label_smoothing",
    }
    config = trainer_config(ORPOConfig, settings(tmp_path, 2, beta=0.3))
    assert pickle.loads(pickle.dumps(config)).beta == 0.3
    assert config.to_dict()["beta"] == 0.3


def test_a_reference_model_is_refused(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no reference model"):
        orpo_trainer(
            styles["llama"].make_model(), uneven, args=settings(tmp_path, 2), ref_model=object()
        )
