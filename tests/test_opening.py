"""opening.py: DPO and ORPO on the first tokens of both sides are DPO and ORPO on those tokens, and
on no others."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings
from factories import row_lengths
from torch.nn.functional import logsigmoid

from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import PreferencePair, Prompt, write_jsonl
from overrefusal_po.train.cpo import cpo_trainer
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.lengths import fit
from overrefusal_po.train.opening import cut_sides, without_equal
from overrefusal_po.train.orpo import orpo_trainer
from overrefusal_po.train.rows import pair_table

settings = partial(trainer_settings, beta=0.5)
K = 4


def log_prob(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """The summed log-probability of `response` behind `prompt`."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_the_loss_is_dpos_on_the_first_tokens_of_each_side(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    shared_prefix: bool,
    stored: bool,
) -> None:
    style = styles["llama"]
    reference, policy = style.make_model(), style.make_model()
    store = tmp_path / "store" if stored else None
    trainer = dpo_trainer(
        policy,
        uneven,
        args=settings(tmp_path, batch=4),
        processing_class=style.tokenizer,
        opening=K,
        shared_prefix=shared_prefix,
        reference_store=store,
    )
    if stored:
        batches = list(
            trainer.get_train_dataloader()
        )  # the reference is the policy as it was given
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(1.3)
    batch = batches[0] if stored else next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    losses = []
    for pair in uneven:
        sides = []
        for text in (pair.chosen, pair.rejected):
            prompt, response, *_ = style.template.turn(pair.prompt.messages, text)
            after, before = (log_prob(m, prompt, response[:K]) for m in (trainer.model, reference))
            sides.append(after - before)
        losses.append(-logsigmoid(0.5 * (sides[0] - sides[1])))
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-4)


def test_a_long_side_has_no_end_and_a_short_one_keeps_it(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    style = styles["qwen"]
    trainer = orpo_trainer(
        style.make_model(),
        uneven,
        args=trainer_settings(tmp_path, 4),
        processing_class=style.tokenizer,
        opening=6,
    )
    for pair, row in zip(uneven, trainer.train_dataset, strict=True):
        for text, found in ((pair.chosen, row["chosen_ids"]), (pair.rejected, row["rejected_ids"])):
            whole = style.template.turn(pair.prompt.messages, text).response_ids
            assert (
                found[: len(whole)] == whole[:6]
            )  # TRL has the template's line break behind the end of a turn
            assert (whole[-1] in found) == (len(whole) <= 6)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))


def test_both_sides_are_cut_and_the_prompt_is_not(
    style: Style, uneven: list[PreferencePair]
) -> None:
    whole = pair_table(uneven, style.template)
    assert cut_sides(whole, None) is whole
    cut = cut_sides(whole, K)
    assert cut["prompt_ids"].to_pylist() == whole["prompt_ids"].to_pylist()
    for name in ("chosen_ids", "rejected_ids"):
        assert cut[name].to_pylist() == [ids[:K] for ids in whole[name].to_pylist()]
    assert pair_table(uneven, style.template, K).equals(cut)


def test_places_of_pairs_whose_cut_sides_differ_are_those_of_the_table(
    style: Style, uneven: list[PreferencePair]
) -> None:
    equal = uneven[1].model_copy(update={"rejected": f"{uneven[1].chosen} So it is."})
    table = pair_table([uneven[0], equal, uneven[3]], style.template, K)
    kept, places = without_equal(table, K)
    assert places == [0, 2] and kept.to_pylist() == [table.to_pylist()[at] for at in places]


@pytest.mark.parametrize("make", [dpo_trainer, orpo_trainer, cpo_trainer])
def test_a_side_longer_than_max_length_is_taken_where_its_opening_fits(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path, make: Any
) -> None:
    style = styles["llama"]
    prompts = [
        len(style.template.turn(pair.prompt.messages, pair.chosen).prompt_ids) for pair in uneven
    ]
    limit = max(prompts) + K
    assert row_lengths(uneven, style.template, K) == [prompt + K for prompt in prompts]
    with pytest.raises(ValueError, match="more than max_length"):
        fit(uneven[2:3], row_lengths(uneven[2:3], style.template), max_length=limit)
    args = trainer_settings(tmp_path, 4, max_length=limit)
    trainer = make(
        style.make_model(), uneven, args=args, processing_class=style.tokenizer, opening=K
    )
    assert {len(row["rejected_ids"]) for row in trainer.train_dataset} == {K}
    with pytest.raises(ValueError, match="more than max_length"):
        make(
            style.make_model(),
            uneven,
            args={**args, "max_length": limit - 1},
            processing_class=style.tokenizer,
            opening=K,
        )


ALIKE = PreferencePair(
    id="alike",
    prompt=Prompt.of("How do I kill a process?", kind="benign"),
    chosen="Use kill and the number of the process.",
    rejected="Use kill and the number of the lock, that is it.",
    rule="overrefusal",
)


def over_refusals() -> list[PreferencePair]:
    """Five pairs without a fault; the sides of the last begin alike."""
    answers = [f"Boil the {n} eggs for nine minutes, and cool them in water." for n in range(4)]
    sides = [(answer, f"I can't help you with egg {n}.") for n, answer in enumerate(answers)]
    sides += [(f"Sorry for the long wait. {answers[0]}", "Sorry for the long wait, I can't help.")]
    return [
        PreferencePair(
            id=f"eggs{n}",
            prompt=Prompt.of(f"How do I beat {n} eggs?", kind="benign"),
            chosen=chosen,
            rejected=rejected,
            rule="overrefusal",
        )
        for n, (chosen, rejected) in enumerate(sides)
    ]


@pytest.mark.parametrize(("method", "opening"), [("dpo", K), ("kto", K), ("dpo", None)])
def test_the_run_folder_and_the_card_count_pairs_that_begin_alike(
    styles: dict[str, Style], tmp_path: Path, method: str, opening: int | None
) -> None:
    path, run = write_jsonl(tmp_path / "pairs.jsonl", over_refusals()), tmp_path / "run"
    trainer = {**trainer_settings(tmp_path, 2), "max_steps": 1}
    del trainer["output_dir"]
    values = {
        "task": "train",
        "method": method,
        "model": {"model_name_or_path": str(styles["llama"].folder), "dtype": "float32"},
        "data": {"pairs": str(path), "opening": opening, "allow_no_anchor": True},
        "trainer": trainer,
    }
    run_stage(check_body(values, "here"), "r", run)
    summary = json.loads((run / "training.json").read_text())["summary"]
    file, words = run / "equal_openings.json", "pairs left out, whose sides begin with equal tokens"
    assert (words in (run / "README.md").read_text()) is (opening is not None)
    assert summary.get("equal_openings") == (None if opening is None else "1 of 5")
    left_out = {"left_out": 1, "of": 5, "opening": K, "ids": ["eggs4"]}
    assert file.is_file() is (opening is not None)
    assert opening is None or json.loads(file.read_text()) == left_out


def test_pairs_that_begin_alike_are_left_out_and_counted(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    style = styles["llama"]
    make = partial(
        dpo_trainer, args=settings(tmp_path, 2), processing_class=style.tokenizer, opening=K
    )
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        trainer = make(style.make_model(), [*uneven, ALIKE])
    assert len(trainer.train_dataset) == 4 and (
        "1 of 5 pairs begin with the same tokens on both sides and are left out" in caplog.text
    )
    with pytest.raises(
        ValueError, match=r"all 1 pairs begin with the same 4 tokens\. Raise data\.opening"
    ):
        make(style.make_model(), [ALIKE])
