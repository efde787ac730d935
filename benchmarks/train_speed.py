"""How much faster a training step is than TRL's own, with the same loss: useful tokens a second,
plain against ours.

    python benchmarks/train_speed.py --method dpo|orpo|derta --work starter|coconot|long --data DIR --json OUT

`--work starter` are the pairs of the starter set, `coconot` those of
DIR/train/benign_pairs_coconot_*.jsonl, `long` seeded pairs with prompts of 1,024 tokens. Plain is
TRL's DPOTrainer, `trl.experimental.orpo`, or SFTTrainer on padded DeRTa rows (the rejected side as
r, the chosen one as the harmful response). Each measurement is a process of its own with the same
model, rows, order, batches, dtype, attention, gradient checkpointing and threads; plain and ours
alternate, and medians count. The first step warms up and is not timed (ours compares it with plain
rows). Useful tokens are a shared beginning once and both sides. Peak memory is that of training, of
the process on a CPU and of tensors on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SIDES = ("plain", "ours")
BATCH, STEPS = {"starter": 4, "coconot": 4, "long": 1}, {"starter": 6, "coconot": 2, "long": 2}
"""Pairs a step, and timed steps, by work."""

LONG = (1024, 128, 256)
"""Tokens of prompt, chosen and rejected in `--work long`."""


class Pair(NamedTuple):
    """Text of a pair, the prompt rendered by the chat template and the sides ending with the end of
    turn."""

    prompt: str
    chosen: str
    rejected: str


def main() -> None:
    options = arguments()
    if options.side:
        print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(options.runs):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            runs[side].append(child(__file__, "--side", side))
            print(f"run {number} {side}: {runs[side][-1]['seconds']:.2f} s", file=sys.stderr)
    found = summary(options, runs)
    Path(options.json).write_text(json.dumps(found, indent=1))
    print(
        json.dumps(
            {k: found[k] for k in ("ratio", "max_loss_difference", "plain", "ours")}, indent=1
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=["dpo", "orpo", "derta"], required=True)
    parser.add_argument("--work", choices=list(BATCH), required=True)
    parser.add_argument(
        "--data",
        help="folder with train/benign_pairs_coconot_*.jsonl; only --work coconot reads it",
    )
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, help="timed steps; 6, and 2 for coconot and long")
    parser.add_argument("--batch", type=int, help="pairs a step; 4, and 1 for --work long")
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--lora", action="store_true", help="train an adapter of rank 8 on all linear layers"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--side", choices=SIDES, help=argparse.SUPPRESS
    )  # this process is one measurement
    options = parser.parse_args()
    options.steps = options.steps or STEPS[options.work]
    return options


def child(file: str, *words: str, stderr: Any = None) -> dict[str, Any]:
    """One measurement in a process of its own: the benchmark `file` as this process was called, and
    `words`."""
    command = [sys.executable, file, *sys.argv[1:], *words]
    quiet = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, env=quiet
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """`ratio` is plain's median time over ours; the tokens are the same, and are counted by
    ours."""
    tokens = runs["ours"][0]["tokens"]
    seconds = {side: [run["seconds"] for run in runs[side]] for side in SIDES}
    median = {side: statistics.median(seconds[side]) for side in SIDES}
    gaps = [
        abs(a - b)
        for p, o in zip(*runs.values(), strict=True)
        for a, b in zip(p["losses"], o["losses"], strict=True)
    ]
    return {
        "ratio": median["plain"] / median["ours"],
        "max_loss_difference": max(gaps),
        **{
            side: {
                "tokens_per_second": tokens / median[side],
                "peak_bytes": max(run["peak_bytes"] for run in runs[side]),
                "seconds": seconds[side],
            }
            for side in SIDES
        },
        "losses": runs["plain"][0]["losses"],
        "tokens": tokens,
        "settings": {k: v for k, v in vars(options).items() if k != "side"},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains one warm-up step and the timed ones; {seconds, tokens (ours alone), losses,
    peak_bytes}."""
    import torch
    from step_flops import work_of

    torch.set_num_threads(options.threads)
    trainer = prepared(options)
    clock, batches = clock_callback(), keep_batches(trainer)
    trainer.add_callback(clock)
    trainer.train()
    return {
        "seconds": clock.times[-1] - clock.times[0],
        "tokens": sum(
            work_of(batch).tokens
            for batch in batches[1 : options.steps + 1]
            if options.side == "ours"
        ),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "peak_bytes": peak_bytes(),
    }


