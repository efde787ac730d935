"""quotas.py: how many rows of each rule and category are kept, and the counts of the others."""

import pytest

from overrefusal_po.curate.quotas import Quotas, Result, filter_rows
from overrefusal_po.pairs.make import make_pair
from overrefusal_po.records import Kind, PreferencePair, Prompt


def results(rule: str, count: int, categories: int = 1) -> list[Result]:
    """`count` pairs of a rule, their categories in turn."""
    kind = "harmful" if rule == "containment" else "benign"
    prompts = [
        Prompt.of(f"{rule} {n}", kind=kind, category=f"c{n % categories}") for n in range(count)
    ]  # type: ignore[arg-type]
    made = [make_pair(p, f"chosen {p.text}", f"rejected {p.text}", rule, "why") for p in prompts]  # type: ignore[arg-type]
    return [Result(p, m.pair, m.reason) for p, m in zip(prompts, made, strict=True)]


def both(overrefusal: int, containment: int, categories: int = 1) -> dict[str, list[Result]]:
    return {
        "overrefusal": results("overrefusal", overrefusal, categories),
        "containment": results("containment", containment, categories),
    }


def kept(found: dict[str, list[Result]], **quotas: float) -> dict[str, int]:
    summary = filter_rows(found, {}, Quotas(**quotas), seed=0).summary  # type: ignore[arg-type]
    return {rule: summary[rule]["kept"] for rule in found}


def test_without_quotas_all_are_kept_in_an_order_drawn_by_seed() -> None:
    found = both(6, 4)
    rows = [[r.id for r in filter_rows(found, {}, Quotas(), seed=seed).rows] for seed in (0, 0, 1)]
    assert (
        rows[0] == rows[1] != rows[2] and sorted(rows[0]) == sorted(rows[2]) and len(rows[0]) == 10
    )
    assert filter_rows(found, {}, Quotas(), seed=0).summary["unfilled"] == []


