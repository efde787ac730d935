"""The report in a real browser: headless Chromium, if there is one."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from browser import A4_PIXELS, WIDE_FONT, cut_off_on_paper, heard, open_page
from playwright.sync_api import Browser, Page

from overrefusal_po.report.page import write_report

HOSTILE = (
    "<script>document.title='taken'</script></style></article><img src=x "
    "onerror=\"document.title='taken'\"> "
    "{{7*7}} ${7*7} \u202egnp\u202c \x00 https://evil.example/" + "w" * 4000
)
RATES = (
    "harmful_refused",
    "benign_answered",
    "f1",
    "ordinary_answered",
    "harmful_refused_plain",
    "harmful_refused_contrast",
    "degenerate",
)
HIDDEN = "[...document.querySelectorAll('.sample')].filter((s) => s.hidden).length"
VISIBLE = (
    "[...document.querySelectorAll('.sample')].filter((s) => s.getClientRects().length).length"
)
FOCUSED = "document.activeElement.id"


def run(name: str) -> dict[str, Any]:
    rates = dict.fromkeys(RATES, 0.5)
    intervals, n = {rate: [0.4, 0.6] for rate in RATES}, dict.fromkeys(RATES, 100)
    part = {"name": name, "model": "m" * 300, **rates, "intervals": intervals, "n": n}
    places = {
        "opening": 30,
        "early": 20,
        "late": 41,
        "unplaced": 1,
        "not_refused": 5,
        "unscored": 3,
    }
    return part | {
        "sets": {"starter": part, "s" * 200: part},
        "attacks": {"none": part, "codeattack": part},
        "positions": {"none": places, "codeattack": places},
        "gate": {
            "passed": False,
            "failures": ["benign_answered is 0.5 " + "x" * 300],
            "baseline": "b" * 300,
        },
        "capability": {"tasks": {"t" * 100: {"acc": 0.5}}},
        "certificate": {"judge": "refusal 2", "kappa": "0.9 [0.8, 1.0]", "n": "1" * 100},
        "first_token": first_token(),
    }


def first_token() -> dict[str, Any]:
    """The first token's part of a run: a curve of three points, and a hostile token."""
    shares = [(None, 0.0, 1.0), (1.5, 0.5, 0.5), (-2.0, 1.0, 0.0)]
    names = ("threshold", "harmful_refused", "benign_answered")
    points = [dict(zip(names, point, strict=True)) for point in shares]
    return {
        "auc": {"value": 0.7, "low": 0.6, "high": 0.8},
        "n": {"harmful": 100, "benign": 100},
        "openers": {"source": "own refusals", "tokens": [HOSTILE], "left_out": ["t" * 300]},
        "at_own": points[1],
        "curve": points,
    }


def sample(
    number: int, *, kind: str, before: str, after: str, text: str = "plain"
) -> dict[str, Any]:
    responses = [
        {"run": r, "text": text, "refusal": v} for r, v in (("base", before), (HOSTILE, after))
    ]
    return {
        "kind": kind,
        "category": f"category {number % 2}",
        "prompt": f"prompt {number}",
        "responses": responses,
    }


def summary() -> dict[str, Any]:
    samples = [sample(i, kind="benign", before="full", after="none") for i in range(3)]
    samples += [sample(3, kind="harmful", before="none", after="full", text=HOSTILE)]
    counts = {"full": {"answer": 3}, "answer": {"full": 1}}
    paired = {"n": 4, "only_from": 1, "only_to": 3, "p": 0.5}
    step = {"from": "base", "to": HOSTILE}
    return {
        "title": HOSTILE,
        "created": "2026-11-21T04:00:00Z",
        "runs": [run("base"), run(HOSTILE)],
        "comparisons": [
            step
            | {"gain": {"value": 0.1, "low": 0, "high": 0.2}, "harmful": paired, "benign": paired}
        ],
        "transitions": [
            step | {"kind": kind, "category": HOSTILE, "counts": counts}
            for kind in ("benign", "harmful")
        ],
        "curves": [
            step
            | {"n": 200, "harmful_refused": 0.5, "benign_answered": 0.6, "threshold_answers": 0.5}
            | {"gain": {"value": 0.1, "low": 0.05, "high": 0.2}}
        ],
        "samples": samples,
        "measured": {
            "judge": HOSTILE,
            "sets": [HOSTILE],
            "engine": HOSTILE,
            "guard": None,
            "notes": [HOSTILE],
        },
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "summary.json").write_text(json.dumps(summary()))
    return write_report(folder)


