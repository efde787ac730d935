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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from overrefusal_po.records import read_state
from overrefusal_po.report.first_token_part import (
    CurveStep,
    FirstTokenPart,
    curve_lines,
    first_token_words,
)
from overrefusal_po.report.hold_notes import older_warnings, unmoved_notes
from overrefusal_po.report.numbers import interval_words
from overrefusal_po.report.robustness_part import TamperedCopy, robustness_lines
from overrefusal_po.report.rounds_part import RoundPart, round_words
from overrefusal_po.report.texts import visible

if TYPE_CHECKING:
    from overrefusal_po.evaluate.panel_agreement import NumberEntry, PanelEntry
    from overrefusal_po.report.remedies_part import RemediesPart
    from overrefusal_po.report.summary import Metrics

logger = logging.getLogger("overrefusal_po")

SHOWN_COUNTS = (
    "overrefusal",
    "containment",
    "benign",
    "general",
    "harmful",
    "hygiene",
    "lint",
    "panel",
    "too_long",
)
"""The mappings in a stage's summary that are printed: what a curation counted."""


LONGEST_ALIGNED = 40
"""Characters of a value up to which the origins of keys stand in one column."""

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
    shown = [
        [
            str(visible(cell))
            for cell in (
                f"{above}{key}",
                value if isinstance(value, str) else json.dumps(value),
                origin,
            )
        ]
        for key, value, origin in rows
    ]
    widths = [max((len(row[at]) for row in shown), default=0) for at in (0, 1)]
    console = Console(highlight=False)
    for key, text, origin in shown:
        line = f"{key:{widths[0]}}  {text:{min(widths[1], LONGEST_ALIGNED)}}  "
        # a key or a value is never cut, however narrow the terminal is
        console.print(Text(line).append(origin, style="dim"), soft_wrap=True)


