"""kto.py: an order in which KTO's KL term is right, and TRL's trainer on those rows with the start
policy as reference."""

import json
import logging
import os
import random
import socket
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import launches
import pytest
import torch
from conftest import Style, trainer_settings

from overrefusal_po.cli import main
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import Completion, PreferencePair, Prompt, read_jsonl, write_jsonl
from overrefusal_po.run.complete import recipe_sampling
from overrefusal_po.run.folder import Run
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.kto import kto_trainer
from overrefusal_po.train.kto_order import (
    Side,
    compared_with,
    different_sides,
    in_training_order,
    interleaved,
)
from overrefusal_po.train.stage import check_sources, first_data, write_data
from overrefusal_po.train.student import starter_harmful

RECIPE = Path(__file__).parents[1] / "recipes" / "kto.yaml"
settings = partial(trainer_settings, optim="sgd", beta=0.5)


def both_sides(prompt: int, chosen: int = 1, rejected: int = 2) -> tuple[Side, Side]:
    """A pair of one-token sides."""
    return Side((prompt,), (chosen,), True), Side((prompt,), (rejected,), False)


def order_of(pairs: list[tuple[Side, Side]], batch_size: int, seed: int = 0) -> list[Any]:
    sides = in_training_order(different_sides(pairs), batch_size=batch_size, seed=seed)
    return [tuple(side) for side in sides]


