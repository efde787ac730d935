"""What a sweep over DPO's beta and learning rate costs: TRL without and with precompute, against
the reference store.

    python benchmarks/sweep_speed.py --json OUT [--betas 0.1 0.3] [--learning-rates 1e-5 5e-5] [--pairs 16] [--runs 1]

Every way trains the same trials: LoRA on all linear layers, float32, the same pairs in the same
order, batches and threads.
- plain: `trl.DPOTrainer`; the reference runs at every step.
- precompute: `trl.DPOTrainer` with precompute_ref_log_probs. TRL caches what it computed beside a
  data set on disk, so all trials read one from disk, in one folder. Its key covers the trainer's
  settings where max_length is set, as it is by default (a filter of the rows holds them all):
  `--max-length 0` (None) is the setting where the cache does hit.
- store: ours from the reference store alone, on plain rows.
- shared: ours from the reference store, with a shared prefix.

Each trial is a process of its own, as a sweep's are. Timed are the making of the trainer, which is
where log-probs are computed ahead, and train(); imports and loading the model are not. The order of
the ways turns with every trial, and medians over the runs count. A reference pair is a pair that
really goes through the model without gradients. Exits with 1 where the store's ways have any after
their first trial.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from train_speed import child, lora, settings, shares
from trl_rows import conversations

WAYS = ("plain", "precompute", "store", "shared")
OURS = WAYS[2:]


class Trial(NamedTuple):
    """One trial of one way. `folder` is the way's own, the same for all of its trials."""

    way: str
    beta: float
    learning_rate: float
    folder: Path


Found = dict[str, list[list[dict[str, Any]]]]
"""Way -> trials -> runs -> what `train` gives."""


def main() -> None:
    options = arguments()
    if options.trial:
        way, beta, learning_rate, folder = options.trial
        print(
            json.dumps(train(options, Trial(way, float(beta), float(learning_rate), Path(folder))))
        )
        return
    found = summary(
        options, sweep(options, lambda _, trial: child(__file__, "--trial", *map(str, trial)))
    )
    Path(options.json).write_text(json.dumps(found, indent=1))
    print(table(found))
    later = {way: found["reference_pairs"][way][1:] for way in OURS}
    if any(any(pairs) for pairs in later.values()):
        raise SystemExit(f"the reference ran after the first trial: {later}")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-5, 5e-5])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--pairs", type=int, default=16, help="of the starter set, drawn by the seed"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--max-length",
        type=int,
        default=1024,
        help="tokens a row (1024: TRL's default); 0: no limit",
    )
    parser.add_argument("--runs", type=int, default=1, help="of each trial of each way")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", nargs=4, help=argparse.SUPPRESS)  # this process is one trial
    for_helpers = {
        "lora": True,
        "rank": 8,
        "bf16": False,
        "gradient_checkpointing": False,
        "steps": 0,
    }
    return argparse.Namespace(**{**vars(parser.parse_args(argv)), **for_helpers})


