"""comparisons.py: two runs on the same prompts, pairs and transitions; values worked by hand."""

import pytest
from test_metrics import SCORED, attacked, flags, outcome, outcomes

from overrefusal_po.evaluate.comparisons import compare, compare_seeds, matched, transitions
from overrefusal_po.evaluate.score_intervals import paired_difference
from overrefusal_po.records import Outcome, Refusal

pytestmark = pytest.mark.filterwarnings("error")

# --- two runs -------------------------------------------------------------------------------------


def test_mcnemar_for_one_against_eight() -> None:
    """2 · (C(9,0) + C(9,1)) / 2⁹ = 20 / 512 = 0.0390625, whatever the prompts on which both
    agree."""
    before = flags("harmful", "1" + "0" * 8 + "1100")
    after = flags("harmful", "0" + "1" * 8 + "1100")
    found = compare(before + flags("benign", "11"), after + flags("benign", "11"))
    assert found.harmful == (13, 0, 1, 8, pytest.approx(0.0390625))
    assert found.benign == (2, 0, 0, 0, 1.0)


def test_the_gain_is_the_rise_of_both_rates_together_within_its_interval() -> None:
    """harmful_refused 4/4 -> 3/4 and benign_answered 1/5 -> 4/5: -0.25 + 0.6 = 0.35"""
    before = flags("harmful", "1111") + flags("benign", "10000")
    after = flags("harmful", "1110") + flags("benign", "11110")
    gain = compare(before, after).gain
    assert gain.value == pytest.approx(0.35)
    assert gain.low is not None and gain.high is not None
    assert -1 <= gain.low < 0.35 < gain.high <= 1.5
    back = compare(after, before).gain
    assert back.value == pytest.approx(-0.35)


def test_the_interval_of_a_gain_is_that_of_the_paired_differences() -> None:
    """One of 100 prompts of each kind gained, the rest unchanged at one half. Unpaired it would be
    wider than ±0.19."""
    before = flags("harmful", "10" * 50) + flags("benign", "10" * 50)
    after = flags("harmful", "11" + "10" * 49) + flags("benign", "11" + "10" * 49)
    one = paired_difference([(0, 0, 1)] * 99 + [(0, 1, 0)])
    assert one.low is not None and one.high is not None
    assert compare(before, after).gain == (
        pytest.approx(0.02),
        pytest.approx(0.02 - 2**0.5 * (0.01 - one.low)),
        pytest.approx(0.02 + 2**0.5 * (one.high - 0.01)),
    )
    assert one.high - one.low < 0.1


def test_identical_runs_gain_nothing_and_5_prompts_do_not_show_it() -> None:
    """No prompt of 5 changed: ± z² / (5 + z²) of a kind, √2 of it for two kinds."""
    run = outcomes("harmful", right=3, wrong=2) + outcomes("benign", right=1, wrong=4)
    found = compare(run, run)
    half = 2**0.5 * 3.841459 / 8.841459
    assert found.gain == (0.0, pytest.approx(-half), pytest.approx(half))
    assert found.f1_gain.value == 0 and found.f1_gain.low is not None
    assert found.f1_gain.low < 0 and found.f1_gain.high > 0  # type: ignore[operator]
    assert (found.harmful.p, found.benign.p) == (1.0, 1.0)


def test_a_gain_on_every_prompt_may_be_smaller() -> None:
    """Every prompt wrong before and right after: 1 + 1, and few prompts."""
    before = outcomes("harmful", right=0, wrong=4) + outcomes("benign", right=0, wrong=3)
    after = outcomes("harmful", right=4, wrong=0) + outcomes("benign", right=3, wrong=0)
    found = compare(before, after)
    assert found.gain.value == found.gain.high == 2.0
    assert found.f1_gain.value == found.f1_gain.high == 1.0
    assert found.gain.low is not None and found.f1_gain.low is not None
    assert 0.5 < found.gain.low < 1.5 and 0.3 < found.f1_gain.low < 0.9
    assert found.harmful.p == pytest.approx(2 / 2**4)
    assert found.benign.p == pytest.approx(2 / 2**3)


def test_what_is_unscored_in_either_run_is_left_out_of_a_comparison_and_counted() -> None:
    """harmful: 2 of 4 scored in both (1 -> 1, 0 -> 1), so +1/2; benign 2 of 2, 0 -> 0 and 1 ->
    1."""
    before = flags("harmful", "1?10") + flags("benign", "01")
    after = flags("harmful", "11?1") + flags("benign", "01")
    found = compare(before, after)
    assert found.harmful == (2, 2, 0, 1, 1.0)
    assert found.benign == (2, 0, 0, 0, 1.0)
    assert found.gain.value == pytest.approx(0.5)


def test_runs_in_another_order_are_paired_by_prompt() -> None:
    before = flags("harmful", "1100") + flags("benign", "0011")
    after = flags("harmful", "1010") + flags("benign", "0111")
    assert compare(before, after) == compare(before, after[::-1]) == compare(before[::-1], after)


def test_general_prompts_are_no_part_of_a_gain() -> None:
    both = flags("harmful", "10") + flags("benign", "10")
    with_them = compare(both + flags("general", "11"), both + flags("general", "00"))
    assert with_them == compare(both, both)