def batches(order: list[Any], size: int) -> list[list[Any]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def assert_prompts_differ(order: list[Any], size: int) -> None:
    """And so do those of every response and the prompt that TRL pairs it with."""
    for batch in batches(order, size):
        assert len({prompt for prompt, *_ in batch}) == len(batch) > min(1, size - 1)
        rotated = [batch[-1], *batch[:-1]]
        assert size == 1 or all(
            mine[0] != other[0] for mine, other in zip(batch, rotated, strict=True)
        )


# ---------------------------------------------------------------------------------------- the order


def test_batches_have_both_labels_and_no_prompt_twice() -> None:
    """For every number of pairs and batch size for which there is such an order."""
    for n in range(1, 20):
        for size in range(1, n + 1):
            order = order_of([both_sides(prompt) for prompt in range(n)], size)
            assert len(order) == 2 * n - (2 * n % size == 1 < size)
            assert_prompts_differ(order, size)
            places = {(prompt, label): place for place, (prompt, _, label) in enumerate(order)}
            if len(order) == 2 * n:  # half an epoch between the sides of a prompt
                assert all(abs(places[(p,), True] - places[(p,), False]) >= n - 1 for p in range(n))
            for first in range(
                len(order)
            ):  # so it is for any ranks, accumulated batches and short ends
                desirable = 0
                for last, side in enumerate(order[first:], 1):
                    desirable += side[2]
                    assert abs(2 * desirable - last) <= 1


def test_prompts_of_several_pairs_are_spread_over_batches() -> None:
    draw = random.Random(0)
    for _ in range(150):
        size = draw.randint(2, 6)
        prompts = range(draw.randint(2 * size, 30))
        pairs = [
            both_sides(p, draw.randint(1, 4), draw.randint(5, 8))
            for p in prompts
            for _ in range(draw.randint(1, 3))
        ]
        order = order_of(pairs, size)
        sides = {tuple(side) for pair in pairs for side in pair}
        assert len(order) == len(set(order)) and len(sides) - len(order) == (len(sides) % size == 1)
        assert_prompts_differ(order, size)


def test_labels_of_unequal_number_are_spread_evenly() -> None:
    for some in range(1, 12):
        for others in range(1, 12):
            order = interleaved([True] * some, [False] * others)  # type: ignore[list-item]
            for first in range(len(order)):
                for last in range(first + 1, len(order) + 1):
                    share = (last - first) * some / (some + others)
                    assert abs(sum(map(bool, order[first:last])) - share) < 1


def test_the_order_follows_from_seed_and_content_alone() -> None:
    pairs = [both_sides(p, c, r) for p in range(12) for c, r in ((1, 2), (3, 4))]
    order = order_of(pairs, 4, seed=3)
    assert order_of(random.Random(1).sample(pairs, len(pairs)), 4, seed=3) == order
    assert order_of(pairs, 4, seed=4) != order
    firsts = [order_of(pairs, 4, seed=seed)[0] for seed in range(40)]
    assert len({prompt for prompt, *_ in firsts}) > 6, "the order is not drawn"


def test_a_side_that_stands_in_two_pairs_is_one_row(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [both_sides(1, 1, 2), both_sides(1, 1, 3), both_sides(2), both_sides(3), both_sides(4)]
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        order = order_of(pairs, 3)
    assert Counter(order)[(1,), (1,), True] == 1 and len(order) == 9
    assert "1 of 10 sides stand in another pair too; each is one row" in caplog.text


def test_a_response_that_is_chosen_and_rejected_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Response 2 of the first prompt only: other prompts may have the same words."""
    pairs = [both_sides(1, 1, 2), both_sides(1, 2, 3), both_sides(2, 2, 1), both_sides(3)]
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        order = order_of(pairs, 2)
    assert {side[2] for side in order if side[:2] == ((1,), (2,))} == {True, False}
    assert "1 responses are chosen in one row and rejected in another" in caplog.text


def test_a_row_that_would_be_a_batch_by_itself_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """TRL would pair it with itself."""
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        assert len(order_of([both_sides(p) for p in range(5)], 3)) == 9
    assert "1 of 10 rows would be a batch by itself" in caplog.text


@pytest.mark.parametrize(("prompts", "size"), [([1], 2), ([1, 2], 3), ([1, 1, 1, 2], 2)])
def test_too_few_prompts_for_a_batch_are_an_error(prompts: list[int], size: int) -> None:
    pairs = [both_sides(prompt, 2 * k, 2 * k + 1) for k, prompt in enumerate(prompts)]
    with pytest.raises(
        ValueError,
        match=rf"batches of {size} with different prompts. Lower trainer.per_device_train",
    ):
        order_of(pairs, size)
    assert len(order_of(pairs, 1)) == 2 * len(pairs)  # what a loss without a KL term asks for


@pytest.mark.parametrize("rows", range(1, 12))
def test_a_prompt_is_compared_with_the_response_before_it_in_its_batch(rows: int) -> None:
    """The first of a batch with the last of it, also of a batch that is not full."""
    for size in range(2, 5):
        places = batches(list(range(rows)), size)
        rotated = [at for batch in places for at in (batch[-1], *batch[:-1])]
        assert [compared_with(at, rows, size) for at in range(rows)] == rotated


@pytest.mark.parametrize(("pairs", "size", "world"), [(8, 4, 2), (9, 4, 2), (11, 5, 3), (7, 2, 4)])
def test_every_process_gets_whole_batches(pairs: int, size: int, world: int) -> None:
    """As accelerate deals them; what fills up the last step has met other prompts' responses in its
    own batch."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    order = order_of([both_sides(prompt) for prompt in range(pairs)], size)
    whole = batches(list(range(len(order))), size)
    dealt = [
        list(BatchSamplerShard(BatchSampler(SequentialSampler(order), size, False), world, rank))
        for rank in range(world)
    ]
    assert len({len(of_rank) for of_rank in dealt}) == 1
    steps = [batch for step in zip(*dealt, strict=True) for batch in step]
    full = len(order) // size
    assert steps[:full] == whole[:full]
    assert all(abs(2 * sum(order[i][2] for i in batch) - size) <= 2 for batch in steps)


# ------------------------------------------------------------------------------- what TRL trains on


@pytest.mark.parametrize(
    "options", [{}, {"system_prompt": "Be brief.", "template_kwargs": {"enable_thinking": False}}]
)
def test_tokens_and_masks_are_those_of_dpo(
    style: Style, options: dict[str, Any], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    template = ChatTemplate(style.tokenizer, **options)
    found = []
    for make in (dpo_trainer, kto_trainer):
        trainer = make(style.make_model(), uneven, args=settings(tmp_path, 2), template=template)
        rows = []
        for batch in (trainer.data_collator([row]) for row in trainer.train_dataset):
            labels = batch.get("label", torch.tensor([True, False]))
            for k, label in enumerate(labels.tolist()):
                real = batch["attention_mask"][k].bool()
                rows.append(
                    (
                        *(
                            tuple(batch[n][k][real].tolist())
                            for n in ("input_ids", "completion_mask")
                        ),
                        label,
                    )
                )
        found.append(sorted(rows))
    assert found[0] == found[1]
    assert {row[-1] for row in found[0]} == {True, False}


def log_prob(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """The summed log-probability of `response` behind `prompt`."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


def ktos_loss(
    policy: Any, reference: Any, rows: list[dict[str, Any]], weights: tuple[float, float]
) -> Any:
    """(loss, KL) of a batch by equation 7 with beta 0.5: v = weight * sigmoid(beta (r - z)), or (z
    - r) if undesirable."""

    def ratio(prompt: list[int], response: list[int]) -> torch.Tensor:
        with torch.no_grad():
            before = log_prob(reference, prompt, response)
        return log_prob(policy, prompt, response) - before

    others = [rows[-1], *rows[:-1]]
    kl = torch.stack(
        [ratio(r["prompt_ids"], o["completion_ids"]) for r, o in zip(rows, others, strict=True)]
    ).mean()
    kl = kl.detach().clamp(min=0)
    losses = []
    for row in rows:
        sign, weight = (1, weights[0]) if row["label"] else (-1, weights[1])
        reward = ratio(row["prompt_ids"], row["completion_ids"])
        losses.append(weight * (1 - torch.sigmoid(0.5 * sign * (reward - kl))))
    return torch.stack(losses).mean(), kl.item()


@pytest.mark.parametrize("how", ["full", "lora"])
def test_loss_and_gradient_are_ktos_with_other_prompts_responses(
    how: str, styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    from peft import LoraConfig

    style, weights = styles["llama"], (1.3, 0.8)
    lora = LoraConfig(r=4, target_modules="all-linear") if how == "lora" else None
    trainer = kto_trainer(
        style.make_model(),
        pairs,
        args=settings(tmp_path, 3, desirable_weight=weights[0], undesirable_weight=weights[1]),
        processing_class=style.tokenizer,
        peft_config=lora,
    )
    reference, kls = style.make_model(), []
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    learn = torch.optim.Adam(trained, lr=0.01)
    for row in list(trainer.train_dataset)[
        :6
    ]:  # responses become likelier, whatever the prompt: a KL above 0
        (-log_prob(trainer.model, row["prompt_ids"], row["completion_ids"])).backward()
        learn.step(), learn.zero_grad()
    for rows, batch in zip(
        batches(list(trainer.train_dataset), 3), list(trainer.get_train_dataloader()), strict=True
    ):
        expected, kl = ktos_loss(trainer.model, reference, rows, weights)
        loss = trainer.compute_loss(trainer.model, batch)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        assert trainer._metrics["train"]["kl"][-1] == pytest.approx(kl, abs=1e-4)
        for one, other in zip(
            torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True
        ):
            assert torch.allclose(one, other, atol=1e-5)
        kls.append(kl)
    assert max(kls) > 0.01, "the KL term takes no part"


@pytest.mark.parametrize("case", ["full", "changed", "lora", "peft model", "path"])
def test_the_reference_is_the_start_policy(
    case: str, styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """Rewards and KL are 0 at the first step; `changed`: a policy that is no longer what its folder
    holds."""
    from peft import LoraConfig, get_peft_model

    style = styles["llama"]
    model: Any = str(style.folder) if case == "path" else style.make_model()
    if case == "changed":
        model.config._name_or_path = str(style.folder)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.3)
    if case == "peft model":
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        )
    lora = LoraConfig(r=4, target_modules="all-linear") if case == "lora" else None
    trainer = kto_trainer(
        model, pairs, args=settings(tmp_path, 4), processing_class=style.tokenizer, peft_config=lora
    )
    assert (trainer.ref_model is None) == (case in ("lora", "peft model"))
    trainer.train()
    first, second, *_ = trainer.state.log_history
    for name in ("rewards/chosen", "rewards/rejected", "kl"):
        assert first[name] == pytest.approx(0, abs=1e-5), name
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert second["rewards/chosen"] != 0


def test_another_reference_is_used_where_one_is_given(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    style = styles["llama"]
    args = settings(tmp_path, 4)
    trainer = kto_trainer(
        style.make_model(),
        pairs,
        args=args,
        processing_class=style.tokenizer,
        ref_model=style.make_model(1),
    )
    trainer.train()
    assert abs(trainer.state.log_history[0]["rewards/chosen"]) > 0.01


def test_a_loss_without_a_kl_term_takes_single_rows(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    style = styles["llama"]
    args = settings(tmp_path, 1, loss_type="apo_zero_unpaired")
    trainer = kto_trainer(
        style.make_model(), pairs[:1], args=args, processing_class=style.tokenizer
    )
    assert len(trainer.train_dataset) == 2
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_loss_without_a_kl_term_takes_rows_in_any_order(
    strategy: str, styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """And is trained on the same rows; `group_by_length` begins with the longest."""
    style = styles["llama"]
    more = {
        "train_sampling_strategy": strategy,
        "dataset_num_proc": 2,
        "auto_find_batch_size": True,
    }
    args = settings(tmp_path, 2, loss_type="apo_zero_unpaired", **more)
    trainer = kto_trainer(style.make_model(), uneven, args=args, processing_class=style.tokenizer)
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in trainer.get_train_dataloader()]
    rows = [len(row["prompt_ids"] + row["completion_ids"]) for row in trainer.train_dataset]
    assert sorted(length for batch in lengths for length in batch) == sorted(rows)
    assert strategy == "random" or max(rows) in lengths[0]
    trainer.train()
    assert trainer.state.global_step == 2


def test_only_the_beginnings_are_trained_on_where_that_is_asked_for(
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pairs that begin alike are left out, and with them no batch loses its balance."""
    style, k = styles["qwen"], 4
    alike = PreferencePair(
        id="alike",
        prompt=Prompt.of("How do I stop it?", kind="benign"),
        chosen="Use kill and the number of the process.",
        rejected="Use kill and the number of the lock, that is it.",
        rule="overrefusal",
    )
    make = partial(
        kto_trainer, args=settings(tmp_path, 4), processing_class=style.tokenizer, opening=k
    )
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        trainer = make(style.make_model(), [*pairs, alike])
    assert (
        "1 of 7 pairs begin with the same tokens" in caplog.text
        and len(trainer.train_dataset) == 12
    )
    whole = kto_trainer(
        style.make_model(), pairs, args=settings(tmp_path, 4), processing_class=style.tokenizer
    )
    sides = {(*row["prompt_ids"], 0, *row["completion_ids"][:k]) for row in whole.train_dataset}
    assert {
        (*row["prompt_ids"], 0, *row["completion_ids"]) for row in trainer.train_dataset
    } == sides
    for batch in batches(list(trainer.train_dataset), 4):
        rotated = [batch[-1], *batch[:-1]]
        assert [row["KL_completion_ids"] for row in batch] == [
            row["completion_ids"] for row in rotated
        ]
        assert sum(row["label"] for row in batch) == 2
    with pytest.raises(
        ValueError, match=r"sides of all 1 pairs have the same tokens. Raise data.opening"
    ):
        make(style.make_model(), [alike])


def test_a_pair_over_max_length_stops_and_a_cut_kl_row_is_counted(
    styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All rows fit; a long prompt with the long response to a short one does not."""
    style, long = styles["llama"], "of course " * 20
    texts = [("Go", f"{long}yes", f"{long}no"), (f"Go {long}", "yes", "no")]
    pairs = [
        PreferencePair(id=f"{k}", prompt=Prompt.of(f"{q} {k}", kind="benign"), chosen=c, rejected=r)
        for k, (q, c, r) in enumerate(texts * 2)
    ]
    turns = [
        style.template.turn(p.prompt.messages, text)
        for p in pairs
        for text in (p.chosen, p.rejected)
    ]
    longest = max(len(turn.prompt_ids) + len(turn.response_ids) for turn in turns)
    make = partial(kto_trainer, style.make_model(), pairs, processing_class=style.tokenizer)
    with pytest.raises(ValueError, match=rf"more than max_length {longest - 1}"):
        make(args=settings(tmp_path, 4, max_length=longest - 1))
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        rows = list(make(args=settings(tmp_path, 4, max_length=longest)).train_dataset)
    cut = sum(len(row["prompt_ids"] + row["KL_completion_ids"]) > longest for row in rows)
    assert cut and f"{cut} of 8 prompts with another one's response are cut" in caplog.text


# -------------------------------------------------------------------------------------------------
# settings and recipes

REFUSED = [
    ({"per_device_train_batch_size": 1}, "per_device_train_batch_size is 1.*Give at least 2"),
    (
        {"precompute_ref_log_probs": True},
        "precompute_ref_log_probs is true.*does not test for KTO.*Take it out",
    ),
    ({"train_sampling_strategy": "random"}, "Leave trainer.train_sampling_strategy at sequential"),
    ({"dataset_num_proc": 2}, "trainer.dataset_num_proc at null"),
    ({"auto_find_batch_size": True}, "auto_find_batch_size is true.*Take it out"),
]


@pytest.mark.parametrize(("more", "match"), REFUSED)
def test_settings_that_break_the_pairing_are_refused_before_weights_are_loaded(
    more: dict[str, Any], match: str, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        kto_trainer("there is no such model", pairs, args=trainer_settings(tmp_path, 2, **more))
    [(key, value)] = more.items()
    with pytest.raises(ValueError, match=match):
        load_recipe(RECIPE, [f"--trainer.{key}={value}"])


def test_the_recipe_may_leave_the_batch_size_open() -> None:
    body = {"task": "train", "method": "kto", "model": {"model_name_or_path": "x"}}
    assert isinstance(check_body(body, "here"), TrainRecipe)


@pytest.mark.slow
def test_the_recipe_trains_and_knows_what_it_takes(
    styles: dict[str, Style],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`speed` is on by default, and does not come in the way."""
    monkeypatch.chdir(tmp_path)
    short = [
        "--trainer.max_steps=2",
        "--trainer.max_length=2048",
        "--trainer.logging_steps=1",
        "run_dir=here",
    ]
    short += ["--data.max_pairs=8", "--data.containment=none", "--data.allow_no_anchor=true"]
    arguments = [str(RECIPE), f"--model.model_name_or_path={styles['llama'].folder}", *short]
    for words in (["check", *arguments, "--data"], arguments):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert not end.value.code, capsys.readouterr().err
    assert "longest row" in capsys.readouterr().out
    history = json.loads(Path("here/training.json").read_text())["history"]
    assert history[0]["rewards/margins"] == 0 and history[0]["kl"] == 0 and history[1]["step"] == 2
    assert Path("here/model/config.json").is_file() and Path("here/adapter").is_dir()


@pytest.mark.slow
def test_batches_are_checked_once_all_pairs_are_there(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """Batches of five: three prompts are too few, and three more of containment are enough, if the
    student complies."""
    style = styles["llama"]

    def recipe(containment: str) -> TrainRecipe:
        values: dict[str, Any] = {
            "task": "train",
            "method": "kto",
            "model": {"model_name_or_path": str(style.folder), "dtype": "float32"},
            "data": {"max_pairs": 3, "containment": containment, "allow_no_anchor": True},
            "trainer": {
                "use_cpu": True,
                "per_device_train_batch_size": 5,
                "max_length": 2048,
                "bf16": False,
            },
        }
        checked = check_body(values, "here")
        assert isinstance(checked, TrainRecipe)
        return checked

    def made(name: str, text: str) -> Path:
        """data.jsonl of a run whose student has said `text` to everything."""
        body = recipe("student")
        with Run.open(tmp_path / name, {}, {}) as run:
            said = {
                "text": text,
                "model": "m",
                "engine": "e",
                "sampling": recipe_sampling(body.generation, body.seed),
            }
            drawn = [Completion(id="", prompt_id=p.id, **said) for p in starter_harmful()]
            answers = [c.model_copy(update={"id": c.content_id}) for c in drawn]
            write_jsonl(run.path / "student_harmful.jsonl", answers)
            write_data(body, run, style.template, first_data(body, run, style.template))
        return tmp_path / name / "data.jsonl"

    with pytest.raises(ValueError, match="do not go into batches of 5 with different prompts"):
        check_sources(recipe("none"), style.template)
    assert "pairs, longest row" in check_sources(recipe("student"), style.template).line
    rules = [
        pair.rule
        for pair in read_jsonl(made("complies", "Open the door first, then go in."), PreferencePair)
    ]
    assert Counter(rules) == {"overrefusal": 3, "containment": 3}
    with pytest.raises(ValueError, match="do not go into batches of 5 with different prompts"):
        made("refuses", "Sorry, I can't help with that.")
    assert not (tmp_path / "refuses" / "data.jsonl").exists()


# ------------------------------------------------------------------------------------ two processes

# imports once, then is two processes: one world over gloo, each of which writes down what it saw
# and ended with
WORLD = """
import json, os, sys
from pathlib import Path
import torch, transformers.trainer, trl.trainer.kto_trainer
from overrefusal_po import kto_trainer
from overrefusal_po.model import load as models
from overrefusal_po.records import PreferencePair, read_jsonl


def rank(number, folder, pairs):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
    models.check_world(use_cpu=True)
    options = {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1}
    options |= {"output_dir": "out", "report_to": "none", "use_cpu": True}
    trainer = kto_trainer(folder, read_jsonl(pairs, PreferencePair), args=options)
    collate, seen = trainer.data_collator, []

    def spy(rows):
        names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
        seen.append([[row[name] for name in names] for row in rows])
        return collate(rows)

    trainer.data_collator = spy
    trainer.train()
    after = [p.detach().double().sum().item() for p in trainer.model.parameters()]
    found = {"seen": seen, "after": after, "history": trainer.state.log_history}
    Path(f"rank-{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.multiprocessing.start_processes(rank, tuple(sys.argv[1:]), nprocs=2, start_method="fork")
"""


@pytest.mark.slow
def test_two_processes_share_the_order_and_one_kl_term(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    (tmp_path / "world.py").write_text(WORLD)
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    command = [sys.executable, "world.py", str(styles["llama"].folder), "pairs.jsonl"]
    done = launches.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, **world},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert one["after"] == two["after"]
    seen = [batch for step in zip(one["seen"], two["seen"], strict=True) for batch in step]
    args = settings(tmp_path, 2)
    alone = kto_trainer(
        styles["llama"].make_model(), pairs, args=args, processing_class=styles["llama"].tokenizer
    )
    names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    assert [row for batch in seen for row in batch] == [
        [row[n] for n in names] for row in alone.train_dataset
    ]
    for first, second in seen:
        assert first[0] != second[0] and first[1] == second[2] and second[1] == first[2]
        assert {first[3], second[3]} == {True, False}
    rewards = [row["rewards/chosen"] for row in one["history"] if "loss" in row]
    assert rewards[0] == pytest.approx(0, abs=1e-6) and rewards[1] != 0


def test_one_row_alone_is_an_error(styles: dict[str, Style], tmp_path: Path) -> None:
    """TRL ended with a StopIteration: the only row had been left out of its batch."""
    row = {"prompt": "How?", "completion": "So.", "label": True}
    args = trainer_settings(tmp_path, 2)
    with pytest.raises(ValueError, match=r"one row to learn.*at least two different rows"):
        kto_trainer(str(styles["qwen"].folder), [row] * 4, args=args)
