"""A long training of a tiny model: memory of the process after 200 steps and at the end, and what
the run folder holds.

    python benchmarks/long_run.py [--steps 2000] [--first 200]

Prints JSON; exit code 1 if memory grew by more than 3 % between the two, or if more checkpoints
stayed than `save_total_limit` says.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from tiny_model import write_tiny_model

KEPT = 2
GROWTH_MAX = 0.03


def recipe(model: Path, steps: int, first: int) -> dict[str, Any]:
    """A LoRA training by DPO of `steps` steps."""
    return {
        "task": "train",
        "method": "dpo",
        "run_dir": "run",
        "model": {
            "model_name_or_path": str(model),
            "dtype": "float32",
            "use_peft": True,
            "lora_r": 4,
            "lora_target_modules": "all-linear",
        },
        "data": {
            "pairs": "starter",
            "max_pairs": 40,
            "containment": "none",
            "allow_no_anchor": True,
        },
        "trainer": {
            "max_steps": steps,
            "max_length": 2048,
            "per_device_train_batch_size": 1,
            "logging_steps": 10,
            "save_steps": first,
            "save_total_limit": KEPT,
        },
    }


def resident_mb(process: int) -> float:
    """The memory of a process, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def watched(folder: Path, steps: int, first: int) -> dict[int, float]:
    """{step: memory in MB} each time a checkpoint is written to its end."""
    command = [sys.executable, "-m", "overrefusal_po", "recipe.yaml"]
    found: dict[int, float] = {}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for step in range(first, steps + 1, first):
                written = folder / f"run/checkpoints/checkpoint-{step}/hashes.json"
                if step not in found and written.is_file():
                    found[step] = resident_mb(process.pid)
            time.sleep(0.02)
    assert process.returncode == 0, "the training failed"
    return found


def measure(folder: Path, steps: int, first: int) -> dict[str, Any]:
    """Memory at each checkpoint, and what the folder holds at the end."""
    model = write_tiny_model(folder / "model")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(model, steps, first)))
    memory = watched(folder, steps, first)
    run = folder / "run"
    seen = [*memory.values()]
    return {
        "memory_mb": {step: round(value, 1) for step, value in memory.items()},
        "growth": round(seen[-1] / seen[0] - 1, 4),
        "checkpoints": sorted(path.name for path in run.glob("checkpoints/checkpoint-*")),
        "log_bytes": sum(path.stat().st_size for path in run.glob("log*")),
        "folder_mb": round(sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) / 1e6, 2),
    }


def main() -> None:
    """Parses, runs and prints; exit code 1 if something grows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--first", type=int, default=200)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.steps, options.first)
    print(json.dumps(found, indent=1))
    sys.exit(found["growth"] > GROWTH_MAX or len(found["checkpoints"]) > KEPT)


if __name__ == "__main__":
    main()
