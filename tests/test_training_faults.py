"""A training under faults of its machine: a full disk, a killed data loader, a clock that goes back,
a home and a cache that cannot be written. Real processes on a tiny model; each ends with a sentence,
and the same command goes on to the result of an undisturbed run."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launches
import pytest
import yaml
from machine_faults import disk, grow, shimmed

from overrefusal_po.run.interrupts import step_of

pytestmark = pytest.mark.slow

RECIPE: dict[str, Any] = {
    "task": "train",
    "method": "dpo",
    "model": {
        "dtype": "float32",
        "use_peft": True,
        "lora_r": 4,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
    },
    "data": {"pairs": "starter", "max_pairs": 13, "containment": "none", "allow_no_anchor": True},
    "trainer": {
        "max_steps": 24,
        "max_length": 2048,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "logging_steps": 4,
        "save_steps": 3,
        "save_total_limit": 1,
        "dataloader_num_workers": 1,
    },
}
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


class Ended:
    """A process that has ended: its exit code and what it said on stderr, on one line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        try:
            said = process.communicate(timeout=1800)[1]
        finally:
            process.kill()
        self.code, self.said = process.returncode, " ".join(said.split())


class Trainings:
    """Trainings of one recipe in one folder."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        body = {**RECIPE, "model": {**RECIPE["model"], "model_name_or_path": str(model)}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(body))

    def start(self, run: Path, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "overrefusal_po", "recipe.yaml", f"run_dir={run}"]
        return launches.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def run(self, run: Path, **environment: str) -> Ended:
        return Ended(self.start(run, **environment))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, styles: dict[str, Any]) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("faults"), styles["llama"].folder)


@pytest.fixture(scope="module")
def whole(trainings: Trainings) -> Path:
    """An undisturbed run."""
    ended = trainings.run(trainings.folder / "whole")
    assert ended.code == 0, ended.said
    return trainings.folder / "whole"


def history(run: Path) -> list[dict[str, float]]:
    rows = json.loads((run / "training.json").read_text())["history"]
    return [row for row in rows if "loss" in row]


def assert_equal(run: Path, whole: Path) -> None:
    """Losses and weights of two runs are the same to the last bit."""
    assert len(history(whole)) == 6 and history(run) == history(whole)
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert not [*run.glob(".*.tmp")]


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits for a checkpoint of this step or a later one: old ones are deleted soon."""
    deadline = time.monotonic() + 1800
    while not any(step_of(path.parent) >= step for path in run.glob("checkpoints/*/hashes.json")):
        assert process.poll() is None and time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.005)


def workers(process: int) -> list[int]:
    """The forked children of a process: they have its command line."""
    named = Path(f"/proc/{process}/cmdline").read_bytes()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(c) for c in children if Path(f"/proc/{c}/cmdline").read_bytes() == named]


def test_a_disk_that_fills_while_a_checkpoint_is_written(
    trainings: Trainings, whole: Path, tmp_path: Path
) -> None:
    """There is room for one checkpoint and a half."""
    with disk(tmp_path / "small", "size=460k") as small:
        run = small / "run"
        ended = trainings.run(run)
        assert ended.code == 1 and "Traceback" not in ended.said
        assert "disk is full" in ended.said and "give the same command again" in ended.said
        assert "delete runs that you no longer need" in ended.said
        assert status(run)["state"] == "failed" and status(run)["exit_code"] == 1
        assert len([*run.glob("checkpoints/checkpoint-*")]) == 2
        grow(small, "size=20m")
        ended = trainings.run(run)
        assert ended.code == 0, ended.said
        log = (run / "log").read_text()
        assert "checkpoint-6 is incomplete" in log and "going on from " in log
        assert_equal(run, whole)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_data_loader_ends_the_training_and_the_same_command_goes_on(
    trainings: Trainings, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = trainings.start(run)
    wait_for_step(run, 6, process)
    killed: list[int] = []
    while process.poll() is None:  # a worker that has read its last row may die unnoticed
        process.send_signal(signal.SIGSTOP)
        for worker in workers(process.pid):  # between two epochs there is none
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    ended = Ended(process)
    assert ended.code == 1 and "Traceback" not in ended.said, ended.said
    died = re.search(r"a process that reads rows \((\d+)\) died", ended.said)
    assert died and int(died[1]) in killed, ended.said
    assert "lower trainer.dataloader_num_workers" in ended.said
    assert status(run)["exit_code"] == 1 and "died" in status(run)["message"]
    again = trainings.run(run)
    assert again.code == 0, again.said
    assert_equal(run, whole)


def test_a_clock_that_goes_back_and_a_home_that_cannot_be_written(
    trainings: Trainings, whole: Path, tmp_path: Path
) -> None:
    """The clock jumps twice. A file stands in the place of the home. Locks do not work, as on some
    file servers."""
    (tmp_path / "home").write_text("")
    lost = {"HOME": "home", "XDG_CACHE_HOME": "home/c", "HF_HOME": "home/hf"}
    lost |= {"OVERREFUSAL_PO_CACHE": "home/o"}
    run, clock = tmp_path / "run", tmp_path / "clock"
    environment = shimmed(tmp_path, FAULT_CLOCK=clock, FAULT_FLOCK=errno.ENOLCK)
    environment |= {name: str(tmp_path / value) for name, value in lost.items()}
    process = trainings.start(run, **environment)
    wait_for_step(run, 3, process)
    clock.write_text("-3600")
    wait_for_step(run, 15, process)
    clock.write_text("-7200")
    ended = Ended(process)
    assert ended.code == 0, ended.said
    assert "this file system has no locks" in ended.said
    assert "set OVERREFUSAL_PO_CACHE" in ended.said
    assert_equal(run, whole)
    assert [p.name for p in run.glob("checkpoints/checkpoint-*")] == ["checkpoint-24"]
    last = json.loads((run / "training.json").read_text())["history"][-1]
    assert all(0 < last[key] < 600 for key in TIMES)
    assert 0 < status(run)["seconds"] < 600 and " -" not in ended.said.replace(" - ", "")