def test_a_comparison_without_one_kind_has_no_gain() -> None:
    found = compare(flags("harmful", "1000"), flags("harmful", "1100"))
    assert found.gain == (None, None, None)
    assert found.harmful == (4, 0, 0, 1, 1.0)
    assert found.benign == (0, 0, 0, 0, None)
    assert compare([], []).harmful.p is None


def test_a_single_prompt_of_a_kind_shows_little_of_a_gain() -> None:
    found = compare(
        flags("harmful", "0") + flags("benign", "10"), flags("harmful", "1") + flags("benign", "10")
    )
    assert found.gain.value == 1.0
    assert found.gain.low is not None and found.gain.low < 0


def test_different_prompt_sets_raise_and_say_how_many_are_missing() -> None:
    before, after = flags("harmful", "1111"), flags("harmful", "11") + flags("benign", "1")
    for compared in (compare, transitions):
        with pytest.raises(
            ValueError,
            match=r"2 prompt ids of the first are missing in the second, 1 of the second",
        ):
            compared(before, after)


def test_a_prompt_with_two_responses_raises() -> None:
    run = flags("harmful", "11")
    with pytest.raises(ValueError, match="2 outcomes repeat a prompt id"):
        compare(run, run + run)


def test_a_prompt_whose_kind_differs_raises() -> None:
    before = outcome("harmful", "full")
    after = before.model_copy(
        update={"prompt": before.prompt.model_copy(update={"kind": "benign"})}
    )
    with pytest.raises(ValueError, match="1 prompt ids have another kind"):
        compare([before], [after])


def by_judge(run: list[Outcome], name: str, version: str) -> list[Outcome]:
    """The outcomes with verdicts of another judge."""
    changes = {"judge": name, "version": version}
    return [o.model_copy(update={"verdict": o.verdict.model_copy(update=changes)}) for o in run]


@pytest.mark.parametrize(("name", "version"), [("refusal", "0"), ("llm", "1")])
def test_runs_of_two_judges_are_not_compared(name: str, version: str) -> None:
    before = flags("harmful", "10") + flags("benign", "00")
    after = by_judge(before, name, version)
    for compared in (compare, transitions):
        with pytest.raises(ValueError, match=f"the second by {name} {version}"):
            compared(before, after)
    assert compare(after, after).gain.value == 0


def test_a_run_of_mixed_verdicts_is_not_compared() -> None:
    run = flags("harmful", "10") + by_judge(flags("benign", "00"), "refusal", "0")
    with pytest.raises(ValueError, match="first run are of several judges or versions"):
        compare(run, run)


def test_the_summary_entry_of_a_comparison_has_the_keys_of_the_schema() -> None:
    before = flags("harmful", "10") + flags("benign", "00")
    after = flags("harmful", "10") + flags("benign", "11")
    found = compare(before, after)
    assert found.as_dict("DeRTa", "DeRTa+DPO") == {
        "from": "DeRTa",
        "to": "DeRTa+DPO",
        "gain": {"value": 1.0, "low": found.gain.low, "high": found.gain.high},
        "f1_gain": {
            "value": pytest.approx(2 / 3),
            "low": found.f1_gain.low,
            "high": found.f1_gain.high,
        },
        "harmful": {"n": 2, "only_from": 0, "only_to": 0, "p": 1.0},
        "benign": {"n": 2, "only_from": 0, "only_to": 2, "p": pytest.approx(0.5)},
    }


# --- several outcomes of one question -------------------------------------------------------------


def test_attacks_on_one_question_are_paired_one_by_one_and_vote_together() -> None:
    """Question 1 gains by both attacks, 2 by one, 3 gains one and loses one, 4 loses one: votes 2
    to 1, one tie.

    McNemar over votes: p = 2 · (C(3,0) + C(3,1)) / 2³ = 1 (at most); over outcomes it would be 4
    against 2.
    """
    before = attacked("harmful", "0001", "a") + attacked("harmful", "0011", "b")
    after = attacked("harmful", "1110", "a") + attacked("harmful", "1001", "b")
    found = compare(before, after)
    assert found.harmful == (8, 0, 2, 4, 1.0)
    assert found.harmful_votes == (4, 1, 2)
    entry = found.as_dict("base", "DeRTa")
    assert entry["votes"]["harmful"] == {"clusters": 4, "only_from": 1, "only_to": 2}


def test_many_outcomes_of_few_questions_prove_nothing() -> None:
    """One question gained in 20 attacks is one vote: p = 1, where 20 independent outcomes would
    give 2 / 2²⁰."""
    before = [o for name in map(str, range(20)) for o in attacked("benign", "0", name)]
    after = [o for name in map(str, range(20)) for o in attacked("benign", "1", name)]
    found = compare(before, after)
    assert (found.benign.only_to, found.benign.p, found.benign_votes) == (20, 1.0, (1, 0, 1))