def print_result(found: StageResult) -> None:
    """Prints the summary of a stage: its numbers, a table of rates, and a table of counts."""
    rates = [key for key in found if key in found.get("intervals", ())]
    for key, value in found.items():
        if key == "truncated":
            say(truncated_words(value))
        elif key == "panel" and "groups" in value:  # of an evaluation; a curation counts alone
            for line in agreement_lines(value):
                say(line)
        elif key == "capability" and "perplexity" in value:
            say(perplexity_words(value["perplexity"]))
        elif key == "first_token":
            say(first_token_line(found))
        elif key == "robustness":
            for line in tamper_lines(found):
                say(line)
        elif key not in rates and not isinstance(value, dict | list):
            say(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    for key, value in found.items():
        if isinstance(value, list) and value and key != "robustness":
            say(f"{key}: {'; '.join(map(str, value))}")
    if rates:
        head = ["rate", "value", "95 % interval", "n", "unscored"]
        print_table(head, [rate_cells(found, key) for key in rates], width=100)
    if found.get("candidates"):
        print_table(*candidate_table(found), width=100)
    rated = {"panel"} if rates else set()
    counts = [
        row for key in SHOWN_COUNTS if key not in rated for row in count_rows(key, found.get(key))
    ]
    if counts:
        print_table(["counted", "", "number"], counts, width=100)


def rate_cells(found: StageResult, key: str) -> list[str]:
    """A row of the table of rates."""
    value, ends = found[key], found["intervals"].get(key)
    return [
        key,
        "n/a" if value is None else f"{value:.2f}",
        "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}",
        str(found["n"][key]),
        str(found["unscored"][key]),
    ]


def candidate_table(found: StageResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a fit's table: the model without a remedy, and every candidate."""
    names = ("harmful_refused", "benign_answered", "ordinary_answered")
    rows = [["without", "", *(with_interval(found["before"], name) for name in names)]]
    for number, row in found["candidates"].items():
        mark = " kept" if row["number"] == found["chosen"] else ""
        cells = [with_interval(row["rates"], name) for name in names]
        rows.append([f"{number}{mark}", f"{row['strength']:.3g}", *cells])
    return ["candidate", "strength", *(name.replace("_", " ") for name in names)], rows


def count_rows(key: str, counts: object) -> Iterator[list[str]]:
    """(what is counted, its part, number) of counts and of counts within them."""
    for name, value in counts.items() if isinstance(counts, Mapping) else ():
        if isinstance(value, Mapping):
            yield from count_rows(f"{key}, {name}".replace("_", " "), value)
        else:
            yield [key, str(name).replace("_", " "), str(value)]


def print_next(steps: Sequence[tuple[str, str]]) -> None:
    """Prints what can be done next: a line for each command, whole, so that it can be copied."""
    width = max((len(words) for words, _ in steps), default=0)
    for number, (words, command) in enumerate(steps):
        say(f"{'next:' if number == 0 else '     '} {words:{width}}  {command}")


def print_summary(folder: Path) -> None:
    """Prints the last lines of a pipeline: the report's place and a row for each run."""
    summary = read_state(folder / "summary.json", ["runs"])
    rates = ("harmful_refused", "benign_answered", "f1")
    rows = [[run["name"], *(with_interval(run, key) for key in rates)] for run in summary["runs"]]
    for run in summary["runs"]:
        if (cut := run.get("truncated")) and cut["count"]:
            say(f"{run['name']}: {truncated_words(cut)}")
        for line in agreement_lines(run["panel"]) if run.get("panel") else ():
            say(f"{run['name']}: {line}")
        if run.get("first_token"):
            say(f"{run['name']}: {first_token_line(run)}")
        for line in tamper_lines(run):
            say(f"{run['name']}: {line}")
    for line in curve_lines([CurveStep.model_validate(row) for row in summary.get("curves", ())]):
        say(line)
    for part in summary.get("rounds", ()):
        say(round_words(RoundPart.model_validate(part)))
    if found := summary.get("remedies"):
        say(found["sentence"])
    say(f"report: {folder / 'report.html'}")
    print_table(["run", "harmful refused", "harmless answered", "F1"], rows, width=100)
    warnings = summary.get("warnings")
    if warnings is None:
        warnings = older_warnings(folder, summary.get("measured", {}).get("notes", ()))
    # a table of remedies says itself which run gives nothing back
    steps = () if summary.get("remedies") else summary.get("comparisons", ())
    for note in (*warnings, *unmoved_notes(folder, steps)):
        say(note)


def print_remedies(part: RemediesPart | None, runs: Sequence[Metrics]) -> None:
    """Prints which remedy gives answers back, and a row for each run against the untouched one.
    Nothing without a table."""
    if part is None:
        return
    from overrefusal_po.report.remedies_part import remedies_lines

    head, *rows = remedies_lines(part, [run.model_dump() for run in runs])
    say(part.sentence)
    print_table(head, rows, width=140)


def truncated_words(cut: Mapping[str, int]) -> str:
    """How many responses ended at the limit."""
    return f"{cut['count']} of {cut['of']} responses ended at the limit of new tokens"


def agreement_lines(found: PanelEntry) -> Iterator[str]:
    """A line for each pair of judges, about all prompts as they were asked."""
    group = found["groups"]["all"]
    for pair in group["pairs"]:
        first, second = pair["first"], pair["second"]
        yield (
            f"{first} and {second} agree on {number_words(pair['agreement'])} of {group['n']} "
            f"responses, kappa {number_words(pair['kappa'])}; only {first} sees a refusal in "
            f"{pair['only_first_refused']}, only {second} in {pair['only_second_refused']}"
        )
    if missing := {name: n for name, n in group["unscored"].items() if n}:
        counts = ", ".join(f"{name} {n}" for name, n in missing.items())
        yield f"left unscored by a judge, and not compared: {counts}"


def number_words(number: NumberEntry) -> str:
    """`0.93 [0.88, 0.96]`, or n/a."""
    return interval_words(number["value"], number["low"], number["high"])


def perplexity_words(found: Mapping[str, Any]) -> str:
    """`perplexity: 54.6 (32.9 to 90.1) on 8 reference answers`."""
    ends = "" if found["low"] is None else f" ({found['low']:.1f} to {found['high']:.1f})"
    return f"perplexity: {found['value']:.1f}{ends} on {found['n']} reference answers"


def first_token_line(run: StageResult) -> str:
    """`first token: AUC 0.74 [0.69, 0.79]; at its own harmful_refused (0.81) ...`."""
    part = FirstTokenPart.model_validate(run["first_token"])
    return f"first token: {first_token_words(part, run['harmful_refused'], run['benign_answered'])}"


def tamper_lines(run: StageResult) -> Iterator[str]:
    """A line for the worst copy of each tier and defence of a tamper test."""
    copies = run.get("robustness") or ()
    return robustness_lines(TamperedCopy.model_validate(copy) for copy in copies)


def with_interval(run: StageResult, key: str) -> str:
    """`0.97 [0.92, 0.99]`, or n/a."""
    return interval_words(run[key], *(run["intervals"].get(key) or (None, None)))
