"""Text -> its words, and signatures that tell how much two texts have in common. Pure.

    words = split_words("Don't stop!")                 # ["dont", "stop"]
    whole, *shortened = deletion_keys(words)           # equal for texts that differ by one word
    minhashes([words], 128, {})                        # (1, 128): equal shares estimate a Jaccard

- Keys are 40-bit hashes of a whole text and of the text with each of its words left out. Two texts
  that differ by one word have such a key in common (deletion neighbourhoods, as in SymSpell).
- Sketches are 256 bits of 1-bit MinHash (Li & Koenig, WWW 2010) of words and word pairs. They
  estimate a Jaccard similarity with a standard error of 0.06 or less.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SALT = b"overrefusal-po 1"
KEY_BYTES = 5
SKETCH_BITS = 256

SHORTEST_QUESTION = 4
"""A text of fewer words is no question of its own ("How do I?"): only the whole of it counts."""

WORDS_AT_ONCE = 500
"""Words that are hashed at a time: the hashes (number, 2 words) then fit the processor's cache."""

WORD = re.compile(r"[^\W_]+")
INVISIBLE = re.compile("['\u2019`\u00ad\u200b-\u200f\u2060\ufeff]")
"""Apostrophes and characters that nobody sees: the letters around them are one word."""

KEY_HASH = hashlib.blake2b(digest_size=KEY_BYTES, salt=SALT)
"""The state before any text; `copy` is faster than a new hash."""


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation; "Don't" is "dont"."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return WORD.findall(INVISIBLE.sub("", text).lower())


def text_key(text: bytes) -> int:
    """A 40-bit hash, as an integer."""
    state = KEY_HASH.copy()
    state.update(text)
    return int.from_bytes(state.digest(), "big")


def deletion_keys(words: Sequence[str]) -> list[int]:
    """The key of the whole text, then of the text without its first word, its second, ...; a text
    of fewer than 4 words has the first key only."""
    text = " ".join(words).encode()
    keys = [text_key(text)]
    if len(words) < SHORTEST_QUESTION:
        return keys
    start = 0
    for word in words[:-1]:
        after = start + len(word if word.isascii() else word.encode()) + 1
        keys.append(text_key(text[:start] + text[after:]))
        start = after
    keys.append(text_key(text[: start - 1]))
    return keys


@cache
def hash_functions(number: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(factors, summands), each (number, 1): the hash functions of MinHash, the same with every
    version of numpy."""
    drawn = [
        hashlib.blake2b(f"{i}".encode(), digest_size=16, salt=SALT).digest() for i in range(number)
    ]
    factors = np.array([[int.from_bytes(d[:8], "big") | 1] for d in drawn], dtype=np.uint64)
    return factors, np.array([[int.from_bytes(d[8:], "big")] for d in drawn], dtype=np.uint64)


def scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64-bit values spread over all bits (the finaliser of MurmurHash3, public domain)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    last: NDArray[np.uint64] = values ^ (values >> np.uint64(33))
    return last


class Span(NamedTuple):
    """Words `start` to `end` of a text."""

    start: int
    end: int


def shingle_hashes(words: Sequence[str], known: dict[str, int]) -> NDArray[np.uint64]:
    """(2 words,): for each word the hash of its pair with the word before it, then its own.

    The first word's pair means nothing. `known` keeps the hashes of words between calls.
    """
    for word in set(words) - known.keys():
        known[word] = int.from_bytes(
            hashlib.blake2b(word.encode(), digest_size=8, salt=SALT).digest(), "big"
        )
    single = np.fromiter(map(known.__getitem__, words), dtype=np.uint64, count=len(words))
    pairs = scrambled(np.roll(single, 1) * np.uint64(0x9E3779B97F4A7C15) + single)
    return np.stack([pairs, single], axis=1).ravel()


def blocks(texts: Sequence[Sequence[str]]) -> Iterator[slice]:
    """Slices of `texts` with about 500 words each, one text at least."""
    first = words = 0
    for place, text in enumerate(texts):
        if words and words + len(text) > WORDS_AT_ONCE:
            yield slice(first, place)
            first, words = place, 0
        words += len(text)
    if texts:
        yield slice(first, len(texts))


def minhashes(
    texts: Sequence[Sequence[str]],
    number: int,
    known: dict[str, int],
    spans: Sequence[Sequence[Span]] | None = None,
) -> NDArray[np.uint32]:
    """(spans, number): the least hash of a span's words and word pairs by each hash function.

    Args:
        texts: words of each text.
        number: of hash functions.
        known: keeps the hashes of words between calls.
        spans: of each text, in order, none of them empty; None: each text is one span.
    """
    spans = spans or [[Span(0, len(words))] for words in texts]
    factors, summands = hash_functions(number)
    found = [np.empty((0, number), dtype=np.uint32)]
    for block in blocks(texts):
        hashes = shingle_hashes(list(chain.from_iterable(texts[block])), known)
        values = np.empty((number, len(hashes) + 1), dtype=np.uint64)
        np.multiply(factors, hashes, out=values[:, :-1])
        values += summands  # the last column is never looked at
        first, bounds = 0, []
        for words, own in zip(texts[block], spans[block], strict=True):
            # without the pair of the span's first word, which reaches out of the span
            bounds += [
                2 * (first + end) + at for start, stop in own for end, at in ((start, 1), (stop, 0))
            ]
            first += len(words)
        if bounds:
            # the least of the upper halves is the upper half of the least
            least = np.minimum.reduceat(values, bounds, axis=1)[:, ::2] >> np.uint64(32)
            found.append(least.T.astype(np.uint32))
    return np.concatenate(found)


def sketches(
    texts: Sequence[Sequence[str]],
    known: dict[str, int],
    spans: Sequence[Sequence[Span]] | None = None,
) -> NDArray[np.uint8]:
    """(spans, 32): the last bit of each of 256 MinHash values, as `minhashes` makes them."""
    bits = minhashes(texts, SKETCH_BITS, known, spans) & 1
    return np.packbits(bits.astype(np.uint8), axis=1)


def sketch_similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The Jaccard similarity that two sketches, each (32,), estimate: 1 less twice the share of
    bits that differ."""
    return 1 - 2 * int(np.unpackbits(one ^ other).sum()) / SKETCH_BITS
