"""reference_store.py: log-probs of a reference are computed once, are TRL's own, and are never
those of another one."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, two_processes, write_rank_script

from overrefusal_po.exact.reference_store import (
    Parts,
    digest,
    policy_key,
    read_rows,
    row_key,
    weights_digest,
    write_parts,
)
from overrefusal_po.records import PreferencePair, write_jsonl
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.trl_private import attention_of

pytestmark = pytest.mark.slow

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **more,
    }


@pytest.fixture
def make(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> Callable[..., Any]:
    """`make(**what)`: a trainer with the store `tmp_path/store`; `seed`, `rank`, `rows` and trainer
    keys may be given."""
    from peft import LoraConfig

    def made(
        *,
        seed: int = 0,
        rank: int | None = None,
        rows: Any = None,
        store: bool = True,
        model: Any = None,
        **args: Any,
    ) -> Any:
        style = styles["llama"]
        return dpo_trainer(
            style.make_model(seed) if model is None else model,
            pairs if rows is None else rows,
            args=settings(tmp_path, **args),
            processing_class=style.tokenizer,
            peft_config=LoraConfig(r=rank, target_modules=["q_proj", "v_proj"]) if rank else None,
            reference_store=tmp_path / "store" if store else None,
        )

    return made


@pytest.fixture
def computed(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """`computed()`: how many pairs the reference has been run over since the last call, as the log
    says."""
    caplog.set_level(logging.INFO, logger="overrefusal_po.exact.reference_store")

    def count() -> int:
        lines = [r.args for r in caplog.records if "to compute" in r.msg]
        caplog.clear()
        return sum(int(args[2]) for args in lines if isinstance(args, tuple))  # type: ignore[call-overload]

    return count


def logps(trainer: Any) -> torch.Tensor:
    """(pairs, 2) of the columns."""
    return torch.tensor([trainer.train_dataset[name] for name in COLUMNS]).T


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("max_length", [None, 512])
@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@pytest.mark.parametrize("rank", [None, 4])
def test_values_are_those_of_trl(
    make: Callable[..., Any],
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    rank: int | None,
    ld_alpha: float | None,
    max_length: int | None,
) -> None:
    """TRL's own pass over the same batches, from the model as it was before the first step."""
    how = {"rank": rank, "ld_alpha": ld_alpha, "max_length": max_length, "rows": uneven}
    trainer = make(**how)
    assert trainer.ref_model is None
    plain = make(**how, store=False)
    rows = [plain.train_dataset[i] for i in range(len(plain.train_dataset))]
    expected = torch.stack(
        plain.compute_ref_log_probs(plain.ref_model or plain.model, plain.data_collator(rows)),
        dim=1,
    )
    assert torch.allclose(logps(trainer), expected, atol=1e-4)
    assert trainer.ld_alpha == ld_alpha


def test_the_loss_of_every_step_is_that_of_a_live_reference(make: Callable[..., Any]) -> None:
    stored, live = (
        make(logging_steps=1, learning_rate=1e-2),
        make(store=False, logging_steps=1, learning_rate=1e-2),
    )
    stored.train(), live.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (stored, live)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][0] != losses[0][1]


def test_a_training_draws_the_same_numbers_whether_the_store_was_full(
    make: Callable[..., Any], computed: Callable[[], int]
) -> None:
    """So its dropout, its order, and the state in its checkpoints are the same."""
    drawn = []
    for number in (6, 0):
        make(rank=4)
        assert computed() == number
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_an_evaluation_set_is_looked_up_too(
    make: Callable[..., Any], computed: Callable[[], int]
) -> None:
    trainer = make(rank=4)
    assert computed() == 6
    plain = make(rank=4, store=False)
    found = trainer.evaluate(plain.train_dataset)["eval_loss"]
    assert computed() == 0
    assert found == pytest.approx(plain.evaluate(plain.train_dataset)["eval_loss"], abs=1e-4)


def test_parts_are_weighed_by_ld_alpha() -> None:
    parts = Parts(-1.0, -2.0, -4.0, 0.0)
    assert parts.sums(None) == (-3.0, -4.0)
    assert parts.sums(0.5) == (-2.0, -4.0)


# --------------------------------------------------------------------------------------------- hits


