"""breakdowns.py: one run by attack and source, where refusals start, and rates over seeds."""

from typing import Any

import pytest

from overrefusal_po.evaluate.breakdowns import (
    rates_by,
    refusal_positions,
    spread_over_seeds,
    words_before,
)
from overrefusal_po.evaluate.metrics import run_metrics
from overrefusal_po.identity import spoken_words
from overrefusal_po.records import Completion, Kind, Outcome, Prompt, Refusal, Sampling, Verdict

pytestmark = pytest.mark.filterwarnings("error")


def outcome(
    number: int,
    refusal: Refusal | None,
    start: int | None = None,
    text: str = "text",
    kind: Kind = "harmful",
    **of: Any,
) -> Outcome:
    prompt = Prompt.of(f"prompt {number}", kind=kind, **of)
    completion = Completion(
        id=f"c{number}", prompt_id=prompt.id, text=text, model="m", engine="e", sampling=Sampling()
    )
    verdict = Verdict(
        completion_id=completion.id, judge="j", version="1", refusal=refusal, refusal_start=start
    )
    return Outcome(prompt=prompt, completion=completion, verdict=verdict)


def late(words: int, number: int = 0, glue: str = " ") -> Outcome:
    """A refusal behind so many words."""
    lead = " ".join(["word"] * words) + (glue if words else "")
    return outcome(number, "full", len(lead), lead + "Sorry, I can't.")


@pytest.mark.parametrize(
    ("words", "place"),
    [(0, "opening"), (4, "opening"), (5, "early"), (29, "early"), (30, "late"), (200, "late")],
)
def test_a_refusal_is_placed_by_the_words_before_it(words: int, place: str) -> None:
    """The 5th word has 4 before it, the 30th has 29."""
    found = refusal_positions([late(words)])
    assert found.as_dict() == {**dict.fromkeys(found._fields, 0), place: 1}


def test_a_refusal_glued_to_a_word_has_that_word_before_it() -> None:
    assert refusal_positions([late(5, glue="")]).early == 1
    assert refusal_positions([late(4, glue="")]).opening == 1


def test_a_thinking_block_is_no_part_of_the_response() -> None:
    text = "<think>" + "word " * 40 + "</think>Sorry, I can't."
    assert refusal_positions([outcome(0, "full", text.index("Sorry"), text)]).opening == 1


def test_a_chinese_character_counts_as_a_word() -> None:
    text = "首先，你需要准备。抱歉，我不能"
    assert words_before(text, text.index("抱歉")) == 9  # seven characters, a comma and a full stop


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hi there, friend.", ["Hi", "there,", "friend."]),
        ("我用Python写", ["我", "用", "Python", "写"]),
        ("𠮷野", ["𠮷", "野"]),
        ("안녕 세계", ["안녕", "세계"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("", []),
    ],
)
def test_words_are_counted_in_any_script(text: str, words: list[str]) -> None:
    assert spoken_words(text) == words


def test_every_outcome_of_the_kind_is_counted_once() -> None:
    rows = [late(0), outcome(1, "none"), outcome(2, "full"), outcome(3, None), late(31, 4)]
    found = refusal_positions([*rows, outcome(5, "full", 0, kind="benign")])
    assert found == (1, 0, 1, 1, 1, 1)
    assert refusal_positions([*rows, outcome(5, "full", 0, kind="benign")], "benign").opening == 1


def test_rates_stand_by_attack_with_the_plain_prompts_first() -> None:
    rows = [
        outcome(0, "full"),
        outcome(1, "none", attack="selfcipher"),
        outcome(2, "full", attack="codeattack"),
        outcome(3, "none", attack="codeattack"),
    ]
    found = rates_by(rows, "attack")
    assert list(found) == ["none", "codeattack", "selfcipher"]
    assert [rates.harmful_refused.value for rates in found.values()] == [1.0, 0.5, 0.0]


def test_rates_stand_by_source_or_by_what_a_function_says() -> None:
    rows = [
        outcome(0, "full", source="xstest"),
        outcome(1, "none", kind="benign", source="starter"),
    ]
    found = rates_by(rows, "source")
    assert (found["xstest"].harmful_refused.n, found["xstest"].benign_answered.n) == (1, 0)
    assert (found["starter"].harmful_refused.n, found["starter"].benign_answered.n) == (0, 1)
    assert list(rates_by(rows, lambda o: o.prompt.text)) == ["prompt 0", "prompt 1"]


def seed_run(right: int) -> dict[str, Any]:
    return run_metrics([outcome(i, "full" if i < right else "none") for i in range(4)]).as_dict(
        "DPO", f"seed {right}"
    )


def test_spread_over_seeds_gives_mean_least_and_greatest_of_what_was_measured() -> None:
    """harmful_refused 1/4, 2/4, 4/4: mean 7/12."""
    found = spread_over_seeds([seed_run(1), seed_run(2), seed_run(4)])
    assert found["harmful_refused"] == (pytest.approx(7 / 12), 0.25, 1.0, 3)
    assert found["harmful_refused"].as_dict() == {
        "mean": pytest.approx(7 / 12),
        "min": 0.25,
        "max": 1.0,
        "seeds": 3,
    }
    assert "benign_answered" not in found


def test_seeds_on_other_prompts_are_not_put_together() -> None:
    with pytest.raises(ValueError, match="harmful_refused over 3, 4 outcomes"):
        spread_over_seeds(
            [seed_run(1), run_metrics([outcome(i, "full") for i in range(3)]).as_dict("DPO", "m")]
        )
    with pytest.raises(ValueError, match="no runs"):
        spread_over_seeds([])
