"""How fast the engine `transformers` generates: ours, an earlier version, plain `generate`, and a
rival.

    python benchmarks/generation.py --json OUT [--before ../old/src] [--prompts 284] [--tokens 48]

Each way is a process of its own. All of them hold the weights, and answer the same prompts in turn,
so that the load of the machine meets them alike. Times are CPU seconds of the process, at one
thread. What ours does once for all prompts (packing the weights) counts once. `first` is what the
first-token measure of an evaluation takes beside its responses. `wide` is ours with batches of
twice the size. With `--samples N` every prompt is answered N times at temperature 1, by the same
seeds in all ways. Memory is the peak of the process while it generates. The limit is the matrix
products of the model's linear layers alone, as torch multiplies plain weights, measured in the same
run: each token of a prompt read once, at the width of a batch, and each new token at the width of a
step (`wide` and packed weights may pass it). The rival is CTranslate2, an engine in C++ for CPUs,
with the same weights in float32; it takes part if it is installed (`pip install ctranslate2`, 4.8.5
was measured), and has no first-token measure. `--before` takes versions from 0d53df1 on:

    git worktree add --detach ../old 0d53df1
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SRC = Path(__file__).parents[1] / "src"
MODEL = "bundled:smollm2-135m-instruct"
OPENERS = (19, 57)
"""Token ids whose log-odds are asked for; which ones they are costs nothing."""


def main() -> None:
    options = arguments()
    if options.way:
        serve(options)
        return
    ways = {"ours": SRC, "wide": SRC, "generate": SRC}
    if options.before:
        ways["before"] = Path(options.before)
    if importlib.util.find_spec("ctranslate2") and options.samples == 1:
        ways["ctranslate2"] = SRC
    workers = {way: started(way, src, options) for way, src in ways.items()}
    try:
        found = measured(workers, options)
    finally:
        for worker in workers.values():
            worker.kill()
    Path(options.json).write_text(json.dumps(found, indent=1))
    print(table(found))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="generation.json", help="file for the result")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=284)
    parser.add_argument("--tokens", type=int, default=48, help="the most new tokens of a response")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1, help="above 1: drawn at temperature 1")
    parser.add_argument("--before", help="the src folder of an earlier version")
    parser.add_argument(
        "--way",
        choices=("ours", "wide", "before", "generate", "ctranslate2"),
        help=argparse.SUPPRESS,
    )
    options = parser.parse_args(argv)
    if options.before and not Path(options.before, "overrefusal_po").is_dir():
        parser.error(
            f"--before {options.before}: there is no overrefusal_po in it. Give the src folder of "
            "an earlier version."
        )
    return options


# --- the driver


# Any: pipes of text, and rows of JSON
def started(way: str, src: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that holds the weights and waits for batches."""
    given = [f"--{key}={value}" for key, value in vars(options).items() if key not in SKIPPED]
    paths = os.pathsep.join([str(src), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, __file__, f"--way={way}", *given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


SKIPPED = ("json", "before", "way")


def asked(worker: subprocess.Popen[str], what: str, start: int = 0) -> dict[str, Any]:
    """A worker's answer to one request. Ends the benchmark with a sentence if the worker ended."""
    assert worker.stdin is not None and worker.stdout is not None
    line = ""
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(json.dumps([what, start]) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    if not line.endswith("\n"):
        assert isinstance(worker.args, list)
        sys.exit(
            f"generation.py: the process {worker.args[2]} ended with exit code {worker.wait()} "
            f"when it was asked for {what!r}. Its own words stand above."
        )
    found: dict[str, Any] = json.loads(line)
    return found


def measured(
    workers: dict[str, subprocess.Popen[str]], options: argparse.Namespace
) -> dict[str, Any]:
    """{way: its sums}, the limit, and the settings. Batches go round the ways, in changing order."""
    names = list(workers)
    sums: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        asked(workers[name], "warm")
    for name in names:
        add(sums[name], "complete", asked(workers[name], "begin"))
    for turn, start in enumerate(range(0, options.prompts, 2 * options.batch)):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for what in ("complete", "first"):
                add(sums[name], what, asked(workers[name], what, start))
    for name in names:
        sums[name] |= asked(workers[name], "memory")
    found: dict[str, Any] = {"ways": sums, "settings": vars(options)}
    found["limit"] = asked(workers["ours"], "limit")
    for worker in workers.values():
        worker.communicate()
    for name in names:
        sums[name]["same"] = share_same(sums["generate"]["texts"], sums[name]["texts"])
        sums[name]["first_off"] = farthest(sums["generate"]["values"], sums[name]["values"])
    return found


def add(sums: dict[str, Any], what: str, row: dict[str, Any]) -> None:
    """Adds an answer to the sums of a way."""
    for key in ("cpu", "wall", "tokens"):
        sums[f"{what}_{key}"] = sums.get(f"{what}_{key}", 0) + row.get(key, 0)
    for key in ("texts", "values"):
        sums[key] = {**sums.get(key, {}), **row.get(key, {})}


def share_same(one: dict[str, str], other: dict[str, str]) -> float:
    """The share of prompts whose texts are equal."""
    return sum(other[key] == text for key, text in one.items()) / len(one)


def farthest(one: dict[str, float], other: dict[str, float]) -> float:
    """The greatest difference between two measures of the same log-odds; NaN without a second."""
    return max((abs(other[key] - value) for key, value in one.items() if other), default=math.nan)


def table(found: dict[str, Any]) -> str:
    """The ways as a Markdown table; ratios are to `before`, or to `generate` without it."""
    ways, limit = found["ways"], found["limit"]
    base = ways.get("before", ways["generate"])
    lines = [
        "| way | tokens/s | ratio | with first token | ratio | peak MB | above start MB "
        "| same texts | first token off |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ways.items():
        rates = [rate(row, whole) for whole in (False, True)]
        if not row["values"]:
            rates[1] = math.nan
        before = [rate(base, whole) for whole in (False, True)]
        lines.append(
            f"| {name} | {rates[0]:.0f} | {rates[0] / before[0]:.2f} | {rates[1]:.0f} | "
            f"{rates[1] / before[1]:.2f} | {row['peak']:.0f} | {row['peak'] - row['start']:.0f} | "
            f"{row['same']:.3f} | {row['first_off']:.1e} |".replace(" nan ", " - ")
        )
    speed = limit["tokens_per_second"]
    speeds = f"{limit['step']:.0f} GFLOP/s in a step, {limit['prompt']:.0f} in a prompt"
    ratio = speed / rate(base, whole=False)
    lines.append(f"| limit ({speeds}) | {speed:.0f} | {ratio:.2f} | | | | | | |")
    return "\n".join(lines)


def rate(row: dict[str, Any], whole: bool) -> float:
    """Tokens per CPU second; `whole`: with the first-token measure."""
    return float(row["complete_tokens"] / (row["complete_cpu"] + whole * row["first_cpu"]))


# --- a worker


def serve(options: argparse.Namespace) -> None:
    """Answers requests on stdin until it ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not reach the driver
    worker = Rival(options) if options.way == "ctranslate2" else Worker(options)
    for line in sys.stdin:
        what, start = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        found = getattr(worker, what)(start)
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        out.write(json.dumps({**spent, **found}) + "\n")
        out.flush()


class Worker:
    """One way to generate, with the weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from overrefusal_po.engines.transformers import TransformersEngine
        from overrefusal_po.model import load as models
        from overrefusal_po.model.chat import ChatTemplate
        from overrefusal_po.records import Sampling
        from overrefusal_po.sources import starter

        torch.set_num_threads(1)
        section = {"model_name_or_path": options.model, "dtype": options.dtype}
        model = models.load_model(**models.model_options(section))
        template = ChatTemplate(models.load_tokenizer(options.model))
        self.engine = TransformersEngine(model, template, name="m", batch_size=self.size(options))
        drawn = options.samples > 1
        self.sampling = Sampling(max_new_tokens=options.tokens, temperature=1.0 if drawn else 0.0)
        known = [p for p in starter.prompts(starter.Settings(), None) if p.split == "test"]
        text = self.engine.input_text
        self.prompts = sorted(known[: options.prompts], key=lambda p: -len(text(p)))
        self.options = options
        self.begun, self.packed = 0.0, contextlib.ExitStack()

    def size(self, options: argparse.Namespace) -> int:
        return int(options.batch) * (2 if options.way == "wide" else 1)

    def warm(self, _: int) -> dict[str, Any]:
        """A short generation; then the peak of memory counts from here."""
        self.answer(self.prompts[-2:])
        if self.options.way in ("ours", "wide"):
            from overrefusal_po.engines._first_states import FirstStates

            self.engine.first_states = FirstStates(p.id for p in self.prompts)
        Path("/proc/self/clear_refs").write_text("5")
        self.begun = memory("VmRSS")
        return {}

    def begin(self, _: int) -> dict[str, Any]:
        """What ours does once before all prompts, which are one work here; it lasts to the end."""
        if self.options.way in ("ours", "wide"):
            from overrefusal_po.model.packed_weights import packed_weights

            steps = -(-len(self.prompts) // self.engine.batch_size) * self.options.tokens
            self.packed.enter_context(packed_weights(self.engine.model, steps=steps))
        return {}

    def memory(self, _: int) -> dict[str, Any]:
        """MB: the peak since `warm`, and what there was then."""
        return {"peak": memory("VmHWM"), "start": self.begun}

    def batches(self, start: int) -> list[Any]:
        """The prompts of a turn: two batches, or a wide one."""
        return self.prompts[start : start + 2 * self.options.batch]

    def complete(self, start: int) -> dict[str, Any]:
        """The responses of a turn."""
        rows = self.answer(self.batches(start))
        tokens = sum(len(self.engine.token_ids(r.text)) + (r.finish_reason == "stop") for r in rows)
        texts = {f"{row.prompt_id} {row.sample}": row.text for row in rows}
        return {"tokens": tokens, "texts": texts}

    def answer(self, prompts: list[Any]) -> list[Any]:
        samples = self.options.samples
        if self.options.way != "generate":
            return list(self.engine.complete(prompts, self.sampling, samples=samples))
        size = self.options.batch
        parts = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        return [row for n in range(samples) for part in parts for row in self.plain(part, n)]

    def plain(self, prompts: list[Any], sample: int) -> list[Any]:
        """The responses of a batch by transformers' own `generate`, with the engine's seeds."""
        import torch

        from overrefusal_po.records import content_id

        engine = self.engine
        drawn: dict[str, Any] = {"do_sample": False}
        if self.sampling.temperature > 0:
            ids = [p.id for p in prompts]
            torch.manual_seed(int(content_id(self.sampling.seed, sample, ids), 16) % 2**31)
            drawn = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        inputs = engine.padded([engine.input_text(p) for p in prompts])
        found = engine.model.generate(
            **inputs,
            **drawn,
            max_new_tokens=self.options.tokens,
            eos_token_id=engine.stop_tokens,
            pad_token_id=engine.template.tokenizer.pad_token_id,
        )
        rows = zip(prompts, found[:, inputs["input_ids"].shape[1] :].tolist(), strict=True)
        return [engine.completion(p, ids, self.sampling, sample=sample) for p, ids in rows]

    def first(self, start: int) -> dict[str, Any]:
        """The first-token log-odds of a batch."""
        from overrefusal_po.engines import _first_token

        # earlier versions called it so, and gave no margin
        older = getattr(_first_token, "opener_log_odds", None)
        scores = older or _first_token.opener_scores
        rows = scores(self.engine, self.batches(start), OPENERS)
        return {"values": {prompt.id: value for prompt, value, *_ in rows}}

    def limit(self, _: int) -> dict[str, Any]:
        """The speed of the matrix products alone."""
        batch = self.options.batch
        lengths = [len(self.engine.token_ids(self.engine.input_text(p))) for p in self.prompts]
        mean = sum(lengths) / len(lengths)
        head = self.engine.model.get_output_embeddings()
        step, flops = products(self.engine.model, batch, None)
        prompt, read = products(self.engine.model, int(batch * mean), head)
        new = self.options.tokens * batch
        seconds = self.options.tokens * step + prompt
        return {
            "tokens_per_second": new / seconds,
            "step": flops / step / 1e9,
            "prompt": read / prompt / 1e9,
        }


class Rival(Worker):
    """CTranslate2 on the same weights and prompts. It converts them before it is timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        super().__init__(options)
        with tempfile.TemporaryDirectory() as folder:
            self.engine.model.float().save_pretrained(f"{folder}/model")
            self.engine.template.tokenizer.save_pretrained(f"{folder}/model")
            TransformersConverter(f"{folder}/model").convert(f"{folder}/made")
            self.rival = ctranslate2.Generator(
                f"{folder}/made", compute_type="float32", inter_threads=1, intra_threads=1
            )
        self.stops = list(self.engine.stop_tokens)
        self.engine.model = None  # its memory is not the rival's

    def answer(self, prompts: list[Any]) -> list[Any]:
        engine, tokenizer = self.engine, self.engine.template.tokenizer
        ids = [engine.token_ids(engine.input_text(p)) for p in prompts]
        found = self.rival.generate_batch(
            [tokenizer.convert_ids_to_tokens(row) for row in ids],
            max_batch_size=self.options.batch,
            max_length=self.options.tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=self.stops,
            return_end_token=True,
        )
        rows = zip(prompts, (row.sequences_ids[0] for row in found), strict=True)
        return [engine.completion(p, ids, self.sampling, sample=0) for p, ids in rows]

    def first(self, start: int) -> dict[str, Any]:
        """Nothing: it gives no log-odds of a prompt's next token."""
        return {"values": {}}


def products(model: Any, rows: int, left_out: Any) -> tuple[float, int]:
    """(CPU seconds, FLOPs) of all linear layers of a model, each on `rows` rows; best of five."""
    import torch

    layers = [
        m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not left_out
    ]
    given = {w.shape[1]: torch.randn(rows, w.shape[1]).to(w) for w in layers}

    def work() -> None:
        for weight in layers:
            torch.nn.functional.linear(given[weight.shape[1]], weight)

    with torch.inference_mode():
        best = min(timed(work) for _ in range(5))
    return best, sum(2 * rows * w.numel() for w in layers)


def timed(work: Callable[[], None]) -> float:
    """CPU seconds."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def memory(key: str) -> float:
    """MB of this process, from /proc/self/status."""
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
    line = next(one for one in lines if one.startswith(key))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
