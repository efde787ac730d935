"""Pairs -> how often chosen is told from rejected without the prompt, by its words alone. Pure.

    prompt_free(pairs)["words"].accuracy
    # 0.5: only the prompt decides; 0.95: the wording does

DPO's implicit reward may be a function of the response alone. If such a function already wins the
pairs, DPO learns it and not the prompts. So we train it: a Bradley-Terry model of chosen over
rejected on the words of the sides, without the prompt, cross-validated by prompt. Within one rule
it wins nearly always, by construction: answers over refusals, or refusals over answers. The mean
over the rules counts, because refusals win in one rule and lose in the other. A rule with fewer
pairs weighs as much as one with many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from overrefusal_po.identity import lower_words
from overrefusal_po.pairs.shortcuts import rule_or_kind
from overrefusal_po.records import PreferencePair

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Sides = tuple[list[str], list[str]]
"""The words of the chosen and of the rejected side of a pair."""

OPENING = 5
"""Words (tokens, with a tokenizer) of a side that are its opening."""

READ = 300
"""Words of a side that the model on all words reads."""

FOLDS = 5
FEWEST = 20
"""Pairs of each rule below which accuracies say nothing."""

MOST = 2000
"""Pairs that are looked at, spread over the set. The standard error of an accuracy is then at most
0.012."""

RAREST = 2
"""Sides of the training part in which a word must stand to be learned."""


class PromptFree(NamedTuple):
    """How often a side is told without the prompt. `accuracy`: mean over `by_rule`; `words`: those
    that tell most."""

    accuracy: float
    by_rule: dict[str, float]
    num_pairs: int
    words: tuple[str, ...]


class Grams(NamedTuple):
    """The words and word pairs of P pairs, G different ones in the order of the alphabet.

    Attributes:
        chosen: (P, G), 1 if the chosen side has the gram.
        rejected: (P, G), the same of the rejected side.
        vocabulary: the words, sorted.
        codes: (G,), a gram as a number; `gram_text` reads it.
    """

    chosen: csr_matrix
    rejected: csr_matrix
    vocabulary: list[str]
    codes: NDArray[np.int64]


class Fitted(NamedTuple):
    """A model's margins on the test pairs, and (G,) how much each gram tells."""

    margins: NDArray[np.float64]
    strength: NDArray[np.float64]


def prompt_free(
    pairs: Sequence[PreferencePair], openings: Sequence[Sides] | None = None
) -> dict[str, PromptFree]:
    """{"openings": on the first five words, "words": on all of them}; {} if a rule has fewer than
    20 pairs, or if all pairs are of one prompt: then none can be left out of the training part.

    `openings`: the first tokens of (chosen, rejected) of each pair, in place of their first words.
    """
    counts = Counter(map(rule_or_kind, pairs))
    if not counts or min(counts.values()) < FEWEST:
        return {}
    places = sampled(pairs)
    kept = [pairs[i] for i in places]
    if len({p.prompt.id for p in kept}) < 2:
        return {}
    texts = [(lower_words(p.chosen, READ), lower_words(p.rejected, READ)) for p in kept]
    heads = (
        [openings[i] for i in places]
        if openings
        else [(chosen[:OPENING], rejected[:OPENING]) for chosen, rejected in texts]
    )
    return {"openings": measured(heads, kept), "words": measured(texts, kept)}


def sampled(pairs: Sequence[PreferencePair]) -> list[int]:
    """Places of at most 2,000 pairs, spread over the set in the order of their ids; a rule with
    fewer than 20 among them is taken whole."""
    step = -(-len(pairs) // MOST)
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].id)
    counts = Counter(rule_or_kind(pairs[i]) for i in order[::step])
    return [
        i
        for place, i in enumerate(order)
        if place % step == 0 or counts[rule_or_kind(pairs[i])] < FEWEST
    ]


def measured(sides: Sequence[Sides], pairs: Sequence[PreferencePair]) -> PromptFree:
    """The Bradley-Terry model on (chosen, rejected) words, scored on pairs whose prompts it was not
    trained on."""
    from sklearn.model_selection import GroupKFold

    rules = np.array([rule_or_kind(p) for p in pairs])
    names, counts = np.unique(rules, return_counts=True)
    weights = (1 / counts)[np.searchsorted(names, rules)] * len(pairs) / len(names)
    groups = [p.prompt.id for p in pairs]
    grams = counted(sides)
    won = np.full(len(pairs), 0.5)
    strength = np.zeros(len(grams.codes))
    folds = GroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=0)
    for train, test in folds.split(groups, groups=groups):
        model = fitted(grams, weights, train, test)
        won[test] = np.where(np.abs(model.margins) < 1e-9, 0.5, model.margins > 0)
        strength += model.strength
    by_rule = {str(name): round(float(won[rules == name].mean()), 3) for name in names}
    most = np.argsort(-strength, kind="stable")[:5]
    words = tuple(gram_text(grams, place) for place in most if strength[place])
    return PromptFree(round(float(np.mean(list(by_rule.values()))), 3), by_rule, len(pairs), words)


def counted(sides: Sequence[Sides]) -> Grams:
    """The words and word pairs of each side."""
    from scipy.sparse import csr_matrix

    texts = [words for both in sides for words in both]
    vocabulary = sorted(set(chain.from_iterable(texts)))
    rank = {word: place for place, word in enumerate(vocabulary)}
    ids = np.fromiter(map(rank.__getitem__, chain.from_iterable(texts)), dtype=np.int64)
    owners = np.repeat(np.arange(len(texts)), [len(words) for words in texts])
    follows = owners[1:] == owners[:-1]
    single = ids * (len(vocabulary) + 1)
    double = (single[:-1] + ids[1:] + 1)[follows]
    codes, columns = np.unique(np.concatenate([single, double]), return_inverse=True)
    rows = np.concatenate([owners, owners[1:][follows]])
    found = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(codes)))
    found.data[:] = 1  # a gram that a side has twice counts once
    return Grams(found[0::2], found[1::2], vocabulary, codes)


def gram_text(grams: Grams, place: int) -> str:
    """A word, or a pair as "first second"."""
    first, second = divmod(int(grams.codes[place]), len(grams.vocabulary) + 1)
    return " ".join(grams.vocabulary[i] for i in (first, second - 1) if i >= 0)


def fitted(
    grams: Grams, weights: NDArray[np.float64], train: NDArray[np.intp], test: NDArray[np.intp]
) -> Fitted:
    """The model fitted to the train pairs; margins of 0 if no gram comes twice among them."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    size = len(grams.codes)
    columns = [side[train].indices for side in (grams.chosen, grams.rejected)]
    learned = np.bincount(np.concatenate(columns), minlength=size) >= RAREST
    strength = np.zeros(size)
    if not learned.any():
        return Fitted(np.zeros(len(test)), strength)
    differences = (grams.chosen - grams.rejected)[:, learned]
    rows = differences[train]
    # each pair both ways round, so that neither the order nor an intercept can win
    model = LogisticRegression(fit_intercept=False, max_iter=300)
    labels = [1] * len(train) + [0] * len(train)
    model.fit(vstack([rows, -rows]), labels, sample_weight=np.concatenate([weights[train]] * 2))
    strength[learned] = np.abs(model.coef_[0])
    return Fitted(differences[test] @ model.coef_[0], strength)
