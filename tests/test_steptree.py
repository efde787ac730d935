"""sources/steptree.py: trees of steps become pairs of siblings behind their path, and what is no
tree is an error with its line and its node."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.pairs.files import read_pairs as read_pair_file
from overrefusal_po.pairs.lint import lint
from overrefusal_po.prompts import read_pairs
from overrefusal_po.records import PreferencePair, write_jsonl
from overrefusal_po.sources._trees import reward

ASKED = "How do I open a lock?"
STEPS = [
    {"id": "a", "text": "I look at it.", "value": 0.9, "visits": 9},
    {"id": "b", "text": "I pick at once.", "value": 0.2, "visits": 5},
    {"id": "a1", "parent": "a", "text": " It is mine.", "value": 0.95, "visits": 4},
    {"id": "a2", "parent": "a", "text": " Who cares.", "value": 0.1, "visits": 4},
    {"id": "a1x", "parent": "a1", "text": " Use the key.", "terminal": True, "value": 1},
    {"id": "a1y", "parent": "a1", "text": " Sorry, no.", "terminal": True, "value": -1},
]


def tree(*nodes: dict[str, Any], **row: Any) -> dict[str, Any]:
    """A row: a tree that answers ASKED."""
    return {"prompt": ASKED, "nodes": list(nodes), **row}


def leaf(name: str, value: float | None, **fields: Any) -> dict[str, Any]:
    """A step that ends the response."""
    return {"id": name, "text": f"Text of {name}.", "value": value, "terminal": True, **fields}


def written(folder: Path, *rows: Any, name: str = "trees.jsonl") -> str:
    """The path of a file with these rows."""
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs_of(folder: Path, *rows: Any, **settings: Any) -> list[PreferencePair]:
    return read_pairs({"name": "steptree", "path": written(folder, *rows), **settings}, "train")


def sides(found: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in found]


# -------------------------------------------------------------------------------------------- pairs


def test_the_values_worked_by_hand_give_one_pair(tmp_path: Path) -> None:
    """Of .9, .85 and .35 only (.9, .35): .85 - .35 is not above .5."""
    row = tree(leaf("a", 0.9), leaf("b", 0.85), leaf("c", 0.35))
    (pair,) = pairs_of(tmp_path, row)
    assert (pair.chosen, pair.rejected) == ("Text of a.", "Text of c.")
    assert pair.reason == "steptree: value 0.9 over 0.35"


@pytest.mark.parametrize(
    ("safe", "helpful", "expected"), [(1, 0.5, 2.5), (-1, 1, -3), (-1, -1, -1), (0, 1, 0)]
)
def test_help_counts_only_if_it_is_safe(safe: float, helpful: float, expected: float) -> None:
    assert reward(safe, helpful) == expected


def test_a_terminal_step_without_a_value_gets_the_reward_of_its_scores(tmp_path: Path) -> None:
    good = leaf("a", None, safe=1, helpful=0.5)
    known = leaf("b", 2.2, safe=-1, helpful=1)  # a value that is given counts
    bad = leaf("c", None, safe=-1, helpful=1)
    found = pairs_of(tmp_path, tree(good, known, bad))
    reasons = ["steptree: value 2.5 over -3", "steptree: value 2.2 over -3"]
    assert [pair.reason for pair in found] == reasons


def test_the_path_is_the_prefix_and_a_step_that_goes_on_is_unfinished(tmp_path: Path) -> None:
    first, second, third = pairs_of(tmp_path, tree(*STEPS, id="t", kind="harmful"))
    assert [p.prompt.assistant_prefix for p in (first, second, third)] == [
        "",
        "I look at it.",
        "I look at it. It is mine.",
    ]
    assert sides([first, second, third]) == [
        ("I look at it.", "I pick at once."),
        (" It is mine.", " Who cares."),
        (" Use the key.", " Sorry, no."),
    ]
    assert first.unfinished == second.unfinished == ("chosen", "rejected")
    assert third.unfinished == ()
    assert {p.prompt.kind for p in (first, second, third)} == {"harmful"}
    assert len({p.prompt.id for p in (first, second, third)}) == 3
    assert second.label == f"t: a1 over a2 ({tmp_path / 'trees.jsonl'}, line 1)"


def test_a_pair_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    found = pairs_of(tmp_path, tree(*STEPS))
    assert read_pair_file(write_jsonl(tmp_path / "pairs.jsonl", found)) == found


def step(name: str, value: float, visits: int | None) -> dict[str, Any]:
    return {"id": name, "text": f"Step {name}.", "value": value, "visits": visits}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["ac"]),
        ({"min_visits": 3}, ["ac", "ad"]),
        ({"min_visits": 0}, ["ac", "ad", "ae"]),
        ({"min_chosen": 0.6, "min_gap": 0.2}, ["ab", "ac", "bc"]),
        ({"min_chosen": 0.91}, None),
    ],
)
def test_the_settings_say_which_siblings_are_a_pair(
    settings: dict[str, Any], names: list[str] | None, tmp_path: Path
) -> None:
    values = {"a": (0.9, 4), "b": (0.6, 4), "c": (0.3, 4), "d": (0.2, 3), "e": (0.1, 0)}
    row = tree(*(step(name, *known) for name, known in values.items()))
    if names is None:
        with pytest.raises(ValueError, match=r"none of the 1 trees gives a pair.*0\.3 to 0\.9"):
            pairs_of(tmp_path, row, **settings)
        return
    expected = [(f"Step {one}.", f"Step {other}.") for one, other in names]
    assert sides(pairs_of(tmp_path, row, **settings)) == expected


def test_a_value_on_a_bound_is_not_moved_by_rounding(tmp_path: Path) -> None:
    """1.1 - .6 is above .5 in binary; .7 + .1 is below .8."""
    assert 1.1 - 0.6 > 0.5 and 0.7 + 0.1 < 0.8
    row = tree(leaf("a", 1.1), leaf("b", 0.6), leaf("c", 0.7 + 0.1), leaf("d", 0.2))
    names = [(f"Text of {one}.", f"Text of {other}.") for one, other in ("ad", "cd")]
    assert sides(pairs_of(tmp_path, row)) == names


def test_equal_texts_steps_without_a_value_and_other_splits_are_left_out(tmp_path: Path) -> None:
    same = {**leaf("b", 0.1), "text": "Text of a. "}
    unseen = {"id": "u", "text": "Never visited.", "visits": 0}
    row = tree(leaf("a", 0.9), same, unseen, leaf("c", 0.2))
    other = tree(leaf("a", 0.9), leaf("d", 0.2), split="validation")
    assert sides(pairs_of(tmp_path, row, other)) == [("Text of a.", "Text of c.")]
    spec = {"name": "steptree", "path": str(tmp_path / "trees.jsonl")}
    assert sides(read_pairs(spec, "dev"))[-1] == ("Text of a.", "Text of d.")


def test_a_root_without_text_stands_before_the_first_steps(tmp_path: Path) -> None:
    steps = [{**node, "parent": node.get("parent", "r")} for node in STEPS]
    rooted = pairs_of(tmp_path, tree({"id": "r", "text": ""}, *steps))
    assert rooted == pairs_of(tmp_path, tree(*STEPS))


def test_columns_and_fields_that_are_not_read_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        pairs_of(tmp_path, tree(*(dict(node, depth=1) for node in STEPS), tag="x"))
    assert "field depth of a node (6 rows), tag (1 row)" in caplog.text
    assert "1 trees give 3 pairs" in caplog.text


# -------------------------------------------------------------------------------------- STAIR's form


def stair(nodes: dict[str, tuple[list[str], float | None, int, bool]]) -> dict[str, Any]:
    """A tree as STAIR's search writes it: {name: (trajectory, value, visits, terminal)}."""
    return {"tree_size": len(nodes)} | {
        name: {
            "prompt": ASKED,
            "trajectory": trajectory,
            "is_terminal": terminal,
            "is_valid_selected": False,
            "depth": len(trajectory),
            "visited_times": visits,
            "reward": value if terminal else None,
            "value_sum": (value or 0) * visits,
            "true_value": value,
            "p": 1,
        }
        for name, (trajectory, value, visits, terminal) in nodes.items()
    }


