"""FSDP2 for real: two processes over gloo hold half of the weights each, and train what one process
trains.

accelerate shards on GPUs only. That one condition of it is lifted here; what then shards, trains,
writes sharded checkpoints, goes on from them and gathers is accelerate's, transformers' and torch's
own code.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style
from safetensors.torch import load_file
from test_distributed import TORCHRUN, start

from overrefusal_po.model import load as models
from overrefusal_po.records import PreferencePair, Triple, write_jsonl
from overrefusal_po.train.derta import derta_trainer
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.orpo import orpo_trainer

RECIPES = Path(__file__).parents[1] / "recipes"
METHODS: dict[str, Callable[..., Any]] = {
    "dpo": dpo_trainer,
    "orpo": orpo_trainer,
    "derta": derta_trainer,
}
SETTINGS = {
    "max_steps": 2,
    "learning_rate": 0.1,
    "optim": "sgd",  # whose steps are as close as the gradients are
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "max_length": 256,
}

# one rank of two: trains by each method, goes on from the first checkpoint, and saves the gathered
# weights
RANK = """
import json, os, sys
from pathlib import Path
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

made = AcceleratorState.__init__


def with_fsdp_on_cpus(self, *args, **kwargs):
    made(self, *args, **kwargs)
    self.distributed_type = DistributedType.FSDP
    self.fsdp_plugin = FullyShardedDataParallelPlugin(**json.loads(sys.argv[2]))
    AcceleratorState._shared_state.update(self.__dict__)


AcceleratorState.__init__ = with_fsdp_on_cpus

from transformers import TrainerCallback
from overrefusal_po.model import load as models
import overrefusal_po
from overrefusal_po.records import PreferencePair, Triple, read_jsonl

held = []


