"""Pairs -> what tells chosen from rejected without the prompt: wording, openers, length. Pure.

    prompt_free(pairs)["words"].accuracy
    # 0.5: only the prompt decides; 0.95: the wording does

DPO's implicit reward may be a function of the response alone. Where such a function already wins
the pairs, DPO learns it and not the prompts. So we train it: a Bradley-Terry model of chosen over
rejected on the words of the sides, without the prompt, cross-validated by prompt. Within one rule
it wins nearly always, by construction (answers over refusals, or refusals over answers); what
counts is the mean over the rules, where refusals win in one and lose in the other. A rule with
fewer pairs weighs as much as one with many.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from overrefusal_po.records import PreferencePair

Array = np.ndarray[Any, np.dtype[Any]]

OPENING = 5
"""Words (tokens, where a tokenizer is at hand) of a side that are its opening."""

READ = 300
"""Words of a side that the model on all words reads."""

FOLDS = 5
FEWEST = 20
"""Pairs of each rule below which accuracies say nothing."""

MOST = 4000
"""Pairs that are looked at, spread over the set; the standard error of an accuracy is then below
0.01."""

WORD = re.compile(r"\w+(?:['\u2019]\w+)?")


class PromptFree(NamedTuple):
    """How often a side is told without the prompt. `accuracy`: mean over `by_rule`; `words`: those
    that tell most."""

    accuracy: float
    by_rule: dict[str, float]
    num_pairs: int
    words: tuple[str, ...]


class Length(NamedTuple):
    """Words of the sides: medians, and Cliff's delta (1: every chosen side is longer than every
    rejected one)."""

    chosen: float
    rejected: float
    cliffs_delta: float
    num_pairs: int


class Opener(NamedTuple):
    """A refusal's first words: how many rejected refusals of `rule` begin so, of how many."""

    words: str
    rule: str
    rejected: int
    of: int


def rule_of(pair: PreferencePair) -> str:
    """The rule; for imported pairs, which have none, the prompt's kind."""
    return pair.rule or pair.prompt.kind


def words_of(text: str) -> list[str]:
    """Lower-case words, an apostrophe of either form kept as '."""
    return [w.replace("\u2019", "'") for w in WORD.findall(text.lower())]


def lengths(pairs: Sequence[PreferencePair]) -> dict[str, Length]:
    """{rule: lengths}, and `all` over the rules, each rule weighing as much as another."""
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        rows[rule_of(pair)].append((len(pair.chosen.split()), len(pair.rejected.split())))
    found = {}
    for rule, counts in rows.items():
        chosen, rejected = np.array(counts).T
        delta = cliffs_delta(chosen, rejected)
        found[rule] = Length(
            float(np.median(chosen)), float(np.median(rejected)), round(delta, 3), len(counts)
        )
    chosen, rejected = np.array([row for counts in rows.values() for row in counts]).T
    overall = float(np.mean([length.cliffs_delta for length in found.values()]))
    return found | {
        "all": Length(
            float(np.median(chosen)), float(np.median(rejected)), round(overall, 3), len(chosen)
        )
    }


def cliffs_delta(one: Array, other: Array) -> float:
    """P(one > other) - P(one < other) over all couples of values (Cliff 1993)."""
    ordered = np.sort(other)
    below, not_above = np.searchsorted(ordered, one, "left"), np.searchsorted(ordered, one, "right")
    return float((below.mean() - (len(ordered) - not_above).mean()) / len(ordered))


def lonely_openers(
    pairs: Sequence[PreferencePair], refused: Sequence[bool], *, words: int = 3
) -> list[Opener]:
    """Openers of rejected refusals in one rule that no chosen side of another rule has; [] where
    there is one rule only.

    `refused[i]`: whether the rejected side of pair i is a refusal. An opener counts from 3 rows and
    a tenth of them on (ours): a rarer one is no way to win.
    """
    rejected: dict[str, Counter[str]] = defaultdict(Counter)
    chosen: dict[str, set[str]] = defaultdict(set)
    for pair, is_refusal in zip(pairs, refused, strict=True):
        chosen[rule_of(pair)].add(" ".join(words_of(pair.chosen)[:words]))
        if is_refusal:
            rejected[rule_of(pair)][" ".join(words_of(pair.rejected)[:words])] += 1
    found = []
    for rule, counts in rejected.items():
        elsewhere = [openers for other, openers in chosen.items() if other != rule]
        for opener, count in counts.most_common():
            often = count >= max(3, 0.1 * counts.total())
            if often and elsewhere and not any(opener in openers for openers in elsewhere):
                found.append(Opener(opener, rule, count, counts.total()))
    return found


