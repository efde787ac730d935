"""A batch computed in passes of so many tokens: the same update, and never more tokens at once."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings, write_rank_script
from test_distributed import start

from overrefusal_po import cpo_trainer, dpo_trainer, orpo_trainer
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import PreferencePair, write_jsonl
from overrefusal_po.train.passes import cut, filled, pair_tokens
from overrefusal_po.train.stage import checked_settings
from overrefusal_po.train.windows import check_passes

RECIPES = Path(__file__).parents[1] / "recipes"

TWO_TERMS = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}
CASES = {
    "dpo": (dpo_trainer, TWO_TERMS),
    "orpo": (orpo_trainer, {}),
    "cpo": (cpo_trainer, {}),
}


class Trained:
    """One step of plain SGD: what it changed, what it logged, and the tokens of each pass."""

    def __init__(
        self,
        make: Any,
        style: Style,
        pairs: list[PreferencePair],
        folder: Path,
        *,
        settings: dict[str, Any],
        **own: Any,
    ) -> None:
        given = trainer_settings(folder, len(pairs)) | {"max_steps": 1, "optim": "sgd"} | settings
        given |= {"train_sampling_strategy": "sequential", "learning_rate": 1.0, "max_grad_norm": 0}
        model = style.make_model()
        before = torch.cat([w.detach().flatten().clone() for w in model.parameters()])
        trainer = make(model, pairs, args=given, processing_class=style.tokenizer, **own)
        self.tokens: list[int] = []
        model.base_model.register_forward_pre_hook(self.count, with_kwargs=True)
        trainer.train()
        self.change = torch.cat([w.detach().flatten() for w in model.parameters()]) - before
        self.log = next(row for row in trainer.state.log_history if "loss" in row)

    def count(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if module.training:
            self.tokens.append(kwargs["input_ids"].numel())


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_an_update_in_passes_is_that_of_the_whole_batch(
    case: str,
    shared: bool,
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
) -> None:
    make, settings = CASES[case]
    own = {"settings": settings, "shared_prefix": shared}
    whole = Trained(make, styles["llama"], uneven, tmp_path, **own)
    most = max(whole.tokens) // 2
    parts = Trained(make, styles["llama"], uneven, tmp_path, pass_tokens=most, **own)
    assert (whole.change - parts.change).norm() / whole.change.norm() < 1e-5
    assert len(whole.tokens) < len(parts.tokens) and max(parts.tokens) <= most
    of_tokens = {"entropy", "mean_token_accuracy", "nll_loss", "logits/chosen", "logits/rejected"}
    for name in whole.log.keys() - of_tokens:
        assert parts.log[name] == pytest.approx(whole.log[name], rel=2e-4, abs=2e-4), name


def test_weights_of_pairs_are_kept_in_passes(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """Pairs on harmful and harmless prompts weigh differently, in each pass as in the batch."""
    kinds = ("benign", "harmful", "benign", "harmful")
    pairs = [
        pair.model_copy(update={"prompt": pair.prompt.model_copy(update={"kind": kind})})
        for pair, kind in zip(uneven, kinds, strict=True)
    ]
    own = {"settings": {}, "weights": "boundary", "reference_store": tmp_path / "store"}
    whole = Trained(dpo_trainer, styles["llama"], pairs, tmp_path, **own)
    plain = Trained(dpo_trainer, styles["llama"], pairs, tmp_path, settings={})
    parts = Trained(dpo_trainer, styles["llama"], pairs, tmp_path, pass_tokens=100, **own)
    assert len(parts.tokens) > len(whole.tokens) and max(parts.tokens) <= 100
    assert (whole.change - parts.change).norm() / whole.change.norm() < 1e-5
    assert (whole.change - plain.change).norm() / whole.change.norm() > 1e-3


def test_a_limit_above_the_batch_changes_nothing(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    whole = Trained(dpo_trainer, styles["llama"], uneven, tmp_path, settings={})
    wide = Trained(dpo_trainer, styles["llama"], uneven, tmp_path, settings={}, pass_tokens=10**6)
    assert wide.tokens == whole.tokens and torch.equal(wide.change, whole.change)


def test_a_pair_above_the_limit_is_a_pass_of_its_own(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    whole = Trained(dpo_trainer, styles["llama"], uneven, tmp_path, settings={})
    alone = Trained(dpo_trainer, styles["llama"], uneven, tmp_path, settings={}, pass_tokens=1)
    assert sorted(alone.tokens)[-4:] == sorted(alone.tokens[-4:]) and len(alone.tokens) >= 4
    assert (whole.change - alone.change).norm() / whole.change.norm() < 1e-5


RANK = """
import json, os, sys
from pathlib import Path
import torch
from overrefusal_po import dpo_trainer
from overrefusal_po.model import load as models
from overrefusal_po.records import PreferencePair, read_jsonl

