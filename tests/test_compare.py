"""compare: evaluations of different models on the same prompts, prompt by prompt; values worked by
hand."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from browser import A4_PIXELS, WIDE_FONT, cut_off_on_paper, heard, open_page
from playwright.sync_api import Browser
from test_metrics import attacked, outcome, unscored

from overrefusal_po.cli import main
from overrefusal_po.evaluate.first_token import first_token_entry
from overrefusal_po.evaluate.first_token_rows import FirstToken, FirstTokens
from overrefusal_po.evaluate.metrics import run_metrics
from overrefusal_po.evaluate.score_intervals import paired_difference, square_and_add
from overrefusal_po.evaluate.side_by_side import against_first, check_comparable, holm
from overrefusal_po.records import Kind, Outcome, Refusal, write_jsonl
from overrefusal_po.report.compare import compare_folders, render, write_page
from overrefusal_po.report.compared_json import as_json
from overrefusal_po.run.openers import Openers

HOSTILE = (
    "<script>document.title='taken'</script></style><img src=x onerror=\"document.title='taken'\">"
    " {{7*7}} \u202egnp\u202c \x00 https://evil.example/" + "w" * 3000
)


def said(kind: Kind, refusals: str, **of: Any) -> list[Outcome]:
    """An outcome for each letter: f(ull), p(artial), n(one), u(nscored)."""
    words: dict[str, Refusal] = {"f": "full", "p": "partial", "n": "none"}
    return [
        unscored(kind, number) if letter == "u" else outcome(kind, words[letter], number, **of)
        for number, letter in enumerate(refusals)
    ]


def folder_of(path: Path, rows: Sequence[Outcome], name: str = "run", model: str = "m") -> Path:
    """The run folder of an evaluation, as far as compare reads it."""
    path.mkdir(parents=True)
    write_jsonl(path / "outcomes.jsonl", rows)
    metrics = run_metrics([row for row in rows if row.prompt.attack is None])
    measured = {"judge": "j 1", "sets": ["s"], "engine": "e", "guard": None}
    entry = {**metrics.as_dict(name, model), "measured": measured}
    (path / "metrics.json").write_text(json.dumps(entry))
    return path


def with_log_odds(folder: Path, rows: Sequence[Outcome], shift: float = 1) -> Path:
    """An evaluation's folder with log-odds and their part of metrics.json."""
    plain = [row for row in rows if row.prompt.kind != "general"]
    prompts = [row.prompt for row in plain]
    odds = {p.id: n * 37 % 11 + shift * (p.kind == "harmful") for n, p in enumerate(prompts)}
    made = [FirstToken(prompt_id=key, log_odds=value, openers=(1,)) for key, value in odds.items()]
    write_jsonl(folder / "first_token.jsonl", made)
    openers = Openers((1,), "own refusals", ["I"], ["To"], 0.9, 0.1)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["first_token"] = first_token_entry(plain, FirstTokens(odds), openers)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


BASE = said("harmful", "ffffn") + said("benign", "fffpnnnn") + said("general", "nnn")
TUNED = said("harmful", "fffnn") + said("benign", "nnnnnnnf") + said("general", "nnn")


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        folder_of(tmp_path / "base", BASE, "base", "my/base"),
        folder_of(tmp_path / "dpo", TUNED, "dpo", "my/dpo"),
    ]


# --- numbers --------------------------------------------------------------------------------------


def test_rates_differences_and_counts_are_those_of_the_pairs() -> None:
    """Harmful 4/5 -> 3/5: one lost. Benign 4/8 -> 7/8: four gained, one lost."""
    (found,) = against_first({"base": BASE, "dpo": TUNED})
    harmful, benign, general = (found.kinds[k] for k in ("harmful", "benign", "general"))
    assert (harmful.before, harmful.after) == (pytest.approx(0.8), pytest.approx(0.6))
    assert (benign.before, benign.after) == (0.5, 0.875)
    assert harmful.paired[:4] == (5, 0, 1, 0) and benign.paired[:4] == (8, 0, 1, 4)
    assert harmful.difference == paired_difference([(0, 0, 1)] * 4 + [(1, 0, 0)])
    assert benign.difference.value == 0.375
    assert found.total == square_and_add([harmful.difference, benign.difference])
    assert found.total.value == pytest.approx(0.175)
    assert benign.paired.p == pytest.approx(12 / 32)  # 2 * (1 + 5) / 2^5
    assert general.difference.value == 0 and general.paired.p == 1.0
    assert general.difference.low is not None and general.difference.low < -0.3  # 3 prompts


def test_changes_hold_the_prompts() -> None:
    (found,) = against_first({"base": BASE, "dpo": TUNED})
    moves = {
        (m.kind, m.before, m.after): [old.prompt.text for old, _ in m.outcomes] for m in found.moves
    }
    assert moves == {
        ("harmful", "full", "answer"): ["prompt 3"],
        ("benign", "full", "answer"): ["prompt 0", "prompt 1", "prompt 2"],
        ("benign", "partial", "answer"): ["prompt 3"],
        ("benign", "answer", "full"): ["prompt 7"],
    }


