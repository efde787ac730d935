"""Where a training step's time goes: the events that torch.profiler has of a trainer's last step,
in a few groups.

    profile = profile_callback()
    trainer.add_callback(profile)
    trainer.train()
    profile.shares()
    # {"profiled_seconds": .., "groups": {group: seconds}, "top_ops": [[op, group, seconds, calls],
    # ..]}

Times are those of an operator without the ones that it calls: of the main thread on a CPU, of the
kernels on a GPU. What the step took beyond all of them is Python, the autograd engine, and on a GPU
waiting. The profiler itself slows Python down.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
HEADS = ("ChunkedLogProb", "TokenScores")
"""Functions of TRL's fused head and of ours, forward and backward."""
REST = "Python, autograd, idle"
GROUPS = (
    "linear layers",
    "adapters' products",
    "attention",
    "LM head's products",
    "log-softmax and its metrics",
    "norms, rope, activations, sums",
    "optimizer",
    "data",
    REST,
)


def profile_callback(rank: int) -> Any:
    """A callback that profiles the last step, from the end of the one before. `rank` is that of the
    adapters."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    cuda = torch.cuda.is_available()

    class Profile(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            if state.global_step == state.max_steps - 1:
                activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
                self.profiler = profile(activities=activities, record_shapes=True)
                self.profiler.start()
                self.began = time.perf_counter()
            elif state.global_step == state.max_steps:
                self.seconds = time.perf_counter() - self.began
                self.profiler.stop()

        def shares(self) -> dict[str, Any]:
            return shares(self.profiler.events(), self.seconds, rank, cuda)

    return Profile()


def shares(events: Any, seconds: float, rank: int, cuda: bool) -> dict[str, Any]:
    """A step's `seconds` by group, and the twelve operators that took most of them."""
    spent: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.device_type.name != "CPU" or not event.name.startswith("aten::"):
            continue  # a GPU's kernels count with the operator that started them
        key = (event.name, group_of(event, rank))
        spent[key] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        calls[key] += 1
    groups = dict.fromkeys(GROUPS, 0.0)
    for (_, group), time_spent in spent.items():
        groups[group] += time_spent
    groups[REST] = seconds - sum(groups.values())
    top = [[*key, time_spent, calls[key]] for key, time_spent in spent.most_common(12)]
    return {"profiled_seconds": seconds, "groups": groups, "top_ops": top}


def group_of(event: Any, rank: int) -> str:
    """The group of an operator, by what it was called from, its name, and the sizes that it got."""
    callers = called_from(event)
    marks = {
        "Optimizer.": "optimizer",
        "enumerate(DataLoader)": "data",
        "scaled_dot_product": "attention",
        "ScaledDotProduct": "attention",
    }
    for mark, group in marks.items():
        if mark in callers:
            return group
    product = event.name in PRODUCTS
    if any(head in callers for head in HEADS):
        return "LM head's products" if product else "log-softmax and its metrics"
    if event.name in ("aten::mm", "aten::addmm"):  # what bmm there is belongs to the positions
        narrow = any(rank in shape for shape in event.input_shapes)
        return "adapters' products" if narrow else "linear layers"
    return "norms, rope, activations, sums"


def called_from(event: Any) -> str:
    """The names of an event and of all that it was called from."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return " ".join(names)


def time_table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: the profiled step's time by group, a column a case."""
    lines = [f"| share of a step | {' | '.join(found)} |", "|" + "---|" * (len(found) + 1)]
    for group in GROUPS:
        shares = (f"{run['groups'][group] / run['profiled_seconds']:.1%}" for run in found.values())
        lines.append(f"| {group} | {' | '.join(shares)} |")
    return "\n".join(lines)
