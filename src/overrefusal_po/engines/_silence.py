"""Servers that are all away -> whether to wait for them to come back, by the recipe's
`wait_seconds`.

    silence = Silence(3600)
    silence.note("unreachable")         # what became of each request; None: a server replied
    silence.may_end("unreachable")      # True: ask again later, also if all tries are used up
"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

AWAY = ("unreachable", "502", "503", "504")
"""Kinds of faults that are the server's and not the item's. 502 to 504 come from a gateway."""


class Silence:
    """How long no server has been there. The clock may be set while we wait, so it is not used."""

    def __init__(self, wait_seconds: float) -> None:
        self.wait_seconds = wait_seconds
        self.since: float | None = None
        """When the first request after the last reply found nobody."""
        self.said = False

    def note(self, kind: str | None) -> None:
        """Notes what became of a request: the kind of its fault, None if a server replied."""
        if kind in AWAY:
            self.since = time.monotonic() if self.since is None else self.since
            return
        if self.said and self.since is not None:
            logger.info("a server is there again, after %.0f s", time.monotonic() - self.since)
        self.since, self.said = None, False

    @property
    def is_over(self) -> bool:
        """Whether the whole wait has passed without a reply."""
        if self.since is None or not self.wait_seconds:
            return False
        return time.monotonic() - self.since >= self.wait_seconds

    def may_end(self, kind: str) -> bool:
        """Whether to ask on after a fault of this `kind`; says once that we wait."""
        if self.since is None or kind not in AWAY:
            return False
        waits = self.wait_seconds > 0 and not self.is_over
        if waits and not self.said:
            self.said = True
            logger.warning("no server is there; waiting for up to %.0f s", self.wait_seconds)
        return waits