def prepared(options: argparse.Namespace) -> Any:
    """The trainer of a method's side, on rows for a step to warm up and `options.steps` more."""
    from overrefusal_po.model import load as models

    batch = options.batch or BATCH[options.work]
    tokenizer = models.load_tokenizer(options.model)
    pairs = make_pairs(options, tokenizer, batch * (options.steps + 1))
    policy = models.load_model(options.model, dtype=getattr(options, "dtype", "float32")).train()
    makers: dict[str, Callable[..., Any]] = {"dpo": dpo, "orpo": orpo, "derta": derta}
    return makers[options.method](options, pairs, policy, tokenizer, settings(options, batch))


def settings(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Trainer keys, the same for both sides."""
    import torch

    return {
        "output_dir": "unused",
        "use_cpu": not torch.cuda.is_available(),
        "bf16": options.bf16,
        "gradient_checkpointing": options.gradient_checkpointing,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "per_device_train_batch_size": batch,
        "max_steps": options.steps + 1,
        "max_length": 4096,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": options.seed,
    }


# --------------------------------------------------------------------------------------------- rows


def make_pairs(options: argparse.Namespace, tokenizer: Any, number: int) -> list[Pair]:
    """`number` pairs drawn by the seed; drawn again from the beginning where there are fewer."""
    texts = {"starter": starter, "coconot": coconot, "long": long}[options.work](
        options, tokenizer, number
    )
    random.Random(options.seed).shuffle(texts)
    made = []
    for prompt, chosen, rejected in (texts[i % len(texts)] for i in range(number)):
        turn = [{"role": "user", "content": prompt}]
        rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        made.append(
            Pair(rendered, *(side.strip() + tokenizer.eos_token for side in (chosen, rejected)))
        )
    return made


def starter(options: argparse.Namespace, tokenizer: Any, number: int) -> list[tuple[str, str, str]]:
    from overrefusal_po.pairs.make import written_pairs
    from overrefusal_po.prompts import read_source

    return [
        (p.prompt.text, p.chosen, p.rejected)
        for p in written_pairs(read_source("starter", "train"))
    ]


def coconot(options: argparse.Namespace, tokenizer: Any, number: int) -> list[tuple[str, str, str]]:
    files = sorted(Path(options.data or ".").glob("train/benign_pairs_coconot_*.jsonl"))
    if not files:
        raise SystemExit(f"--data {options.data} has no train/benign_pairs_coconot_*.jsonl")
    rows = [
        json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


def long(options: argparse.Namespace, tokenizer: Any, number: int) -> list[tuple[str, str, str]]:
    """Words of the starter set in a seeded order, of LONG's lengths."""
    words = " ".join(" ".join(texts) for texts in starter(options, tokenizer, number)).split()
    rng = random.Random(options.seed)

    def text(length: int) -> str:
        ids = tokenizer(" ".join(rng.choices(words, k=length)), add_special_tokens=False)[
            "input_ids"
        ]
        return str(tokenizer.decode(ids[:length]))

    return [(text(LONG[0]), text(LONG[1]), text(LONG[2])) for _ in range(number)]


# ----------------------------------------------------------------------------------------- trainers


def dpo(
    options: argparse.Namespace,
    pairs: list[Pair],
    policy: Any,
    tokenizer: Any,
    args: dict[str, Any],
) -> Any:
    """TRL's DPOTrainer; ours is the same with its forward patched, and a quantised model's adapter
    in float32."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from overrefusal_po.train.policy import exact_adapter, frozen_copy

    trainer = DPOTrainer(
        model=policy,
        ref_model=None if options.lora else frozen_copy(policy),
        args=DPOConfig(**args),
        train_dataset=Dataset.from_list([pair._asdict() for pair in pairs]),
        processing_class=tokenizer,
        peft_config=lora(options),
    )
    if options.side == "ours":
        exact_adapter(trainer.model)
    disturb(trainer.model)
    return shared(trainer) if options.side == "ours" else trainer


def disturb(model: Any) -> Any:
    """`model` with seeded noise: .003 on trained weights, or .05 in place of both halves of an
    adapter.

    Where policy and reference are the same, DPO's loss is ln 2 whatever their log-probs are, and
    wrong ones would not show.
    """
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.data.copy_(0.05 * noise if "lora_" in name else weight.data + 0.003 * noise)
    return model


def orpo(
    options: argparse.Namespace,
    pairs: list[Pair],
    policy: Any,
    tokenizer: Any,
    args: dict[str, Any],
) -> Any:
    """TRL's experimental trainer against ours. Rows are text: from messages TRL's would add a
    second end of turn."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig as PlainConfig
    from trl.experimental.orpo import ORPOTrainer as PlainTrainer

    from overrefusal_po.train.orpo import ORPOConfig, ORPOTrainer

    config, cls = (
        (PlainConfig, PlainTrainer) if options.side == "plain" else (ORPOConfig, ORPOTrainer)
    )
    trainer = cls(
        model=policy,
        args=config(**args),
        train_dataset=Dataset.from_list([pair._asdict() for pair in pairs]),
        processing_class=tokenizer,
        peft_config=lora(options),
    )
    return shared(trainer) if options.side == "ours" else trainer


def derta(
    options: argparse.Namespace,
    pairs: list[Pair],
    policy: Any,
    tokenizer: Any,
    args: dict[str, Any],
) -> Any:
    """SFTTrainer on both rows of each question, padded or as a tree, without RTO dropout."""
    from trl import SFTConfig

    from overrefusal_po.train.data import Prepared
    from overrefusal_po.train.derta import tree_or_rows
    from overrefusal_po.train.derta_rows import Row
    from overrefusal_po.train.derta_tree import TreeCollator
    from overrefusal_po.train.rows_trainer import rows_trainer

    rng = random.Random(options.seed)
    rows: list[Row] = []
    for number, pair in enumerate(pairs):
        q, harmful, safe = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair)
        cut = rng.randint(0, len(harmful))
        rows.append(
            Row(q + harmful, [-100] * len(q) + [safe[0]] * len(harmful), "rto", str(number))
        )
        prefix = q + harmful[:cut]
        rows.append(Row(prefix + safe, [-100] * len(prefix) + safe, "prefix", str(number)))
    collator = TreeCollator(pad_token_id=tokenizer.pad_token_id, rto_dropout=0)
    collator.paired = options.side == "ours"
    prepared = Prepared(tree_or_rows(rows, True))
    trainer = rows_trainer(
        policy, prepared, SFTConfig(**args), tokenizer, collator, None, lora(options), ()
    )
    return shared(trainer) if options.side == "ours" else trainer


