"""The contrasts: what they promise about themselves, checked on the data."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray
from test_starter import SHINGLES, near_duplicates_apart, near_xstest, word_probe, words, xstest

from overrefusal_po.evaluate.measured_words import set_names
from overrefusal_po.judges.refusal import judge_text
from overrefusal_po.pairs.duplicates import duplicates
from overrefusal_po.pairs.firewall import build_firewall, contamination
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Prompt
from overrefusal_po.sources.contrasts import Settings, prompts
from overrefusal_po.sources.starter import Settings as StarterSettings
from overrefusal_po.sources.starter import prompts as starter_prompts

__all__ = ["xstest"]  # a fixture

LONG_HANDS = (1, 2, 3, 4, 5, 6)
SHORT_HANDS = (7, 8, 9)
HOLD_OUT = 10
MATCHED_HANDS = (*SHORT_HANDS, HOLD_OUT)
"""Benign and harmful prompts have the same forms there."""
HANDS = (*LONG_HANDS, *MATCHED_HANDS)
SIZES = {1: 158, 2: 190, 3: 215, 4: 168, 5: 167, 6: 176, 7: 200, 8: 198, 9: 200, 10: 280}
PLAIN = {7: 20, 8: 20, 9: 20, 10: 30}
"""{hand: its topics of one benign prompt alone; as many are one harmful prompt alone}."""
BENIGN = {
    "definitions",
    "fiction",
    "figurative_language",
    "health_education",
    "history",
    "homonyms",
    "nonsense_discrimination",
    "public_information",
    "safe_contexts",
    "safe_targets",
    "safety_education",
    "technical_language",
}
HARMFUL = {
    "drugs",
    "hacking",
    "harassment_and_stalking",
    "hate",
    "misinformation",
    "privacy",
    "self_harm",
    "theft_and_fraud",
    "violence",
    "weapons",
}


@pytest.fixture(scope="module")
def contrasts() -> list[Prompt]:
    return prompts(Settings(), None)


@pytest.fixture(scope="module")
def starter() -> list[Prompt]:
    return starter_prompts(StarterSettings(), None)


def of_hand(hand: int) -> list[Prompt]:
    return prompts(Settings.model_validate({"hands": [hand]}), None)


# ------------------------------------------------------------------------------- counts and fields


def test_there_are_997_benign_and_955_harmful_prompts(contrasts: list[Prompt]) -> None:
    assert Counter(p.kind for p in contrasts) == {"benign": 997, "harmful": 955}
    assert {p.category for p in contrasts if p.kind == "benign"} == BENIGN
    assert {p.category for p in contrasts if p.kind == "harmful"} == HARMFUL


@pytest.mark.parametrize("hand", LONG_HANDS)
def test_every_harmful_prompt_of_a_long_hand_is_a_contrast(hand: int) -> None:
    assert all(p.contrast == (p.kind == "harmful") for p in of_hand(hand))


@pytest.mark.parametrize("hand", MATCHED_HANDS)
def test_a_harmful_prompt_of_a_matched_hand_is_a_contrast_if_a_benign_one_has_its_topic(
    hand: int,
) -> None:
    rows = of_hand(hand)
    benign = {p.topic for p in rows if p.kind == "benign"}
    assert all(p.contrast == (p.kind == "harmful" and p.topic in benign) for p in rows)


def test_the_prompts_of_all_hands_are_those_of_each(contrasts: list[Prompt]) -> None:
    hands = {hand: of_hand(hand) for hand in HANDS}
    assert {hand: len(rows) for hand, rows in hands.items()} == SIZES
    assert [p for rows in hands.values() for p in rows] == contrasts
    assert prompts(Settings(hands=(2, 5)), "dev") == [
        p for hand in (2, 5) for p in hands[hand] if p.split == "dev"
    ]


@pytest.mark.parametrize("hands", [[0], [11], ["all"], []])
def test_a_hand_that_does_not_exist_is_an_error(hands: list[object]) -> None:
    with pytest.raises(ValueError, match="hands"):
        read_source({"name": "contrasts", "hands": hands}, None)


def test_ids_and_texts_are_unique(contrasts: list[Prompt], starter: list[Prompt]) -> None:
    both = contrasts + starter
    assert len({p.id for p in both}) == len({p.text.lower() for p in both}) == len(both)


def test_every_field_is_filled(contrasts: list[Prompt]) -> None:
    for p in contrasts:
        assert p.source == "contrasts"
        assert len(p.messages) == 1
        assert (p.overcautious is not None) == (p.kind == "benign"), p.text
        said = [p.overcautious] if p.kind == "benign" else []
        for text in (p.text, p.reference, p.category, p.topic, *said):
            assert text and text == " ".join(text.split())


def test_every_row_has_the_same_keys() -> None:
    """Those of the starter set, and the hand."""
    folder = files("overrefusal_po") / "data"
    for row in map(json.loads, (folder / "contrasts.jsonl").read_text().splitlines()):
        starter = json.loads((folder / "starter.jsonl").read_text().splitlines()[0])
        own = {"refusal"} if row["kind"] == "harmful" else set()
        assert set(row) == {*starter, "hand"} - own


def test_everything_is_ascii(contrasts: list[Prompt]) -> None:
    for p in contrasts:
        assert p.model_dump_json().isascii(), p.text


def test_a_refusal_begins_with_sorry_and_an_answer_does_not(contrasts: list[Prompt]) -> None:
    for p in contrasts:
        assert (p.reference or "").startswith("Sorry, ") == (p.kind == "harmful"), p.text
        assert (p.overcautious or "Sorry, ").startswith("Sorry, "), p.text


def test_the_judge_reads_answers_as_answers_and_refusals_as_full_refusals(
    contrasts: list[Prompt],
) -> None:
    for p in contrasts:
        expected = "full" if p.kind == "harmful" else "none"
        assert judge_text(p.reference or "", p.text).refusal == expected, p.text
        if p.overcautious:
            assert judge_text(p.overcautious, p.text).refusal == "full", p.text


# ------------------------------------------------------------------------------- topics and splits


def topics(hands: Iterable[int]) -> dict[tuple[int, str | None], list[Prompt]]:
    """{(hand, topic): its prompts}."""
    found = defaultdict(list)
    for hand in hands:
        for p in of_hand(hand):
            found[hand, p.topic].append(p)
    return found


def test_a_topic_of_a_long_hand_has_two_to_four_prompts_of_both_kinds() -> None:
    for name, rows in topics(LONG_HANDS).items():
        assert 2 <= len(rows) <= 4, name
        assert {p.kind for p in rows} == {"benign", "harmful"}, name


@pytest.mark.parametrize("hand", MATCHED_HANDS)
def test_a_topic_of_a_matched_hand_is_a_pair_or_one_plain_prompt(hand: int) -> None:
    kinds = Counter(tuple(sorted(str(p.kind) for p in rows)) for rows in topics([hand]).values())
    plain = PLAIN[hand]
    pairs = (SIZES[hand] - 2 * plain) // 2
    assert kinds == {("benign", "harmful"): pairs, ("benign",): plain, ("harmful",): plain}


def content(p: Prompt) -> set[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return {word.strip("'") for word in words(p.text)} - ENGLISH_STOP_WORDS


def shared_words(hands: Iterable[int]) -> dict[str, int]:
    """{a contrast: how many content words it shares with a benign prompt of its topic}."""
    found = {}
    for rows in topics(hands).values():
        benign = [content(p) for p in rows if p.kind == "benign"]
        for p in rows:
            if p.contrast:
                found[p.text] = max(len(content(p) & other) for other in benign)
    return found


def test_a_contrast_of_a_long_hand_shares_two_content_words_with_a_benign_prompt() -> None:
    """Of its topic."""
    assert {text: shared for text, shared in shared_words(LONG_HANDS).items() if shared < 2} == {}


@pytest.mark.parametrize("hand", MATCHED_HANDS)
def test_a_contrast_of_a_matched_hand_shares_words_with_the_benign_prompt(hand: int) -> None:
    """Nearly all share a content word with it, most share two."""
    shared = list(shared_words([hand]).values())
    assert np.mean([count >= 1 for count in shared]) >= 0.95
    assert np.mean([count >= 2 for count in shared]) >= 0.6


def test_no_topic_stands_in_two_splits(contrasts: list[Prompt]) -> None:
    """Also if two hands have it."""
    for topic in {p.topic for p in contrasts}:
        assert len({p.split for p in contrasts if p.topic == topic}) == 1, topic


@pytest.mark.parametrize("hand", [*LONG_HANDS, *SHORT_HANDS])
def test_about_15_percent_of_the_topics_of_each_hand_are_for_dev(hand: int) -> None:
    splits = {p.topic: p.split for p in of_hand(hand)}
    assert set(splits.values()) == {"train", "dev"}
    share = sum(split == "dev" for split in splits.values()) / len(splits)
    assert share == pytest.approx(0.15, abs=0.01)


def test_the_hold_out_hand_is_never_trained_on() -> None:
    assert prompts(Settings(hands=(HOLD_OUT,)), "train") == []
    assert prompts(Settings(hands=(HOLD_OUT,)), "dev") == of_hand(HOLD_OUT)


def test_a_split_is_what_stands_in_it(contrasts: list[Prompt]) -> None:
    assert prompts(Settings(), "train") == [p for p in contrasts if p.split == "train"]
    assert prompts(Settings(), "dev") == [p for p in contrasts if p.split == "dev"]


def test_a_report_names_the_split_of_a_shipped_set() -> None:
    sets = ("contrasts", {"name": "contrasts", "hands": [1]}, "starter", "mine.jsonl")
    recipe = EvaluateRecipe.model_validate(
        {
            "task": "evaluate",
            "model": {"model_name_or_path": "m"},
            "data": {"sets": sets, "split": "dev"},
        }
    )
    shipped = ["contrasts (dev split)"] * 2 + ["starter (dev split)"]
    assert set_names(recipe) == [*shipped, "mine.jsonl"]


def test_there_is_no_test_split() -> None:
    assert prompts(Settings(), "test") == []
    with pytest.raises(ValueError, match="'contrasts' has no prompts in split 'test'"):
        read_source("contrasts", "test")


# ------------------------------------------------------------------------------------------- apart


@pytest.mark.parametrize("unit", SHINGLES)
def test_no_near_duplicate_crosses_a_topic_or_stands_in_the_starter_set(
    contrasts: list[Prompt], starter: list[Prompt], unit: str
) -> None:
    def part(p: Prompt) -> str:
        return f"{p.source} {p.topic}" if p.source == "contrasts" else p.source

    assert near_duplicates_apart(contrasts + starter, unit, part) == []


def test_no_two_prompts_are_duplicates_for_the_linter(
    contrasts: list[Prompt], starter: list[Prompt]
) -> None:
    """Also not within a topic."""
    assert duplicates(contrasts + starter) == []


def test_no_topic_is_one_of_the_starter_set(contrasts: list[Prompt], starter: list[Prompt]) -> None:
    assert {p.topic for p in contrasts} & {p.topic for p in starter} == set()


def test_the_contrasts_pass_the_firewall(contrasts: list[Prompt], starter: list[Prompt]) -> None:
    """The shipped one, and one made of the starter set's prompts."""
    assert contamination(contrasts) == []
    assert contamination(contrasts, build_firewall({"starter": [p.text for p in starter]})) == []


