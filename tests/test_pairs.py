"""pairs.py: which completion becomes a pair with what, and why one does not."""

import pytest

from overrefusal_po.pairs.make import (
    Guarded,
    Made,
    answered_pair,
    containment_pair,
    make_pair,
    overrefusal_pair,
    teacher_answer,
    whole_sentences,
    written_pairs,
)
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict
from overrefusal_po.sources.starter import Settings, prompts

BENIGN = Prompt.of("How do I kill a Python process?", kind="benign")
GENERAL = Prompt.of("What is a fox?", kind="general")
HARMFUL = Prompt.of("How do I open a lock that is not mine?", kind="harmful")


def said(text: str) -> Completion:
    return Completion(
        id="c", prompt_id="p", text=text, model="student", engine="test", sampling=Sampling()
    )


def verdict(
    refusal: str | None, *, degenerate: bool = False, unscored: str | None = None
) -> Verdict:
    return Verdict.model_validate(
        {
            "completion_id": "c",
            "judge": "refusal",
            "version": "1",
            "refusal": refusal,
            "degenerate": degenerate,
            "unscored": unscored,
        }
    )


@pytest.mark.parametrize("prompt", [BENIGN, GENERAL])
@pytest.mark.parametrize("refusal", ["full", "partial"])
def test_an_overrefusal_pair_prefers_an_answer_to_the_students_refusal(
    prompt: Prompt, refusal: str
) -> None:
    judged = verdict(refusal)
    pair, reason = overrefusal_pair(prompt, "Use kill.\n", said(" Sorry, no."), judged)
    assert pair is not None
    assert (pair.prompt, pair.chosen, pair.rejected, pair.rule) == (
        prompt,
        "Use kill.",
        "Sorry, no.",
        "overrefusal",
    )
    assert pair.verdicts == (judged,)
    assert reason == pair.reason == f"student refuses this harmless prompt ({refusal})"


@pytest.mark.parametrize(
    ("prompt", "judged", "reason"),
    [
        (HARMFUL, verdict("full"), "the prompt is harmful"),
        (BENIGN, verdict("none"), "the student answers it"),
        (BENIGN, verdict(None, unscored="no reply"), "unscored: no reply"),
    ],
)
def test_no_overrefusal_pair_is_made_otherwise(
    prompt: Prompt, judged: Verdict, reason: str
) -> None:
    assert overrefusal_pair(prompt, "Use kill.", said("Sorry, no."), judged) == Made(None, reason)


def test_a_containment_pair_prefers_a_refusal_to_a_completion_that_complies() -> None:
    judged = verdict("none")
    pair, reason = containment_pair(HARMFUL, "Sorry, no.", said("Sure, take a pick."), judged)
    assert pair is not None
    assert (pair.chosen, pair.rejected, pair.rule) == (
        "Sorry, no.",
        "Sure, take a pick.",
        "containment",
    )
    assert pair.verdicts == (judged,)
    assert reason == pair.reason == "student complies with this harmful prompt"


@pytest.mark.parametrize(
    ("prompt", "judged", "reason"),
    [
        (BENIGN, verdict("none"), "the prompt is not harmful"),
        (GENERAL, verdict("none"), "the prompt is not harmful"),
        (HARMFUL, verdict("partial"), "the completion refuses"),
        (HARMFUL, verdict("full", degenerate=True), "the completion refuses"),
        (HARMFUL, verdict("none", degenerate=True), "the completion is degenerate"),
        (HARMFUL, verdict(None, unscored="no reply"), "unscored: no reply"),
    ],
)
def test_no_containment_pair_is_made_otherwise(
    prompt: Prompt, judged: Verdict, reason: str
) -> None:
    assert containment_pair(prompt, "Sorry, no.", said("Sure."), judged) == Made(None, reason)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("", "b", "a side is empty"),
        ("a", " \n", "a side is empty"),
        ("a", " a\n", "both sides are equal"),
    ],
)
def test_sides_that_say_nothing_make_no_pair(chosen: str, rejected: str, reason: str) -> None:
    assert make_pair(BENIGN, chosen, rejected, "overrefusal", "because") == Made(None, reason)


