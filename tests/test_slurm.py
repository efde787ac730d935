"""recipes/slurm/ on a real Slurm: a training that is preempted ends equal to an undisturbed one, and
an array's parts, merged, to one process.

The cluster has two nodes, both on this machine. Where Slurm is not installed, the tests are skipped
and say so; `make test-slurm` installs nothing, and fails there.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from local_slurm import Cluster, cluster, missing
from safetensors.torch import load_file

from overrefusal_po.records import Triple, write_jsonl

pytestmark = pytest.mark.slurm
SLURM = Path(__file__).parents[1] / "recipes" / "slurm"
LAUNCH = 'launch: str = __name__ == "__main__" and __import__("overrefusal_po").launch(__file__); r"""'
STEPS = 60
TRAINING = {
    "task": "train",
    "method": "derta",
    "data": {"triples": "triples.jsonl", "max_helpful": 3, "rto_dropout": 0.5},
    "trainer": {
        "use_cpu": True,
        "max_steps": STEPS,
        "max_length": 2048,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 10,
        "save_steps": 5,
    },
}
# a launcher whose child is a training: it listens one second after it began, and saves for one
ACCELERATE = """#!/bin/bash
python3 -c '
import pathlib, signal, sys, time
def stop(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1); print("saved", flush=True); sys.exit(130)
time.sleep(1)
signal.signal(signal.SIGUSR1, stop); signal.signal(signal.SIGTERM, stop)
print("listens", flush=True)
while not pathlib.Path("finish").exists():
    time.sleep(0.1)
print("finished", flush=True)
' || exit 1
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A cluster for all tests of this file."""
    why = missing()
    if why and os.environ.get("SLURM_TESTS") != "required":
        pytest.skip(why)
    assert not why, why
    with cluster(nodes=2) as found:
        bin_folder = Path(sys.executable).parent
        found.environment["PATH"] = f"{bin_folder}:{found.environment['PATH']}"
        found.environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        yield found


@pytest.fixture
def stand_in(slurm: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder in whose jobs `accelerate` is the script above."""
    (tmp_path / "accelerate").write_text(ACCELERATE)
    (tmp_path / "accelerate").chmod(0o755)
    before = slurm.environment["PATH"]
    slurm.environment["PATH"] = f"{tmp_path}:{before}"
    yield tmp_path
    slurm.environment["PATH"] = before


TWO_NODES = ["--nodes=2", "--gpus-per-node=1"]


def training(slurm: Cluster, folder: Path, *arguments: str, options: list[str]) -> str:
    """The number of a job with train.sbatch."""
    return slurm.submit(
        SLURM / "train.sbatch", *arguments, options=["--output=job.log", *options], cwd=folder
    )


def wait_for(ready: Callable[[], bool], *, seconds: float = 600.0) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def words(folder: Path, name: str = "job.log") -> str:
    """The log of a job; empty before it began."""
    file = folder / name
    return file.read_text() if file.is_file() else ""


# the batch script, with a training that only waits


def test_a_preempted_job_saves_is_queued_again_and_ends(slurm: Cluster, stand_in: Path) -> None:
    """The signal comes to the two nodes, and not to the batch script."""
    job = training(slurm, stand_in, "recipe.yaml", options=TWO_NODES)
    wait_for(lambda: words(stand_in).count("listens") == 2)
    urgent = slurm.submit(
        Path(__file__).with_name("slurm_short.sbatch"),
        options=["--partition=urgent", *TWO_NODES, "--output=urgent.log"],
        cwd=stand_in,
    )
    assert slurm.wait(urgent, "COMPLETED")["Restarts"] == "0"
    assert words(stand_in).count("saved") == 2
    wait_for(lambda: words(stand_in).count("listens") == 4)
    (stand_in / "finish").touch()
    assert slurm.wait(job, "COMPLETED")["Restarts"] == "1"
    assert words(stand_in).count("finished") == 2


def test_a_training_that_does_not_listen_yet_is_told_again(slurm: Cluster, stand_in: Path) -> None:
    """`--signal=B:USR1@300`, before the training's handlers are there."""
    job = training(slurm, stand_in, "recipe.yaml", options=["--nodes=1", "--gpus-per-node=2"])
    slurm.wait(job, "RUNNING")
    time.sleep(0.5)
    slurm.said("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: words(stand_in).count("saved") == 1)
    wait_for(lambda: slurm.job(job)["Restarts"] == "1")
    (stand_in / "finish").touch()
    slurm.wait(job, "COMPLETED")


def test_a_cancelled_job_and_a_failed_one_are_not_queued_again(
    slurm: Cluster, stand_in: Path
) -> None:
    job = training(slurm, stand_in, "recipe.yaml", options=TWO_NODES)
    wait_for(lambda: words(stand_in).count("listens") == 2)
    slurm.said("scancel", job)
    assert slurm.wait(job, "CANCELLED")["Restarts"] == "0"
    (stand_in / "accelerate").write_text("#!/bin/bash\nexit 1\n")
    failed = training(slurm, stand_in, "recipe.yaml", options=TWO_NODES)
    assert slurm.wait(failed, "FAILED")["Restarts"] == "0"
    time.sleep(2)
    assert slurm.job(job)["JobState"] == "CANCELLED"