@pytest.fixture
def page(browser: Browser, report: Path) -> Page:
    return open_page(browser, report)


def press_until(page: Page, field: str) -> None:
    """Tab until `field` has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) == field:
            return
    raise AssertionError(f"sixty times Tab did not reach #{field}")


def test_nothing_is_said_on_the_console_and_nothing_is_asked_of_anybody(
    page: Page, report: Path
) -> None:
    said, asked = heard(page)
    assert said == []
    assert [url for url in asked if not url.startswith("data:image/png")] == [report.as_uri()]
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "960px", (
        "the policy lets the page's own style in"
    )


def test_the_policy_stops_a_script_that_got_in(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        report.read_text().replace("<main ", "<script>document.title='taken'</script><main ", 1)
    )
    page = open_page(browser, broken)
    assert page.evaluate("document.title") != "taken"
    assert "violates the following Content Security Policy" in str(heard(page).said)


def test_hostile_output_is_text(page: Page) -> None:
    assert page.evaluate("document.title").startswith(
        "<script>document.title='taken'</script></style>"
    )
    said = page.evaluate("document.querySelectorAll('.sample .text')[6].textContent")
    assert "<script>document.title='taken'</script></style></article><img src=x onerror=" in said
    assert "{{7*7}} ${7*7} ⟨U+202E⟩gnp⟨U+202C⟩  https" in said and "[2" in said
    assert (
        page.evaluate("document.scripts.length") == 1
        and page.evaluate("document.links.length") == 9
    )
    assert page.evaluate(
        "[...document.links].every((link) => link.getAttribute('href').startsWith('#'))"
    )


def test_the_filter_works_by_keyboard_and_says_what_it_shows(page: Page) -> None:
    assert page.evaluate("document.getElementById('count').textContent") == "4 of 4 prompts shown"
    assert page.evaluate("document.getElementById('count').ariaLive") == "polite"
    press_until(page, "filter-kind")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById('filter-kind').value") == "harmful"
    assert page.evaluate(HIDDEN) == 3 and page.evaluate(
        "document.getElementById('count').textContent"
    ).startswith("1 of 4")
    page.keyboard.press("Tab"), page.keyboard.press("Tab"), page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == "filter-text"
    page.keyboard.insert_text("PROMPT 2")
    assert page.evaluate(HIDDEN) == 4
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate(HIDDEN) == 0 and page.evaluate(FOCUSED) == "filter-text"


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("kind", "benign", 3),
        ("category", "category 1", 2),
        ("verdict", "s0.full.answer", 3),
        ("verdict", "r1.full", 1),
        ("text", " PROMPT 3 ", 1),
    ],
)
def test_each_filter_keeps_what_it_names(page: Page, field: str, value: str, kept: int) -> None:
    place = f"document.getElementById('filter-{field}')"
    page.evaluate(f"{place}.value = {json.dumps(value)}; {place}.dispatchEvent(new Event('input'))")
    assert page.evaluate(f"{place}.value") == value and page.evaluate(VISIBLE) == kept


@pytest.mark.parametrize("width", [320, 360, 768])
def test_no_page_is_wider_than_its_window(browser: Browser, report: Path, width: int) -> None:
    page = open_page(browser, report, width=width, height=700)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].some((box) => box.scrollWidth > box.clientWidth)"
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_curve_legend_and_sentences_fit_a_phone_and_a_screen(
    browser: Browser, report: Path, width: int
) -> None:
    page = open_page(browser, report, width=width)
    lines = "[...document.querySelectorAll('#first-token ~ .words')][0].querySelectorAll('li')"
    assert page.evaluate(f"{lines}.length") == 4  # the last one: what this curve understates
    assert page.evaluate(f"[...{lines}].every((line) => line.scrollWidth <= line.clientWidth)")
    assert page.evaluate(
        f"[...{lines}].every((line) => line.getBoundingClientRect().right <= {width})"
    )
    plane = "document.querySelector('.plane img')"
    assert page.evaluate(f"{plane}.getBoundingClientRect().right") <= width
    assert "dashed curve" in page.evaluate(f"{plane}.alt")
    assert page.evaluate("document.title") != "taken"


def test_print_hides_the_filters_and_shows_every_example(page: Page) -> None:
    page.evaluate("document.getElementById('filter-text').value = 'prompt 1'")
    page.evaluate("document.getElementById('filter-text').dispatchEvent(new Event('input'))")
    assert page.evaluate(VISIBLE) == 1
    page.emulate_media(media="print")
    assert page.evaluate(VISIBLE) == 4
    for part in (".filters", "nav", ".skip"):
        assert page.evaluate(f"document.querySelector('{part}').getClientRects().length") == 0


def printed_summary(**changes: Any) -> dict[str, Any]:
    """A summary with every table, in short words unless `changes` says otherwise."""
    votes = {
        kind: {"clusters": 104, "only_from": 80, "only_to": 10} for kind in ("harmful", "benign")
    }
    names = ("base", "DeRTa", "DPO")
    runs = [{**run(name), "model": "m"} for name in names]
    plain = {"title": "t", "runs": runs, "samples": []}
    step = {**summary()["comparisons"][0], "from": "base", "to": "DeRTa", "votes": votes}
    moves = [
        {**row, "from": "base", "to": "DeRTa", "category": "theft_and_fraud"}
        for row in summary()["transitions"]
    ]
    return {**summary(), **plain, "comparisons": [step], "transitions": moves, **changes}


LONG = "meta-llama/Llama-3.1-8B-Instruct-" + "a1b2c3d4" * 30
MANY = [run(f"seed {number} of the run with {LONG}") for number in range(6)]


@pytest.mark.parametrize("style", ["", WIDE_FONT], ids=["own font", "wide font"])
@pytest.mark.parametrize("changes", [{}, {"runs": MANY}, summary()], ids=["short", "long", "bad"])
def test_no_table_is_cut_off_on_paper(
    browser: Browser, tmp_path: Path, changes: dict[str, Any], style: str
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(printed_summary(**changes)))
    page = open_page(browser, write_report(tmp_path), style=style)
    assert cut_off_on_paper(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS


@pytest.mark.parametrize("width", [390, 1280])
def test_a_long_name_leaves_the_first_number_of_its_row_in_sight(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(printed_summary()))
    page = open_page(browser, write_report(tmp_path), width=width)
    right = "[...document.querySelectorAll('tbody th + td.num b')].map((e) => e.getClientRects()[0].right)"
    ends = page.evaluate(right)
    assert len(ends) > 10 and max(ends) <= width


def test_without_scripts_everything_can_be_read_and_no_dead_filter_stands_there(
    browser: Browser, report: Path
) -> None:
    page = open_page(browser, report, scripts=False)
    assert page.evaluate(VISIBLE) == 4 and page.evaluate(
        "document.getElementById('filters').hidden"
    )


def test_headings_go_down_a_step_at_a_time_and_every_table_and_field_has_a_name(page: Page) -> None:
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every((table) => "
        "table.caption?.textContent.trim())"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('select, input')].every((field) => field.labels.length === "
        "1)"
    )
    assert page.evaluate(
        "[...document.images].every((image) => image.alt && image.naturalWidth > 100)"
    )


CONTRAST = """
(() => {
  const light = (colour) => {
    const part = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => e.getClientRects().length)
    .filter((e) => e.tagName !== "OPTION" && e.tagName !== "OPTGROUP")
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.tagName + "." + e.className];
    })
    .filter(([ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground_as_wcag_aa_asks(
    page: Page, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []


def test_what_has_the_focus_can_be_seen(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    for field in ("filter-kind", "filter-clear"):
        press_until(page, field)
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