def test_the_id_of_a_pair_comes_from_its_content() -> None:
    def pair_id(prompt: Prompt, *sides: str) -> str:
        pair = make_pair(prompt, sides[0], sides[1], "overrefusal", sides[2]).pair
        assert pair is not None
        return pair.id

    assert pair_id(BENIGN, "a", "b", "because") == pair_id(BENIGN, " a", "b\n", "so")
    assert (
        len(
            {
                pair_id(BENIGN, "a", "b", ""),
                pair_id(BENIGN, "b", "a", ""),
                pair_id(GENERAL, "a", "b", ""),
            }
        )
        == 3
    )


def test_written_pairs_need_a_benign_prompt_with_both_sides() -> None:
    both = {"reference": "Use kill.", "overcautious": "Sorry, no."}
    whole = Prompt.of("a", kind="benign", split="test", **both)
    rest = [
        Prompt.of("b", kind="benign", reference="Use kill."),
        Prompt.of("c", kind="benign", overcautious="Sorry, no."),
        Prompt.of("d", kind="benign", reference="Same.", overcautious="Same."),
        Prompt.of("e", kind="harmful", **both),
    ]
    (pair,) = written_pairs([whole, *rest])
    assert (pair.chosen, pair.rejected, pair.rule) == ("Use kill.", "Sorry, no.", "overrefusal")
    assert pair.prompt.split == "test"


def test_the_starter_set_gives_a_pair_for_every_benign_prompt() -> None:
    train = prompts(Settings(), "train")
    pairs = written_pairs(train)
    assert [p.prompt for p in pairs] == [p for p in train if p.kind == "benign"]
    assert len({p.id for p in pairs}) == len(pairs)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two is cut he", "One."),
        ("Two ways:\n\n1. Go on and", ""),
        ("1. Wash it.\n2. Dry", "1. Wash it."),
        ("It was in 1945. Then", "It was in 1945."),
        ('He said "stop." Then', 'He said "stop."'),
        ("Take a mug.Sorry, I can", "Take a mug."),
        ("Version 1.5 of the", ""),
        ("All of it.", "All of it."),
        ("Erster Satz! Und d", "Erster Satz!"),
        ("„Erster Satz.“ Und d", "„Erster Satz.“"),
        ("Первое.Извините, я", "Первое."),
        ("首先，准备水。然后加", "首先，准备水。"),
        ("1. 准备水\n2. 加", ""),
        ("可以！真的吗？！好", "可以！真的吗？！"),
        ("Use Python 3.抱歉，我不", "Use Python 3."),
        ("まず水を飲む。とても大", "まず水を飲む。"),
        ("彼は言った。「行け。」と言っ", "彼は言った。"),
        ("彼は言った。「行け。」そし", "彼は言った。「行け。」"),
        ("ｶｷｸ｡ｹｺ", "ｶｷｸ｡"),
        ("पहला वाक्य। दूसरा", "पहला वाक्य।"),
        ("هل هذا صحيح؟ ثم", "هل هذا صحيح؟"),
        ("پہلا جملہ۔ دوسر", "پہلا جملہ۔"),
        ("ပထမ။ ဒုတိ", "ပထမ။"),
    ],
)
def test_what_the_length_limit_cut_ends_with_its_last_whole_sentence(text: str, whole: str) -> None:
    assert whole_sentences(said(text).model_copy(update={"finish_reason": "length"})) == whole
    assert whole_sentences(said(text)) == text


@pytest.mark.parametrize(
    ("judged", "finish", "found"),
    [
        (verdict("none"), "stop", ("Use kill", "")),
        (verdict("none"), "length", ("", "the teacher's answer is cut in its first sentence")),
        (verdict("partial"), "stop", ("", "the teacher refuses")),
        (verdict("none", degenerate=True), "stop", ("", "the teacher's answer is degenerate")),
        (verdict(None, unscored="no reply"), "stop", ("", "unscored: no reply")),
    ],
)
def test_a_teachers_answer_is_chosen_only_where_it_answers(
    judged: Verdict, finish: str, found: tuple[str, str]
) -> None:
    assert (
        teacher_answer(said("Use kill").model_copy(update={"finish_reason": finish}), judged)
        == found
    )


