"""How much of the machine's matrix-product speed a training step reaches, and where the rest of its
time goes.

    python benchmarks/mfu.py --json OUT [--cases NAME ...] [--work starter|coconot|long] [--bf16]

Each case is a process of its own that trains as `train_speed.py` does: a step to warm up, timed
ones, one under torch.profiler. The timed batches then run again under a counter (see
`step_flops.py`: executed and useful FLOPs).

hfu is executed, mfu is useful FLOP/s, over what the same process reaches in single products of the
same dtype: of the shapes of the model's own linear layers at the step's number of tokens, and of a
large square. The rest: see `step_profile.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import train_speed
from step_flops import count_flops, linear_shapes, useful_flops, work_of
from step_profile import profile_callback, time_table

CASES = {
    "dpo plain, LoRA": ("dpo", "plain", True),
    "dpo shared, LoRA": ("dpo", "ours", True),
    "dpo shared, full": ("dpo", "ours", False),
    "derta tree, LoRA": ("derta", "ours", True),
    "derta tree, full": ("derta", "ours", False),
}
"""Name: method, side and adapter, as in train_speed."""

RANK = 8
"""Of the adapters."""


def main() -> None:
    options = arguments()
    if options.case:
        print(json.dumps(measure(options, options.case)))
        return
    found = {case: train_speed.child(__file__, "--case", case) for case in options.cases}
    settings = {k: v for k, v in vars(options).items() if k not in ("case", "cases")}
    Path(options.json).write_text(json.dumps({"cases": found, "settings": settings}, indent=1))
    print(f"{speed_table(found)}\n\n{time_table(found)}")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--work", choices=list(train_speed.BATCH), default="starter")
    parser.add_argument("--data", help="as in train_speed.py; only --work coconot reads it")
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--batch", type=int, help="pairs a step; 4, and 1 for --work long")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--square", type=int, default=2048, help="side of the large square product; GPUs want 8192"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # this process is one case
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Trains, counts and profiles a case: seconds, FLOPs and tokens of a timed step on average,
    peaks in FLOP/s."""
    import torch

    method, side, adapter = CASES[case]
    steps = options.steps + 1  # the last one is profiled
    more = {"method": method, "side": side, "lora": adapter, "rank": RANK, "steps": steps}
    options = argparse.Namespace(**{**vars(options), **more})
    torch.set_num_threads(options.threads)
    trainer = train_speed.prepared(options)
    clock, profile = train_speed.clock_callback(), profile_callback(RANK)
    batches = train_speed.keep_batches(trainer)
    trainer.add_callback(clock)
    trainer.add_callback(profile)
    trainer.train()
    timed = batches[1:steps]
    executed, width = count_flops(trainer, timed)
    useful = [useful_flops(trainer, work_of(batch), 1 + (method == "dpo")) for batch in timed]
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    return {
        "seconds": (clock.times[-2] - clock.times[0]) / len(timed),
        "useful_tokens": statistics.mean(work_of(batch).tokens for batch in timed),
        "tokens_a_forward": width,
        "executed_flops": sum(executed.values()) / len(timed),
        "executed_flops_by_op": {op: flops / len(timed) for op, flops in executed.items()},
        "useful_flops": statistics.mean(useful),
        "peak_own_shapes": own_shapes_peak(trainer.model, width, dtype),
        "peak_square": square_peak(options.square, trainer.model.device, dtype),
        **profile.shares(),
    }


# -------------------------------------------------------------------------------------------- peaks


def own_shapes_peak(model: Any, tokens: int, dtype: Any) -> float:
    """FLOP/s of the linear layers' forward products and input gradients, LM head included, at
    `tokens` tokens."""
    import torch

    head = model.get_output_embeddings()
    shapes = linear_shapes(model, adapters=False) + Counter([(head.out_features, head.in_features)])
    flops, seconds = 0.0, 0.0
    for (rows, columns), count in shapes.items():
        given, weight, back = (
            torch.randn(size, device=model.device, dtype=dtype)
            for size in ((tokens, columns), (rows, columns), (tokens, rows))
        )
        flops += count * 4 * tokens * rows * columns
        seconds += count * (
            best_seconds(lambda a, b: a @ b.T, given, weight) + best_seconds(torch.mm, back, weight)
        )
    return flops / seconds


def square_peak(size: int, device: Any, dtype: Any) -> float:
    """FLOP/s of a square product."""
    import torch

    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(torch.mm, one, other)


def best_seconds(call: Callable[[Any, Any], Any], one: Any, other: Any, repeats: int = 5) -> float:
    """The least time of a call, after one that warms up."""
    import torch

    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call(one, other)
        if one.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


# ------------------------------------------------------------------------------------------- result


def speed_table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a case; shares of the peak of own shapes and, behind the slash, of the square
    one."""
    lines = [
        "| case | s a step | useful tokens/s | executed GFLOP | useful | GFLOP/s | peak GFLOP/s | "
        "hfu | mfu |",
        "|" + "---|" * 9,
    ]
    for case, run in found.items():
        peaks = (run["peak_own_shapes"], run["peak_square"])
        executed, useful = (
            run[f"{kind}_flops"] / run["seconds"] for kind in ("executed", "useful")
        )
        hfu, mfu = (
            " / ".join(f"{speed / peak:.0%}" for peak in peaks) for speed in (executed, useful)
        )
        size = f"{run['executed_flops'] / 1e9:.0f} | {run['useful_flops'] / 1e9:.0f} | {executed / 1e9:.1f}"
        best = " / ".join(f"{peak / 1e9:.0f}" for peak in peaks)
        speed = f"{run['seconds']:.2f} | {run['useful_tokens'] / run['seconds']:.0f}"
        lines.append(f"| {case} | {speed} | {size} | {best} | {hfu} | {mfu} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
