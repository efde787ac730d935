"""cpo.py: for as long as `trl.experimental.cpo` exists, the same loss, gradient, metrics and
training as CPO and SimPO have there."""

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
from overrefusal_po.train.cpo import CPOConfig, cpo_trainer, pair_losses
from overrefusal_po.train.policy import load_policy
from overrefusal_po.train.settings import trainer_config

ALIKE = [
    *("nll_loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"),
    *("rewards/margins", "rewards/accuracies"),
]
"""Metrics that both trainers log."""

CASES = {
    "cpo": {"loss_type": "sigmoid", "cpo_alpha": 1.0, "beta": 0.3},
    "cpo-smoothed": {"loss_type": "sigmoid", "label_smoothing": 0.1, "beta": 0.3},
    "simpo": {"loss_type": "simpo", "cpo_alpha": 0.5, "beta": 2.0, "simpo_gamma": 0.8},
    "hinge": {"loss_type": "hinge", "beta": 0.05},
    "ipo": {"loss_type": "ipo", "beta": 0.5},
}

settings = partial(trainer_settings, max_steps=3, learning_rate=0.1, optim="sgd")


def theirs(style: Style, rows: list[PreferencePair], args: dict[str, Any]) -> Any:
    """TRL's experimental trainer on the same rows."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(
        model=load_policy(style.make_model(), None),
        args=trainer_config(CPOConfig, args),
        train_dataset=conversations(rows, style.template),
        processing_class=style.tokenizer,
    )


def ours(
    style: Style, rows: list[PreferencePair], args: dict[str, Any], *, shared_prefix: bool = True
) -> Any:
    return cpo_trainer(
        style.make_model(),
        rows,
        args=args,
        processing_class=style.tokenizer,
        shared_prefix=shared_prefix,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared_prefix", [True, False], ids=["shared", "plain"])
def test_loss_gradient_and_metrics_are_those_of_trl(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    case: str,
    shared_prefix: bool,
) -> None:
    style, args = styles["llama"], settings(tmp_path, 3, **CASES[case])
    old, new = theirs(style, uneven, args), ours(style, uneven, args, shared_prefix=shared_prefix)
    assert new.ref_model is None
    assert hasattr(new.model, "_shares_prefix") == shared_prefix
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
    args = settings(tmp_path, 2, **CASES["simpo"])
    old, new = theirs(styles["llama"], uneven, args), ours(styles["llama"], uneven, args)
    old.train(), new.train()
    for a, b in zip(old.model.parameters(), new.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def by_hand(margin: float, **keys: Any) -> float:
    """The loss of one pair whose log-probs differ by `margin`."""
    config = trainer_config(CPOConfig, {"output_dir": "x", **keys})
    return pair_losses(torch.tensor([margin]), config.beta, config).item()


def test_the_losses_by_hand() -> None:
    """-log sigmoid(x) = log(1 + exp(-x)); SimPO asks for a margin of gamma rewards."""
    assert by_hand(2.0, beta=0.5) == pytest.approx(math.log1p(math.exp(-1.0)))
    simpo = by_hand(2.0, beta=0.5, loss_type="simpo", simpo_gamma=0.7)
    assert simpo == pytest.approx(math.log1p(math.exp(-0.3)))
    smoothed = by_hand(2.0, beta=0.5, label_smoothing=0.25)
    assert smoothed == pytest.approx(
        0.75 * math.log1p(math.exp(-1.0)) + 0.25 * math.log1p(math.exp(1.0))
    )
    assert by_hand(2.0, beta=0.25, loss_type="hinge") == pytest.approx(0.5)
    assert by_hand(2.0, beta=0.25, loss_type="ipo") == pytest.approx(0.0)


@pytest.mark.parametrize("given", ["robust", ["sigmoid", "ipo"]])
def test_other_losses_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="allowed is one of sigmoid, hinge, ipo, simpo"):
        trainer_config(CPOConfig, {"loss_type": given, "output_dir": "x"})


def test_the_config_survives_a_checkpoint(tmp_path: Path) -> None:
    """transformers pickles the config; a string becomes a list of one, as in TRL's DPO."""
    config = trainer_config(CPOConfig, settings(tmp_path, 2, loss_type="simpo", simpo_gamma=0.9))
    again = pickle.loads(pickle.dumps(config))
    assert (again.loss_type, again.simpo_gamma) == (["simpo"], 0.9)


def test_a_reference_model_is_refused(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no reference model"):
        cpo_trainer(
            styles["llama"].make_model(), uneven, args=settings(tmp_path, 2), ref_model=object()
        )
