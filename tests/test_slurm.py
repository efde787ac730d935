"""recipes/slurm/ on a real Slurm: a training that is preempted ends equal to an undisturbed one, and
an array's parts, merged, to one process.

The cluster has two nodes, both on this machine. Where Slurm is not installed, the tests are skipped
and say so; `make test-slurm` fails there. SLURM_TEST_LOGS may name a folder for the jobs' logs.
"""

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style
from local_slurm import Cluster, cluster, missing
from openai_server import Answer, Request, says, serving
from safetensors.torch import load_file

from overrefusal_po.cli import main
from overrefusal_po.records import Triple, write_jsonl

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SLURM = Path(__file__).parents[1] / "recipes" / "slurm"
LAUNCH = (
    'launch: str = __name__ == "__main__" and __import__("overrefusal_po").launch(__file__); r"""'
)
TRAINING = {
    "task": "train",
    "method": "derta",
    "data": {"triples": "triples.jsonl", "max_helpful": 3, "rto_dropout": 0.5},
    "trainer": {
        "use_cpu": True,
        "max_steps": 100,
        "max_length": 2048,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "logging_steps": 20,
        "save_steps": 10,
    },
}
# a launcher whose child is a training: it listens one second after it began, and saves for one
ACCELERATE = """#!/bin/bash
echo "$*"
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
    # the port of the first start may still be taken at the second one
    ports = re.findall(r"--main_process_port (\d+)", words(stand_in))
    assert ports[0] == ports[1] and ports[2] == ports[3] and len(set(ports)) == 2


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


# what the recipes are for


def written(folder: Path, values: dict[str, Any]) -> str:
    """A recipe that accelerate can launch, as the shipped ones."""
    text = f'{LAUNCH}\n{yaml.safe_dump(values, sort_keys=False)}# """\n'
    (folder / "recipe.yaml").write_text(text)
    return "recipe.yaml"


def keep(folder: Path, name: str) -> None:
    """Copies a job's log to where `SLURM_TEST_LOGS` says, if it says so."""
    if place := os.environ.get("SLURM_TEST_LOGS"):
        shutil.copy(folder / name, Path(place) / name)


def test_a_preempted_training_on_two_nodes_is_an_undisturbed_one_on_one_node(
    slurm: Cluster, tmp_path: Path, styles: dict[str, Style], triples: list[Triple]
) -> None:
    """Two processes over gloo in both; the weights are equal to the last bit."""
    write_jsonl(tmp_path / "triples.jsonl", triples)
    model = {"model_name_or_path": str(styles["llama"].folder), "dtype": "float32"}
    lora = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.2}
    recipe = written(tmp_path, {**TRAINING, "model": {**model, **lora}})
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}
    config |= {"mixed_precision": "no", "num_machines": 1, "num_processes": 2}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(config))
    more = [f"--export=ALL,ACCELERATE_CONFIG={tmp_path / 'accelerate.yaml'}"]
    # a job that has nodes for itself has all their GPUs
    two_nodes = [*TWO_NODES, f"{more[0]},GPUS_PER_NODE=1"]
    job = training(slurm, tmp_path, recipe, "--run_dir=run", options=two_nodes)
    wait_for(lambda: (tmp_path / "run/checkpoints/checkpoint-10/trainer_state.json").is_file())
    urgent = slurm.submit(
        Path(__file__).with_name("slurm_short.sbatch"),
        options=["--partition=urgent", *TWO_NODES, "--output=urgent.log"],
        cwd=tmp_path,
    )
    slurm.wait(urgent, "COMPLETED", seconds=900)
    # on a loaded machine Slurm queues a job again for other reasons too
    assert int(slurm.wait(job, "COMPLETED", seconds=900)["Restarts"]) >= 1
    keep(tmp_path, "job.log")
    log = (tmp_path / "run" / "log").read_text()
    assert "interrupted: a checkpoint of step" in log and "going on from" in log
    one_node = ["--nodes=1", "--gpus-per-node=2", "--output=whole.log"]
    whole = training(slurm, tmp_path, recipe, "--run_dir=whole", options=[*one_node, *more])
    assert slurm.wait(whole, "COMPLETED", seconds=900)["Restarts"] == "0"
    kept, undisturbed = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole")
    )
    worlds = [json.loads((tmp_path / n / "processes.json").read_text()) for n in ("run", "whole")]
    assert worlds[0] == worlds[1] and kept.keys() == undisturbed.keys()
    assert all(torch.equal(kept[name], undisturbed[name]) for name in kept)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "done"


def test_an_arrays_parts_merged_are_one_evaluation(slurm: Cluster, tmp_path: Path) -> None:
    """Two tasks, one of which is stopped amid its prompts and queued again."""
    released = threading.Event()

    def said(request: Request) -> Answer:
        if request.number == 8:  # the first task that comes so far waits until it is stopped
            (tmp_path / "holds").write_text("")
            released.wait(300)
        if sum(map(ord, request.text)) % 3 == 0:
            return says("I'm sorry, but I can't help with that.")
        return says("First you open the drawer at the left, then you take out what lies there.")

    with serving(said) as server:
        engine = {"name": "openai", "base_url": server.url, "api_key_env": None, "concurrency": 1}
        recipe = written(
            tmp_path,
            {
                "task": "evaluate",
                "model": {"model_name_or_path": "student"},
                "engine": engine,
                "data": {"sets": ["starter"], "max_prompts_per_kind": 12},
            },
        )
        given = (recipe, "--run_dir=run")
        options = ["--gpus=0", "--mem=100"]
        parts = slurm.submit(
            SLURM / "array.sbatch", *given, options=["--array=1-2", *options], cwd=tmp_path
        )
        after = [f"--dependency=afterok:{parts}", "--output=merge.log", *options]
        merge = slurm.submit(SLURM / "merge.sbatch", *given, options=after, cwd=tmp_path)
        wait_for(lambda: (tmp_path / "holds").exists())
        for task in (1, 2):
            if '"running"' in words(tmp_path / "run" / f"shard-{task}-of-2", "status.json"):
                slurm.said("scancel", "--batch", "--signal=USR1", f"{parts}_{task}")
        logs = [f"slurm-{parts}-{task}.log" for task in (1, 2)]
        wait_for(lambda: any("interrupted" in words(tmp_path, log) for log in logs))
        released.set()
        slurm.wait(merge, "COMPLETED", seconds=600)
        keep(tmp_path, "merge.log")
        asked = len(server.requests)
        # on a loaded machine Slurm queues a job again for other reasons too
        restarts = sum(int(slurm.job(f"{parts}_{task}")["Restarts"]) for task in (1, 2))
        prompts = len((tmp_path / "run" / "outcomes.jsonl").read_text().splitlines())
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path / recipe), f"--run_dir={tmp_path / 'whole'}"])
        assert not end.value.code
    # a request for each prompt, and one more for each that was interrupted: a task has one at a time
    assert restarts and prompts > 20 and prompts < asked <= prompts + restarts
    for file in ("outcomes.jsonl", "metrics.json"):
        assert (tmp_path / "run" / file).read_text() == (tmp_path / "whole" / file).read_text()
    assert (tmp_path / "run" / "report.html").is_file()
