"""Prompts -> those that stand in a benchmark, or nearly. Pure but for the signature file.

    contamination(prompts)       # [Hit(id, "contamination", "xstest", 0.86)]

The firewall knows the benchmarks by signatures alone (`data/firewall.npz`, built by
scripts/build_firewall.py):
- keys find texts that differ by one word, however short;
- sketches find texts that differ by more.

It is fuzzy on purpose: it looks at the words of each user turn on its own, and neither signs nor
system prompts make a benchmark's prompt another one. `duplicates` is stricter.
`signatures` says how both are made. A key stands for a whole prompt, and a bit of a sketch for all
its words and word pairs. So no signature belongs to a word or a phrase that could be looked up.
Somebody who already has a prompt can ask whether it is in: that is the purpose of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overrefusal_po.pairs.findings import Finding, placed
from overrefusal_po.pairs.signatures import (
    KEY_BYTES,
    SHORTEST_QUESTION,
    SKETCH_BITS,
    Span,
    deletion_keys,
    sketch_similarity,
    sketches,
    split_words,
)
from overrefusal_po.records import Origin, Prompt

NEAR = 0.6
"""Jaccard similarity of words and word pairs from which a text counts as a benchmark's. The data of
this project were kept apart by the same measure and value."""

MOST_BITS_APART = int((1 - NEAR) / 2 * SKETCH_BITS)
"""Bits in which the sketches of two texts of similarity NEAR differ at most."""

PROMPTS_AT_ONCE = 250
SKETCHES_AT_ONCE = 64
"""What is looked at in one go: keeps the memory small."""

ANY_LENGTH = 2**32
"""`longest` of a file that does not say it."""

PART_END = re.compile(r"\n|(?<=[.!?])\s")
"""What ends a line or a sentence."""

MISSING = {
    "coconot": "allenai/coconot; near many everyday questions",
    "jailbreakbench": "JailbreakBench/JBB-Behaviors",
    "sorry_bench": "sorry-bench/sorry-bench-202503",
    "wildguardtest": "allenai/wildguardmix",
    "wildjailbreak_eval": "allenai/wildjailbreak",
    "oktest": "the authors of arXiv 2401.17633",
    "hex_phi": "LLM-Tuning-Safety/HEx-PHI",
    "alpaca_eval": "tatsu-lab/alpaca_eval",
    "mt_bench": "HuggingFaceH4/mt_bench_prompts",
}
"""Benchmarks whose prompts nobody has put in yet -> their places; `missing` leaves out what a
firewall knows."""


class Hit(NamedTuple):
    """A prompt that is a benchmark's, or nearly. `similarity`: 1 for the same words, else 1 -
    1/words or a Jaccard."""

    id: str
    check: Literal["contamination"]
    benchmark: str
    similarity: float


class Firewall(NamedTuple):
    """Signatures of K keys and S prompts.

    Attributes:
        names: of the benchmarks; owners are places in it.
        keys: (K,), sorted; a key may come twice, with two owners.
        key_owners: (K,).
        sketches: (S, 32).
        sketch_owners: (S,).
        longest: words of the longest prompt; a longer text shares no key.
    """

    names: tuple[str, ...]
    keys: NDArray[np.uint64]
    key_owners: NDArray[np.uint8]
    sketches: NDArray[np.uint8]
    sketch_owners: NDArray[np.uint8]
    longest: np.uint64


def build_firewall(benchmarks: Mapping[str, Iterable[str]]) -> Firewall:
    """Signatures of {benchmark: its prompts}."""
    names, pairs, texts, owners = tuple(benchmarks), set(), [], []
    for owner, name in enumerate(names):
        for words in map(split_words, benchmarks[name]):
            if words:
                pairs |= {(key, owner) for key in deletion_keys(words)}
                texts.append(words)
                owners.append(owner)
    keys, key_owners = zip(*sorted(pairs), strict=True)
    return Firewall(
        names,
        np.array(keys, dtype=np.uint64),
        np.array(key_owners, dtype=np.uint8),
        sketches(texts, {}),
        np.array(owners, dtype=np.uint8),
        np.uint64(max(map(len, texts))),
    )


def joined(old: Firewall, new: Firewall) -> Firewall:
    """Both firewalls as one; a benchmark of `new` replaces that of the same name."""
    stay = [name for name in old.names if name not in new.names]
    place = np.array([stay.index(n) if n in stay else 255 for n in old.names], dtype=np.uint8)
    keep, keep_sketch = place[old.key_owners] < 255, place[old.sketch_owners] < 255
    shift = np.uint8(len(stay))
    keys = np.concatenate([old.keys[keep], new.keys])
    owners = np.concatenate([place[old.key_owners][keep], new.key_owners + shift])
    order = np.lexsort((owners, keys))
    return Firewall(
        (*stay, *new.names),
        keys[order],
        owners[order],
        np.concatenate([old.sketches[keep_sketch], new.sketches]),
        np.concatenate([place[old.sketch_owners][keep_sketch], new.sketch_owners + shift]),
        max(old.longest, new.longest),
    )


def save_firewall(firewall: Firewall, path: Path) -> None:
    """Writes the signatures, keys as five bytes each."""
    columns = firewall.keys.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - KEY_BYTES :]
    values = firewall._asdict() | {"names": np.array(firewall.names), "keys": columns}
    with path.open("wb") as file:
        np.savez(file, **values)


@cache
def load_firewall(path: Path | None = None) -> Firewall:
    """The firewall of a file; None: the one of this package."""
    with np.load(
        path or Path(str(files("overrefusal_po"))) / "data" / "firewall.npz", allow_pickle=False
    ) as stored:
        columns = stored["keys"]
        wide = np.concatenate([np.zeros((len(columns), 8 - KEY_BYTES), np.uint8), columns], axis=1)
        keys = np.ascontiguousarray(wide).view(">u8").ravel().astype(np.uint64)
        return Firewall(
            names=tuple(map(str, stored["names"])),
            keys=keys,
            key_owners=stored["key_owners"],
            sketches=stored["sketches"],
            sketch_owners=stored["sketch_owners"],
            longest=np.uint64(stored.get("longest", ANY_LENGTH)),
        )


def missing(firewall: Firewall) -> list[str]:
    """A line for each benchmark that a firewall does not know, with the command that adds it."""
    return [
        f"{name} is not in the firewall; with its prompts (from {place}) in FILE.jsonl: "
        f"python scripts/build_firewall.py --add {name}=FILE.jsonl"
        for name, place in MISSING.items()
        if name not in firewall.names
    ]


class Asked(NamedTuple):
    """A text that a prompt asks: the prompt's place, the words, and the spans to look at: the whole
    first, then lines and sentences."""

    row: int
    words: list[str]
    spans: list[Span]


class Match(NamedTuple):
    """What a span has in common with a benchmark: the prompt's place, the benchmark's place in
    `names`, and the similarity."""

    row: int
    owner: int
    similarity: float


def contamination(prompts: Iterable[Prompt], firewall: Firewall | None = None) -> list[Hit]:
    """The prompts that stand in a benchmark or nearly, one hit for each prompt and benchmark, in
    the prompts' order.

    The whole prompt is looked at, and each of its lines and sentences: a question in a template is
    found too.
    """
    wall = firewall or load_firewall()
    rows = list(prompts)
    known: dict[str, int] = {}
    hits = []
    for first in range(0, len(rows), PROMPTS_AT_ONCE):
        some = enumerate(rows[first : first + PROMPTS_AT_ONCE], first)
        asked = [text for row, prompt in some for text in asked_texts(row, prompt)]
        best: dict[tuple[int, int], float] = {}
        for matches in (shared_keys(asked, wall), near_sketches(asked, wall, known)):
            for row, owner, similarity in matches:
                best[row, owner] = max(best.get((row, owner), 0.0), similarity)
        hits += [
            Hit(rows[row].id, "contamination", wall.names[owner], round(similarity, 2))
            for (row, owner), similarity in sorted(best.items())
        ]
    return hits


def benchmark_finding(hit: Hit, own_id: str, origin: Origin | None) -> Finding:
    """A hit as a finding about the row `own_id`, which can be waived for its whole benchmark."""
    message = f"is a prompt of {hit.benchmark}, or nearly (similarity {hit.similarity})"
    group = f"contamination/{hit.benchmark}"
    found = Finding(own_id, "contamination", "error", "prompt", message, group=group)
    return placed([found], origin)[0]


def asked_texts(row: int, prompt: Prompt) -> Iterator[Asked]:
    """Each text that a prompt asks, if it has words: its user turns, and the question behind an
    attack."""
    texts = dict.fromkeys([*(m.content for m in prompt.messages if m.role == "user"), prompt.asked])
    for text in texts:
        words: list[str] = []
        parts = []
        for part in PART_END.split(text):
            start = len(words)
            words += split_words(part)
            parts.append(Span(start, len(words)))
        whole = Span(0, len(words))
        long = [p for p in parts if p.end - p.start > SHORTEST_QUESTION and p != whole]
        if words:
            yield Asked(row, words, [whole, *long])


def shared_keys(asked: Sequence[Asked], wall: Firewall) -> Iterator[Match]:
    """What has a key in common with a benchmark: all words but one at the most."""
    owners, keys = [], []
    for row, words, spans in asked:
        for start, end in spans:
            if end - start <= wall.longest + 1:
                own = deletion_keys(words[start:end])
                keys += own
                owners += [(row, end - start)] * len(own)
    found = np.array(keys, dtype=np.uint64)
    for at in np.flatnonzero(np.isin(found, wall.keys)):
        row, size = owners[at]
        low, high = (np.searchsorted(wall.keys, found[at], side) for side in ("left", "right"))
        for owner in wall.key_owners[low:high]:
            yield Match(row, int(owner), 1 - 1 / max(size, 2))


def near_sketches(asked: Sequence[Asked], wall: Firewall, known: dict[str, int]) -> Iterator[Match]:
    """What shares words and word pairs with a benchmark's prompt; a short text must share them
    all."""
    spans = [(row, end - start) for row, _, own in asked for start, end in own]
    own = sketches([text.words for text in asked], known, [text.spans for text in asked])
    for at, place in close_sketches(own, wall.sketches):
        row, size = spans[at]
        similarity = sketch_similarity(own[at], wall.sketches[place])
        if similarity >= (NEAR if size > SHORTEST_QUESTION else 1.0):
            yield Match(row, int(wall.sketch_owners[place]), similarity)


def close_sketches(own: NDArray[np.uint8], known: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Places (own, known) of sketches that may be near: three quarters of their bits differ no more
    than the whole of near ones.

    Bits of texts that have nothing in common differ by half, so that hardly any other pair comes.
    """
    ours = own.view(np.uint64)[:, :3]
    theirs = np.ascontiguousarray(known.view(np.uint64)[:, :3].T)
    for first in range(0, len(ours), SKETCHES_AT_ONCE):
        some = ours[first : first + SKETCHES_AT_ONCE]
        apart = np.bitwise_count(some[:, 0, None] ^ theirs[0])  # (some, known), up to 64
        for word in (1, 2):
            apart += np.bitwise_count(some[:, word, None] ^ theirs[word])
        for at in np.flatnonzero(apart <= MOST_BITS_APART).tolist():
            row, place = divmod(at, len(known))
            yield first + row, place