STAIR = {
    "0": ([], 0.5, 20, False),
    "0.0": (["I look at it."], 0.9, 9, False),
    "0.1": (["I pick at once."], 0.2, 5, False),
    "0.0.0": (["I look at it.", " It is mine."], 0.95, 4, False),
    "0.0.1": (["I look at it.", " Who cares."], 0.1, 4, False),
    "0.0.0.0": (["I look at it.", " It is mine.", " Use the key.<|eot_id|>"], 1, 1, True),
    "0.0.0.1": (["I look at it.", " It is mine.", " Sorry, no.<|eot_id|>"], -1, 1, True),
    "0.0.0.2": (["I look at it.", " It is mine.", "<|eot_id|>"], -1, 1, True),
    "0.0.1.0": (["I look at it.", " Who cares.", " So."], None, 0, False),
}


def test_what_stairs_search_writes_gives_the_same_pairs(tmp_path: Path) -> None:
    """A JSON list of trees, an end of turn in the last steps, a step without a visit."""
    (tmp_path / "0.json").write_text(json.dumps([stair(STAIR)], indent=4))
    found = read_pairs({"name": "steptree", "path": str(tmp_path / "0.json")}, None)
    assert found == pairs_of(tmp_path, tree(*STEPS))


def test_a_damaged_tree_of_stairs_is_an_error(tmp_path: Path) -> None:
    row = stair(STAIR)
    for change, words in (
        ({"0.0": {**row["0.0"], "trajectory": "I look"}}, "node 0.0: trajectory is 'I look'"),
        ({"0.0": {**row["0.0"], "trajectory": []}}, "node 0.0: trajectory holds 0 steps"),
        ({"0.1": {**row["0.1"], "prompt": "Else?"}}, "node 0.1: its prompt is 'Else[?]'"),
    ):
        with pytest.raises(ValueError, match=f"trees.jsonl, line 1, {words}"):
            pairs_of(tmp_path, row | change)
    with pytest.raises(ValueError, match=r"line 1, node '0\.0\.0': its parent '0\.0' is not among"):
        pairs_of(tmp_path, {name: node for name, node in row.items() if name != "0.0"})