def test_no_prompt_is_an_xstest_prompt_with_a_word_changed(
    contrasts: list[Prompt],
    xstest: set[str],
) -> None:
    assert [p.text for p in contrasts if near_xstest(p.text, xstest)] == []


# --------------------------------------------------------------------------------------- shortcuts


def word_scores(rows: list[Prompt]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """(which rows are harmful, how harmful their words alone make them look).

    Bag of words, logistic regression, ten parts held out by topic."""
    from sklearn.model_selection import GroupKFold, cross_val_predict

    texts, harmful = [p.text for p in rows], np.array([p.kind == "harmful" for p in rows])
    groups = [p.topic for p in rows]
    parts = GroupKFold(10)
    scores = cross_val_predict(
        word_probe("balanced"), texts, harmful, groups=groups, cv=parts, method="predict_proba"
    )[:, 1]
    # the probe does learn
    assert word_probe("balanced").fit(texts, harmful).score(texts, harmful) > 0.9
    return harmful, scores


def test_words_alone_tell_little_of_the_kind(contrasts: list[Prompt]) -> None:
    """An AUC of 0.70 (0.69 on the starter set's contrasts)."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    harmful, scores = word_scores(contrasts)
    assert 0.6 <= roc_auc_score(harmful, scores) <= 0.72
    assert balanced_accuracy_score(harmful, scores > 0.5) <= 0.67


@pytest.mark.parametrize(
    ("hand", "auc"),
    [
        (1, 0.62),
        (2, 0.63),
        (3, 0.65),
        (4, 0.68),
        (5, 0.60),
        (6, 0.72),
        (7, 0.49),
        (8, 0.51),
        (9, 0.58),
        (10, 0.53),
    ],
)
def test_words_alone_tell_little_of_the_kind_in_each_hand(hand: int, auc: float) -> None:
    """The AUC of each hand, with room for folds cut in another order. Without their plain topics,
    hands 7 to 10 have 0.57, 0.57, 0.63 and 0.58."""
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(*word_scores(of_hand(hand))) == pytest.approx(auc, abs=0.05)


def test_no_long_hand_begins_a_prompt_in_one_way_more_than_four_times() -> None:
    for hand in LONG_HANDS:
        frames = Counter(" ".join(words(p.text)[:3]) for p in of_hand(hand))
        assert {frame: count for frame, count in frames.items() if count > 4} == {}


@pytest.mark.parametrize("hand", HANDS)
def test_prompts_of_both_kinds_are_about_as_long(hand: int) -> None:
    """Length does not tell benign from harmful: the medians differ by at most two words."""
    lengths = {
        kind: [len(words(p.text)) for p in of_hand(hand) if p.kind == kind]
        for kind in ("benign", "harmful")
    }
    assert abs(np.median(lengths["benign"]) - np.median(lengths["harmful"])) <= 2


PRONOUNS = {"i", "me", "my", "we", "us", "our"}


def forms(p: Prompt) -> set[str]:
    """What a reader sees who does not read the content."""
    found = words(p.text)
    signs = {"question mark"} if "?" in p.text else set()
    pronouns = {f"pronoun {word}" for word in PRONOUNS & set(found)}
    any_pronoun = {"a pronoun"} if pronouns else set()
    return {f"begins with {found[0]}", *signs, *pronouns, *any_pronoun}


@pytest.mark.parametrize("hand", MATCHED_HANDS)
def test_both_kinds_of_a_matched_hand_have_the_same_forms(hand: int) -> None:
    """The share of each form differs by at most 5 points."""
    shares = {}
    for kind in ("benign", "harmful"):
        rows = [p for p in of_hand(hand) if p.kind == kind]
        counts = Counter(form for p in rows for form in forms(p))
        shares[kind] = {form: count / len(rows) for form, count in counts.items()}
    assert {"question mark", "a pronoun", "begins with how"} <= set(shares["benign"])
    for form in set(shares["benign"]) | set(shares["harmful"]):
        gap = shares["benign"].get(form, 0) - shares["harmful"].get(form, 0)
        assert abs(gap) <= 0.05, form


@pytest.mark.parametrize("hand", MATCHED_HANDS)
def test_both_kinds_of_a_matched_hand_have_the_same_mean_length(hand: int) -> None:
    means = [
        np.mean([len(words(p.text)) for p in of_hand(hand) if p.kind == kind])
        for kind in ("benign", "harmful")
    ]
    assert abs(means[0] - means[1]) <= 0.5


@pytest.mark.parametrize("hand", SHORT_HANDS)
def test_a_short_hand_has_prompts_of_3_to_12_words(hand: int) -> None:
    """About half have at most 8."""
    lengths = [len(words(p.text)) for p in of_hand(hand)]
    assert 3 <= min(lengths) <= max(lengths) <= 12
    assert np.mean([length <= 8 for length in lengths]) == pytest.approx(0.5, abs=0.1)
