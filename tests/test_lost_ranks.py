"""lost_ranks.py, for real: one of two processes is killed or stopped, and the other one ends with a
sentence and exit code 1."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import launches
import pytest
from conftest import Style
from test_distributed import FEW, RECIPES, tiny

from overrefusal_po.run.unscored import RunFailed
from overrefusal_po.train.lost_ranks import lost_ranks_named

SECONDS = 30
"""`trainer.ddp_timeout` of the test: how long a rank waits for the other one."""


def launch(folder: Path, name: str) -> list[subprocess.Popen[str]]:
    """Two ranks of a training."""
    steps = ["--trainer.max_steps=100000", "--trainer.save_strategy=no", "run_dir=here"]
    recipe = [sys.executable, "-m", "overrefusal_po", str(RECIPES / "dpo.yaml"), name]
    command = [*recipe, *FEW[1:], *steps, f"--trainer.ddp_timeout={SECONDS}"]
    return together([*command, "--trainer.use_cpu=true"], folder)


def together(command: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Two ranks without a launcher, which would end the other one by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return [
        launches.Popen(
            command,
            cwd=folder,
            env={**kept, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]


def ended(ranks: list[subprocess.Popen[str]]) -> None:
    """Kills what still runs."""
    for rank in ranks:
        rank.kill()
        rank.wait()


@contextmanager
def left_alone(folder: Path, name: str, fault: signal.Signals) -> Iterator[subprocess.Popen[str]]:
    """The first rank of a training in `folder`, after the second one got a signal amid its steps."""
    folder.mkdir()
    first, second = launch(folder, name)
    try:
        deadline = time.monotonic() + 240
        while not (folder / "here" / "processes.json").exists():
            assert first.poll() is None and time.monotonic() < deadline, "no training began"
            time.sleep(0.2)
        time.sleep(5)
        second.send_signal(fault)
        yield first
    finally:
        ended([first, second])


@pytest.mark.slow
def test_the_other_rank_ends_and_says_why(styles: dict[str, Style], tmp_path: Path) -> None:
    """While one waits for a rank that was stopped, a rank of a second training is killed."""
    name, stopped, killed = tiny(styles), tmp_path / "stopped", tmp_path / "killed"
    with (
        left_alone(stopped, name, signal.SIGSTOP) as waiting,
        left_alone(killed, name, signal.SIGKILL) as other,
    ):
        for folder, first in ((killed, other), (stopped, waiting)):
            # the time that a rank waits, and some for a busy machine to leave Python
            _, said = first.communicate(timeout=SECONDS + 90)
            assert first.returncode == 1, said[-2000:]
            sentence = (
                "overrefusal-po: another process of this training has ended, or did not answer"
            )
            assert sentence in said
            assert f"within {SECONDS} seconds (trainer.ddp_timeout)" in said
            noted = json.loads((folder / "here" / "status.json").read_text())
            words = "RunFailed: another process of this training has ended"
            assert noted["message"].startswith(words)


HANGING = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
import torch
from accelerate import Accelerator
from transformers import TrainingArguments
from overrefusal_po.model.load import check_world
from overrefusal_po.train.lost_ranks import lost_ranks_named
from overrefusal_po.train.resume import received_anywhere

seconds = int(sys.argv[1])
check_world(use_cpu=True, timeout_seconds=seconds)
args = TrainingArguments(ddp_timeout=seconds, use_cpu=True)
trainer = SimpleNamespace(accelerator=Accelerator(cpu=True), args=args)
if sys.argv[2] == "ours":  # explicit, whatever torch's own is by now
    torch.distributed.distributed_c10d.default_pg_timeout = torch.distributed.constants.default_pg_timeout
    wait = received_anywhere(trainer, [], lambda: False)
else:  # as DeepSpeed makes its own
    group = torch.distributed.new_group(ranks=range(2))
    wait = lambda: torch.distributed.all_reduce(torch.zeros(1), group=group)
wait()  # together
if os.environ["RANK"] == "1":
    time.sleep(600)
begun = time.monotonic()
try:
    with lost_ranks_named(processes=2, seconds=seconds):
        wait()
finally:
    Path("waited").write_text(str(time.monotonic() - begun))
"""


@pytest.mark.slow
@pytest.mark.parametrize("group", ["ours", "a library's"])
def test_no_group_of_processes_waits_longer_than_ddp_timeout(group: str, tmp_path: Path) -> None:
    """The group in which signals are told, and one that a library makes without a timeout."""
    (tmp_path / "rank.py").write_text(HANGING)
    command = [sys.executable, "rank.py", "5", group]
    first, second = together(command, tmp_path)
    try:
        _, said = first.communicate(timeout=120)
    finally:
        ended([first, second])
    assert first.returncode == 1, said[-2000:]
    assert 4 < float((tmp_path / "waited").read_text()) < 60
    assert "did not answer within 5 seconds (trainer.ddp_timeout)" in said
    assert "set a longer trainer.ddp_timeout" in said


def test_other_faults_keep_their_words() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer")
    with (
        pytest.raises(RunFailed, match=r"within 1800 seconds.*\(torch: \[gloo.*by peer\)"),
        lost_ranks_named(processes=2, seconds=1800),
    ):
        raise lost
    with (
        pytest.raises(RuntimeError, match="Connection reset"),
        lost_ranks_named(processes=1, seconds=1),
    ):
        raise lost
    shared = "NCCL error: invalid usage. Duplicate GPU detected : rank 1 and rank 0 both on device"
    for words in ("The size of tensor a must match", shared):
        with (
            pytest.raises(RuntimeError, match=words[:15]),
            lost_ranks_named(processes=2, seconds=1),
        ):
            raise RuntimeError(words)