def test_a_sweep_runs_the_reference_once(
    make: Callable[..., Any], computed: Callable[[], int]
) -> None:
    """Another learning rate, beta, loss, LD weight, rank, seed, batch size or max_length is no
    other reference."""
    first = logps(make(rank=4))
    assert computed() == 6
    sweep: list[dict[str, Any]] = [
        {"rank": 4, "learning_rate": 1e-3, "beta": 0.5},
        {"rank": 8, "loss_type": "ipo"},
        {"rank": 4, "ld_alpha": 0.5},
        {"rank": 4, "seed": 0, "max_length": 200, "per_device_train_batch_size": 1},
        {"rank": None},
    ]
    for trial in sweep:
        trainer = make(**trial)
        assert computed() == 0, trial
        if "ld_alpha" not in trial:
            assert torch.equal(logps(trainer), first)


def test_only_new_pairs_are_computed(
    make: Callable[..., Any], pairs: list[PreferencePair], computed: Callable[[], int]
) -> None:
    make(rows=pairs[:4])
    assert computed() == 4
    trainer = make(rows=[*pairs[3:], pairs[0]])
    assert computed() == 2
    whole = logps(make(store=True))
    assert torch.equal(logps(trainer), torch.cat([whole[3:], whole[:1]]))


# ------------------------------------------------------------------------------------- no stale hit


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda m: m.lm_head.weight.data[0, 0].add_(1e-3), 6),
        (lambda m: m.to(torch.bfloat16), 6),
        (lambda m: m.config.rope_parameters.update(rope_theta=5000.0), 6),
        (lambda m: setattr(m.config, "_attn_implementation", "eager"), 6),
        (lambda m: m, 0),
    ],
    ids=["one weight", "dtype", "rope", "attention", "nothing"],
)
def test_another_reference_is_never_a_hit(
    make: Callable[..., Any],
    styles: dict[str, Style],
    computed: Callable[[], int],
    change: Any,
    number: int,
) -> None:
    make()
    computed()
    model = styles["llama"].make_model()
    change(model)
    make(model=model)
    assert computed() == number


def test_an_adapter_that_is_part_of_the_reference_counts(
    make: Callable[..., Any], styles: dict[str, Style], computed: Callable[[], int]
) -> None:
    """A trained adapter goes on: TRL's copy of it is the reference, and neither the base's nor
    another's values fit."""
    from peft import LoraConfig, get_peft_model

    def adapted(seed: int, scale: int = 8) -> Any:
        model = styles["llama"].make_model()
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2, lora_alpha=scale, target_modules=["q_proj"], init_lora_weights=False
        )
        return get_peft_model(model, config)

    base = logps(make())
    assert computed() == 6
    first = logps(make(model=adapted(1)))
    assert computed() == 6
    assert not torch.allclose(first, base, atol=1e-3)
    make(model=adapted(1))
    assert computed() == 0
    make(model=adapted(2))
    assert computed() == 6
    make(model=adapted(1, scale=16))  # the same weights, scaled otherwise
    assert computed() == 6


