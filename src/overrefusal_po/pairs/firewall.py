"""Prompts -> near-duplicates among them, and prompts that stand in a benchmark. Pure but for the
signature file.

    duplicates(prompts)          # [Duplicate(id, other, similarity, across_splits)]
    contamination(prompts)       # [Hit(id, "contamination", "xstest", 0.86)]

The firewall knows the benchmarks by signatures alone (`data/firewall.npz`, built by
scripts/build_firewall.py):
- keys: 40-bit hashes of a whole prompt and of the prompt with each of its words left out. Two texts
  that differ by one word, however short, have such a key in common (deletion neighbourhoods, as in
  SymSpell);
- sketches: 256 bits of 1-bit MinHash (Li & Koenig, WWW 2010) of the prompt's words and word pairs,
  for texts that differ by more. The estimated Jaccard similarity has a standard error of 0.06 or
  less.
A key stands for a whole prompt and a bit of a sketch for all its shingles, so that no signature
belongs to a word or a phrase that could be looked up. Whoever already has a prompt can ask whether
it is in; that is what the file is for.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from overrefusal_po.records import Prompt

Array = np.ndarray[Any, np.dtype[Any]]

SALT = b"overrefusal-po 1"
KEY_BYTES = 5
SKETCH_BITS = 256
SHORTEST = 4
"""Words below which a text is no question of its own ("How do I?"), so that only the whole of it
counts."""

NEAR = 0.6
"""Jaccard similarity of words and word pairs from which a text counts as a benchmark's; the data of
this project were kept apart by the same measure and value."""

DUPLICATE = 0.7
BANDS, ROWS = 32, 4
"""Of the MinHash signature: two texts of similarity 0.7 meet in a band with probability 0.9998, of
0.3 with 0.23."""

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
"""Benchmarks whose prompts nobody has put in yet -> where they are; `missing` leaves out what a
firewall knows."""


class Hit(NamedTuple):
    """A prompt that is a benchmark's, or nearly. `similarity`: 1 for the same words, else 1 -
    1/words or a Jaccard."""

    id: str
    check: Literal["contamination"]
    benchmark: str
    similarity: float


class Duplicate(NamedTuple):
    """A prompt that comes earlier already as `other`. `similarity` is a Jaccard, 1 for the same
    words."""

    id: str
    other: str
    similarity: float
    across_splits: bool


class Firewall(NamedTuple):
    """Signatures. Owners are places in `names`; keys are sorted and may come twice, with two
    owners."""

    names: tuple[str, ...]
    keys: Array
    key_owners: Array
    sketches: Array
    sketch_owners: Array


# --- words, keys and sketches ---------------------------------------------------------------------

WORD = re.compile(r"[^\W_]+")
GLUE = re.compile("['\u2019`\u00ad\u200b-\u200f\u2060\ufeff]")
UNIT_END = re.compile(r"\n|(?<=[.!?])\s")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes and invisible characters glue ("Don't" ->
    "dont")."""
    return WORD.findall(GLUE.sub("", unicodedata.normalize("NFKC", text)).lower())


def units(prompt: Prompt) -> Iterator[list[str]]:
    """The words of what a prompt asks: of each user turn as a whole, and of its lines and sentences
    one by one."""
    texts = dict.fromkeys([*(m.content for m in prompt.messages if m.role == "user"), prompt.asked])
    for text in texts:
        whole = words_of(text)
        yield whole
        parts = [words for part in UNIT_END.split(text) if len(words := words_of(part)) > SHORTEST]
        yield from (words for words in parts if words != whole)


def key(words: Iterable[str]) -> int:
    """A 40-bit hash of a text, as an integer."""
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=KEY_BYTES, salt=SALT).digest()
    return int.from_bytes(digest, "big")


def keys_of(words: Sequence[str]) -> list[int]:
    """The key of the whole text first, then that of the text without its first word, without its
    second, ..."""
    if len(words) < SHORTEST:
        return [key(words)]
    return [key(words), *(key([*words[:i], *words[i + 1 :]]) for i in range(len(words)))]


