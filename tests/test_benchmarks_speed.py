"""The benchmarks of training speed in small: they run, and what they count is what was done."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings
from trl import SFTConfig

from overrefusal_po.train.data import Prepared
from overrefusal_po.train.derta_rows import DertaCollator, Row, rows_dataset
from overrefusal_po.train.rows_trainer import rows_trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import mfu
import step_flops
import step_profile
import sweep_speed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(styles: dict[str, Style]) -> dict[str, Any]:
    """A sweep over two trials, 2 epochs of 4 pairs, in this process."""
    arguments = [
        "--json",
        "unused",
        "--model",
        str(styles["llama"].folder),
        "--betas",
        "0.1",
        "0.4",
    ]
    arguments += [
        "--learning-rates",
        "1e-3",
        "--pairs",
        "4",
        "--batch",
        "2",
        "--epochs",
        "2",
        "--max-length",
        "4096",
    ]
    options = sweep_speed.arguments([*arguments, "--threads", "1"])
    return sweep_speed.summary(options, sweep_speed.sweep(options, sweep_speed.train))


def test_a_sweep_runs_the_reference_as_often_as_each_way_needs_it(swept: dict[str, Any]) -> None:
    """4 pairs in 2 epochs: TRL's own run 8 a trial, or 4 ahead of each trial; the store's run 4
    once."""
    expected = {"plain": [8, 8], "precompute": [4, 4], "store": [4, 0], "shared": [4, 0]}
    assert swept["reference_pairs"] == expected


def test_the_trials_of_a_sweep_have_the_same_losses_each_way(swept: dict[str, Any]) -> None:
    assert swept["max_loss_difference"] < 1e-4
    first, second = swept["losses"]["plain"]
    assert len(first) == len(second) == 4
    assert first[0] == second[0] == pytest.approx(0.6931, abs=1e-4) and first[1:] != second[1:]
    assert sweep_speed.table(swept).count("\n") == 5


@pytest.fixture(scope="module")
def measured(styles: dict[str, Style]) -> dict[str, dict[str, Any]]:
    """Cases of mfu.py with one timed step of two pairs."""
    arguments = [
        "--json",
        "unused",
        "--model",
        str(styles["llama"].folder),
        "--threads",
        "1",
        "--square",
        "128",
    ]
    options = mfu.arguments([*arguments, "--steps", "1", "--batch", "2"])
    return {
        case: mfu.measure(options, case)
        for case in ("dpo plain, LoRA", "dpo shared, LoRA", "derta tree, full")
    }


def test_a_shared_prefix_does_the_same_useful_work_with_fewer_flops(
    measured: dict[str, dict[str, Any]],
) -> None:
    plain, shared = measured["dpo plain, LoRA"], measured["dpo shared, LoRA"]
    assert (
        plain["useful_flops"]
        == shared["useful_flops"]
        < shared["executed_flops"]
        < plain["executed_flops"]
    )
    assert shared["tokens_a_forward"] < plain["tokens_a_forward"]


def test_the_time_of_a_step_is_shared_out_among_the_groups(
    measured: dict[str, dict[str, Any]],
) -> None:
    for run in measured.values():
        assert sum(run["groups"].values()) == pytest.approx(run["profiled_seconds"])
        needed = {
            "linear layers",
            "attention",
            "LM head's products",
            "log-softmax and its metrics",
            "optimizer",
        }
        assert all(run["groups"][group] > 0 for group in needed | {step_profile.REST})
    assert measured["dpo shared, LoRA"]["groups"]["adapters' products"] > 0
    assert measured["derta tree, full"]["groups"]["adapters' products"] == 0
    assert len({line.count("|") for line in mfu.speed_table(measured).splitlines()}) == 1


def test_a_product_that_no_linear_layer_makes_is_not_an_adapters() -> None:
    """Such as that of the positions with their frequencies, whatever its sizes are."""

    def group(name: str, *shapes: list[int]) -> str:
        return step_profile.group_of(
            SimpleNamespace(name=name, input_shapes=shapes, cpu_parent=None), 8
        )

    assert group("aten::bmm", [1, 8, 1], [1, 1, 20]) == "norms, rope, activations, sums"
    assert group("aten::mm", [20, 64], [64, 8]) == "adapters' products"
    assert group("aten::addmm", [64], [20, 64], [64, 64]) == "linear layers"


def test_useful_work_of_a_batch_worked_by_hand() -> None:
    """Prompt [1, 2], sides [3, 4] and [5], the shorter one padded: 5 tokens, 3 scored; 1+2+3+4
    looks and 3 more."""
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "completion_mask": torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]]),
    }
    assert step_flops.work_of(batch) == (5, 3, 13)


def test_formula_and_counter_differ_by_what_is_computed_again(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """Two unpadded rows of 9 tokens without a common beginning, all weights trained, and every
    label scored.

    Model: 2 layers of width 64. Executed beyond the useful: the LM head's product once more for 16
    labels, and in attention 7 products (scores thrice) over 9 x 9 pairs in place of 6 over the 45
    that may look.
    """
    style = styles["llama"]
    rows = [
        Row(ids, ids, "sft", str(ids[0])) for ids in (list(range(5, 14)), list(range(105, 114)))
    ]
    config = SFTConfig(
        **{**trainer_settings(tmp_path, 2), "bf16": False, "gradient_checkpointing": False}
    )
    collator = DertaCollator(pad_token_id=0, rto_dropout=0)
    prepared = Prepared(rows_dataset(rows))
    trainer = rows_trainer(
        style.make_model(), prepared, config, style.tokenizer, collator, None, None, ()
    )
    batch = collator([row._asdict() for row in rows])
    executed, width = step_flops.count_flops(trainer, [batch])
    useful = step_flops.useful_flops(trainer, step_flops.work_of(batch), 1)
    head = 2 * len(style.tokenizer) * 64 * 16
    attention = 2 * 2 * 2 * 64 * (7 * 81 - 6 * 45)
    assert width == 18 and sum(executed.values()) - useful == head + attention
