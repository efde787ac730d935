"""Pairs -> what tells their sides, or their prompts, apart at a glance: length, and how refusals
begin. Pure.

    lengths(pairs)["all"].cliffs_delta
    # 0.4: chosen sides are often the longer ones
    rejected_only_openers(pairs, refused)
    # [Opener("i'm sorry but", "overrefusal", 60, 60)]

A model that learns such a mark learns it in place of the prompts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from overrefusal_po.identity import lower_words, spoken_words
from overrefusal_po.records import PreferencePair, Prompt

FEWEST_PROMPTS = 20
"""Prompts of a side from which their lengths say something (ours)."""


class Length(NamedTuple):
    """Words of the sides: medians, and Cliff's delta (1: every chosen side is longer than every
    rejected one)."""

    chosen: float
    rejected: float
    cliffs_delta: float
    num_pairs: int


class PromptLengths(NamedTuple):
    """Words of the prompts: medians, and Cliff's delta (1: every harmless prompt is longer than
    every harmful one)."""

    harmless: float
    harmful: float
    cliffs_delta: float


class Opener(NamedTuple):
    """A refusal's first words: how many rejected refusals of `rule` begin so (`rejected`), and how
    many there are (`of`)."""

    words: str
    rule: str
    rejected: int
    of: int


def rule_or_kind(pair: PreferencePair) -> str:
    """The rule; for imported pairs, which have none, the prompt's kind."""
    return pair.rule or pair.prompt.kind


def lengths(pairs: Sequence[PreferencePair]) -> dict[str, Length]:
    """{rule: lengths}, and `all` over the rules, each rule weighing as much as another."""
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        sides = len(spoken_words(pair.chosen)), len(spoken_words(pair.rejected))
        rows[rule_or_kind(pair)].append(sides)
    found = {rule: measured_length(counts) for rule, counts in rows.items()}
    overall = float(np.mean([length.cliffs_delta for length in found.values()]))
    everything = measured_length([row for counts in rows.values() for row in counts])
    return found | {"all": everything._replace(cliffs_delta=round(overall, 3))}


def prompt_lengths(prompts: Sequence[Prompt]) -> PromptLengths | None:
    """The lengths of harmless prompts (benign and ordinary ones) and of harmful ones; None if one
    side has fewer than FEWEST_PROMPTS."""
    counts: dict[bool, list[int]] = {True: [], False: []}
    for prompt in prompts:
        counts[prompt.kind == "harmful"].append(prompt_words(prompt))
    harmful, harmless = np.array(counts[True]), np.array(counts[False])
    if min(len(harmful), len(harmless)) < FEWEST_PROMPTS:
        return None
    delta = round(cliffs_delta(harmless, harmful), 3)
    return PromptLengths(float(np.median(harmless)), float(np.median(harmful)), delta)


def prompt_words(prompt: Prompt) -> int:
    """The words of a prompt, over all its turns."""
    return sum(len(spoken_words(turn.content)) for turn in prompt.messages)


def measured_length(counts: Sequence[tuple[int, int]]) -> Length:
    """The lengths of pairs whose sides have these numbers of words."""
    chosen, rejected = np.array(counts).T
    return Length(
        float(np.median(chosen)),
        float(np.median(rejected)),
        round(cliffs_delta(chosen, rejected), 3),
        len(counts),
    )


def cliffs_delta(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """P(one > other) - P(one < other) over all couples of values (Cliff 1993)."""
    ordered = np.sort(other)
    below, not_above = np.searchsorted(ordered, one, "left"), np.searchsorted(ordered, one, "right")
    return float((below.mean() - (len(ordered) - not_above).mean()) / len(ordered))


def rejected_only_openers(
    pairs: Sequence[PreferencePair], refused: Sequence[bool], *, num_words: int = 3
) -> list[Opener]:
    """Openers of rejected refusals in one rule that no chosen side of another rule has; [] if there
    is one rule only.

    `refused[i]`: whether the rejected side of pair i is a refusal. An opener counts from 3 rows and
    a tenth of them on (ours): a rarer one is no way to win.
    """
    rejected: dict[str, Counter[str]] = defaultdict(Counter)
    chosen: dict[str, set[str]] = defaultdict(set)
    for pair, is_refusal in zip(pairs, refused, strict=True):
        chosen[rule_or_kind(pair)].add(opener(pair.chosen, num_words))
        if is_refusal:
            rejected[rule_or_kind(pair)][opener(pair.rejected, num_words)] += 1
    found = []
    for rule, counts in rejected.items():
        elsewhere = [openers for other, openers in chosen.items() if other != rule]
        for words, count in counts.most_common():
            often = count >= max(3, 0.1 * counts.total())
            if often and elsewhere and not any(words in openers for openers in elsewhere):
                found.append(Opener(words, rule, count, counts.total()))
    return found


def opener(text: str, num_words: int) -> str:
    """The first words of a text, as `lower_words` has them."""
    return " ".join(lower_words(text, num_words))
