"""derta.py: TRL's SFTTrainer with DeRTa's loss, its rows unchanged and its dropout redrawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from factories import two_steps, weights

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import Prompt, Triple
from overrefusal_po.train.derta import derta_trainer
from overrefusal_po.train.derta_rows import derta_rows, refusal_token, triple_sides


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return two_steps(tmp_path)


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
        # a line end behind the end of turn is no place to refuse at
        harmful = harmful[: harmful.index(template.end_of_turn_id) + 1]
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
    rows = derta_rows(triples, triple_sides(triples, style.template), sorry, seed=3)
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
    sides, token = triple_sides(triples, qwen.template), refusal_token(qwen.template)
    rows = derta_rows(triples, sides, token, seed=42, prefix_unit="tokens")
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


def test_rto_dropout_is_redrawn_in_workers_that_were_to_stay(
    styles: dict[str, Style],
    triples: list[Triple],
    settings: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker has a copy of the collator, from when it began."""
    qwen, seen = styles["qwen"], tmp_path / "epochs.txt"
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = derta_trainer(
        qwen.make_model(),
        triples,
        args={**settings, **workers, "max_steps": -1, "num_train_epochs": 2},
        processing_class=qwen.tokenizer,
    )
    collate = trainer.data_collator

    def watched(rows: Any) -> Any:
        with seen.open("a") as file:
            file.write(f"{collate.epoch}\n")
        return collate(rows)

    trainer.data_collator = watched
    trainer.train()
    assert seen.read_text().split() == ["0"] * 6 + ["1"] * 6
    assert "dataloader_persistent_workers is not used" in caplog.text


@pytest.mark.slow
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
