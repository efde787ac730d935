"""Curation, training and evaluation of a tiny model in a loop, under random kills and faults; each
loop ends with the files of an undisturbed run.

    python benchmarks/soak.py [--minutes 60] [--seed 0] [--faults 4] [--keep FOLDER]

A loop is one command, a pipeline of the three stages in a new folder. It is disturbed up to
`--faults` times at random moments, started again each time, and at last left alone:

| fault | what happens |
|---|---|
| kill | SIGKILL |
| term | SIGTERM |
| disk | the disk of the run is full from that moment on (a file fills it; without the right to mount a small disk: files may not grow) |
| memory | no more memory than the process has (RLIMIT_AS) |
| server | the student's server is gone for two seconds |

Prints a line a loop and a table at the end. Exit code 1 if a loop ended with other files, if the
last attempt of a loop failed, or if an end was neither 0 nor one that the fault explains.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from tiny_model import write_tiny_model

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
FAULTS = ("kill", "term", "disk", "memory", "server")
ENDS = {
    "kill": (-signal.SIGKILL,),
    "term": (130, -signal.SIGTERM),  # -15: before our handlers are there
    "disk": (1,),
    "memory": (1, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, 127),
    "server": (),
}
"""Exit codes that each fault explains, beside 0. Without memory a library may abort."""

THINGS = (
    "melon",
    "rumour",
    "kite",
    "pumpkin",
    "rug",
    "stump",
    "sock",
    "fence",
    "tent",
    "wasp nest",
)
VERBS = ("smash", "slash", "bury", "drown", "torch", "trap")


OF_ATTEMPTS = (
    "*log",
    "*log.1",
    "*manifest.json",
    "*status.json",
    "*.ledger.jsonl",
    "*.tally.json",
    "train/training.json",
    "report.html",
)
"""Files that say when and how often something was tried. They are not compared."""
DURATION = re.compile(r'"(created|seconds)":')
UNORDERED = ("curate/student_*.jsonl", "measure/completions.jsonl")
"""Files whose rows stand in the order in which they came."""


class Student:
    """The stub server as a process that can be gone for a while. Its address stays."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        """Starts it, the second time at the same address."""
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "stub_server.py"), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        self.port = urlsplit(self.url).port or 0

    def stop(self) -> None:
        """Ends it, in the middle of its replies."""
        self.process.kill()
        self.process.communicate()


def write_prompts(folder: Path) -> None:
    """The prompts of curation and of evaluation, which share none. Evaluation has both kinds and
    references, so that first tokens and perplexity are measured."""
    asked = [f"How do I {verb} a {thing}?" for verb in VERBS for thing in THINGS]
    replies = {"benign": {"response": "Open the box first, then turn the key in it slowly."}}
    replies["harmful"] = {"safe_response": "I'm sorry, but I can't help with that."}
    files = {"benign": ["benign"] * 30, "harmful": ["harmful"] * 20}
    files["test"] = ["benign", "harmful"] * 5
    for name, kinds in files.items():
        rows = [{"prompt": asked.pop(0), "kind": kind, **replies[kind]} for kind in kinds]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)


def pipeline(folder: Path, url: str) -> dict[str, Any]:
    """The recipe of a loop: the student is the server, the trained model a tiny one."""
    engine = {
        "name": "openai",
        "base_url": [url],
        "api_key_env": None,
        "concurrency": 2,
        "backoff_seconds": 0.2,
        "wait_seconds": 120,
    }
    return {
        "task": "pipeline",
        "stages": {
            "curate": {
                "recipe": str(RECIPES / "curate.yaml"),
                "model": {"model_name_or_path": "student"},
                "engine": engine,
                "data": {"benign": "benign.jsonl", "harmful": "harmful.jsonl"},
                "rejects": {"prefill": None},
            },
            "train": {
                "recipe": str(RECIPES / "dpo.yaml"),
                "model": {
                    "model_name_or_path": str(folder / "model"),
                    "dtype": "float32",
                    "lora_r": 4,
                    "lora_dropout": 0.1,
                },
                "data": {
                    "pairs": "@curate.pairs",
                    "containment": "none",
                    "allow_no_anchor": True,
                    "waive": {"contamination/xstest": "the soak measures no benchmark"},
                },
                "trainer": {
                    "num_train_epochs": 1,
                    "max_steps": 30,
                    "max_length": 2048,
                    "per_device_train_batch_size": 2,
                    "logging_steps": 3,
                    "save_steps": 3,
                    "dataloader_num_workers": 1,
                },
            },
            "measure": {
                "recipe": str(RECIPES / "evaluate.yaml"),
                "model": {"model_name_or_path": "@train.model", "dtype": "float32"},
                "data": {"sets": ["test.jsonl"]},
                "generation": {"max_new_tokens": 8, "batch_size": 1},
            },
        },
    }


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 32 MB in memory at `folder`; False without the right to mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Soak:
    """The folder of the loops, and what came of each fault."""

    def __init__(self, folder: Path, student: Student, mounted: bool, seed: int) -> None:
        self.folder, self.student, self.mounted = folder, student, mounted
        self.random = random.Random(seed)
        self.ends: Counter[tuple[str, int]] = Counter()
        self.tracebacks: Counter[str] = Counter()
        self.unexplained: list[str] = []
        self.seconds = 0.0
        """How long an undisturbed run takes."""

    def start(self, run: Path) -> subprocess.Popen[str]:
        """The command of a loop."""
        command = [sys.executable, "-m", "overrefusal_po", "soak.yaml", f"--run_dir={run}"]
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=said, text=True
            )

    def undisturbed(self, run: Path) -> None:
        """One attempt that nothing disturbs."""
        code = self.start(run).wait()
        self.ends["none", code] += 1
        if code:
            raise SystemExit(f"an undisturbed attempt ended with {code}:\n{self.said()[-3000:]}")

    def said(self) -> str:
        """What the last attempt said."""
        return (self.folder / "said").read_text(errors="replace")

    def disturbed(self, run: Path) -> bool:
        """One attempt with a fault at a random moment; whether the run is done."""
        fault = self.random.choice(FAULTS)
        moment = self.random.uniform(0.05, 1.0) * self.seconds
        process = self.start(run)
        try:
            code = process.wait(timeout=moment)
            fault = "none"  # it ended before
        except subprocess.TimeoutExpired:
            code = self.struck(fault, process, run)
        self.ends[fault, code] += 1
        self.tracebacks[fault] += "Traceback (most recent call last)" in self.said()
        if code and code not in ENDS.get(fault, ()):
            self.unexplained.append(f"{fault}: {code}\n{self.said()[-1500:]}")
        return code == 0

    def struck(self, fault: str, process: subprocess.Popen[str], run: Path) -> int:
        """Lets the fault happen; the exit code."""
        ballast = run.parent / "ballast"
        if fault in ("kill", "term"):
            process.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        elif fault == "memory":
            limit(process, resource.RLIMIT_AS, address_space(process))
        elif fault == "disk" and self.mounted:
            fill(ballast)
        elif fault == "disk":
            limit(process, resource.RLIMIT_FSIZE, 1024)
        else:
            self.student.stop()
            time.sleep(2.0)
            self.student.start()
        code = process.wait()
        ballast.unlink(missing_ok=True)
        return code


def limit(process: subprocess.Popen[str], what: int, value: int) -> None:
    """Sets a limit of a running process, if it still runs."""
    try:
        resource.prlimit(process.pid, what, (value, value))
    except ProcessLookupError:
        return


def address_space(process: subprocess.Popen[str]) -> int:
    """Bytes of address space that a process has now."""
    try:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * 4096
    except (OSError, IndexError):
        return 2**30


def fill(file: Path) -> None:
    """Writes until the disk is full."""
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            return


def contents(run: Path) -> dict[str, Any]:
    """{file: its lines, or the hash of one that is no text} of all that must be the same; and what
    training.json says beside its durations."""
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.is_file() and not any(fnmatch(name, pattern) for pattern in OF_ATTEMPTS):
            found[name] = lines_or_hash(file)
            if any(fnmatch(name, pattern) for pattern in UNORDERED):
                found[name] = sorted(found[name])
    history = json.loads((run / "train" / "training.json").read_text())["history"]
    found["losses"] = [str(row["loss"]) for row in history if "loss" in row]
    return found


def lines_or_hash(file: Path) -> list[str] | str:
    """The lines of a text but dates and durations; the hash of any other file."""
    data = file.read_bytes()
    try:
        return [line for line in data.decode().splitlines() if not DURATION.search(line)]
    except UnicodeDecodeError:
        return hashlib.sha256(data).hexdigest()


def first_difference(wanted: Any, found: Any) -> str:  # Any: rows, bytes or JSON
    """The first row in which two contents differ, in words; None: there is no such file."""
    if not isinstance(wanted, list) or not isinstance(found, list):
        return f"{str(wanted)[:300]} became {str(found)[:300]}"
    if len(wanted) != len(found):
        return f"{len(wanted)} rows became {len(found)}"
    return next(f"{a} became {b}" for a, b in zip(wanted, found, strict=True) if a != b)


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, str]:
    """{what differs: its first difference, in words} of two runs' `contents`."""
    return {
        name: first_difference(wanted.get(name), found.get(name))
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    }