def sweep(
    options: argparse.Namespace, run: Callable[[argparse.Namespace, Trial], dict[str, Any]]
) -> Found:
    """Every trial of every way, as often as `options.runs` says. A repetition begins with empty
    folders."""
    points = list(product(options.betas, options.learning_rates))
    found: Found = {way: [[] for _ in points] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for repetition, (number, (beta, rate)) in product(range(options.runs), enumerate(points)):
            for way in WAYS if (repetition + number) % 2 == 0 else WAYS[::-1]:
                one = run(options, Trial(way, beta, rate, Path(folder) / f"{repetition}-{way}"))
                found[way][number].append(one)
                print(
                    f"{beta} {rate} {way}: {one['seconds']:.2f} s, {one['reference_pairs']} pairs",
                    file=sys.stderr,
                )
    return found


# ---------------------------------------------------------------------------------------- one trial


def train(options: argparse.Namespace, trial: Trial) -> dict[str, Any]:
    """Trains one trial; {seconds, reference_pairs, losses}."""
    import torch

    from overrefusal_po.model import load as models
    from overrefusal_po.pairs.make import written_pairs
    from overrefusal_po.prompts import read_source

    torch.set_num_threads(options.threads)
    pairs = list(written_pairs(read_source("starter", "train")))
    pairs = random.Random(options.seed).sample(pairs, options.pairs)
    tokenizer = models.load_tokenizer(options.model)
    policy = models.load_model(options.model, dtype="float32").train()
    make = (ours if trial.way in OURS else trls)(options, trial, pairs, policy, tokenizer)
    with reference_pairs() as counts:
        torch.manual_seed(options.seed)  # draws the adapter
        began = time.perf_counter()
        trainer = make()
        trainer.train()
        seconds = time.perf_counter() - began
    if shares(trainer) != (trial.way == "shared"):
        raise SystemExit("this model or setting falls back to plain rows: nothing to measure")
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {"seconds": seconds, "reference_pairs": sum(counts), "losses": losses}


def trls(
    options: argparse.Namespace, trial: Trial, pairs: list[Any], policy: Any, tokenizer: Any
) -> Callable[[], Any]:
    """Makes TRL's trainer on the pairs as conversations, as a data set on disk."""
    from datasets import load_from_disk
    from trl import DPOTrainer

    from overrefusal_po.model.chat import ChatTemplate

    rows = trial.folder / "rows"
    if not rows.exists():
        conversations(pairs, ChatTemplate(tokenizer)).save_to_disk(rows)
    dataset, args = load_from_disk(rows), config(options, trial)
    return lambda: DPOTrainer(
        model=policy,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora(options),
    )


def ours(
    options: argparse.Namespace, trial: Trial, pairs: list[Any], policy: Any, tokenizer: Any
) -> Callable[[], Any]:
    """Makes our trainer with the way's store."""
    import overrefusal_po.exact.reference_store  # noqa: F401  (and TRL with it: imports are not timed)
    from overrefusal_po import dpo_trainer

    args = config(options, trial)
    return lambda: dpo_trainer(
        policy,
        pairs,
        args=args,
        processing_class=tokenizer,
        peft_config=lora(options),
        shared_prefix=trial.way == "shared",
        reference_store=trial.folder / "store",
    )


def config(options: argparse.Namespace, trial: Trial) -> Any:
    """The trial's settings; the ways differ in one of them."""
    from trl import DPOConfig

    own = {
        "max_steps": -1,
        "num_train_epochs": options.epochs,
        "max_length": options.max_length or None,
        "learning_rate": trial.learning_rate,
        "beta": trial.beta,
        "precompute_ref_log_probs": trial.way != "plain",
    }
    return DPOConfig(**{**settings(options, options.batch), **own})


@contextmanager
def reference_pairs() -> Iterator[list[int]]:
    """A list that grows by the pairs of each forward of the trained model without gradients: with
    LoRA, the reference's.

    The self-check of a shared prefix calls the model inside the adapter, and is not counted.
    """
    import torch
    from peft import PeftModelForCausalLM

    counts: list[int] = []
    forward = PeftModelForCausalLM.forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            counts.append(kwargs["input_ids"].shape[0] // 2)
        return forward(self, *args, **kwargs)

    PeftModelForCausalLM.forward = counting
    try:
        yield counts
    finally:
        PeftModelForCausalLM.forward = forward


# ------------------------------------------------------------------------------------------- result


def summary(options: argparse.Namespace, found: Found) -> dict[str, Any]:
    """`ratio_*` is a way's time for all trials over plain's; the loss difference is the greatest of
    any step to plain's."""
    seconds = {
        way: [statistics.median(run["seconds"] for run in runs) for runs in found[way]]
        for way in WAYS
    }
    total = {way: sum(seconds[way]) for way in WAYS}
    losses = {
        way: [loss for runs in found[way] for run in runs for loss in run["losses"]] for way in WAYS
    }
    gaps = {
        way: max(abs(a - b) for a, b in zip(losses["plain"], losses[way], strict=True))
        for way in WAYS[1:]
    }
    return {
        "ratio_store": total["store"] / total["plain"],
        "ratio_store_shared": total["shared"] / total["plain"],
        "ratio_trl_precompute": total["precompute"] / total["plain"],
        "ratio_store_to_precompute": total["store"] / total["precompute"],
        "reference_pairs": {
            way: [max(run["reference_pairs"] for run in runs) for runs in found[way]]
            for way in WAYS
        },
        "max_loss_difference": max(gaps[way] for way in OURS),
        "loss_differences": gaps,
        "seconds": seconds,
        "losses": {way: [runs[0]["losses"] for runs in found[way]] for way in WAYS},
        "settings": {k: v for k, v in vars(options).items() if k not in ("trial", "steps")},
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a way."""
    lines = [
        "| way | seconds a trial | all | of plain | reference pairs a trial | loss difference |",
        "|" + "---|" * 6,
    ]
    whole = sum(found["seconds"]["plain"])
    for way in WAYS:
        seconds, pairs = found["seconds"][way], found["reference_pairs"][way]
        each = f"{', '.join(f'{s:.1f}' for s in seconds)} | {sum(seconds):.1f} | {sum(seconds) / whole:.2f}"
        gap = f"{found['loss_differences'][way]:.1e}" if way != "plain" else "-"
        lines.append(f"| {way} | {each} | {', '.join(map(str, pairs))} | {gap} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