@cache
def multipliers(number: int) -> tuple[Array, Array]:
    """(factors, summands), each (number,): the hash functions of MinHash, the same with every
    version of numpy."""
    drawn = [
        hashlib.blake2b(f"{i}".encode(), digest_size=16, salt=SALT).digest() for i in range(number)
    ]
    factors = np.array([int.from_bytes(d[:8], "big") | 1 for d in drawn], dtype=np.uint64)
    return factors, np.array([int.from_bytes(d[8:], "big") for d in drawn], dtype=np.uint64)


def scrambled(values: Array) -> Array:
    """64-bit values spread over all bits (the finaliser of MurmurHash3, public domain)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    last: Array = values ^ (values >> np.uint64(33))
    return last


def shingle_hashes(texts: Sequence[Sequence[str]], known: dict[str, int]) -> tuple[Array, Array]:
    """(hashes, starts): the words and word pairs of all texts, one after the other, and where each
    text begins.

    `known` keeps the hashes of words between calls.
    """
    for word in {word for words in texts for word in words} - known.keys():
        known[word] = int.from_bytes(
            hashlib.blake2b(word.encode(), digest_size=8, salt=SALT).digest(), "big"
        )
    lengths = np.array([len(words) for words in texts])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    single = np.fromiter(
        (known[word] for words in texts for word in words), dtype=np.uint64, count=lengths.sum()
    )
    pairs = scrambled(np.roll(single, 1) * np.uint64(0x9E3779B97F4A7C15) + single)
    pairs[starts] = single[
        starts
    ]  # a first word has none before it; the minimum does not mind a value that comes twice
    return np.stack([single, pairs], axis=1).ravel(), 2 * starts


def minhashes(texts: Sequence[Sequence[str]], number: int, known: dict[str, int]) -> Array:
    """(texts, number) uint32: the least hash of a text's shingles by each hash function. No text
    may be empty."""
    factors, summands = multipliers(number)
    found = np.empty((len(texts), number), dtype=np.uint32)
    for first in range(0, len(texts), 500):
        hashes, starts = shingle_hashes(texts[first : first + 500], known)
        values = ((hashes[:, None] * factors + summands) >> np.uint64(32)).astype(np.uint32)
        found[first : first + 500] = np.minimum.reduceat(values, starts, axis=0)
    return found


def sketches_of(texts: Sequence[Sequence[str]], known: dict[str, int]) -> Array:
    """(texts, 32) uint8: the last bit of each of 256 MinHash values."""
    return np.packbits((minhashes(texts, SKETCH_BITS, known) & 1).astype(np.uint8), axis=1)


def signs(sketches: Array) -> Array:
    """(texts, 256) of -1 and 1. The mean product of two rows estimates their Jaccard similarity."""
    return np.unpackbits(sketches, axis=1).astype(np.float32) * 2 - 1


# --- the firewall ---------------------------------------------------------------------------------


def build_firewall(benchmarks: Mapping[str, Iterable[str]]) -> Firewall:
    """Signatures of {benchmark: its prompts}."""
    names, pairs, texts, owners = tuple(benchmarks), set(), [], []
    for owner, name in enumerate(names):
        for words in map(words_of, benchmarks[name]):
            if words:
                pairs |= {(k, owner) for k in keys_of(words)}
                texts.append(words)
                owners.append(owner)
    keys, key_owners = zip(*sorted(pairs), strict=True)
    return Firewall(
        names,
        np.array(keys, dtype=np.uint64),
        np.array(key_owners, dtype=np.uint8),
        sketches_of(texts, {}),
        np.array(owners, dtype=np.uint8),
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
        rest = (stored[name] for name in ("key_owners", "sketches", "sketch_owners"))
        return Firewall(tuple(map(str, stored["names"])), keys, *rest)


def missing(firewall: Firewall) -> list[str]:
    """A line for each benchmark that a firewall does not know, with the command that adds it."""
    return [
        f"{name} is not in the firewall; with its prompts (from {place}) in FILE.jsonl: "
        f"python scripts/build_firewall.py --add {name}=FILE.jsonl"
        for name, place in MISSING.items()
        if name not in firewall.names
    ]


def contamination(prompts: Iterable[Prompt], firewall: Firewall | None = None) -> list[Hit]:
    """The prompts that stand in a benchmark or nearly, one hit for each prompt and benchmark, in
    the prompts' order.

    A prompt is looked at as a whole and by its lines and sentences, so that a question in a
    template is found too.
    """
    wall = firewall or load_firewall()
    banks, known, hits = signs(wall.sketches).T, {}, []  # type: ignore[var-annotated]
    rows = list(prompts)
    for first in range(0, len(rows), 1000):
        asked = [
            (i, words)
            for i, p in enumerate(rows[first : first + 1000])
            for words in units(p)
            if words
        ]
        best: dict[tuple[int, int], float] = {}
        for found in (shared_keys(asked, wall), near_sketches(asked, wall, banks, known)):
            for row, owner, similarity in found:
                best[row, owner] = max(best.get((row, owner), 0.0), similarity)
        for (row, owner), similarity in sorted(best.items()):
            hits.append(
                Hit(rows[first + row].id, "contamination", wall.names[owner], round(similarity, 2))
            )
    return hits


Found = Iterator[tuple[int, int, float]]
"""(place of the prompt, benchmark, similarity)."""


def shared_keys(asked: Sequence[tuple[int, list[str]]], wall: Firewall) -> Found:
    """What has a key in common with a benchmark: all words but one at the most."""
    own = [keys_of(words) for _, words in asked]
    keys = np.array([k for found in own for k in found], dtype=np.uint64)
    text = np.repeat(np.arange(len(own)), [len(found) for found in own])
    low, high = np.searchsorted(wall.keys, keys, "left"), np.searchsorted(wall.keys, keys, "right")
    for at in np.flatnonzero(high > low):
        row, words = asked[text[at]]
        for owner in wall.key_owners[low[at] : high[at]]:
            yield row, int(owner), 1 - 1 / max(len(words), 2)


def near_sketches(
    asked: Sequence[tuple[int, list[str]]], wall: Firewall, banks: Array, known: dict[str, int]
) -> Found:
    """What shares words and word pairs with a benchmark's prompt; a short text must share them
    all."""
    if not asked:
        return
    similar = signs(sketches_of([words for _, words in asked], known)) @ banks / SKETCH_BITS
    least = np.array([NEAR if len(words) > SHORTEST else 1.0 for _, words in asked])
    for at, place in np.argwhere(similar >= least[:, None]):
        yield asked[at][0], int(wall.sketch_owners[place]), float(similar[at, place])


# --- duplicates -----------------------------------------------------------------------------------


def duplicates(prompts: Iterable[Prompt], threshold: float = DUPLICATE) -> list[Duplicate]:
    """Prompts that come earlier already in the same or nearly the same words, each with the earlier
    one most like it.

    Words and word pairs are compared: MinHash finds the candidates, the sets themselves decide.
    """
    rows = list(prompts)
    texts = [words_of(p.text) or [""] for p in rows]
    best: dict[int, tuple[float, int]] = {}
    for later, earlier in candidates(minhashes(texts, BANDS * ROWS, {})):
        similarity = jaccard(texts[later], texts[earlier])
        if similarity >= threshold:
            best[later] = max(best.get(later, (0.0, 0)), (similarity, -earlier))
    return [
        Duplicate(
            rows[at].id, rows[-back].id, round(similarity, 2), rows[at].split != rows[-back].split
        )
        for at, (similarity, back) in sorted(best.items())
    ]


def candidates(values: Array) -> Iterator[tuple[int, int]]:
    """(later, earlier) rows that agree in a whole band. In a crowd each row meets its first and its
    last neighbour.

    That keeps the work linear where thousands of rows come from one template.
    """
    met: list[Array] = []
    for band in np.split(values, BANDS, axis=1):
        low, high = band[:, :2].astype(np.uint64), band[:, 2:].astype(np.uint64)
        value = scrambled(low[:, 0] << np.uint64(32) | low[:, 1]) ^ (
            high[:, 0] << np.uint64(32) | high[:, 1]
        )
        order = np.argsort(value, kind="stable")
        again = np.flatnonzero(value[order][1:] == value[order][:-1]) + 1
        begins = np.flatnonzero(np.append(True, value[order][1:] != value[order][:-1]))
        first = begins[np.searchsorted(begins, again, "right") - 1]
        for other in (first, again - 1):
            met.append(order[again] * len(values) + order[other])
    for code in np.unique(np.concatenate(met)).tolist():
        yield divmod(code, len(values))


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """Shared words and word pairs by all of them."""
    a, b = ({*words, *zip(words, words[1:], strict=False)} for words in (one, other))
    return len(a & b) / len(a | b)