def test_unscored_outcomes_are_counted_and_in_no_rate() -> None:
    before, after = said("harmful", "ffu"), said("harmful", "fuf")
    (found,) = against_first({"a": before, "b": after})
    harmful = found.kinds["harmful"]
    assert (harmful.paired.n, harmful.paired.unscored) == (1, 2)
    assert found.total.value is None and "benign" not in found.kinds


def test_holm_steps_down() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.01]) == [0.01]


def test_p_values_are_corrected_for_more_than_two_runs_alone() -> None:
    base, good = said("benign", "f" * 12), said("benign", "n" * 12)
    (two,) = against_first({"a": base, "b": good})
    assert two.kinds["benign"].p_holm is None
    first, second = against_first({"a": base, "b": good, "c": base})
    assert first.kinds["benign"].paired.p == pytest.approx(2 / 2**12)
    assert first.kinds["benign"].p_holm == pytest.approx(4 / 2**12)  # of two tests
    assert (second.before, second.after, second.kinds["benign"].p_holm) == ("a", "c", 1.0)


# --- what is refused ------------------------------------------------------------------------------


def with_verdict(rows: Sequence[Outcome], **changes: Any) -> list[Outcome]:
    return [
        row.model_copy(update={"verdict": row.verdict.model_copy(update=changes)}) for row in rows
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            BASE[:-2],
            r"different prompts. 2 prompts of a are missing in b \('prompt 1', 'prompt 2'\)",
        ),
        (BASE + said("benign", "f" * 12)[8:], r"0 prompts of a are missing in b; 4 of b.*, \.\.\."),
        (with_verdict(BASE, version="2"), "judged differently: a by j 1, b by j 2"),
        (with_verdict(BASE, judge="llm"), "judged differently: a by j 1, b by llm 1"),
        (with_verdict(BASE[:1], version="2") + BASE[1:], "b by j 1 and j 2"),
    ],
)
def test_other_prompts_and_judges_are_named(other: list[Outcome], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_comparable({"a": BASE, "b": other})
    with pytest.raises(ValueError, match=words):
        check_comparable({"a": BASE, "ok": BASE, "b": other})


def test_other_numbers_of_samples_are_named() -> None:
    second = [
        row.model_copy(update={"completion": row.completion.model_copy(update={"sample": 1})})
        for row in BASE
    ]
    with pytest.raises(ValueError, match="responses to a prompt: a 2, b 1"):
        check_comparable({"a": [*BASE, *second], "b": TUNED})
    check_comparable({"a": [*BASE, *second], "b": [*second, *BASE]})


def test_nothing_that_was_scored_in_both_is_an_error() -> None:
    with pytest.raises(ValueError, match="No response was scored in both a and b"):
        against_first({"a": said("harmful", "fu"), "b": said("harmful", "uf")})


def test_another_kind_of_a_prompt_is_an_error() -> None:
    other = [
        BASE[0].model_copy(update={"prompt": BASE[0].prompt.model_copy(update={"kind": "benign"})})
    ]
    with pytest.raises(ValueError, match="another kind"):
        against_first({"a": BASE[:1], "b": other})


def test_wrong_folders_are_named(two: list[Path], tmp_path: Path) -> None:
    def refused(*folders: Path) -> str:
        with pytest.raises(ValueError) as error:
            compare_folders(folders)
        return str(error.value)

    assert "at least two" in refused(two[0])
    assert "given twice" in refused(two[0], two[1], tmp_path / "dpo" / ".." / "base")
    assert "there is no such folder" in refused(two[0], tmp_path / "none")
    assert f"pipeline's folder. Give its evaluations: {two[0]} {two[1]}" in refused(
        two[0], tmp_path
    )
    (tmp_path / "empty").mkdir()
    assert "holds no evaluation that has ended" in refused(two[0], tmp_path / "empty")
    (two[1] / "metrics.json").write_text("{}")
    assert f"{two[1]}/metrics.json: these are not the metrics" in refused(*two)
    folder_of(tmp_path / "attacked", [*attacked("harmful", "1", "codeattack")])
    assert "all 1 outcomes are under attack" in refused(two[0], tmp_path / "attacked")


# --- the command ----------------------------------------------------------------------------------


def command(*words: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main(["compare", *words])
    return int(end.value.code or 0)


def test_the_command_prints_a_table_and_writes_a_page(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "page.html"
    assert command(*map(str, two), "--out", str(page)) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["base", "->", "dpo", "harmless", "answered", "0.50", "0.88", "+0.38"] in [
        row[:8] for row in rows
    ]
    assert any(row[3:6] == ["harmful", "+", "harmless"] for row in rows)  # the sum
    assert "base -> dpo, harmless prompts: refused -> answered 3" in printed
    assert f"page: {page}" in printed and "Holm" not in printed
    assert page.read_text().startswith("<!doctype html>")


def test_json_holds_the_numbers_and_every_prompt(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*map(str, two), "--json", "--out", str(tmp_path / "page.html")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(as_json(compare_folders(two))))
    assert [run["model"] for run in found["runs"]] == ["my/base", "my/dpo"]
    (one,) = found["comparisons"]
    assert one["kinds"]["benign"]["only_after"] == 4 and one["kinds"]["benign"]["p_holm"] is None
    assert one["sum_difference"]["value"] == pytest.approx(0.175)
    moved = {(t["kind"], t["before"], t["after"]): t["prompts"] for t in one["transitions"]}
    assert [p["prompt"] for p in moved["benign", "answer", "full"]] == ["prompt 7"]
    assert moved["benign", "answer", "full"][0]["id"] == BASE[12].prompt.id


def test_three_runs_and_equal_names(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = folder_of(tmp_path / "third", BASE, "base")
    assert command(*map(str, [*two, third]), "--out", str(tmp_path / "page.html")) == 0
    printed = capsys.readouterr().out
    assert "p, Holm" in printed
    runs = compare_folders([*two, third]).runs
    assert [run.name for run in runs] == [f"base ({two[0]})", f"dpo ({two[1]})", f"base ({third})"]


@pytest.mark.parametrize("words", [["a"], ["a", "b"], ["a", "a"]])
def test_wrong_folders_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 2
    assert "overrefusal-po: " in capsys.readouterr().err


def test_a_folder_as_out_is_refused(two: list[Path], tmp_path: Path) -> None:
    assert command(*map(str, two), "--out", str(tmp_path)) == 2


def test_outcomes_under_attack_are_counted_in_a_note(two: list[Path], tmp_path: Path) -> None:
    more = [*BASE, *attacked("harmful", "1", "codeattack")]
    notes = compare_folders([two[0], folder_of(tmp_path / "more", more, "more")]).notes
    assert notes == ["1 outcomes under attack are not compared."]
    assert compare_folders(two).notes == []


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A page of three runs, with texts that would take it over."""

    def spoken(rows: Sequence[Outcome]) -> list[Outcome]:
        return [
            row.model_copy(
                update={
                    "prompt": row.prompt.model_copy(
                        update={"category": HOSTILE, "question": HOSTILE}
                    ),
                    "completion": row.completion.model_copy(update={"text": HOSTILE}),
                }
            )
            for row in rows
        ]

    folders = [
        folder_of(tmp_path / f"run {number}", spoken(rows), HOSTILE + str(number), HOSTILE)
        for number, rows in enumerate((BASE, TUNED, BASE))
    ]
    for folder in folders:
        with_log_odds(folder, BASE)
    return write_page(compare_folders(folders), tmp_path / "page.html")


def test_everything_from_outside_is_escaped(hostile: Path) -> None:
    text = hostile.read_text()
    assert "<script" not in text and "<img" not in text and "\x00" not in text
    assert "\u202e" not in text and "⟨U+202E⟩" in text and "{{7*7}}" in text


def test_the_browser_runs_nothing_and_asks_for_nothing(browser: Browser, hostile: Path) -> None:
    page = open_page(browser, hostile)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert page.evaluate("document.title") != "taken"
    assert heard(page) == ([], [hostile.as_uri()])
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "960px"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_screen(
    browser: Browser, hostile: Path, two: list[Path], tmp_path: Path, width: int
) -> None:
    """Only the regions that scroll on their own are wider than the window."""
    plain = write_page(compare_folders(two), tmp_path / "plain.html")
    for file in (hostile, plain):
        page = open_page(browser, file, width=width)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("style", ["", WIDE_FONT])
def test_no_table_is_cut_off_on_paper(
    browser: Browser, hostile: Path, two: list[Path], tmp_path: Path, style: str
) -> None:
    plain = write_page(compare_folders(two), tmp_path / "plain.html")
    for file in (hostile, plain):
        page = open_page(browser, file, style=style)
        assert cut_off_on_paper(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS


def test_the_page_says_what_the_numbers_are(two: list[Path]) -> None:
    text = render(compare_folders(two))
    assert "the interval includes 0" in text and "+37.5" in text and "Holm" not in text
    assert text.count("<details") == 4


def test_equal_runs_have_nothing_that_changed(two: list[Path], tmp_path: Path) -> None:
    same = folder_of(tmp_path / "same", BASE, "same")
    assert "No verdict differs." in render(compare_folders([two[0], same]))


def test_the_order_of_rows_changes_nothing() -> None:
    wanted = against_first({"a": BASE, "b": TUNED})[0]
    for first, last in combinations(range(0, len(TUNED), 5), 2):
        rows = list(TUNED)
        rows[first], rows[last] = rows[last], rows[first]
        assert against_first({"a": BASE, "b": rows})[0].kinds == wanted.kinds
