"""Speed and memory of the hygiene checks, and how well they find what is planted.

    python benchmarks/hygiene.py [--prompts 200000] [--data /work/shared/data]

200,000 made-up prompts (words drawn from the starter set by Zipf's law, a twentieth of them
near-copies with one word changed) go through `duplicates` and `contamination`. With --data: what
the firewall catches of the benchmarks with one word changed, and what it flags of prompts that are
no benchmark's. Results stand in RESULTS.md.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.pairs.duplicates import Duplicate, duplicates
from overrefusal_po.pairs.firewall import contamination
from overrefusal_po.pairs.signatures import split_words
from overrefusal_po.prompts import read_source
from overrefusal_po.records import Prompt, read_objects

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))


def made_up(number: int, seed: int = 0) -> tuple[list[Prompt], set[str]]:
    """(prompts, ids of the near-copies): each near-copy comes after its original, with one word
    changed."""
    rng = random.Random(seed)
    vocabulary = list(
        dict.fromkeys(w for p in read_source("starter", None) for w in split_words(p.text))
    )
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    texts: list[list[str]] = []
    copies = set()
    for place in range(number):
        if place % 20 == 19:
            words = list(texts[rng.randrange(place)])
            words[rng.randrange(len(words))] = "changed"
            copies.add(str(place))
        else:
            words = rng.choices(vocabulary, weights, k=rng.randint(12, 30))
        texts.append(words)
    return [
        Prompt.of(" ".join(w), kind="general").model_copy(update={"id": str(i)})
        for i, w in enumerate(texts)
    ], copies


def timed(what: str, work: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """Runs `work`; prints seconds, and the most memory that this process has held so far."""
    start = time.perf_counter()
    found = work()
    seconds, peak = (
        time.perf_counter() - start,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    print(f"{what}: {len(found)} found, {seconds:.0f} s, peak memory {peak:.0f} MB")
    return found


def one_word_changed(texts: Sequence[str], vocabulary: Sequence[str], seed: int) -> list[Prompt]:
    """Each text with one word, drawn by seed, replaced by a word drawn from `vocabulary`; ids are
    places."""
    rng, found = random.Random(seed), []
    for place, text in enumerate(texts):
        words = text.split()
        words[rng.randrange(len(words))] = rng.choice(vocabulary)
        found.append(
            Prompt.of(" ".join(words), kind="general").model_copy(update={"id": str(place)})
        )
    return found


def caught(data: Path) -> None:
    """Prints the share of changed benchmark prompts that is caught, and the share of other prompts
    that is flagged."""
    from build_firewall import FILES, prompts_in  # type: ignore[import-not-found]

    texts = {
        name: [p for f in known for p in prompts_in(data / f)] for name, known in FILES.items()
    }
    vocabulary = sorted({w for rows in texts.values() for text in rows for w in split_words(text)})
    for name, rows in texts.items():
        hits = {
            h.id
            for h in contamination(one_word_changed(rows, vocabulary, 0))
            if h.benchmark == name
        }
        print(
            f"{name}: {len(hits)} of {len(rows)} with one word changed are caught "
            f"({len(hits) / len(rows):.1%})"
        )
    for file in sorted([*data.glob("train/general_*.jsonl"), *data.glob("train/benign_*.jsonl")]):
        prompts = [Prompt.of(str(row["prompt"]), kind="general") for _, row in read_objects(file)]
        flagged = len({h.id for h in contamination(prompts)})
        print(f"{file.name}: {flagged} of {len(prompts)} flagged ({flagged / len(prompts):.2%})")


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200_000)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    prompts, copies = made_up(args.prompts)
    timed(f"{args.prompts} prompts made", lambda: prompts)
    found: Sequence[Duplicate] = timed("duplicates", lambda: duplicates(prompts))
    ids = {d.id for d in found}
    print(
        f"planted near-copies found: {len(copies & ids)} of {len(copies)}; others: "
        f"{len(ids - copies)}"
    )
    timed("contamination", lambda: contamination(prompts))
    if args.data:
        caught(args.data)


if __name__ == "__main__":
    main()
