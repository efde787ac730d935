"""The engine `openai` at size: requests a second, client CPU and memory for each prompt, and how
fast a killed run goes on.

    python benchmarks/curate_scale.py [--prompts 50000] [--cores 2]

Client and stub server share `--cores` cores. The client is a process of its own; it is killed at
half way and started again. Goals (issue 4): at least 200 requests a second, at most 5 ms client CPU
for each, at most 10 MB more memory for 10,000 prompts, and after a kill the first new completion in
under 10 s. Prints one JSON object.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
TRIVIAL = "Tell me how to stop process number {} of the many that hang on my computer, please."


def client(path: Path, url: str, count: int) -> None:
    """Draws one completion for each prompt and prints what that took. Runs in a process of its
    own."""
    from overrefusal_po.engines.openai import OpenAIEngine, Settings
    from overrefusal_po.records import Prompt, Sampling
    from overrefusal_po.run.complete import draw

    memory: list[tuple[int, float]] = []

    def prompts() -> Iterator[Prompt]:
        for number in range(count):
            if number % max(count // 50, 1) == 0:
                memory.append((number, resident_megabytes()))
            yield Prompt.of(TRIVIAL.format(number), kind="benign")

    settings = Settings(base_url=(url,), api_key_env=None, concurrency=32)
    started, cpu = time.monotonic(), time.process_time()
    tally = draw(
        path,
        prompts(),
        Sampling(temperature=1.0),
        lambda: OpenAIEngine(settings, name="stub"),
        total=count,
    )
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    found = {"seconds": seconds, "cpu": cpu, "memory": memory, "peak": resident_megabytes()}
    print(json.dumps({**found, "completed": tally.completed, "tokens": tally.ledger["tokens"]}))


def resident_megabytes() -> float:
    """Memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(points: list[tuple[int, float]]) -> float:
    """Megabytes more for 10,000 prompts: a line through all points but the first fifth, while
    caches fill."""
    points = points[len(points) // 5 :]
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return 1e4 * sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def lines(path: Path) -> int:
    """Whole rows of a file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def started(path: Path, url: str, count: int) -> subprocess.Popen[str]:
    """The client as a process."""
    command = [sys.executable, __file__, "--client", str(path), url, "--prompts", str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def measure(folder: Path, url: str, count: int) -> dict[str, object]:
    """An undisturbed run, then one that is killed at half way and goes on."""
    whole = json.loads(started(folder / "whole.jsonl", url, count).communicate()[0])
    path = folder / "killed.jsonl"
    with started(path, url, count) as process:
        while lines(path) < count // 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    there, begun = lines(path), time.monotonic()
    with started(path, url, count) as process:
        size = path.stat().st_size
        while path.stat().st_size <= size:
            time.sleep(0.01)
        resume = time.monotonic() - begun
        resumed = json.loads(process.communicate()[0])
    same = sorted((folder / "whole.jsonl").read_text().splitlines()) == sorted(
        path.read_text().splitlines()
    )
    return {
        "prompts": count,
        "requests_per_second": round(count / whole["seconds"], 1),
        "client_cpu_ms_per_request": round(1e3 * whole["cpu"] / count, 2),
        "megabytes_per_10000_prompts": round(slope(whole["memory"]), 2),
        "peak_megabytes": round(whole["peak"]),
        "killed_at": there,
        "seconds_to_first_new_completion": round(resume, 1),
        "same_completions_after_the_kill": same,
        "completed": resumed["completed"],
    }


def main() -> None:
    """Parses, pins and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=50_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--client", nargs=2, metavar=("PATH", "URL"))
    options = parser.parse_args()
    if options.client:
        return client(Path(options.client[0]), options.client[1], options.prompts)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(HERE / "stub_server.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), url, options.prompts), indent=1))
        server.stdin.close()


if __name__ == "__main__":
    main()