# ------------------------------------------------------------------------------------ hostile files

LOOP = [{"id": "a", "parent": "b", "text": "A"}, {"id": "b", "parent": "a", "text": "B"}]
FAULTS: dict[str, tuple[Any, str]] = {
    "no nodes": ({"prompt": ASKED}, "line 2: no nodes.*columns found are prompt"),
    "nodes is text": ({"prompt": ASKED, "nodes": "[]"}, "line 2: no nodes"),
    "a node is text": (tree("a"), "line 2, node 1: got 'a'"),  # type: ignore[arg-type]
    "no prompt": ({"nodes": STEPS}, "line 2: the prompt is empty or missing"),
    "no id": (tree({"text": "A"}), "line 2, node 1: id is None"),
    "one id twice": (tree(*STEPS, STEPS[0]), "line 2, node 7: the id 'a' is there twice"),
    "ids 1 and '1'": (tree(leaf("1", 1), leaf(1, 0)), "the id '1' is there twice"),  # type: ignore[arg-type]
    "missing parent": (tree(leaf("a", 1, parent="z")), "node 'a': its parent 'z' is not among"),
    "loop of one": (tree(leaf("s", 1), {**LOOP[0], "parent": "a"}), "'a': its parents are a loop"),
    "loop of two": (tree(*LOOP), r"'a': its parents are a loop \('a' -> 'b' -> 'a' -> 'b'\)"),
    "loop beside a tree": (tree(*STEPS, {**LOOP[0], "id": "x", "parent": "x"}), "'x': its parents"),
    "behind the end": (
        tree(leaf("a", 1), leaf("b", 1, parent="a")),
        "'a' is terminal, and nothing",
    ),
    "text is null": (tree({"id": "a", "text": None}), "node 1: text is None"),
    "blank step": (tree(*STEPS, {"id": "z", "parent": "a", "text": " "}), "node 7: text is ' '"),
    "NaN": (tree(leaf("a", float("nan"))), "node 1: value is nan; it must be a finite number"),
    "infinite": (tree(leaf("a", float("-inf"))), "node 1: value is -inf"),
    "too large": (tree(leaf("a", 10**400)), "node 1: value is 1000"),
    "text value": (tree(leaf("a", "0.9")), "node 1: value is '0.9'"),  # type: ignore[arg-type]
    "true as value": (tree(leaf("a", True)), "node 1: value is True"),
    "score out of range": (tree(leaf("a", None, safe=2, helpful=0)), "safe is 2; allowed is -1 to"),
    "half a score": (tree(leaf("a", None, safe=1)), "a terminal node needs a value, or both"),
    "visits": (tree(step("a", 1, -1)), "node 1: visits is -1; it must be a whole number"),
    "no visits": (tree(step("a", 1, None)), "node 'a': it has a value and no visits"),
    "terminal": (tree(leaf("a", 1, terminal="yes")), "node 1: terminal is 'yes'; allowed is true"),
    "kind": (tree(*STEPS, kind="bad"), "line 2: kind is 'bad'; allowed: harmful, benign, general"),
    "label": (tree(*STEPS, label="bad"), "line 2: label is 'bad'"),
    "lost column": (tree(*STEPS, context="x"), "line 2: the column 'context'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_tree_is_an_error_with_its_line(fault: str, tmp_path: Path) -> None:
    row, words = FAULTS[fault]
    with pytest.raises(ValueError, match=words) as error:
        pairs_of(tmp_path, tree(*STEPS), row)
    assert "trees.jsonl, line 2" in str(error.value)
    assert str(error.value).endswith("To leave such rows out, counted: data.bad_rows: drop.")
    assert len(pairs_of(tmp_path, tree(*STEPS), row, bad_rows="drop")) == 3


def test_a_file_of_another_ending_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trees are read from \.jsonl or \.json files"):
        read_pairs({"name": "steptree", "path": "trees.csv"}, None)
    with pytest.raises(ValueError, match="there is no such file"):
        read_pairs({"name": "steptree", "path": str(tmp_path / "gone.jsonl")}, None)


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "trees.jsonl").write_text('{"prompt": "How?", "nodes": [{"id": 1, "id": 2}]}\n')
    with pytest.raises(ValueError, match=r"line 1.*the key 'id' is there twice"):
        read_pairs({"name": "steptree", "path": str(tmp_path / "trees.jsonl")}, None)


def test_a_small_tree_with_a_great_many_pairs_stops_at_a_limit(tmp_path: Path) -> None:
    """300 good and 300 bad siblings are 90,000 pairs; a long path counts in each of them."""
    wide = [leaf(f"g{i}", 1) for i in range(300)] + [leaf(f"b{i}", 0) for i in range(300)]
    with pytest.raises(ValueError, match=r"as pairs: more rows than limit_rows 500 .*limit_rows"):
        pairs_of(tmp_path, tree(*wide), limit_rows=500)
    trunk = {"id": "t", "text": "x" * 4000, "value": 1, "visits": 9}
    behind = [dict(node, parent="t") for node in wide]
    with pytest.raises(ValueError, match=r"as pairs: it holds .*, more than limit_mb 1\."):
        pairs_of(tmp_path, tree(trunk, *behind), limit_mb=1)
    with pytest.raises(ValueError, match=r"line 1: the row is longer than limit_row_mb 0\.001"):
        pairs_of(tmp_path, tree(trunk), limit_row_mb=0.001)


def test_a_deep_tree_needs_no_recursion(tmp_path: Path) -> None:
    chain = [{"id": 0, "text": "s"}]
    chain += [{"id": i, "parent": i - 1, "text": "s"} for i in range(1, 20_000)]
    ends = [leaf("a", 1, parent=19_999), leaf("b", 0, parent=19_999)]
    (pair,) = pairs_of(tmp_path, tree(*chain, *ends))
    assert pair.prompt.assistant_prefix == "s" * 20_000
    chain[0]["parent"] = 19_999
    with pytest.raises(ValueError, match="its parents are a loop"):
        pairs_of(tmp_path, tree(*chain))


# --------------------------------------------------------------------------------------- the linter


def test_the_linter_reads_no_refusal_into_a_step_that_goes_on(tmp_path: Path, style: Style) -> None:
    """On a harmful prompt "I look at it." is no answer; the last step is read as ever."""
    found = pairs_of(tmp_path, tree(*STEPS, kind="harmful"))
    checked = lint(found, RefusalJudge(), template=style.template, max_length=256)
    assert {(f.id, f.check) for f in checked.errors} == {(found[2].id, "chosen_complies")}
    assert not {f.check for f in checked.findings} & {"prefix", "double_end_of_turn", "truncation"}


def test_a_ranking_of_siblings_is_no_contradiction(tmp_path: Path) -> None:
    """a over b, a over c and b over c; with c over a it is a circle."""
    ranked = pairs_of(tmp_path, tree(leaf("a", 3), leaf("b", 2), leaf("c", 0)))
    assert len(ranked) == 3
    checks = {f.check for f in lint(ranked, RefusalJudge()).findings}
    assert "contradiction" not in checks
    first = ranked[0]
    turned = first.model_copy(
        update={"id": "turned", "chosen": "Text of c.", "rejected": "Text of a."}
    )
    found = lint([*ranked, turned], RefusalJudge()).findings
    assert sum(f.check == "contradiction" for f in found) == 4


def test_a_prompt_that_is_answered_already_is_an_error(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "So."}]
    with pytest.raises(ValueError, match="line 1: the prompt ends with a turn by the assistant"):
        pairs_of(tmp_path, tree(leaf("a", 1), leaf("b", 0)) | {"prompt": turns})
