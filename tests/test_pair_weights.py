"""pair_weights.py and weighted.py: weights by hand, and a weighted loss that is TRL's, pair for
pair."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Style, trainer_settings
from factories import gradient
from test_windows import update

from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.sections import PairsData
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.pair_weights import boundary, boundary_weights, refusal_margins
from overrefusal_po.train.rows import HARMFUL, prepared_pairs
from overrefusal_po.train.weighted import WEIGHT

OTHERS = [m.name for m in METHODS.values() if m.data is PairsData and not m.stores_reference]
"""Methods that learn from pairs, and weigh none."""

LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid-sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
    "ipo": {"loss_type": ["ipo"]},
    "apo_zero": {"loss_type": ["apo_zero"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
}


def test_a_margin_is_the_refusals_log_prob_minus_the_answers() -> None:
    found = refusal_margins([-1.0, -1.0], [-4.0, -4.0], [True, False])
    assert found.tolist() == [3.0, -3.0]


def test_the_boundary_mistakes_equal_shares_of_both_kinds() -> None:
    """At 1.5 one of two harmful prompts is below and one of two harmless ones above."""
    harmful = np.array([True, True, False, False])
    assert boundary(np.array([1.0, 4.0, 0.0, 2.0]), harmful) == 1.5
    # a policy that refuses everything has its boundary where the kinds part, not at 0
    assert boundary(np.array([9.0, 8.0, 6.0, 5.0]), harmful) == 7.0


def test_weights_by_hand() -> None:
    """Margins 3, 1, -1, -3 have the boundary 0 and the standard deviation sqrt(5)."""
    harmful = [True, True, False, False]
    found = boundary_weights(np.array([3.0, 1.0, -1.0, -3.0]), harmful, floor=0.2)
    near, far = 0.2 + 0.8 * np.exp(-0.1), 0.2 + 0.8 * np.exp(-0.9)
    mean = (near + far) / 2
    assert found == pytest.approx([far / mean, near / mean, near / mean, far / mean])
    assert found.mean() == pytest.approx(1.0)


def test_a_plain_prompt_keeps_the_floor() -> None:
    margins = np.array([0.5, -0.5, 0.5, -0.5] * 50 + [1e6])
    found = boundary_weights(margins, [True, False] * 100 + [True], floor=0.25)
    assert found[-1] / found[0] == pytest.approx(0.25, abs=1e-3)


def test_equal_margins_weigh_the_same() -> None:
    assert boundary_weights(np.array([2.0, 2.0]), [True, False]).tolist() == [1.0, 1.0]


def test_pairs_of_one_kind_have_no_boundary() -> None:
    with pytest.raises(ValueError, match="all 2 are on harmless ones"):
        boundary_weights(np.array([2.0, 1.0]), [False, False])


# ------------------------------------------------------------------------------------ the loss


def both_kinds(pairs: list[PreferencePair]) -> list[PreferencePair]:
    """The pairs, every second one on a harmful prompt."""
    kinds = ("harmful", "benign")
    return [
        pair.model_copy(update={"prompt": pair.prompt.model_copy(update={"kind": kinds[at % 2]})})
        for at, pair in enumerate(pairs)
    ]


def made(
    style: Style,
    rows: list[PreferencePair],
    folder: Path,
    batch: int,
    *,
    weights: Any = "boundary",
    **keys: Any,
) -> Any:
    return dpo_trainer(
        style.make_model(),
        rows,
        args=trainer_settings(folder, batch, beta=0.3, precompute_ref_log_probs=True, **keys),
        processing_class=style.tokenizer,
        weights=weights,
    )


@pytest.mark.parametrize("case", LOSSES)
def test_with_weights_of_one_loss_and_gradient_are_those_of_trl(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path, case: str
) -> None:
    style, rows = styles["llama"], both_kinds(uneven)
    new = made(style, rows, tmp_path, 4, **LOSSES[case])
    plain = made(style, rows, tmp_path, 4, weights=None, **LOSSES[case])
    for batch in new.get_train_dataloader():
        assert batch[WEIGHT].std() > 0
        ones = {**batch, WEIGHT: torch.ones_like(batch[WEIGHT])}
        without = {name: value for name, value in batch.items() if name != WEIGHT}
        (loss, grad), (loss2, grad2) = gradient(new, ones), gradient(plain, without)
        assert loss == pytest.approx(loss2, abs=1e-6)
        assert grad.abs().max() > 0
        assert torch.allclose(grad, grad2, atol=1e-6)


def test_a_weighted_loss_is_the_weighted_mean_of_the_losses_of_single_pairs(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    style, rows = styles["llama"], both_kinds(uneven)
    one = made(style, rows, tmp_path, 1, weights=None, loss_type="ipo")
    new = made(style, rows, tmp_path, len(rows), loss_type="ipo")
    [batch] = list(new.get_train_dataloader())
    order = {tuple(row["chosen_ids"]): at for at, row in enumerate(new.train_dataset)}
    single = dict.fromkeys(range(len(rows)), 0.0)
    for row in one.get_train_dataloader():
        ids = row["input_ids"][0][row["completion_mask"][0].bool()].tolist()
        single[order[tuple(ids)]] = gradient(one, row)[0]
    weights = new.train_dataset[WEIGHT]
    wanted = sum(weight * single[at] for at, weight in enumerate(weights)) / len(rows)
    assert gradient(new, batch)[0] == pytest.approx(wanted, abs=1e-5)


def test_a_training_logs_what_trl_logs_and_evaluates_without_weights(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    style, rows = styles["llama"], both_kinds(uneven)
    trainer = dpo_trainer(
        style.make_model(),
        rows,
        eval_dataset=rows[:2],
        args=trainer_settings(tmp_path, 3, max_steps=2, logging_steps=1),
        processing_class=style.tokenizer,
        weights="boundary",
        reference_store=tmp_path / "store",
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"loss", "rewards/margins", "entropy", "num_tokens"} <= logged.keys()
    assert WEIGHT not in trainer.eval_dataset.column_names
    assert trainer.evaluate()["eval_loss"] > 0


def test_only_rows_that_are_weighed_say_their_kind(
    styles: dict[str, Style], uneven: list[PreferencePair]
) -> None:
    template = styles["llama"].template
    rows = prepared_pairs(both_kinds(uneven), template, max_length=None, kinds=True).rows
    assert rows is not None and rows[HARMFUL][:2] == [True, False]
    plain = prepared_pairs(uneven, template, max_length=None).rows
    assert plain is not None and HARMFUL not in plain.column_names


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"precompute_ref_log_probs": False}, "Give reference_store, or precompute_ref_log_probs"),
        ({"precompute_ref_log_probs": True, "loss_type": "aot"}, "loss_type aot compares"),
    ],
)
def test_weights_are_refused_without_a_weight_of_each_pair(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    keys: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        dpo_trainer(
            styles["llama"].make_model(),
            both_kinds(uneven),
            args=trainer_settings(tmp_path, 2, **keys),
            processing_class=styles["llama"].tokenizer,
            weights="boundary",
        )


def test_an_update_is_the_same_however_its_batch_is_cut(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    make = partial(dpo_trainer, weights="boundary")
    keys = {"precompute_ref_log_probs": True, **LOSSES["sigmoid-sft"]}
    rows = both_kinds(uneven)
    whole, cut = (
        update(make, styles["llama"], rows, how, tmp_path, **keys) for how in ((4, 1), (1, 4))
    )
    plain = update(dpo_trainer, styles["llama"], rows, (4, 1), tmp_path, **keys)
    assert torch.allclose(whole, cut, atol=1e-6)
    assert not torch.allclose(whole, plain, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "keys", "words"),
    [
        *((name, {}, f"which is for method: dpo; the method is {name}") for name in OTHERS),
        ("dpo", {"speed": {"reference_store": False}}, "speed.reference_store: true"),
        ("dpo", {"trainer": {"sync_ref_model": True}}, "without trainer.sync_ref_model"),
        ("dpo", {"trainer": {"loss_type": ["aot"]}}, "loss_type aot compares the pairs"),
    ],
)
def test_a_recipe_that_can_have_no_weights_is_refused_before_its_data_are_read(
    method: str, keys: dict[str, Any], words: str
) -> None:
    body = {
        "task": "train",
        "method": method,
        "model": {"model_name_or_path": "my/model"},
        "data": {"pairs": "@curate.pairs"},
        **keys,
    }
    assert check_body(body, "test").task == "train"
    with pytest.raises(ValueError, match=words):
        check_body({**body, "data": {**body["data"], "weights": "boundary"}}, "test")
