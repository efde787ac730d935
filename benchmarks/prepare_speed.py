"""From a file of preference pairs to the first batch of a training: our preparation against TRL's.

    python benchmarks/prepare_speed.py --pairs 20000 --json OUT

The pairs are synthetic, of UltraFeedback's shape (seeded; prompts of 20 to 400 words, sides of 50
to 500 words), in TRL's conversational form. `trl` reads the file, builds TRL's own `DPOTrainer` on
the rows (which renders and tokenises them) and takes the first batch. `ours` reads, checks and
lints them with the refusal judge, compares them with the benchmark firewall, renders and tokenises
them, builds our DPO trainer and takes the first batch. Both have the same tokenizer, a model of two
tiny layers, and the same cores. Imports and the model's loading are not timed. Each side is a
process of its own, since peak memory (the whole process, imports too) is measured beside the time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_speed import child

SIDES = ("trl", "ours")
PROMPT_WORDS, SIDE_WORDS = (20, 400), (50, 500)
"""Fewest and most words of a prompt and of a side."""

REFUSING = {
    *(
        "sorry",
        "cannot",
        "can",
        "not",
        "no",
        "won",
        "unable",
        "refuse",
        "decline",
        "help",
        "i",
        "t",
    ),
    *("harm", "harmful", "illegal", "wrong", "never", "don", "m", "against", "dangerous", "safe"),
}
"""Words left out, so that the refusal judge finds no refusal in random text."""

TOKENIZER = "bundled:smollm2-135m-instruct"


def main() -> None:
    options = arguments()
    if options.side:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_pairs(file, options.pairs, options.seed)
        found = {side: child(__file__, "--side", side, "--file", str(file)) for side in SIDES}
    result = {
        "pairs": options.pairs,
        "seed": options.seed,
        "cores": os.cpu_count(),
        **found,
        "time_ratio": found["ours"]["seconds"] / found["trl"]["seconds"],
        "memory_ratio": found["ours"]["peak_bytes"] / found["trl"]["peak_bytes"],
    }
    Path(options.json).write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--json", required=True, help="file for the result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- pairs ----------------------------------------------------------------------------------------


def write_pairs(file: Path, number: int, seed: int) -> None:
    """Pairs in TRL's conversational form with explicit prompts, a line each."""
    rng = random.Random(seed)
    words = vocabulary()
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(number):
            prompt = text(rng, words, rng.randint(*PROMPT_WORDS)) + "?"
            sides = [text(rng, words, rng.randint(*SIDE_WORDS)) + "." for _ in range(2)]
            row = {"prompt": [{"role": "user", "content": prompt}]}
            for name, side in zip(("chosen", "rejected"), sides, strict=True):
                row[name] = [{"role": "assistant", "content": side}]
            lines.write(json.dumps(row) + "\n")


def vocabulary() -> list[str]:
    """The words of the starter set's responses, the most frequent first, without refusing words."""
    from overrefusal_po.prompts import read_source

    said = " ".join(p.reference or "" for p in read_source("starter", None))
    counts = Counter(re.findall(r"[a-z]+", said.lower()))
    return [word for word, _ in counts.most_common() if word not in REFUSING]


def text(rng: random.Random, words: list[str], number: int) -> str:
    """`number` words in sentences, drawn by Zipf's law."""
    drawn = [words[int(len(words) ** rng.random()) - 1] for _ in range(number)]
    parts = []
    while drawn:
        length = rng.randint(6, 22)
        parts.append(" ".join(drawn[:length]).capitalize())
        drawn = drawn[length:]
    return ". ".join(parts)


# --- both sides -----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step and peak memory of one side."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        steps = (ours if options.side == "ours" else plain)(options.file, Path(folder))
        seconds, last = {}, time.perf_counter()
        for name in steps:
            seconds[name] = time.perf_counter() - last
            last = time.perf_counter()
    seconds.pop("loaded")
    return {
        "seconds": sum(seconds.values()),
        "steps": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def tiny_model(folder: Path) -> tuple[Any, Any]:
    """(a Llama of two tiny layers, the bundled model's tokenizer)."""
    import torch
    from random_models import TINY
    from transformers import LlamaConfig, LlamaForCausalLM

    from overrefusal_po.model.load import load_tokenizer

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY)), load_tokenizer(TOKENIZER)


def trainer_settings(folder: Path) -> dict[str, Any]:
    """Keys of `trl.DPOConfig` that both sides use."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "max_length": 4096,
        "disable_tqdm": True,
    }


def plain(file: str, folder: Path) -> Iterator[str]:
    """TRL's own preparation, a name after each step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = tiny_model(folder)
    yield "loaded"
    with Path(file).open(encoding="utf-8") as lines:
        rows = Dataset.from_list([json.loads(line) for line in lines])
    yield "read"
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(**trainer_settings(folder)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    yield "tokenise"
    next(iter(trainer.get_train_dataloader()))
    yield "first batch"


def ours(file: str, folder: Path) -> Iterator[str]:
    """Our preparation, a name after each step."""
    import trl  # noqa: F401  (imports are not timed)

    from overrefusal_po.model.chat import ChatTemplate
    from overrefusal_po.recipe.schema import TrainRecipe
    from overrefusal_po.train import dpo
    from overrefusal_po.train.settings import full_settings
    from overrefusal_po.train.trl_private import ReadyDPOTrainer  # noqa: F401

    model, tokenizer = tiny_model(folder)
    template = ChatTemplate(tokenizer)
    settings = trainer_settings(folder)
    output = settings.pop("output_dir")
    recipe = TrainRecipe(
        task="train",
        method="dpo",
        model={"model_name_or_path": TOKENIZER},
        data={"pairs": file, "allow_no_anchor": True},
        trainer=settings,
    )
    full_settings(recipe)  # the cached table of TRL's fields
    yield "loaded"
    source = dpo.read(recipe)
    yield "read"
    prepared = dpo.prepare(recipe, source, template)
    yield "tokenise, lint, firewall"
    trainer = dpo.dpo_trainer(
        model,
        prepared,
        args={**settings, "output_dir": output},
        ref_model=copy.deepcopy(model),
        template=template,
        shared_prefix=False,
    )
    yield "trainer"
    next(iter(trainer.get_train_dataloader()))
    yield "first batch"


if __name__ == "__main__":
    sys.exit(main())