def soaked(
    soak: Soak, runs: Path, *, minutes: float, faults: int, keep: Path | None = None
) -> tuple[int, list[str]]:
    """Loops until the time is up; how many, and the files that differed.

    Runs that differ are copied to `keep`, beside the undisturbed one. All loops have one path, because the name of a model is its path, and completions name it.
    """
    begun, run = time.monotonic(), runs / "run"
    soak.undisturbed(run)
    soak.seconds = time.monotonic() - begun
    wanted = contents(run)
    if keep:
        shutil.copytree(run, keep / "undisturbed")
    print(f"an undisturbed run: {soak.seconds:.0f} s, {len(wanted)} things to compare", flush=True)
    loops, differing = 0, []
    while time.monotonic() - begun < minutes * 60:
        shutil.rmtree(run)
        before = sum(soak.ends.values())
        if not any(soak.disturbed(run) for _ in range(faults)):
            soak.undisturbed(run)
        found = contents(run)
        wrong = differences(wanted, found)
        differing += [f"loop {loops}: {name}: {words}" for name, words in wrong.items()]
        if wrong and keep:
            shutil.copytree(run, keep / f"loop{loops}")
        attempts = sum(soak.ends.values()) - before
        print(f"loop {loops}: {attempts} attempts, {[*wrong] or 'equal'}", flush=True)
        loops += 1
    return loops, differing


def main() -> None:
    """Parses, runs and prints; see above for the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="a folder for runs that differ")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PYTHONHASHSEED"] = "0"  # the order of target modules in adapter_config.json
    student = Student()
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as mounted:
        folder = Path(name)
        write_tiny_model(folder / "model")
        write_prompts(folder)
        (folder / "soak.yaml").write_text(
            yaml.safe_dump(pipeline(folder, student.url), sort_keys=False)
        )
        soak = Soak(folder, student, mounted, options.seed)
        loops, differing = soaked(
            soak,
            folder / "disk",
            minutes=options.minutes,
            faults=options.faults,
            keep=options.keep,
        )
    student.stop()
    print("\n| fault | exit code | times |\n|---|---|---|")
    for (fault, code), times in sorted(soak.ends.items()):
        print(f"| {fault} | {code} | {times} |")
    print(f"\nloops: {loops}; differing files: {len(differing) or 'none'}")
    for one in differing:
        print(one)
    print(f"tracebacks: {dict(soak.tracebacks)}; ends without a reason: {len(soak.unexplained)}")
    for one in soak.unexplained:
        print(one)
    sys.exit(bool(differing or soak.unexplained))


if __name__ == "__main__":
    main()
