"""Kills at random moments during overgeneration and judging; the files at the end equal an
undisturbed run's.

    python benchmarks/kill_test.py [--kills 20] [--prompts 400] [--seed 0]

A worker draws 4 completions of each prompt from a stub server and then asks it for verdicts:
completions.jsonl grows row by row, verdicts.jsonl chunk by chunk. It is killed (SIGKILL) when a
random number of rows is there, started again, and at last left to end. Files are compared sorted;
the ledger is left out, because what a kill takes is paid twice.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SAMPLES = 4
FILES = ("completions.jsonl", "completions.failed.jsonl", "verdicts.jsonl")


def worker(folder: Path, url: str, count: int) -> None:
    """Overgenerates and judges in a run folder. Runs in a process of its own."""
    from overrefusal_po.engines.openai import OpenAIEngine, Settings
    from overrefusal_po.plugins import make_judge
    from overrefusal_po.records import Prompt, Sampling
    from overrefusal_po.run.complete import complete
    from overrefusal_po.run.folder import Run
    from overrefusal_po.run.judged import resumable_verdicts

    prompts = [Prompt.of(f"How do I kill process {n}?", kind="benign") for n in range(count)]
    settings = Settings(base_url=(url,), api_key_env=None, concurrency=8)
    judge = make_judge(
        {"name": "llm", "model": "judge", "base_url": url, "api_key_env": None, "concurrency": 2}
    )
    with Run.open(folder, {"task": "kill_test", "prompts": count}, {}) as run:
        completions = complete(
            run.path / "completions.jsonl",
            prompts,
            Sampling(temperature=1.0),
            lambda: OpenAIEngine(settings, name="stub"),
            "kill test",
            samples=SAMPLES,
        )
        asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
        resumable_verdicts(run.path / "verdicts.jsonl", judge, asked, completions)
        run.finish()


def rows(folder: Path) -> int:
    """Whole rows of all files."""
    return sum(
        (folder / name).read_bytes().count(b"\n") for name in FILES if (folder / name).exists()
    )


def started(folder: Path, url: str, count: int) -> subprocess.Popen[bytes]:
    """The worker as a process."""
    command = [sys.executable, __file__, "--worker", str(folder), url, "--prompts", str(count)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def killed(folder: Path, url: str, count: int, goal: int) -> str:
    """The phase in which one process was killed, when `goal` rows were there; "" where it came to
    its end before."""
    goal = max(goal, rows(folder) + 1)
    with started(folder, url, count) as process:
        while process.poll() is None and rows(folder) < goal:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    if process.returncode != -signal.SIGKILL:
        return ""
    return "judging" if (folder / FILES[-1]).exists() else "overgeneration"


def contents(folder: Path) -> dict[str, list[str]]:
    """{file: its rows, sorted}."""
    return {
        n: sorted((folder / n).read_text().splitlines()) for n in FILES if (folder / n).exists()
    }


def drawn(kills: int, count: int, seed: int) -> list[int]:
    """At how many rows to kill. Half of the rows are completions, half are verdicts; none is so
    late that the run is over."""
    whole = 2 * SAMPLES * count
    return sorted(random.Random(seed).sample(range(1, whole - whole // 20), kills))


def measure(folder: Path, url: str, goals: Sequence[int], count: int) -> dict[str, Any]:
    """Both runs and what differs between them."""
    phases = Counter(killed(folder / "killed", url, count, goal) for goal in goals)
    for name in ("killed", "whole"):
        assert started(folder / name, url, count).wait() == 0, f"the {name} run did not end well"
    one, two = contents(folder / "killed"), contents(folder / "whole")
    lost = phases.pop("", 0)
    return {
        "kills": dict(phases),
        "rows": {n: len(r) for n, r in two.items()},
        "equal": one == two and not lost,
    }


@contextmanager
def stub() -> Iterator[str]:
    """The address of a stub server in a process of its own."""
    command = [sys.executable, str(HERE / "stub_server.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout
        yield server.stdout.readline().strip()
        server.stdin.close()


def main() -> None:
    """Parses, runs and prints; exit code 1 where the files differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "URL"))
    options = parser.parse_args()
    if options.worker:
        return worker(Path(options.worker[0]), options.worker[1], options.prompts)
    os.environ["OMP_NUM_THREADS"] = "1"
    with stub() as url, tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), url, drawn(options.kills, options.prompts, options.seed), options.prompts
        )
    print(json.dumps(found, indent=1))
    sys.exit(not found["equal"])


if __name__ == "__main__":
    main()