def test_another_row_or_mask_is_never_a_hit() -> None:
    ids, seen = torch.tensor([[1, 2, 3], [1, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    scored = torch.tensor([[0, 1, 1], [0, 1, 0]])
    key = row_key({"input_ids": ids, "attention_mask": seen, "completion_mask": scored})
    padded = {
        "input_ids": torch.cat([ids, torch.full((2, 2), 9)], 1),
        "attention_mask": torch.nn.functional.pad(seen, (0, 2)),
        "completion_mask": torch.nn.functional.pad(scored, (0, 2)),
    }
    assert row_key(padded) == key
    others = [
        {"input_ids": ids + 1, "attention_mask": seen, "completion_mask": scored},
        {
            "input_ids": ids,
            "attention_mask": seen,
            "completion_mask": torch.tensor([[0, 0, 1], [0, 1, 0]]),
        },
        {
            "input_ids": ids.flip(0),
            "attention_mask": seen.flip(0),
            "completion_mask": scored.flip(0),
        },
    ]
    assert len({key, *(row_key(other) for other in others)}) == 4


def test_a_trained_adapter_leaves_the_key_and_trained_weights_change_it(
    make: Callable[..., Any],
) -> None:
    def key(trainer: Any) -> str:
        return policy_key(trainer, attention_of(trainer.model))

    lora, full = make(rank=4, learning_rate=1e-2), make(learning_rate=1e-2)
    keys = [key(lora), key(full)]
    assert keys[0] == keys[1]
    lora.train(), full.train()
    assert key(lora) == keys[0]
    assert key(full) != keys[1]


def test_sharded_weights_are_digested_where_they_lie(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """FSDP2 leaves DTensors; ZeRO-3 leaves an empty tensor with the shard beside it, a flat one that
    is padded with numbers of no meaning."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    model, other = styles["llama"].make_model(), styles["llama"].make_model(seed=1)
    expected = weights_digest(model, None)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    try:
        assert weights_digest(fully_shard(model), None) == expected
        assert weights_digest(fully_shard(other), None) != expected
        partitioned = []
        for seed, padding in ((0, 1.0), (0, 2.0), (1, 1.0)):
            whole = styles["llama"].make_model(seed)
            for weight in whole.parameters():
                weight.ds_numel = weight.numel()
                weight.ds_tensor = torch.cat([weight.data.flatten(), torch.full((3,), padding)])
                weight.data = torch.empty(0)
            partitioned.append(weights_digest(whole, None))
    finally:
        dist.destroy_process_group()
    assert partitioned[0] == partitioned[1] != partitioned[2]


# -------------------------------------------------------------------------------------------- files


def test_files_are_whole_and_broken_ones_are_computed_again(
    make: Callable[..., Any],
    computed: Callable[[], int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make()
    computed()
    (file,) = tmp_path.glob("store/*/*.json")
    file.write_text(file.read_text()[:50])
    make()
    assert "left out" in caplog.text
    assert computed() == 6
    make()
    assert computed() == 0
    assert [path.name for path in tmp_path.glob("store/*/*")] == [file.name]


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    value = torch.tensor(-123.456789).item()
    write_parts(tmp_path, {"a": Parts(value, 0.0, -1.0, 0.0), "b": Parts(0.0, 0.0, 0.0, 0.0)})
    assert read_rows(tmp_path, {"a", "c"}, Parts) == {"a": Parts(value, 0.0, -1.0, 0.0)}
    (file,) = tmp_path.glob("*.json")
    assert set(json.loads(file.read_text())) == {"a", "b"}


def test_a_digest_does_not_depend_on_the_order_of_a_set() -> None:
    assert digest({"b": {"v", "q"}, "a": 1}) == digest({"a": 1, "b": {"q", "v"}})


def test_log_probs_that_are_not_finite_are_refused(
    make: Callable[..., Any], styles: dict[str, Style]
) -> None:
    model = styles["llama"].make_model()
    model.lm_head.weight.data.fill_(float("nan"))
    model.config._attn_implementation = "eager"  # plain rows, whose first batch is not compared
    with pytest.raises(ValueError, match="not finite"):
        make(model=model)


# ------------------------------------------------------------------------------------ two processes

RANK = """
import json, logging, os, sys
from overrefusal_po import dpo_trainer
from overrefusal_po.model import load as models
from overrefusal_po.records import PreferencePair, read_jsonl

folder, pairs = sys.argv[1:]
rank, lines, found = os.environ["RANK"], [], []


class Spy(logging.Handler):
    def emit(self, record):
        lines.append(record.args)


logger = logging.getLogger("overrefusal_po.exact.reference_store")
logger.setLevel(logging.INFO)
logger.addHandler(Spy())
models.check_world(use_cpu=True)
options = {"per_device_train_batch_size": 2, "max_steps": 1, "output_dir": "out", "report_to": "none"}
for _ in range(2):
    rows = read_jsonl(pairs, PreferencePair)
    args = {**options, "save_strategy": "no"}
    trainer = dpo_trainer(folder, rows, args=args, reference_store=f"store-{rank}")
    found.append([list(trainer.train_dataset[f"ref_{side}_logps"]) for side in ("chosen", "rejected")])
trainer.train()
loss = trainer.state.log_history[-1]["train_loss"]
with open(f"rank-{rank}.json", "w") as file:
    json.dump({"found": found, "computed": [args[2] for args in lines], "loss": loss}, file)
"""


@pytest.mark.slow
def test_two_processes_share_the_work_and_agree(
    make: Callable[..., Any], styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """Five pairs over two processes, so that the last batch is uneven; only the first process's
    folder is used."""
    write_rank_script(tmp_path, RANK)
    write_jsonl(tmp_path / "pairs.jsonl", pairs[:5])
    two_processes(tmp_path, "rank.py", str(styles["llama"].folder), "pairs.jsonl")
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert {**first, "loss": 0} == {**second, "loss": 0}
    assert first["computed"] == [5, 0]
    alone = make(rows=pairs[:5])
    assert torch.tensor(first["found"]) == pytest.approx(logps(alone).T.expand(2, 2, 5), abs=1e-4)
    assert not (tmp_path / "store-1").exists()