folder, pairs, most, batch = sys.argv[1:]
models.check_world(use_cpu=True)
options = {"per_device_train_batch_size": int(batch), "max_steps": 1, "learning_rate": 1.0}
options |= {"optim": "sgd", "max_grad_norm": 0, "output_dir": "out", "report_to": "none"}
options |= {"train_sampling_strategy": "sequential", "max_length": 512}
trainer = dpo_trainer(
    folder, read_jsonl(pairs, PreferencePair), args=options, pass_tokens=int(most) or None
)
passes = []
trainer.model.base_model.register_forward_pre_hook(
    lambda module, args, kwargs: passes.append(module.training), with_kwargs=True
)
before = torch.cat([w.detach().flatten().clone() for w in trainer.model.parameters()])
trainer.train()
change = torch.cat([w.detach().flatten() for w in trainer.model.parameters()]) - before
rank = os.environ["RANK"]
torch.save(change, f"change-{most}-{rank}.pt")
Path(f"passes-{most}-{rank}.json").write_text(json.dumps(sum(passes)))
"""


@pytest.mark.slow
def test_processes_compute_as_many_passes_each(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """Two processes of three pairs: those of one are long, those of the other are short."""
    write_rank_script(tmp_path, RANK)
    long, short = uneven[2], uneven[1]
    order = [long, short, uneven[3], short, uneven[0], short]
    pairs = [pair.model_copy(update={"id": str(at)}) for at, pair in enumerate(order)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for most in ("0", "90"):
        command = [*launch, "rank.py", str(styles["llama"].folder), "pairs.jsonl", most, "3"]
        done = start(command, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    whole, parts = (torch.load(tmp_path / f"change-{most}-0.pt") for most in ("0", "90"))
    assert torch.equal(parts, torch.load(tmp_path / "change-90-1.pt"))
    assert (whole - parts).norm() / whole.norm() < 1e-5
    number = [json.loads((tmp_path / f"passes-90-{rank}.json").read_text()) for rank in (0, 1)]
    assert number[0] == number[1] > 1


def test_losses_that_sort_a_batch_are_refused(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="pass_tokens: loss_type aot compares the pairs"):
        dpo_trainer(
            styles["llama"].make_model(),
            uneven,
            args=trainer_settings(tmp_path, 2, loss_type=["aot"]),
            processing_class=styles["llama"].tokenizer,
            pass_tokens=100,
        )


@pytest.mark.parametrize(
    ("settings", "tokens", "words"),
    [
        ({}, 0, "pass_tokens is 0; allowed is 1 or more"),
        ({"loss_type": "aot_unpaired"}, 9, "aot_unpaired compares the pairs"),
        ({"deepspeed": {"zero_optimization": {}}}, 9, "DeepSpeed counts each backward pass"),
    ],
)
def test_what_cannot_be_computed_in_passes_is_said(
    settings: dict[str, Any], tokens: int, words: str
) -> None:
    check_passes(settings, None)
    with pytest.raises(ValueError, match=words):
        check_passes(settings, tokens)


def test_a_recipe_with_passes_is_checked_before_weights(tmp_path: Path) -> None:
    given = ["--speed.pass_tokens=100", "--trainer.loss_type=[aot]", "--trainer.loss_weights=null"]
    body = load_recipe(RECIPES / "dpo.yaml", given).body
    assert isinstance(body, TrainRecipe) and body.speed.pass_tokens == 100
    with pytest.raises(ValueError, match="pass_tokens: loss_type aot compares"):
        checked_settings(body)


def batch_of(lengths: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    """A right-padded batch of pairs: tokens of the common beginning, and of both sides behind."""
    rows = [[7] * c + [8] * a for c, a, _ in lengths] + [[7] * c + [9] * b for c, _, b in lengths]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    names = torch.arange(len(lengths), dtype=torch.float32)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "ref_chosen_logps": names}


@pytest.mark.parametrize("seed", range(60))
def test_passes_hold_every_pair_once_and_no_more_than_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [
        (rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 9)) for _ in range(rng.randint(1, 9))
    ]
    most, shared = rng.randint(1, 60), rng.random() < 0.5
    batch = batch_of(lengths)
    passes = cut(batch, most, shared=shared)
    held = torch.cat([part["ref_chosen_logps"] for part in passes])
    assert sorted(held.tolist()) == batch["ref_chosen_logps"].tolist()
    for part in passes:
        pairs, lone = len(part["ref_chosen_logps"]), part["ref_chosen_logps"].long()
        ids = part["input_ids"]
        rows = batch["input_ids"][torch.cat([lone, lone + len(lengths)])]
        assert torch.equal(ids, rows[:, : ids.shape[1]]) and not rows[:, ids.shape[1] :].any()
        tokens = sum(pair_tokens(part, shared=True)) if shared else ids.numel()
        assert pairs == 1 or tokens <= most


@pytest.mark.parametrize("seed", range(60))
def test_batches_of_several_processes_are_cut_alike(seed: int) -> None:
    """As many passes, with as many pairs each, and none is over the limit: TRL gathers a number of
    each pair, and gathers of other lengths end in an error or in noise."""
    rng = random.Random(seed)
    size, most, shared = rng.randint(1, 9), rng.randint(1, 60), rng.random() < 0.5
    batches = [
        batch_of([(rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 9)) for _ in range(size)])
        for _ in range(3)
    ]
    own = [sorted(pair_tokens(batch, shared=shared)) for batch in batches]
    tokens = [max(column) for column in zip(*own, strict=True)]
    found = [cut(batch, most, shared=shared, tokens=tokens) for batch in batches]
    sizes = [[len(part["ref_chosen_logps"]) for part in passes] for passes in found]
    assert sizes[0] == sizes[1] == sizes[2] and sum(sizes[0]) == size
    for part in (part for passes in found for part in passes):
        ids = part["input_ids"]
        used = sum(pair_tokens(part, shared=True)) if shared else ids.numel()
        assert len(ids) == 2 or used <= most


def test_passes_are_filled_before_a_new_one_begins() -> None:
    assert filled([1] * 7, 3, padded=False) == [[0, 1, 2], [3, 4, 5], [6]]
    assert filled([4, 2, 2, 2], 6, padded=True) == [[1, 2, 3], [0]]
