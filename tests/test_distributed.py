"""Launchers, for real: two processes are one world, and a setup in which they would not be one is
refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launches
import pytest
from conftest import write_rank_script

from overrefusal_po.model.whole import write_hashes
from overrefusal_po.records import PreferencePair, write_jsonl

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FEW = ["--trainer.max_steps=2", "--trainer.max_length=2048", "--data.max_pairs=4"]
FEW += ["--data.containment=none", "--data.allow_no_anchor=true"]

# one rank of two: trains on pairs and writes down what it was, what it saw and what it ended with
RANK = """
import hashlib, json, os, sys
from pathlib import Path
from transformers import TrainerCallback
from overrefusal_po import dpo_trainer
from overrefusal_po.model import load as models
from overrefusal_po.model import whole
from overrefusal_po.records import PreferencePair, read_jsonl
from overrefusal_po.train.resume import resumable

folder, pairs = sys.argv[1:]
models.check_world(use_cpu=True)
seen, worlds, hashed, digest = [], [], [], whole.file_sha256


class Spy(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        worlds.append(args.world_size)


options = {"per_device_train_batch_size": 1, "max_steps": 3, "learning_rate": 1e-2, "output_dir": "out"}
trainer = dpo_trainer(
    folder, read_jsonl(pairs, PreferencePair), args={**options, "report_to": "none"}, callbacks=[Spy()]
)
collate = trainer.data_collator


def spy(rows):
    seen.extend(trainer.processing_class.decode(row["prompt_ids"]) for row in rows)
    return collate(rows)


def hash_spy(path):
    hashed.append(path.name)
    return digest(path)


def weights():
    bits = b"".join(p.detach().float().numpy().tobytes() for p in trainer.model.parameters())
    return hashlib.sha256(bits).hexdigest()


trainer.data_collator = spy
whole.file_sha256 = hash_spy
before = weights()
with resumable(trainer):
    trainer.train()
after = weights()
found = {"worlds": worlds, "processes": trainer.accelerator.num_processes, "seen": seen, "hashed": hashed}
Path(f"rank-{os.environ['RANK']}.json").write_text(json.dumps({**found, "before": before, "after": after}))
"""


Run = Callable[..., subprocess.CompletedProcess[str]]


def start(
    command: list[str], folder: Path, by: Run = launches.run, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in `folder` to its end."""
    proxies = {k for k in os.environ if "proxy" in k.lower()}
    kept = {k: v for k, v in os.environ.items() if k not in proxies}
    return by(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**kept, **environment},
        check=False,
    )


def tiny(styles: dict[str, Any]) -> str:
    """The override that names the tiny model."""
    return f"--model.model_name_or_path={styles['llama'].folder}"


def test_two_processes_train_as_one_world(
    styles: dict[str, Any], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    write_rank_script(tmp_path, RANK)
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    done = start([*TORCHRUN, "rank.py", str(styles["llama"].folder), "pairs.jsonl"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert one["processes"] == two["processes"] == 2 and one["worlds"] == two["worlds"] == [2, 2, 2]
    assert len(one["seen"]) == len(two["seen"]) == 3
    assert len({*one["seen"], *two["seen"]}) == len(pairs), "the two ranks saw the same rows"
    assert one["before"] == two["before"] != one["after"] == two["after"]
    noted = json.loads((tmp_path / "out" / "checkpoint-3" / "hashes.json").read_text())["sha256"]
    assert sorted(one["hashed"] + two["hashed"]) == sorted(noted), "each file is hashed once"
    assert "rng_state_0.pth" in one["hashed"] and "rng_state_1.pth" in two["hashed"]


def test_a_recipe_runs_under_torchrun(styles: dict[str, Any], tmp_path: Path) -> None:
    recipe = ["-m", "overrefusal_po", str(RECIPES / "dpo.yaml")]
    done = start(
        [*TORCHRUN, *recipe, tiny(styles), *FEW, "--trainer.per_device_train_batch_size=2"],
        tmp_path,
        subprocess.run,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [folder] = (tmp_path / "runs").iterdir()
    training = json.loads((folder / "training.json").read_text())
    # four pairs, two a step on each rank: a pass takes one step where two ranks share it, and two
    # where each trains alone
    assert [row["epoch"] for row in training["history"] if "train_loss" in row] == [2.0]
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert done.stdout.count("steps: 2") == 1, "both ranks printed"
    noted = folder / "checkpoints" / "checkpoint-2" / "hashes.json"
    by_both = noted.read_text()
    write_hashes(noted.parent, noted)
    assert by_both == noted.read_text(), "one process hashes the checkpoint otherwise"


def test_processes_that_would_train_unconnected_are_refused(
    styles: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a GPU use_cpu=false is right")
    command = [sys.executable, "-m", "overrefusal_po", str(RECIPES / "dpo.yaml"), tiny(styles)]
    done = start([*command, "--trainer.use_cpu=false"], tmp_path, WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "2 processes were launched" in done.stderr and "trainer.use_cpu=true" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_stray_world_size_is_refused_with_what_to_do(
    styles: dict[str, Any], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "overrefusal_po", str(RECIPES / "dpo.yaml"), tiny(styles)]
    done = start([*command, "--trainer.use_cpu"], tmp_path, WORLD_SIZE="2")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "WORLD_SIZE=2" in done.stderr and "unset WORLD_SIZE" in done.stderr


def test_accelerate_launches_a_recipe_as_it_is_written(
    styles: dict[str, Any], tmp_path: Path
) -> None:
    accelerate = Path(sys.executable).with_name("accelerate")
    done = start(
        [str(accelerate), "launch", str(RECIPES / "dpo.yaml"), tiny(styles), *FEW, "run_dir=here"],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "steps: 2" in done.stdout and (tmp_path / "here" / "model").is_dir()
