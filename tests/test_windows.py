"""An update does not depend on how its batch is cut into micro-batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings

from overrefusal_po import cpo_trainer, dpo_trainer, orpo_trainer
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.windows import Factors, Window


def test_the_factors_make_means_of_parts_the_mean_of_the_whole() -> None:
    """Means of 3 over 30 tokens and 6 over 10: (90 + 60) / 40 = 3.75, and 2 * (w1 + w2) / 2."""
    window = Window(pairs=4, tokens=40, parts=2)
    first, second = window.factors(pairs=3, tokens=30), window.factors(pairs=1, tokens=10)
    assert first == Factors(pairs=1.5, tokens=1.5) and second == Factors(pairs=0.5, tokens=0.5)
    assert (first.tokens * 3 + second.tokens * 6) / 2 == 3.75


def test_one_micro_batch_of_one_process_is_left_unchanged() -> None:
    assert Window(pairs=4, tokens=17, parts=1).factors(pairs=4, tokens=17) == Factors(1.0, 1.0)


def update(
    make: Any,
    style: Style,
    pairs: list[PreferencePair],
    cut: tuple[int, int],
    folder: Path,
    **own: Any,
) -> torch.Tensor:
    """What one step of plain SGD changes, all weights in one vector."""
    settings = trainer_settings(folder, cut[0]) | {"max_steps": 1, "optim": "sgd"} | own
    settings |= {"gradient_accumulation_steps": cut[1], "train_sampling_strategy": "sequential"}
    settings |= {"learning_rate": 1.0, "max_grad_norm": 0.0}
    model = style.make_model()
    before = torch.cat([w.detach().flatten().clone() for w in model.parameters()])
    make(model, pairs, args=settings, processing_class=style.tokenizer).train()
    return torch.cat([w.detach().flatten() for w in model.parameters()]) - before


CASES = {
    "sigmoid": (dpo_trainer, {}),
    "sigmoid and sft": (dpo_trainer, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}),
    "sft": (dpo_trainer, {"loss_type": ["sft"]}),
    "orpo": (orpo_trainer, {}),
    "cpo": (cpo_trainer, {}),
}


@pytest.mark.parametrize("cut", [(2, 2), (1, 4), (3, 2)])
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_the_same_however_its_batch_is_cut(
    case: str,
    cut: tuple[int, int],
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
) -> None:
    """Four pairs of very different lengths; a cut of 3 leaves a last micro-batch of one pair."""
    make, own = CASES[case]
    whole = update(make, styles["llama"], uneven, (4, 1), tmp_path, **own)
    parts = update(make, styles["llama"], uneven, cut, tmp_path, **own)
    assert (whole - parts).norm() / whole.norm() < 1e-5