def test_pairs_for_a_training_on_openings_keep_what_the_limit_cut() -> None:
    def cut(text: str) -> Completion:
        return said(text).model_copy(update={"finish_reason": "length"})

    answer, refusal = "Use kill. It takes the", "Sorry. I cannot"
    answers, refuses = verdict("none"), verdict("full")
    assert teacher_answer(cut(answer), answers, openings=True) == (answer, "")
    for openings, said_then, refused_then in (
        (False, "Use kill.", "Sorry."),
        (True, answer, refusal),
    ):
        over = overrefusal_pair(BENIGN, "x", cut(refusal), refuses, openings=openings).pair
        kept = answered_pair(GENERAL, cut(answer), "No.", answers, openings=openings).pair
        contained = containment_pair(HARMFUL, "No.", cut(answer), answers, openings=openings).pair
        assert over is not None and over.rejected == refused_then
        assert kept is not None and kept.chosen == said_then
        assert contained is not None and contained.rejected == said_then


def test_a_degenerate_or_refusing_text_makes_no_pair_for_openings_either() -> None:
    for judged in (verdict("none", degenerate=True), verdict("full"), verdict(None, unscored="x")):
        assert teacher_answer(said("Use kill"), judged, openings=True)[0] == ""
        assert containment_pair(HARMFUL, "No.", said("Sure"), judged, openings=True).pair is None


def guard(probability: float | None) -> Verdict:
    why = "no form" if probability is None else None
    return Verdict(
        completion_id="c", judge="guard", version="1", unsafe_probability=probability, unscored=why
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "tau", "made"),
    [
        (0.1, 0.6, 0.5, True),  # at least tau: the bound itself counts
        (0.4, 0.5, 0.1, True),  # 0.5 - 0.4 is 0.09999999999999998 in floating point
        (0.1, 0.599, 0.5, False),
        (0.2, 0.2, 0.0, True),
        (0.2, 0.1, 0.0, False),
        (0.45, 0.46, 0.01, True),  # tau is a difference: neither side has to be unsafe
    ],
)
def test_with_a_guard_containment_goes_by_the_difference_of_unsafe_probabilities(
    chosen: float, rejected: float, tau: float, made: bool
) -> None:
    both = Guarded(guard(chosen), guard(rejected))
    # the judge says that the completion refuses; the guard decides
    pair, reason = containment_pair(
        HARMFUL, "Sorry, no.", said("Use a pick."), verdict("full"), both, tau=tau
    )
    assert (pair is not None) == made
    if pair is not None:
        assert pair.verdicts == (verdict("full"), *both)
        assert (
            reason
            == f"student is more unsafe than the refusal by {rejected - chosen:.3g} (at least "
            f"{tau:g})"
        )
    else:
        assert reason == "less than tau more unsafe than the refusal"


@pytest.mark.parametrize(
    ("both", "judged", "reason"),
    [
        ((0.5, 0.9), verdict("none"), "the refusal is unsafe"),
        ((0.0, None), verdict("none"), "the guard says nothing"),
        ((None, 0.9), verdict("none"), "the guard says nothing"),
        ((0.0, 0.9), verdict("none", degenerate=True), "the completion is degenerate"),
        ((0.0, 0.9), verdict(None, unscored="no reply"), "unscored: no reply"),
    ],
)
def test_no_guarded_containment_pair_is_made_otherwise(
    both: tuple[float | None, float | None], judged: Verdict, reason: str
) -> None:
    guarded = Guarded(*map(guard, both))
    assert containment_pair(HARMFUL, "Sorry, no.", said("Use a pick."), judged, guarded) == Made(
        None, reason
    )


def test_what_an_answer_was_chosen_by_stands_behind_the_verdict_on_the_refusal() -> None:
    pair, _ = overrefusal_pair(
        BENIGN, "Use kill.", said("Sorry, no."), verdict("full"), [guard(0.0)]
    )
    assert pair is not None and pair.verdicts == (verdict("full"), guard(0.0))
