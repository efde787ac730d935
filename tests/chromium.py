"""A headless Chromium spoken to over its DevTools pipe: what the report's browser tests and
screenshots use. No library.

    with chromium(tmp_path) as browser:
        page = browser.open(file, width=360)
        page.value("document.title"); page.press("Tab"); page.screenshot(tmp_path / "page.png")

Messages are JSON ended by a NUL byte; the browser reads them from its file descriptor 3 and writes
to 4.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PATH = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
"""Where the browser is; None where there is none."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)
DEADLINE_SECONDS = 60
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, " ": 32}


class Browser:
    """A running Chromium; `events` are all messages that answered no command."""

    def __init__(self, send: int, receive: int) -> None:
        self.send, self.receive = send, receive
        self.number, self.rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a command; AssertionError where the browser says that it failed."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def message(self) -> dict[str, Any]:
        """The next message."""
        end = time.monotonic() + DEADLINE_SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.receive], [], [], max(0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {DEADLINE_SECONDS} seconds"
            more = os.read(self.receive, 2**20)
            assert more, "the browser ended"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def open(
        self, file: Path, *, width: int = 1280, height: int = 900, scripts: bool = True
    ) -> "Page":
        """A new tab with a local file, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Page.navigate", url=file.resolve().as_uri())
        while not page.heard("Page.loadEventFired"):
            self.events.append(self.message())
        return page


class Page(NamedTuple):
    """One tab."""

    browser: Browser
    session: str

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self.browser.call(method, self.session, **params)

    def heard(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of this tab's events of these names."""
        events = (e for e in self.browser.events if e.get("sessionId") == self.session)
        return [e["params"] for e in events if e["method"] in methods]

    def resize(self, width: int, height: int) -> None:
        """Makes the window so large, in CSS pixels; a narrow one is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as plain data."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key of KEYS, down and up."""
        text = {"Enter": "\r", " ": " "}.get(key)
        named = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": KEYS[key],
        }
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def write(self, text: str) -> None:
        """Types text into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, file: Path, *, full: bool = True) -> None:
        """The whole page (or what the window shows) as PNG."""
        picture = self.call(
            "Page.captureScreenshot", captureBeyondViewport=full, **self.clip() if full else {}
        )
        file.write_bytes(base64.b64decode(picture["data"]))

    def clip(self) -> dict[str, Any]:
        """The page's whole area."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {
            "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        }

    def pdf(self, file: Path) -> None:
        """The page as it prints."""
        file.write_bytes(
            base64.b64decode(
                self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]
            )
        )


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own under `folder`, ended at the end."""
    (theirs_in, send), (receive, theirs_out) = os.pipe(), os.pipe()
    process = start(folder, theirs_in, theirs_out)
    os.close(theirs_in), os.close(theirs_out)
    try:
        yield Browser(send, receive)
    finally:
        os.close(send), os.close(receive)
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)


def start(folder: Path, reads: int, writes: int) -> int:
    """Starts the browser with the two pipe ends as its descriptors 3 and 4; returns its process
    id."""
    assert PATH is not None
    reads, writes = (
        fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reads, writes)
    )  # away from 3 and 4
    log = (folder / "chromium.log").as_posix()
    actions = [
        (os.POSIX_SPAWN_DUP2, reads, 3),
        (os.POSIX_SPAWN_DUP2, writes, 4),
        (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT, 0o600),
    ]
    try:
        arguments = [PATH, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        return os.posix_spawn(PATH, arguments, os.environ, file_actions=actions)
    finally:
        os.close(reads), os.close(writes)