def test_a_limit_for_each_rule_is_drawn_by_seed() -> None:
    found = {"overrefusal": results("overrefusal", 8)}
    drawn = [
        {r.id for r in filter_rows(found, {}, Quotas(max_rows=3), seed=seed).rows}
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 3


@pytest.mark.parametrize(
    ("sizes", "share", "left"),
    [
        ((60, 60), 0.5, (60, 60)),
        ((60, 60), 0.2, (60, 15)),  # 15 of 75
        ((60, 10), 0.5, (10, 10)),
        ((10, 60), 0.5, (10, 10)),
        ((90, 5), 0.1, (45, 5)),  # 5 of 50
        ((2, 9), 0.6, (2, 3)),  # 2.9999... in floating point
        ((9, 2), 0.4, (3, 2)),
        ((3, 60), 0.01, (3, 1)),  # a side never goes away for a share
        ((5, 0), 0.5, (5, 0)),
    ],
)
def test_the_side_with_too_many_gives_up_what_a_share_needs(
    sizes: tuple[int, int], share: float, left: tuple[int, int]
) -> None:
    assert tuple(kept(both(*sizes), harmful_share=share).values()) == left


def test_categories_are_capped_before_rules_and_shares() -> None:
    assert kept(both(9, 9, categories=3), max_per_category=2) == {
        "overrefusal": 6,
        "containment": 6,
    }
    assert kept(both(9, 9, categories=3), max_per_category=2, max_rows=4) == {
        "overrefusal": 4,
        "containment": 4,
    }
    both_at_once = kept(both(9, 3, categories=3), max_per_category=2, max_rows=5, harmful_share=0.5)
    assert both_at_once == {"overrefusal": 3, "containment": 3}


@pytest.mark.parametrize("seed", range(4))
def test_what_only_holds_the_student_is_taken_last_by_every_quota(seed: int) -> None:
    found = {
        rule: [r._replace(held=n % 2 == 0) for n, r in enumerate(made)]
        for rule, made in both(8, 8, categories=1).items()
    }
    held = {r.row.id for made in found.values() for r in made if r.held}

    def taken(**quotas: float) -> dict[str, int]:
        """{rule: rows that only hold the student}."""
        rows = filter_rows(found, {}, Quotas(**quotas), seed=seed).rows  # type: ignore[arg-type]
        return {rule: sum(r.rule == rule and r.id in held for r in rows) for rule in found}

    for quota in ("max_rows", "max_per_category"):
        assert taken(**{quota: 3}) == {"overrefusal": 0, "containment": 0}
        assert taken(**{quota: 6}) == {"overrefusal": 2, "containment": 2}
    assert taken(harmful_share=0.2) == {"overrefusal": 4, "containment": 0}
    assert taken() == {"overrefusal": 4, "containment": 4}


def test_each_group_of_a_quota_is_drawn_by_seed() -> None:
    found = {"overrefusal": [r._replace(held=True) for r in results("overrefusal", 8)]}
    plain = {"overrefusal": [r._replace(held=False) for r in found["overrefusal"]]}
    for seed in range(3):
        rows = [
            [row.id for row in filter_rows(one, {}, Quotas(max_rows=3), seed=seed).rows]
            for one in (found, plain)
        ]
        assert rows[0] == rows[1]  # if all rows are of one group, the draw is that of before


def test_the_summary_counts_for_every_filter_what_came_and_went_and_why() -> None:
    found = both(5, 2, categories=2)
    found["overrefusal"].append(
        Result(Prompt.of("x", kind="benign", category="c9"), None, "the student answers it")
    )
    broken = found["overrefusal"][0].row.id
    summary = filter_rows(
        found, {broken: "degenerate"}, Quotas(max_per_category=2, max_rows=3), seed=0
    ).summary
    assert summary["overrefusal"] == {
        "prompts": 6,
        "made": 5,
        "kept": 3,
        "left_out": {"the student answers it": 1, "linter: degenerate": 1},
    }
    # four are left of c0 and c1, two of each: nothing is over the cap
    assert summary["filters"]["overrefusal"] == [
        {"filter": "rule", "in": 6, "out": 5, "why": {"the student answers it": 1}},
        {"filter": "linter", "in": 5, "out": 4, "why": {"linter: degenerate": 1}},
        {"filter": "max_pairs", "in": 4, "out": 3, "why": {"over max_pairs": 1}},
    ]
    assert summary["filters"]["containment"] == [{"filter": "rule", "in": 2, "out": 2, "why": {}}]
    assert summary["categories"]["overrefusal"]["c9"] == {"prompts": 1, "made": 0, "kept": 0}
    assert sum(row["kept"] for row in summary["categories"]["overrefusal"].values()) == 3


def test_a_quota_left_unfilled_is_reported_and_nothing_is_padded() -> None:
    found = both(4, 1, categories=2)
    wanted = Quotas(max_rows=4, max_per_category=2, harmful_share=0.5)
    assert {
        "quota": "max_pairs",
        "rule": "containment",
        "wanted": 4,
        "kept": 1,
    } in filter_rows(found, {}, wanted, seed=0).summary["unfilled"]
    alone = filter_rows(
        {"overrefusal": results("overrefusal", 4)}, {}, Quotas(harmful_share=0.5), seed=0
    )
    assert len(alone.rows) == 4
    assert alone.summary["unfilled"] == [{"quota": "harmful_share", "wanted": 0.5, "kept": 0.0}]
    capped = filter_rows(
        {"overrefusal": results("overrefusal", 3, 2)}, {}, Quotas(max_per_category=2), seed=0
    ).summary["unfilled"]
    assert capped == [
        {
            "quota": "max_per_category",
            "rule": "overrefusal",
            "category": "c1",
            "wanted": 2,
            "kept": 1,
        }
    ]


def test_rows_of_an_sft_set_are_kept_by_kind_alike() -> None:
    prompts = {
        kind: [Prompt.of(f"{kind} {n}", kind=kind, reference="x") for n in range(6)]
        for kind in ("general", "harmful")
    }  # type: ignore[arg-type]
    found = {kind: [Result(p, p) for p in rows] for kind, rows in prompts.items()}
    assert kept(found, harmful_share=0.25) == {"general": 6, "harmful": 2}


# ------------------------------------------------------------------------------- ordinary prompts


def of_kind(kind: Kind, wrong: int, right: int, words: int = 2) -> list[Result[PreferencePair]]:
    """Pairs of a kind, with so many words; the student gets the first `wrong` prompts wrong."""
    rule = "containment" if kind == "harmful" else "overrefusal"
    found = []
    for n in range(wrong + right):
        prompt = Prompt.of(" ".join([f"{kind}{n}", *["word"] * (words - 1)]), kind=kind)
        pair = make_pair(prompt, f"yes {n}", f"no {n}", rule, "why").pair
        found.append(Result(prompt, pair, held=n >= wrong))
    return found


def kept_of(
    found: dict[str, list[Result[PreferencePair]]], seed: int, **quotas: float
) -> dict[str, tuple[int, int]]:
    """{kind: kept rows that correct, and that hold}."""
    rows = filter_rows(found, {}, Quotas(**quotas), seed=seed).rows  # type: ignore[arg-type]
    held = {r.row.id for made in found.values() for r in made if r.row is not None and r.held}
    counts = {
        kind: [sum(row.prompt.kind == kind and (row.id in held) is side for row in rows)
               for side in (False, True)]
        for kind in ("benign", "general", "harmful")
    }  # fmt: skip
    return {kind: (wrong, right) for kind, (wrong, right) in counts.items() if wrong or right}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("benign", "general", "quotas", "left"),
    [
        # a student that refuses nearly all of the benign prompts: 50 + 10 rows, limit 30
        ((45, 5), (0, 10), {"max_rows": 30}, {"benign": (25, 0), "general": (0, 5)}),
        ((50, 0), (3, 7), {"max_rows": 30}, {"benign": (25, 0), "general": (3, 2)}),
        ((50, 0), (8, 2), {"max_rows": 30}, {"benign": (25, 0), "general": (5, 0)}),
        ((4, 46), (0, 10), {"max_rows": 30}, {"benign": (4, 21), "general": (0, 5)}),
        # what rounding leaves goes to a prompt that is wrong: 7 * 10 / 60 is 1.2, 7 * 50 / 60 is 5.8
        ((45, 5), (0, 10), {"max_rows": 7}, {"benign": (6, 0), "general": (0, 1)}),
        ((45, 5), (0, 10), {"max_per_category": 30}, {"benign": (25, 0), "general": (0, 5)}),
        # a later round keeps all that is wrong; those that hold share the rest, 15 to 45
        ((20, 15), (0, 45), {"held_per_wrong": 1.0}, {"benign": (20, 5), "general": (0, 15)}),
        ((20, 15), (4, 45), {"held_per_wrong": 0.5}, {"benign": (20, 3), "general": (4, 9)}),
        ((20, 0), (0, 45), {"held_per_wrong": 0.0}, {"benign": (20, 0)}),
        ((45, 5), (0, 10), {}, {"benign": (45, 5), "general": (0, 10)}),
    ],
)
def test_every_limit_keeps_ordinary_prompts_in_proportion_and_wrong_ones_first_within_each_kind(
    benign: tuple[int, int],
    general: tuple[int, int],
    quotas: dict[str, float],
    left: dict[str, tuple[int, int]],
    seed: int,
) -> None:
    found = {"overrefusal": of_kind("benign", *benign) + of_kind("general", *general)}
    assert kept_of(found, seed, **quotas) == left


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("harmful", "quotas", "left"),
    [
        # 30 of 60 harmless rows: equal lengths, half of all rows harmful, both and a limit
        (30, {"length_ratio_max": 1.0}, ((25, 0), (0, 5))),
        (30, {"harmful_share": 0.5}, ((25, 0), (0, 5))),
        (40, {"length_ratio_max": 1.0, "max_rows": 30, "harmful_share": 0.5}, ((25, 0), (0, 5))),
        (40, {"length_ratio_max": 1.5, "max_rows": 12, "harmful_share": 0.5}, ((10, 0), (0, 2))),
    ],
)
def test_ordinary_prompts_stay_too_where_the_other_side_has_fewer_rows(
    harmful: int, quotas: dict[str, float], left: tuple[tuple[int, int], ...], seed: int
) -> None:
    found = {
        "overrefusal": of_kind("benign", 45, 5) + of_kind("general", 0, 10),
        "containment": of_kind("harmful", harmful, 0),
    }
    counts = kept_of(found, seed, **quotas)
    harmless = sum(map(sum, left))
    assert counts == {"benign": left[0], "general": left[1], "harmful": (harmless, 0)}


@pytest.mark.parametrize("seed", range(8))
def test_ordinary_prompts_stay_at_every_length(seed: int) -> None:
    """Ordinary ones are short, most others long, and both lengths have rows too many."""
    found = {
        "overrefusal": [
            *of_kind("benign", 30, 0, words=9),
            *of_kind("benign", 10, 0, words=4),
            *of_kind("general", 0, 20, words=4),
        ],
        "containment": [
            *of_kind("harmful", 24, 0, words=9),
            *of_kind("harmful", 24, 0, words=4),
        ],
    }
    counts = kept_of(found, seed, length_ratio_max=1.0, max_rows=20)
    assert sum(counts["benign"]) + sum(counts["general"]) == 20
    assert 5 <= counts["general"][1] <= 8  # 20 * 20 / 60 is 6.7