def prompt_free(
    pairs: Sequence[PreferencePair], openings: Sequence[tuple[list[str], list[str]]] | None = None
) -> dict[str, PromptFree]:
    """{"openings": on the first five words, "words": on all of them}; {} where a rule has fewer
    than 20 pairs.

    `openings`: the first tokens of (chosen, rejected) of each pair, in place of their first words.
    """
    counts = Counter(map(rule_of, pairs))
    if not counts or min(counts.values()) < FEWEST:
        return {}
    texts = [(words_of(p.chosen)[:READ], words_of(p.rejected)[:READ]) for p in pairs]
    heads = openings or [(c[:OPENING], r[:OPENING]) for c, r in texts]
    step = -(-len(pairs) // MOST)
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].id)[::step]
    kept = [pairs[i] for i in order]
    if min(Counter(map(rule_of, kept)).get(rule, 0) for rule in counts) < FEWEST:
        kept, order = list(pairs), list(range(len(pairs)))
    return {
        name: told([rows[i] for i in order], kept)
        for name, rows in (("openings", heads), ("words", texts))
    }


def told(
    sides: Sequence[tuple[list[str], list[str]]], pairs: Sequence[PreferencePair]
) -> PromptFree:
    """The Bradley-Terry model on (chosen, rejected) words, scored on pairs whose prompts it was not
    trained on."""
    from sklearn.model_selection import GroupKFold

    rules = np.array([rule_of(p) for p in pairs])
    names, counts = np.unique(rules, return_counts=True)
    weights = (1 / counts)[np.searchsorted(names, rules)] * len(pairs) / len(names)
    groups = [p.prompt.id for p in pairs]
    won = np.full(len(pairs), 0.5)
    weighed: Counter[str] = Counter()
    folds = GroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=0)
    for train, test in folds.split(groups, groups=groups):
        margins, coefficients = fitted(sides, weights, train, test)
        won[test] = np.where(np.abs(margins) < 1e-9, 0.5, margins > 0)
        weighed.update(coefficients)
    by_rule = {str(name): round(float(won[rules == name].mean()), 3) for name in names}
    most = tuple(word for word, _ in weighed.most_common(5))
    return PromptFree(round(float(np.mean(list(by_rule.values()))), 3), by_rule, len(pairs), most)


def fitted(
    sides: Sequence[tuple[list[str], list[str]]], weights: Array, train: Array, test: Array
) -> tuple[Array, dict[str, float]]:
    """(margins of the test pairs, how much each word or word pair tells) of a model fitted to the
    train pairs."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counter = CountVectorizer(analyzer=grams, binary=True, min_df=2)
    try:
        counter.fit([words for i in train for words in sides[i]])
    except ValueError:  # no word comes twice, so nothing can be learned
        return np.zeros(len(test)), {}
    chosen, rejected = (
        [counter.transform([sides[i][s] for i in part]) for part in (train, test)] for s in (0, 1)
    )
    rows = chosen[0].astype(float) - rejected[0]
    # each pair both ways round, so that neither the order nor an intercept can win
    model = LogisticRegression(fit_intercept=False, max_iter=300)
    labels = [1] * len(train) + [0] * len(train)
    model.fit(vstack([rows, -rows]), labels, sample_weight=np.concatenate([weights[train]] * 2))
    strength = dict(
        zip(counter.get_feature_names_out(), np.abs(model.coef_[0]).tolist(), strict=True)
    )
    return (chosen[1].astype(float) - rejected[1]) @ model.coef_[0], strength


def grams(words: list[str]) -> list[str]:
    """The words and word pairs of a side."""
    return [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]
