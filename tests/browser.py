"""The system's Chromium under playwright: what the browser tests open pages in.

    def test_a_page(browser: Browser, tmp_path: Path) -> None:     # the fixture of conftest.py
        page = open_page(browser, tmp_path / "page.html", width=390)
        assert page.evaluate("document.title") == "A page" and heard(page) == Heard([], [])

A machine without a Chromium skips these tests, and the last lines of pytest say so. If the variable
BROWSER_TESTS is `required`, as in CI, they fail there instead. `python -m playwright install
chromium` brings one for machines whose system has none.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = (
    f"the browser tests need one of {', '.join(NAMES)} on PATH, or what `python -m playwright "
    "install chromium` brings"
)
A4_PIXELS = 700
"""The width of A4 at 96 pixels an inch, without the margins of a browser's print, rounded down."""

WIDE_FONT = "* { font-family: monospace !important; letter-spacing: .15em !important }"
"""Makes every font about half as wide again, whatever fonts the machine has."""


class Heard(NamedTuple):
    """What a page said on its console (errors too), and which addresses it asked for."""

    said: list[str]
    asked: list[str]


def browser_path(own: str) -> str | None:
    """Where the system's browser is, else the one that playwright brought to `own`; else None."""
    system = next((found for name in NAMES if (found := shutil.which(name))), None)
    return system or (own if Path(own).exists() else None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser; without one the test is skipped, or fails if CI asked for it."""
    with sync_playwright() as playwright:
        path = browser_path(playwright.chromium.executable_path)
        if path is None and os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(MISSING)
        if path is None:
            pytest.skip(MISSING)
        # no sandbox: containers and CI run as root; the pages are our own
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def open_page(
    browser: Browser,
    file: Path,
    *,
    width: int = 1280,
    height: int = 900,
    scripts: bool = True,
    style: str = "",
) -> Page:
    """A local file in a window so wide; a narrow one is a phone's. `style` is CSS put on top."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        is_mobile=width < 600,
        java_script_enabled=scripts,
        bypass_csp=bool(style),
    )
    page = context.new_page()
    record(page)
    page.goto(file.resolve().as_uri())
    if style:
        page.add_style_tag(content=style)
    return page


HEARD: dict[Page, Heard] = {}
"""What each open page said and asked for."""


def record(page: Page) -> None:
    """Notes what the page says and asks for from now on."""
    found = HEARD.setdefault(page, Heard([], []))
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("request", lambda request: found.asked.append(request.url))


def heard(page: Page) -> Heard:
    """What a page of `open_page` said and asked for until now."""
    return HEARD[page]


CUT = """
(width) => [...document.querySelectorAll("table, table *")]
  .filter((e) => e.getClientRects().length && !e.closest(".seen") && !e.closest("svg"))
  .filter((e) => e.getBoundingClientRect().right > width + 1
    || (e.matches("td, th") && e.scrollWidth > e.clientWidth + 1))
  .map((e) => e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 60))
"""


def cut_off_on_paper(page: Page) -> list[str]:
    """The tables, and the parts of them, that A4 would cut or that run into the next cell."""
    page.set_viewport_size({"width": A4_PIXELS, "height": 900})
    page.emulate_media(media="print")
    found: list[str] = page.evaluate(CUT, A4_PIXELS)
    return found
