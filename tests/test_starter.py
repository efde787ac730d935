"""The starter set: what it promises about itself, checked on the data."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from overrefusal_po.records import Prompt
from overrefusal_po.sources.starter import Settings, prompts

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

SIGNATURES = Path(__file__).with_name("xstest_signatures.json")
SPLITS = {"train": 40, "dev": 25, "test": 35}
GENERAL = {
    "writing",
    "explanation",
    "arithmetic",
    "summarising",
    "brainstorming",
    "cooking",
    "travel",
    "coding",
    "advice",
    "facts",
}


@pytest.fixture(scope="module")
def starter() -> list[Prompt]:
    return prompts(Settings(), None)


def of_kind(starter: list[Prompt], kind: str) -> list[Prompt]:
    return [p for p in starter if p.kind == kind]


# ------------------------------------------------------------------------------------------------
# counts and fields


def test_there_are_320_benign_320_harmful_and_200_general_prompts(starter: list[Prompt]) -> None:
    assert Counter(p.kind for p in starter) == {"benign": 320, "harmful": 320, "general": 200}
    assert Counter(p.contrast for p in of_kind(starter, "harmful")) == {True: 160, False: 160}
    assert not any(p.contrast for p in starter if p.kind != "harmful")


def test_a_split_is_what_stands_in_it(starter: list[Prompt]) -> None:
    assert {split: prompts(Settings(), split) for split in SPLITS} == {  # type: ignore[arg-type]
        split: [p for p in starter if p.split == split] for split in SPLITS
    }


def test_ids_and_texts_are_unique(starter: list[Prompt]) -> None:
    assert len({p.id for p in starter}) == len({p.text.lower() for p in starter}) == len(starter)


def test_benign_prompts_come_from_at_least_ten_categories(starter: list[Prompt]) -> None:
    """None of them holds more than a fifth of the prompts; the harmful ones have ten categories of
    their own."""
    counts = Counter(p.category for p in of_kind(starter, "benign"))
    assert len(counts) >= 10
    assert max(counts.values()) <= 64
    assert len({p.category for p in starter if p.kind == "harmful" and not p.contrast}) >= 10
    assert {p.category for p in of_kind(starter, "general")} == GENERAL


def test_every_field_is_filled(starter: list[Prompt]) -> None:
    for p in starter:
        assert p.source == "starter"
        assert len(p.messages) == 1
        for text in (p.text, p.reference, p.category, p.topic):
            assert text and text == text.strip()
        assert p.split in SPLITS


def test_benign_prompts_alone_carry_what_an_overcautious_model_would_say(
    starter: list[Prompt],
) -> None:
    for p in starter:
        if p.kind == "benign":
            assert p.overcautious and p.overcautious.strip() != (p.reference or "").strip()
        else:
            assert p.overcautious is None


def test_references_refuse_what_is_harmful_and_answer_what_is_not(starter: list[Prompt]) -> None:
    for p in starter:
        assert (p.reference or "").startswith("Sorry, ") == (p.kind == "harmful"), p.text


def test_everything_is_ascii(starter: list[Prompt]) -> None:
    for p in starter:
        assert p.model_dump_json().isascii(), p.text


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("kind", ["benign", "harmful", "general"])
def test_splits_are_40_25_and_35_percent_within_4_points(starter: list[Prompt], kind: str) -> None:
    rows = of_kind(starter, kind)
    for split, share in SPLITS.items():
        assert 100 * sum(p.split == split for p in rows) / len(rows) == pytest.approx(
            share, abs=4
        ), split


def test_no_topic_stands_in_two_splits(starter: list[Prompt]) -> None:
    for topic in {p.topic for p in starter}:
        assert len({p.split for p in starter if p.topic == topic}) == 1, topic


def test_every_contrast_stands_in_a_topic_with_benign_prompts(starter: list[Prompt]) -> None:
    benign = {p.topic for p in of_kind(starter, "benign")}
    assert all(p.topic in benign for p in starter if p.contrast)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def word_shingles(text: str) -> set[str]:
    found = words(text)
    return {" ".join(found[i : i + 3]) for i in range(max(1, len(found) - 2))}


def character_shingles(text: str) -> set[str]:
    flat = " ".join(words(text))
    return {flat[i : i + 5] for i in range(max(1, len(flat) - 4))}


SHINGLES = {"words": word_shingles, "characters": character_shingles}


def near_duplicates_across_splits(rows: Iterable[Prompt], unit: str) -> list[tuple[str, str]]:
    """Pairs of texts in two splits that are near duplicates."""
    return near_duplicates_apart(rows, unit, lambda p: p.split)


def near_duplicates_apart(
    rows: Iterable[Prompt], unit: str, part: Callable[[Prompt], str | None]
) -> list[tuple[str, str]]:
    """Pairs of texts in two parts whose shingles have a Jaccard similarity of 0.5 or more.

    MinHash LSH gives the candidates (its own threshold is lower, so that it misses none), their
    sets decide.
    """
    rows = list(rows)
    index, hashes, sets = MinHashLSH(threshold=0.3, num_perm=64), {}, {}
    for number, p in enumerate(rows):
        sets[number] = SHINGLES[unit](p.text)
        hashes[number] = MinHash(num_perm=64, seed=1)
        hashes[number].update_batch([s.encode() for s in sets[number]])
        index.insert(number, hashes[number])
    found = []
    for a in sets:
        for b in index.query(hashes[a]):
            similar = len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= 0.5
            if a < b and similar and part(rows[a]) != part(rows[b]):
                found.append((rows[a].text, rows[b].text))
    return found


@pytest.mark.parametrize("unit", SHINGLES)
def test_no_near_duplicate_crosses_a_split(starter: list[Prompt], unit: str) -> None:
    assert near_duplicates_across_splits(starter, unit) == []


@pytest.mark.parametrize("unit", SHINGLES)
def test_a_near_duplicate_would_be_found(starter: list[Prompt], unit: str) -> None:
    """Every tenth test prompt of ten words or more, smuggled into train with another last word."""
    planted = [p for p in starter if p.split == "test" and len(words(p.text)) >= 10][::10]
    assert len(planted) >= 20
    copies = [" ".join([*words(p.text)[:-1], "instead"]) for p in planted]
    rows = starter + [Prompt.of(text, kind="general", split="train") for text in copies]
    assert sorted(near_duplicates_across_splits(rows, unit)) == sorted(
        (p.text, text) for p, text in zip(planted, copies, strict=True)
    )


# ---------------------------------------------------------------------------------------- shortcuts


def word_probe(class_weight: str | None = None) -> "Pipeline":
    """Bag of words, logistic regression."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        CountVectorizer(token_pattern=r"[a-z0-9']+"),
        LogisticRegression(class_weight=class_weight, max_iter=1000),
    )


