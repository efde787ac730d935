"""The log of a run: a file that does not grow for ever, without control bytes.

handler = Log(folder / "log", maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
handler.setFormatter(Printable("%(asctime)s %(message)s"))
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys

LOG_BYTES = 16 * 2**20
"""A log that is longer goes on in a new file."""

SPELT = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
"""Control characters -> how a log spells them."""


class Log(logging.handlers.RotatingFileHandler):
    """The log of a run: `LOG_BYTES` at most, and as much before it in `log.1`. A full disk costs
    lines of it, and is said once."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Says on stderr that lines are lost. logging would print a traceback for each."""
        if not self.failed:
            self.failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        """Closes the file. What it cannot take is lost."""
        with contextlib.suppress(OSError):
            super().close()


class Printable(logging.Formatter):
    """Log lines without control bytes, which a terminal that shows the log would obey."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with `printable` text."""
        return printable(super().format(record))


def printable(text: str) -> str:
    r"""A text with its control characters spelt out (`\x1b`). Tabs and line ends stay."""
    return text.translate(SPELT)
