"""Prompts -> near-duplicates among them. Pure.

    duplicates(prompts)          # [Duplicate(id, other, similarity)]

Only prompts with the same context are compared: system prompt, earlier turns, and signs in the last
user turn ("C++" is not "C#"). Words and word pairs of that turn are compared. MinHash finds the
candidates, the sets themselves decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overrefusal_po.identity import context_of, spoken_words, words_and_signs
from overrefusal_po.pairs.signatures import minhashes, scrambled
from overrefusal_po.records import Prompt, content_id

DUPLICATE = 0.7
"""Jaccard similarity of words and word pairs from which a prompt is a near-duplicate."""

PROMPTS_AT_ONCE = 1000

BANDS, BAND_WIDTH = 32, 4
"""Of the MinHash signature. Two texts of similarity 0.7 meet in a band with probability 0.9998, of
0.3 with 0.23."""


class Duplicate(NamedTuple):
    """A prompt that comes earlier already as `other`. `similarity` is a Jaccard, 1 for the same
    words."""

    id: str
    other: str
    similarity: float


def duplicates(prompts: Iterable[Prompt], threshold: float = DUPLICATE) -> list[Duplicate]:
    """Prompts that come earlier already in the same or nearly the same words, each with the earlier
    one most like it."""
    rows = list(prompts)

    @cache
    def words(row: int) -> list[str]:
        # split anew for candidates: the words of all prompts at once would fill the memory
        return compared_words(rows[row])

    best: dict[int, tuple[float, int]] = {}
    groups = context_groups(rows)
    for later, earlier in candidates(signatures(rows), groups):
        if groups[later] != groups[earlier]:
            continue
        similarity = jaccard(words(later), words(earlier))
        if similarity >= threshold:
            best[later] = max(best.get(later, (0.0, 0)), (similarity, -earlier))
    return [
        Duplicate(rows[at].id, rows[-back].id, round(similarity, 2))
        for at, (similarity, back) in sorted(best.items())
    ]


def compared_words(prompt: Prompt) -> list[str]:
    """The words of the last user turn, at least one; in a script without blanks each letter is
    one."""
    words = words_and_signs(prompt.text).words
    return [part for word in words for part in spoken_words(word)] or [""]


def context_groups(prompts: Sequence[Prompt]) -> NDArray[np.uint64]:
    """(prompts,): a number that is the same for prompts with the same context and signs."""
    keys = [content_id(*context_of(p), words_and_signs(p.text).signs) for p in prompts]
    return np.array([int(key, 16) for key in keys], dtype=np.uint64)


def signatures(prompts: Sequence[Prompt]) -> NDArray[np.uint32]:
    """(prompts, 128): the MinHash signature of each prompt's words and word pairs."""
    known: dict[str, int] = {}
    found = [np.empty((0, BANDS * BAND_WIDTH), dtype=np.uint32)]
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        some = prompts[first : first + PROMPTS_AT_ONCE]
        found.append(minhashes(list(map(compared_words, some)), BANDS * BAND_WIDTH, known))
    return np.concatenate(found)


def candidates(values: NDArray[np.uint32], groups: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """(later, earlier) rows of one group that agree in a whole band. In a crowd each row meets its
    first and its last neighbour.

    That keeps the work linear if thousands of rows come from one template.
    """
    met: list[NDArray[np.intp]] = []
    for band in np.split(values, BANDS, axis=1):
        low, high = band[:, :2].astype(np.uint64), band[:, 2:].astype(np.uint64)
        value = scrambled(low[:, 0] << np.uint64(32) | low[:, 1]) ^ (
            high[:, 0] << np.uint64(32) | high[:, 1]
        )
        value ^= scrambled(groups)
        order = np.argsort(value, kind="stable")
        again = np.flatnonzero(value[order][1:] == value[order][:-1]) + 1
        begins = np.flatnonzero(np.append(True, value[order][1:] != value[order][:-1]))
        first = begins[np.searchsorted(begins, again, "right") - 1]
        for other in (first, again - 1):
            met.append(order[again] * len(values) + order[other])
    for code in np.unique(np.concatenate(met)).tolist():
        yield divmod(code, len(values))


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the words and word pairs of both texts that both have."""
    a, b = ({*words, *zip(words, words[1:], strict=False)} for words in (one, other))
    return len(a & b) / len(a | b)