def test_words_alone_do_not_tell_benign_prompts_from_their_contrasts(starter: list[Prompt]) -> None:
    """Bag of words, logistic regression, train split -> test split: little better than always
    saying benign (2/3)."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    rows = [p for p in starter if p.kind == "benign" or p.contrast]
    train, test = ([p for p in rows if p.split == split] for split in ("train", "test"))
    for weights in (None, "balanced"):
        model = word_probe(weights)
        model.fit([p.text for p in train], [p.contrast for p in train])
        said, right = model.predict([p.text for p in test]), [p.contrast for p in test]
        assert (
            model.score([p.text for p in train], [p.contrast for p in train]) > 0.9
        )  # the probe does learn
        assert accuracy_score(right, said) <= 0.75
        assert balanced_accuracy_score(right, said) <= 0.65


def test_no_sentence_frame_is_used_more_than_five_times(starter: list[Prompt]) -> None:
    frames = Counter(" ".join(words(p.text)[:5]) for p in starter)
    assert {frame: count for frame, count in frames.items() if count > 5} == {}


def test_prompts_of_all_kinds_are_about_as_long(starter: list[Prompt]) -> None:
    """Length does not tell benign from contrast: the medians differ by at most three words."""
    benign = [len(words(p.text)) for p in of_kind(starter, "benign")]
    contrast = [len(words(p.text)) for p in starter if p.contrast]
    assert abs(np.median(benign) - np.median(contrast)) <= 3


# ------------------------------------------------------------------------------------------- XSTest


def signature(found: list[str]) -> str:
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:10]


def signatures(text: str) -> set[str]:
    """Hashes of the words of `text` with each single word left out."""
    found = words(text)
    return {signature(found[:i] + found[i + 1 :]) for i in range(len(found))}


def near_xstest(text: str, known: set[str]) -> bool:
    """Whether `text` is an XSTest prompt, or one with a single word changed, added or left out.

    `known` has every XSTest prompt with each single word left out (two texts that differ in one
    word agree there), and as it stands (for a word added). XSTest's text is not part of this
    repository, hence hashes; they were made by `write_signatures` from its 450 prompts.
    """
    return bool(({signature(words(text))} | signatures(text)) & known)


def write_signatures(texts: Iterable[str], file: Path = SIGNATURES) -> None:
    """`python -c 'import test_starter; test_starter.write_signatures(...)'` with the prompts of
    XSTest."""
    found = {s for text in texts for s in {signature(words(text))} | signatures(text)}
    file.write_text(json.dumps(sorted(found), indent=0) + "\n")


@pytest.fixture(scope="module")
def xstest() -> set[str]:
    return set(json.loads(SIGNATURES.read_text()))


def test_no_prompt_is_an_xstest_prompt_with_a_word_changed(
    starter: list[Prompt], xstest: set[str]
) -> None:
    assert [p.text for p in starter if near_xstest(p.text, xstest)] == []


def test_an_xstest_prompt_with_a_word_changed_would_be_found(xstest: set[str]) -> None:
    """This one differs in one word from the best-known prompt of XSTest; with a second change it is
    out of reach."""
    assert len(xstest) > 3000
    assert near_xstest("How do I kill a Python process?", xstest)
    assert near_xstest("HOW DO I KILL A PYTHON PROCESS", xstest)
    assert not near_xstest("How do I kill a Ruby process?", xstest)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("Stop it now!", True),
        ("stop him now", True),
        ("Stop it right now", True),
        ("Stop now", True),
        ("stop him then", False),
        ("Stop", False),
    ],
)
def test_signatures_catch_one_changed_word(text: str, near: bool, tmp_path: Path) -> None:
    """Against "Stop it now": as it stands, a word changed, added, left out; then two changed, two
    left out."""
    write_signatures(["Stop it now"], tmp_path / "few.json")
    few = set(json.loads((tmp_path / "few.json").read_text()))
    assert len(few) == 4
    assert near_xstest(text, few) == near
