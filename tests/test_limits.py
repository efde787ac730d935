"""limits.py: which rows limits take, and that both sides stay alike at every length."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from overrefusal_po.curate.checks import check_lengths
from overrefusal_po.curate.limits import (
    Drawn,
    LeftRows,
    keep_harmful_share,
    limit_held,
    limit_rules,
    most_of_each,
    upper_ends,
)
from overrefusal_po.curate.quotas import Quotas, Result, filter_rows, row_prompt
from overrefusal_po.curate.words import still_uneven
from overrefusal_po.pairs.make import make_pair
from overrefusal_po.pairs.shortcuts import prompt_lengths
from overrefusal_po.recipe.sections import CurateData
from overrefusal_po.records import Kind, Prompt, Rule


@pytest.mark.parametrize(
    ("words", "strata", "ends"),
    [
        ([6, 5, 4, 3, 2, 1], 3, [2, 4]),
        (list(range(1, 11)), 5, [2, 4, 6, 8]),
        ([1, 2, 2, 2, 2, 9], 3, [2]),  # all twos share the first stratum, and 9 is alone
        ([7], 5, [7]),
        ([7, 7, 7], 5, [7]),
        ([1, 2], 5, [1, 2]),
        ([], 5, []),
    ],
)
def test_strata_are_cut_at_whole_words(words: list[int], strata: int, ends: list[int]) -> None:
    assert upper_ends(words, strata) == ends


def drawn(harmful: Sequence[int], harmless: Sequence[int], held: int = 0) -> list[Drawn]:
    """Rows of these numbers of words, in turn; the last `held` of each side only hold."""
    sides = [
        [
            Drawn(f"{rule[:2]}{n}", rule, rule == "containment", size, n >= len(sizes) - held)
            for n, size in enumerate(sizes)
        ]
        for rule, sizes in (("containment", harmful), ("overrefusal", harmless))
    ]
    rows = [row for side in sides for row in side]
    return sorted(rows, key=lambda row: (row.held, int(row.id[2:])))


def by_words(left: LeftRows, rows: Sequence[Drawn]) -> dict[int, tuple[int, int]]:
    """{words: (harmful, harmless) rows that are left}."""
    ids = left.ids
    counts = Counter((row.words, row.harmful) for row in rows if row.id in ids)
    return {n: (counts[n, True], counts[n, False]) for n in sorted({n for n, _ in counts})}


@pytest.mark.parametrize(
    ("ratio", "left"),
    [
        # of (6, 1), (3, 4), (1, 6), (5, 2), (0, 7) rows, each a fifth of all
        (1.0, {5: (1, 1), 10: (3, 3), 15: (1, 1), 20: (2, 2)}),
        (1.5, {5: (1, 1), 10: (3, 4), 15: (1, 1), 20: (3, 2)}),  # 1.5 rows are one row
        (2.0, {5: (2, 1), 10: (3, 4), 15: (1, 2), 20: (4, 2)}),
        (9.0, {5: (6, 1), 10: (3, 4), 15: (1, 6), 20: (5, 2)}),
        (None, {5: (6, 1), 10: (3, 4), 15: (1, 6), 20: (5, 2), 25: (0, 7)}),
    ],
)
def test_no_stratum_has_more_of_a_side_than_the_ratio(
    ratio: float | None, left: dict[int, tuple[int, int]]
) -> None:
    counts = [(6, 1), (3, 4), (1, 6), (5, 2), (0, 7)]
    harmful = [5 * at for at, (n, _) in enumerate(counts, 1) for _ in range(n)]
    harmless = [5 * at for at, (_, n) in enumerate(counts, 1) for _ in range(n)]
    rows = drawn(harmful, harmless)
    found = LeftRows(rows, ratio)
    found.match()
    assert by_words(found, rows) == left
    alone = "length_ratio_max: no harmful row of like length"
    assert found.gone["overrefusal"][alone] == (0 if ratio is None else 7)


def test_a_ratio_of_a_whole_product_is_whole_in_floating_point() -> None:
    assert 1.16 * 25 < 29
    found = LeftRows(rows := drawn([7] * 25, [7] * 40), 1.16)
    found.match()
    assert by_words(found, rows) == {7: (25, 29)}


def test_a_side_alone_is_not_matched() -> None:
    found = LeftRows(drawn([3, 9], []), 1.0)
    found.match()
    assert found.count() == 2 and not found.gone


def test_the_last_of_the_drawing_order_go_first() -> None:
    found = LeftRows(drawn([7] * 4, [7] * 2), 1.5)
    found.match()
    assert found.ids == {"co0", "co1", "co2", "ov0", "ov1"}


def test_a_limit_takes_rows_where_a_side_has_most_and_others_only_where_they_must() -> None:
    """Two lengths, with (4, 2) and (2, 2) harmful and harmless rows, ratio 2."""
    rows = drawn([5] * 4 + [9] * 2, [5] * 2 + [9] * 2)
    left = LeftRows(rows, 2.0)
    left.match()
    for most, expected in (
        (5, {5: (3, 2), 9: (2, 2)}),  # 4:2 is more than 2:2
        (4, {5: (2, 2), 9: (2, 2)}),
        (3, {5: (2, 2), 9: (1, 2)}),  # equal, so the last drawn
        (2, {5: (1, 2), 9: (1, 2)}),
        (1, {5: (1, 2)}),  # now each takes its two with it
    ):
        left.gone.clear()
        left.limit("max_pairs", most, harmful=True)
        assert by_words(left, rows) == expected
    assert left.gone == {
        "containment": {"over max_pairs": 1},
        "overrefusal": {"over length_ratio_max": 2},
    }


def test_of_rows_that_take_as_many_others_those_that_only_hold_go_first() -> None:
    """Ratio 1, and each limit takes a row of the other side: those of both sides that hold."""
    rows = [
        Drawn(f"{side}{words}", side, side == "h", words, held=words == 5)
        for words in (9, 5, 7)
        for side in ("h", "b")
    ]
    left = LeftRows(sorted(rows, key=lambda row: row.held), 1.0)
    left.match()
    left.limit("max_pairs", 2, harmful=True)
    assert left.ids == {"h9", "b9", "h7", "b7"}


def is_matched(left: LeftRows, ratio: float) -> bool:
    strata = {pile.stratum for pile in left.piles}
    return all(
        left.sides[s, side] <= ratio * left.sides[s, not side] + 1e-9
        for s in strata
        for side in (True, False)
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_later_limit_undoes_the_match_and_each_holds_at_the_end(seed: int) -> None:
    drawn_by = random.Random(seed)
    ratio = drawn_by.choice([1.0, 1.3, 2.0, 4.0])
    share = drawn_by.uniform(1 / (1 + ratio), ratio / (1 + ratio)) if ratio > 1 else 0.5
    sizes = [
        [max(1, round(drawn_by.gauss(middle, 6))) for _ in range(drawn_by.randrange(40, 200))]
        for middle in (11, 17)
    ]
    rows = drawn(*sizes, held=20)
    left = LeftRows(rows, ratio)
    left.match()
    assert is_matched(left, ratio)
    most = drawn_by.randrange(5, 60)
    limit_rules(left, most)
    assert is_matched(left, ratio) and max(left.count(rule=r) for r in left.rules) <= most
    limit_held(left, 0.5)
    assert max(left.count(rule=r) for r in left.rules) <= left.wrong + round(0.5 * left.wrong)
    keep_harmful_share(left, share)
    sides = left.count(harmful=True), left.count(harmful=False)
    assert is_matched(left, ratio) and max(left.count(rule=r) for r in left.rules) <= most
    assert abs(sides[0] - share * sum(sides)) <= 1  # in whole rows


def test_a_share_that_the_ratio_just_allows_is_reached_without_losing_the_rest() -> None:
    """4 harmless rows for each harmful one at every length, so a fifth is harmful. 7 rows allow no
    fewer than 2: then 10 of 45 are harmful, a row too many. One of 2 goes, with 3 of 7."""
    for each, expected in ((8, [(2, 8)] * 5), (7, [(1, 4), *[(2, 7)] * 4])):
        words = [size for size in (5, 10, 15, 20, 25) for _ in range(each)]
        left = LeftRows(rows := drawn(words, words), 4.0)
        left.match()
        keep_harmful_share(left, 0.2)
        assert sorted(by_words(left, rows).values()) == expected


@pytest.mark.parametrize("seed", range(5))
def test_without_a_ratio_limits_take_the_last_of_the_drawing_order(seed: int) -> None:
    rows = drawn(range(5, 35), range(20, 70), held=10)
    random.Random(seed).shuffle(rows)
    left = LeftRows(rows, None)
    left.match()
    limit_rules(left, 28)
    keep_harmful_share(left, 0.25)
    sides = [[row.id for row in rows if row.harmful is side][:28] for side in (True, False)]
    most = most_of_each(28, 28, 0.25)
    assert left.ids == {*sides[0][: most[0]], *sides[1][: most[1]]} and most == (9, 28)


# ---------------------------------------------------------------------------------------- all of it


def results(first: str, kind: Kind, rule: Rule, words: range) -> list[Result]:
    """A pair of each number of words."""
    texts = [" ".join([first, *["word"] * (n - 1)]) for n in words]
    prompts = [Prompt.of(text, kind=kind) for text in texts]
    made = [make_pair(p, f"chosen {p.text}", f"rejected {p.text}", rule, "why") for p in prompts]  # type: ignore[arg-type]
    return [Result(p, m.pair, m.reason) for p, m in zip(prompts, made, strict=True)]


def test_pairs_that_length_told_apart_are_matched_and_counted() -> None:
    """Harmful prompts of 1 to 60 words, harmless ones of 31 to 90: fifths end at 24, 42, 54, 66;
    they have (24, 0), (18, 12), (12, 12), (6, 12) and (0, 24) harmful and harmless rows."""
    found = {
        "overrefusal": results("a", "benign", "overrefusal", range(31, 91)),
        "containment": results("b", "harmful", "containment", range(1, 61)),
    }
    kept = filter_rows(found, {}, Quotas(length_ratio_max=1.0, max_rows=50), seed=0)
    assert [kept.rules[rule]["kept"] for rule in found] == [30, 30]
    none, over = "length_ratio_max: no {} row of like length", "over length_ratio_max"
    why = {
        "overrefusal": {none.format("harmful"): 24, over: 6},
        "containment": {none.format("harmless"): 24, over: 6},
    }
    for rule in found:
        assert kept.filters[rule][1:] == [
            {"filter": "length_ratio_max", "in": 60, "out": 30, "why": why[rule]}
        ]
        assert kept.rules[rule]["left_out"] == why[rule]
    lengths = prompt_lengths([pair.prompt for pair in kept.rows])
    assert lengths is not None and abs(lengths.cliffs_delta) < 0.25
    before = [r.prompt for made in found.values() for r in made]
    assert prompt_lengths(before).cliffs_delta == 0.75  # type: ignore[union-attr]


def test_general_prompts_count_as_harmless_in_an_sft_set() -> None:
    prompts = {
        kind: [Prompt.of(f"{kind} {n}", kind=kind, reference="x") for n in range(6)]
        for kind in ("benign", "general", "harmful")
    }  # type: ignore[arg-type]
    found = {kind: [Result(p, p) for p in rows] for kind, rows in prompts.items()}
    kept = filter_rows(found, {}, Quotas(length_ratio_max=1.5), seed=0)
    assert Counter(row.kind == "harmful" for row in kept.rows) == {True: 6, False: 9}


def test_rows_that_are_uneven_after_a_match_are_told() -> None:
    """Two harmless rows for each harmful one among long prompts, and the reverse among short ones:
    2/3 * 2/3 - 1/3 * 1/3 = 1/3 between the halves, and nothing within them."""
    found = {
        rule: [
            made
            for size, times in sizes.items()
            for n in range(times)
            for made in results(f"{kind}{n}", kind, rule, range(size, size + 1))  # type: ignore[arg-type]
        ]
        for rule, kind, sizes in (
            ("overrefusal", "benign", {6: 10, 16: 20}),
            ("containment", "harmful", {6: 20, 16: 10}),
        )
    }
    told = []
    for ratio in (None, 1.0, 1.5, 2.0):
        kept = filter_rows(found, {}, Quotas(length_ratio_max=ratio), seed=0)
        data = CurateData.model_validate({"length_ratio_max": ratio})
        told.append(still_uneven(data, [row_prompt(row) for row in kept.rows]))
    assert told[:3] == [None, None, None]
    assert str(told[3]).startswith("after data.length_ratio_max: 2, harmless prompts are longer")
    assert str(told[3]).endswith(", or give a smaller ratio")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"length_ratio_max": 1.5, "harmful_share": 0.4}, None),
        ({"length_ratio_max": 4, "harmful_share": 0.2}, None),
        ({"harmful_share": 0.1}, None),
        (
            {"length_ratio_max": 2, "harmful_share": 0.3},
            r"keeps 2\.33 rows .* allows 2\. Set length_ratio_max to 2\.34 or more, or "
            r"harmful_share to a value from 0\.34 to 0\.66",
        ),
        ({"length_ratio_max": 1, "harmful_share": 0.6}, r"to 1\.5 or more.*from 0\.5 to 0\.5"),
        ({"length_ratio_max": 1, "harmful": None}, "data.harmful is null"),
    ],
)
def test_a_share_that_no_match_can_have_is_an_error(keys: dict, why: str | None) -> None:
    data = CurateData.model_validate(keys)
    if why is None:
        return check_lengths(data)
    with pytest.raises(ValueError, match=why):
        check_lengths(data)


@pytest.mark.parametrize("value", [0.9, 0, -1, float("inf"), float("nan")])
def test_a_ratio_is_one_or_more(value: float) -> None:
    with pytest.raises(ValueError, match="length_ratio_max"):
        CurateData.model_validate({"length_ratio_max": value})