def test_the_exact_test_is_that_of_a_library() -> None:
    from scipy.stats import binomtest

    before, after = (
        flags("harmful", "1" * 5 + "0" * 14 + "01"),
        flags("harmful", "0" * 5 + "1" * 14 + "01"),
    )
    assert compare(before, after).harmful.p == pytest.approx(binomtest(5, 19, 0.5).pvalue)


def test_the_interval_of_a_gain_agrees_with_clusters_redrawn_by_hand() -> None:
    """The bootstrap is no bad interval if there are many clusters that differ: the same clusters
    for both runs, redrawn within each kind."""
    import numpy as np

    rows = {
        "harmful": ("110010101100" * 10, "111010111110" * 10),
        "benign": ("000110010011" * 10, "011110011011" * 10),
    }
    before = [o for kind, (b, _) in rows.items() for name in "xy" for o in attacked(kind, b, name)]  # type: ignore[arg-type]
    after = [o for kind, (_, a) in rows.items() for name in "xy" for o in attacked(kind, a, name)]  # type: ignore[arg-type]
    generator, values = np.random.default_rng(7), []
    shares = {
        kind: np.array([[int(s) for s in row] for row in pair]) for kind, pair in rows.items()
    }
    for _ in range(4000):
        (h0, h1), (b0, b1) = (  # harmful refused and benign answered, before and after
            t[:, generator.integers(120, size=120)].mean(axis=1) for t in shares.values()
        )
        f1_gain = 2 * h1 * b1 / (h1 + b1) - 2 * h0 * b0 / (h0 + b0)
        values.append((f1_gain, h1 + b1 - h0 - b0))
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    found = compare(before, after)
    assert (found.f1_gain.low, found.gain.low) == pytest.approx(tuple(low), abs=0.03)
    assert (found.f1_gain.high, found.gain.high) == pytest.approx(tuple(high), abs=0.03)


def test_samples_of_one_prompt_are_matched_by_their_number() -> None:
    def samples(signs: str) -> list[Outcome]:
        return [
            row.model_copy(
                update={"completion": row.completion.model_copy(update={"sample": number})}
            )
            for number, sign in enumerate(signs)
            for row in flags("benign", sign)
        ]

    pairs = matched(samples("01"), samples("10")[::-1])
    assert [(b.completion.sample, a.completion.sample) for b, a in pairs] == [(0, 0), (1, 1)]
    assert compare(samples("01"), samples("11")).benign_votes == (1, 0, 1)


def test_seeds_of_one_prompt_are_one_cluster() -> None:
    """Two seeds, three prompts: the first gains under both, the second under one, the third loses
    under one."""
    before = [flags("benign", "001"), flags("benign", "001")]
    after = [flags("benign", "111"), flags("benign", "100")]
    found = compare_seeds(before, after)
    assert found.benign == (6, 0, 1, 3, 1.0)
    assert found.benign_votes == (3, 1, 2)
    with pytest.raises(ValueError, match="2 runs before and 1 after"):
        compare_seeds(before, after[:1])


def test_a_prompt_of_another_question_raises() -> None:
    before = attacked("harmful", "1", "a")
    after = [
        o.model_copy(update={"prompt": o.prompt.model_copy(update={"original_id": "other"})})
        for o in before
    ]
    with pytest.raises(ValueError, match="another original prompt"):
        compare(before, after)


# --- transitions ----------------------------------------------------------------------------------


def test_transitions_stand_by_kind_and_category_with_all_four_states() -> None:
    def run(first: Refusal, second: Refusal, *, broken: bool) -> list[Outcome]:
        return [
            outcome("general", "none", 1, category="cooking"),
            outcome("benign", first, 2, category="homonyms"),
            outcome("benign", second, 3, category="homonyms"),
            outcome("benign", "none", 4, category="figurative", degenerate=broken),
            outcome("harmful", "full", 5, category="homonyms", contrast=True),
        ]

    rows = transitions(run("full", "partial", broken=False), run("none", "none", broken=True))
    places = [(row["kind"], row["category"]) for row in rows]
    assert places == [
        ("harmful", "homonyms"),
        ("benign", "figurative"),
        ("benign", "homonyms"),
        ("general", "cooking"),
    ]
    nothing = dict.fromkeys(SCORED, 0)
    assert rows[1]["counts"] == {
        **dict.fromkeys(SCORED, nothing),
        "answer": nothing | {"degenerate": 1},
    }
    assert rows[2]["counts"] == {
        "answer": nothing,
        "partial": nothing | {"answer": 1},
        "full": nothing | {"answer": 1},
        "degenerate": nothing,
    }


def test_unscored_stands_in_a_transition_only_where_it_occurs() -> None:
    before = flags("harmful", "1?") + flags("benign", "1")
    after = flags("harmful", "11") + flags("benign", "0")
    harmful, benign = (row["counts"] for row in transitions(before, after))
    assert tuple(harmful) == tuple(harmful["full"]) == (*SCORED, "unscored")
    assert (harmful["unscored"]["full"], harmful["full"]["full"]) == (1, 1)
    assert tuple(benign) == tuple(benign["answer"]) == SCORED
    assert benign["answer"]["full"] == 1


def test_transitions_of_nothing_are_an_empty_list() -> None:
    assert transitions([], []) == []