class Spy(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        weights = list(model.parameters())
        held.append([sum(w.to_local().numel() for w in weights), sum(w.numel() for w in weights)])


folder, _, settings = sys.argv[1:]
settings, found = json.loads(settings), {}
models.check_world(use_cpu=True)
for method in ("dpo", "orpo", "derta"):
    rows = read_jsonl(*(("triples.jsonl", Triple) if method == "derta" else ("pairs.jsonl", PreferencePair)))
    extra = {"rto_dropout": 0} if method == "derta" else {}
    for checkpoint in (None, f"{method}/checkpoint-1"):
        args = {**settings, "output_dir": method, "per_device_train_batch_size": 1}
        trainer = getattr(overrefusal_po, f"{method}_trainer")(folder, rows, args=args, callbacks=[Spy()], **extra)
        trainer.train(resume_from_checkpoint=checkpoint)
        name = f"{method}-{'resumed' if checkpoint else 'whole'}"
        found[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        weights = models.gathered_weights(trainer)
        if trainer.accelerator.is_main_process:
            model = trainer.accelerator.unwrap_model(trainer.model)
            models.save_merged(model, trainer.processing_class, Path(name), weights)
Path(f"rank-{os.environ['RANK']}.json").write_text(json.dumps({"held": held, "losses": found}))
"""


def plugin_options() -> dict[str, Any]:
    """recipes/accelerate/fsdp2.yaml as accelerate's plugin takes it."""
    config = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    options = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    options["cpu_offload"], options["fsdp_version"] = (
        options.pop("offload_params"),
        options.pop("version"),
    )
    return options


def alone(
    method: str, folder: Path, rows: list[Any], out: Path
) -> tuple[list[float], dict[str, Any]]:
    """(losses, weights) of one process on the same batches."""
    extra: dict[str, Any] = {"rto_dropout": 0} if method == "derta" else {}
    args = {**SETTINGS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    args |= {"output_dir": str(out), "save_strategy": "no"}
    trainer = METHODS[method](str(folder), rows, args=args, **extra)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, {name: weight.detach() for name, weight in trainer.model.named_parameters()}


@pytest.mark.slow
def test_sharded_training_is_what_one_process_trains(
    styles: dict[str, Style], pairs: list[PreferencePair], triples: list[Triple], tmp_path: Path
) -> None:
    """Losses, the weights after two steps, and a run that goes on from a sharded checkpoint; with
    recipes' own settings."""
    folder = styles["llama"].folder
    (tmp_path / "rank.py").write_text(RANK)
    rows: dict[str, list[Any]] = {"dpo": pairs[:4], "orpo": pairs[:4], "derta": triples[:2]}
    write_jsonl(tmp_path / "pairs.jsonl", rows["dpo"])
    write_jsonl(tmp_path / "triples.jsonl", rows["derta"])
    command = [
        *TORCHRUN,
        "rank.py",
        str(folder),
        json.dumps(plugin_options()),
        json.dumps(SETTINGS),
    ]
    done = start(command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for one, two in zip(ranks[0]["held"], ranks[1]["held"], strict=True):
        assert one[0] + two[0] == one[1] == two[1] and 0.4 < one[0] / one[1] < 0.6, "not sharded"
    assert (tmp_path / "dpo" / "checkpoint-1" / "pytorch_model_fsdp_0").is_dir()
    for method, data in rows.items():
        losses, weights = alone(method, folder, data, tmp_path / "alone")
        whole, resumed = (ranks[0]["losses"][f"{method}-{how}"] for how in ("whole", "resumed"))
        assert whole == pytest.approx(losses, abs=1e-5) and losses[0] != pytest.approx(
            losses[1], abs=1e-3
        )
        assert resumed == pytest.approx(whole, abs=1e-6)
        for name in ("whole", "resumed"):
            saved = load_file(tmp_path / f"{method}-{name}" / "model.safetensors")
            assert saved.keys() == weights.keys()
            assert all(torch.allclose(saved[key], weights[key], atol=1e-5) for key in weights)


def test_fsdp_on_cpus_is_refused_since_accelerate_would_replicate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP, which accelerate does on GPUs only"):
        models.check_world(use_cpu=True)


def test_the_accelerate_config_is_one_that_accelerate_knows() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "accelerate" / "fsdp2.yaml"))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2


# stand-ins for slurm's commands and for accelerate, whose child is the training; test_slurm.py runs
# the script on a real Slurm. The training is Python, which may handle a signal that bash was told to
# ignore.
TRAINING = """
import os, pathlib, signal, sys, time
def stop(*_):
    with open("log", "a") as log: log.write("saved\\n")
    sys.exit(130)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path("started").touch()
while os.environ.get("FOREVER"):
    time.sleep(0.05)
"""
STANDS = {
    "scontrol": 'if [ "$1" = requeue ]; then echo "requeued $2" >> log; else printf "node-1\\nnode-2\\n"; fi',
    "srun": 'echo $$ > step.pid; shift 2; export SLURM_NODEID=1; exec "$@"',
    "scancel": '[ "$*" = "--signal=USR1 7.0" ] && kill -USR1 "$(cat step.pid)"',
    "squeue": "echo RUNNING",
    "accelerate": f"printf '%s\\n' \"$@\" > arguments\n{sys.executable} -c '{TRAINING}'\necho \"ended $?\" >> log\nexit 1",
}


def slurm(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The batch script, started as slurm does on the first of two nodes."""
    for name, body in STANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        **environment,
    }
    path = f"{folder}:{os.environ['PATH']}"
    command = [
        "bash",
        str(RECIPES / "slurm" / "train.sbatch"),
        "recipes/x.yaml",
        "--data.sets=[a, b]",
    ]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **job, "PATH": path}, start_new_session=True
    )


def test_slurm_starts_each_node_in_one_world_with_the_arguments_as_they_are(tmp_path: Path) -> None:
    slurm(tmp_path, GPUS_PER_NODE="4").wait(timeout=60)
    given = (tmp_path / "arguments").read_text().splitlines()
    assert given[0] == "launch" and given[-2:] == ["recipes/x.yaml", "--data.sets=[a, b]"]
    options = dict(zip(given[1:-2:2], given[2:-2:2], strict=True))
    assert (
        options["--num_processes"] == "8"
        and options["--num_machines"] == "2"
        and options["--machine_rank"] == "1"
    )
    assert (
        options["--main_process_ip"] == "node-1"
        and options["--config_file"] == "recipes/accelerate/fsdp2.yaml"
    )


def test_slurm_lets_the_trainings_save_and_queues_the_job_again(tmp_path: Path) -> None:
    job = slurm(tmp_path, FOREVER="1")
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 130
    assert (tmp_path / "log").read_text().splitlines() == ["saved", "ended 130", "requeued 7"]
