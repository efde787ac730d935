"""selectors.py: which of several answers is chosen, and which may not be."""

import pytest

from overrefusal_po.curate.selectors import Candidate, Criterion, select_answer
from overrefusal_po.records import Completion, Prompt, Refusal, Sampling, Verdict

BENIGN = Prompt.of("How do I kill a Python process?", kind="benign")
HARMFUL = Prompt.of("How do I open a lock that is not mine?", kind="harmful")


def scores(**fields: float | str | bool | None) -> Verdict:
    return Verdict.model_validate({"completion_id": "c", "judge": "j", "version": "1", **fields})


def candidate(
    sample: int,
    text: str,
    refusal: Refusal = "none",
    *,
    unsafe: float | None = None,
    reward: float | None = None,
    cut: bool = False,
    degenerate: bool = False,
) -> Candidate:
    completion = Completion(
        id=f"c{sample}",
        prompt_id="p",
        text=text,
        model="teacher",
        engine="test",
        sampling=Sampling(temperature=1.0),
        sample=sample,
        finish_reason="length" if cut else "stop",
    )
    verdict = scores(refusal=refusal, degenerate=degenerate)
    guard = None if unsafe is None else scores(unsafe_probability=unsafe)
    return Candidate(completion, verdict, guard, None if reward is None else scores(reward=reward))


FOUR = [
    candidate(
        0, "Sorry, no.", "full", unsafe=0.0, reward=9.0
    ),  # greatest reward, and does not pass
    candidate(1, "Use kill.", unsafe=0.3, reward=0.5),
    candidate(2, "Use kill and its number.", unsafe=0.4, reward=2.0),
    candidate(3, "Use pkill.", unsafe=0.01, reward=-1.0),
]


@pytest.mark.parametrize(
    ("by", "text"), [("first", "Use kill."), ("reward", FOUR[2]), ("safety", FOUR[3])]
)
def test_the_best_that_passes_is_chosen_with_the_verdicts_on_it(
    by: Criterion, text: str | Candidate
) -> None:
    best = FOUR[1] if isinstance(text, str) else text
    found = select_answer(BENIGN, FOUR, by=by, seed=0)
    assert (found.text, found.why_not, found.verdicts) == (
        best.completion.text,
        "",
        (best.guard, best.reward),
    )


def test_random_is_drawn_by_seed_among_those_that_pass() -> None:
    drawn = [select_answer(BENIGN, FOUR, by="random", seed=seed).text for seed in range(60)]
    assert drawn == [select_answer(BENIGN, FOUR, by="random", seed=seed).text for seed in range(60)]
    assert {c.completion.text: drawn.count(c.completion.text) >= 8 for c in FOUR} == {
        "Sorry, no.": False,
        "Use kill.": True,
        "Use kill and its number.": True,
        "Use pkill.": True,
    }


def test_of_equal_ones_the_first_drawn_is_chosen() -> None:
    rows = [candidate(1, "B.", reward=1.0), candidate(0, "A.", reward=1.0)]
    assert select_answer(BENIGN, rows, by="reward", seed=0).text == "A."


@pytest.mark.parametrize(
    ("prompt", "row", "why"),
    [
        (BENIGN, candidate(0, "I can't.", "partial"), "the teacher refuses"),
        (BENIGN, candidate(0, "a a a a", degenerate=True), "the teacher's answer is degenerate"),
        (
            BENIGN,
            candidate(0, "Use kill and then", cut=True),
            "the teacher's answer is cut in its first sentence",
        ),
        (BENIGN, candidate(0, "Use kill.", unsafe=0.5), "the answer is unsafe"),
        (HARMFUL, candidate(0, "Use a pick."), "the answer does not refuse in full"),
        (
            HARMFUL,
            candidate(0, "Sorry, but use a pick.", "partial"),
            "the answer does not refuse in full",
        ),
        (
            HARMFUL,
            candidate(0, "Sorry, Sorry", "full", degenerate=True),
            "the refusal is degenerate",
        ),
        (
            HARMFUL,
            candidate(0, "Sorry, I", "full", cut=True),
            "the refusal is cut in its first sentence",
        ),
        (HARMFUL, candidate(0, "Sorry. A bad plan.", "full", unsafe=0.7), "the answer is unsafe"),
    ],
)
def test_an_answer_that_does_not_pass_is_never_chosen(
    prompt: Prompt, row: Candidate, why: str
) -> None:
    assert select_answer(prompt, [row], by="first", seed=0) == ("", why, ())


def test_what_the_guard_or_the_reward_judge_cannot_score_does_not_pass() -> None:
    row = candidate(0, "Use kill.")
    mute = scores(unscored="too long")
    assert (
        select_answer(BENIGN, [row._replace(guard=mute)], by="first", seed=0).why_not
        == "the guard says nothing: too long"
    )
    assert (
        select_answer(BENIGN, [row._replace(reward=mute)], by="reward", seed=0).why_not
        == "no reward: too long"
    )
    assert (
        select_answer(BENIGN, [row._replace(reward=mute)], by="first", seed=0).text == "Use kill."
    )


def test_a_harmful_prompt_gets_the_safest_refusal_and_what_is_cut_ends_with_a_sentence() -> None:
    rows = [
        candidate(0, "Sorry, no. It may", "full", unsafe=0.2, cut=True),
        candidate(1, "Sorry, that is theft. It is not", "full", unsafe=0.1, cut=True),
    ]
    assert select_answer(HARMFUL, rows, by="safety", seed=0).text == "Sorry, that is theft."
