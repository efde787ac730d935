"""derta_tree.py: one row a question has the loss and gradients of the padded rows, in fewer
tokens."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings

from overrefusal_po.records import Prompt, Triple
from overrefusal_po.train.derta import derta_trainer
from overrefusal_po.train.derta_rows import DertaCollator, Row
from overrefusal_po.train.derta_tree import TreeCollator, trees

settings = partial(trainer_settings, batch=4, learning_rate=0.1, optim="sgd", max_length=256)


def made(
    style: Style, triples: list[Triple], helpful: list[Prompt], folder: Path, how: str, **more: Any
) -> Any:
    """A DeRTa trainer of a fresh policy; "lora" has an adapter that is no identity."""
    from peft import LoraConfig, get_peft_model

    options = {name: more.pop(name) for name in ("tree", "rto_dropout", "rows") if name in more}
    model: Any = style.make_model()
    if how == "lora":
        torch.manual_seed(2)
        dropout = more.pop("lora_dropout", 0.0)
        config = LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout
        )
        model = get_peft_model(model, config)
    args = settings(folder, **more)
    return derta_trainer(
        model, triples, args=args, processing_class=style.tokenizer, helpful=helpful, **options
    )


def gradient(trainer: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(
        trainer.model, dict(batch), num_items_in_batch=(batch["labels"] != -100).sum()
    )
    loss.backward()
    return loss.item(), torch.cat(
        [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize(("name", "dropout"), [("llama", 0.0), ("mistral", 0.5)])
def test_loss_and_gradient_are_those_of_padded_rows(
    styles: dict[str, Style],
    triples: list[Triple],
    helpful: list[Prompt],
    tmp_path: Path,
    how: str,
    name: str,
    dropout: float,
) -> None:
    """Batches of one tree, of two-branched ones, and of a mix with helpful rows of one branch."""
    tree = made(styles[name], triples, helpful, tmp_path, how, tree=True, rto_dropout=dropout)
    flat = made(styles[name], triples, helpful, tmp_path, how, rto_dropout=dropout)
    assert tree.data_collator.paired
    examples = list(tree.train_dataset)
    assert len(examples) == 10 and len(flat.train_dataset) == 16
    for some in (examples[:1], examples[:4], examples[4:]):
        rows = [row for example in some for row in example["branches"]]
        found, expected = (
            gradient(tree, tree.data_collator(some)),
            gradient(flat, flat.data_collator(rows)),
        )
        assert found[0] == pytest.approx(expected[0], abs=1e-5)
        assert expected[1].abs().max() > 0
        assert torch.allclose(found[1], expected[1], atol=1e-5)


@pytest.mark.parametrize(
    "rows", [("safe", "safe"), ("prefix", "prefix"), ("safe", "rto"), ("safe", "prefix")]
)
def test_any_two_rows_of_a_question_are_a_tree(
    styles: dict[str, Style],
    triples: list[Triple],
    helpful: list[Prompt],
    tmp_path: Path,
    rows: tuple[Any, Any],
) -> None:
    """The rows of the ablation: losses and gradients are those of padded rows."""
    options: dict[str, Any] = {"rows": rows, "rto_dropout": 0.5}
    tree = made(styles["llama"], triples, helpful, tmp_path, "full", tree=True, **options)
    flat = made(styles["llama"], triples, helpful, tmp_path, "full", **options)
    examples = list(tree.train_dataset)
    assert [len(example["branches"]) for example in examples] == [2] * 6 + [1] * 4
    for some in (examples[:1], examples[4:]):
        plain = [row for example in some for row in example["branches"]]
        found = gradient(tree, tree.data_collator(some))
        expected = gradient(flat, flat.data_collator(plain))
        assert found[0] == pytest.approx(expected[0], abs=1e-5)
        assert torch.allclose(found[1], expected[1], atol=1e-5)
    assert tree.model._shares_prefix


def test_a_tree_trains(
    styles: dict[str, Style], triples: list[Triple], helpful: list[Prompt], tmp_path: Path
) -> None:
    trainer = made(styles["llama"], triples, helpful, tmp_path, "full", tree=True)
    trainer.train()
    assert trainer.model._shares_prefix
    assert all(log["loss"] > 0 for log in trainer.state.log_history if "loss" in log)


def test_without_a_shared_prefix_the_rows_are_plain(
    styles: dict[str, Style], triples: list[Triple], helpful: list[Prompt], tmp_path: Path
) -> None:
    """LoRA dropout, which DeRTa's LoRA recipe has, is drawn anew in each row."""
    tree = made(styles["llama"], triples, helpful, tmp_path, "lora", tree=True, lora_dropout=0.05)
    assert not tree.data_collator.paired
    batch = tree.data_collator(list(tree.train_dataset)[-5:])
    assert len(batch["input_ids"]) == 6  # one question with two rows, four helpful ones
    tree.train()


def test_rows_of_one_question_become_one_example() -> None:
    rows = [
        Row([1, 2], [-100, 9], "rto", "a"),
        Row([1, 3], [-100, 3], "prefix", "a"),
        Row([1, 4], [-100, 9], "rto", "b"),
        Row([5, 6], [-100, 6], "sft", "c"),
        Row([7, 8], [-100, 8], "prefix", "d"),
    ]
    assert [[b["row_id"] + b["kind"] for b in t["branches"]] for t in trees(rows)] == [
        ["arto", "aprefix"],
        ["brto"],
        ["csft"],
        ["dprefix"],
    ]


def test_the_batch_is_first_branches_then_second_ones() -> None:
    rows = [Row([1, 2, 3], [-100, 9, 9], "rto", "a"), Row([1, 4], [-100, 4], "prefix", "a")]
    examples = trees([*rows, Row([5, 6], [-100, 6], "sft", "b")])
    batch = TreeCollator(pad_token_id=0, rto_dropout=0)(examples)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 6, 0], [1, 4, 0], [5, 0, 0]]
    assert batch["labels"].tolist() == [
        [-100, 9, 9],
        [-100, 6, -100],
        [-100, 4, -100],
        [-100, -100, -100],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    flat = DertaCollator(pad_token_id=0, rto_dropout=0)
    assert flat([rows[0]._asdict()])["labels"].tolist() == [[-100, 9, 9]]