def lora(options: argparse.Namespace) -> Any:
    if not options.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=getattr(options, "rank", 8), target_modules="all-linear", task_type="CAUSAL_LM"
    )


def shared(trainer: Any) -> Any:
    """The trainer with shared prefixes; a benchmark of a fallback would say nothing."""
    from overrefusal_po.train.trl_private import shared_prefix_on

    if not shared_prefix_on(trainer):
        raise SystemExit("this model or setting falls back to plain rows: nothing to measure")
    return trainer


def shares(trainer: Any) -> bool:
    """Whether the trained model shares prefixes."""
    model = trainer.model
    return hasattr(
        model.get_base_model() if hasattr(model, "peft_config") else model, "_shares_prefix"
    )


# -------------------------------------------------------------------------------------- measurement


def clock_callback(warmup: int = 1) -> Any:
    """A callback whose `times` are those at the end of each step; it forgets the memory peak of the
    first `warmup`."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            if len(self.times) == warmup:
                forget_peak()

    return Clock()


def keep_batches(trainer: Any) -> list[Any]:
    """A list that grows by each collated batch."""
    batches: list[Any] = []
    collate = trainer.data_collator

    def keeping(rows: Any) -> Any:
        batches.append(collate(rows))
        return batches[-1]

    trainer.data_collator = keeping
    return batches


def forget_peak() -> None:
    """Resets the peak of resident memory (Linux) or of tensors on the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The peak since `forget_peak`; of the whole process where the system cannot reset it."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


if __name__ == "__main__":
    main()
