"""What the command prints: tables of keys, of rates and of runs, and the log. Imports no torch.

print_summary(Path("runs/demo"))
# report: runs/demo/report.html
# run    harmful refused      harmless answered   F1
# base   0.97 [0.92, 0.99]    ...
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from overrefusal_po.records import read_state
from overrefusal_po.report.texts import visible

logger = logging.getLogger("overrefusal_po")

SHOWN_COUNTS = (
    "overrefusal",
    "containment",
    "benign",
    "general",
    "harmful",
    "hygiene",
    "lint",
    "too_long",
)
"""The mappings in a stage's summary that are printed: what a curation counted."""


# Any: a result holds numbers, texts, lists and mappings, as JSON does
StageResult = Mapping[str, Any]
"""What a stage returns: its rates and counts, with intervals where they are measured."""


class Visible(logging.Formatter):
    """Log lines without control bytes."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, as `say` would print it."""
        return str(visible(super().format(record)))


def set_up_logging(first: bool) -> None:
    """Our log at info level on rank 0, at warning level on the others."""
    if not logger.handlers:
        handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False, markup=False
        )
        handler.setFormatter(Visible("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if first else logging.WARNING)


def say(*words: object, error: bool = False) -> None:
    """Prints a line to stdout or stderr, without control bytes: part of it may come from a model, a
    server or a file, and a terminal would obey them."""
    print(*(visible(str(word)) for word in words), file=sys.stderr if error else sys.stdout)


def say_json(row: object) -> None:
    """Prints a value as one line of JSON with readable letters. All control characters are escaped,
    those above 127 too."""
    text = json.dumps(row, ensure_ascii=False)
    print(re.sub(r"[\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None) -> None:
    """Prints a table without lines. `width` None: as wide as the terminal."""
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*[escape(str(visible(cell))) for cell in row])
    Console(width=width).print(table)


def print_keys(rows: Iterable[tuple[str, object, str]], above: str = "") -> None:
    """Prints (key, value, origin) rows; `above` stands before each key."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value, origin in rows:
        text = value if isinstance(value, str) else json.dumps(value)
        table.add_row(
            *[escape(str(visible(cell))) for cell in (f"{above}{key}", text)],
            f"[dim]{escape(origin)}[/dim]",
        )
    Console(soft_wrap=True, highlight=False).print(table)


def print_result(found: StageResult) -> None:
    """Prints the summary of a stage: rates with their intervals, and the counts."""
    for key, value in found.items():
        if key in found.get("intervals", ()):
            counts = f"n = {found['n'][key]}, unscored {found['unscored'][key]}"
            say(f"{key}: {with_interval(found, key)} ({counts})")
        elif not isinstance(value, dict) or (value and key in SHOWN_COUNTS):
            say(f"{key}: {value}")


def print_summary(folder: Path) -> None:
    """Prints the last lines of a pipeline: the report's place and a row for each run."""
    summary = read_state(folder / "summary.json", ["runs"])
    rates = ("harmful_refused", "benign_answered", "f1")
    rows = [[run["name"], *(with_interval(run, key) for key in rates)] for run in summary["runs"]]
    say(f"report: {folder / 'report.html'}")
    print_table(["run", "harmful refused", "harmless answered", "F1"], rows, width=100)


def with_interval(run: StageResult, key: str) -> str:
    """`0.97 [0.92, 0.99]`, or n/a."""
    if run[key] is None:
        return "n/a"
    ends = run["intervals"].get(key)
    return f"{run[key]:.2f}" if ends is None else f"{run[key]:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"
