"""What the linter gives: findings by row, those that are waived, and statistics of the set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from overrefusal_po.pairs.prompt_free import PromptFree
from overrefusal_po.pairs.shortcuts import Length
from overrefusal_po.records import Origin

Severity = Literal["error", "warning"]
ResponseSide = Literal["chosen", "rejected"]
SideName = Literal["chosen", "rejected", "prompt", "both"]

RESPONSE_SIDES: tuple[ResponseSide, ...] = ("chosen", "rejected")


class Finding(NamedTuple):
    """One thing that is wrong with one row, or with the whole set. `file` and `line` are the row's,
    None if it came from no file."""

    id: str
    check: str
    severity: Severity
    side: SideName
    message: str
    file: str | None = None
    line: int | None = None
    group: str | None = None
    """The id under which all findings like this one are waived; None if each needs its own."""

    @property
    def words(self) -> str:
        """`q7 (x.jsonl, line 3): chosen_refuses, error, chosen: refuses a harmless prompt`."""
        place = "" if self.file is None else f" ({Origin(file=self.file, line=self.line).place})"
        return f"{self.id}{place}: {self.check}, {self.severity}, {self.side}: {self.message}"


def placed(found: Iterable[Finding], origin: Origin | None) -> list[Finding]:
    """Findings about one row with its file and line."""
    if origin is None:
        return list(found)
    return [f._replace(file=origin.file, line=origin.line) for f in found]


class Statistics(NamedTuple):
    """What is only reported. `over_length`: sides longer than max_length; `unscored`: sides that
    the judge left out."""

    num_pairs: dict[str, int]
    lengths: dict[str, Length]
    prompt_free: dict[str, PromptFree]
    over_length: dict[str, int]
    unscored: int


WAIVED_FILE = "waived.json"
"""The file of a training's run folder that holds its waived findings."""

Waived = tuple[Finding, str]
"""A finding, and the reason why it may stand."""


class Lint(NamedTuple):
    """Findings that count, those that are waived with the reason, and the statistics."""

    findings: list[Finding]
    waived: list[Waived]
    statistics: Statistics

    @property
    def errors(self) -> list[Finding]:
        """Findings that stop a training."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings that are counted only."""
        return [f for f in self.findings if f.severity == "warning"]

    def counts(self) -> dict[str, int]:
        """{check: findings}, the most frequent first."""
        return dict(Counter(f.check for f in self.findings).most_common())


def without_waived(
    found: Sequence[Finding], waive: Mapping[str, str], statistics: Statistics
) -> Lint:
    """Findings with those of waived ids put aside; a waiver without a finding or without a reason
    is itself a warning."""
    count, aside = split_waived(found, waive)
    return Lint(count, aside, statistics)


def split_waived(
    found: Sequence[Finding], waive: Mapping[str, str]
) -> tuple[list[Finding], list[Waived]]:
    """(findings that count, those that are waived with the reason); a waiver without a finding or
    without a reason is itself a finding."""
    reasons = {name: reason for name, reason in waive.items() if reason.strip()}
    count: list[Finding] = []
    aside: list[Waived] = []
    for finding in found:
        reason = reasons.get(finding.id) or reasons.get(finding.group or "")
        if reason is None:
            count.append(finding)
        else:
            aside.append((finding, reason))
    ids = {f.id for f in found} | {f.group for f in found}
    for name in waive:
        if name not in reasons:
            message = "is waived without a reason, so it is not waived"
        elif name not in ids:
            message = "is waived, but nothing is found there"
        else:
            continue
        count.append(Finding(name, "waiver", "warning", "both", message))
    return count, aside


def faults_words(errors: Sequence[Finding], rows: str, judge: str) -> str:
    """What stops a training on `rows` (pairs, responses): how many errors of which kind, the first
    of them, and what can be done."""
    prompts = sum(finding.check == "contamination" for finding in errors)
    faults = len(errors) - prompts
    kinds = {f"faults in the {rows}": faults, "a benchmark's prompts": prompts}
    found = " and ".join(f"{kind} ({count})" for kind, count in kinds.items() if count)
    words = (
        f"A training is stopped by {found}. The first: {errors[0].words}. Fix or delete the rows "
        "(`overrefusal-po check FILE` lists all), or waive one with a reason: "
        "data.waive: {id: reason}."
    )
    if prompts:
        words += (
            " If you never measure a benchmark, waive all of its prompts: "
            "data.waive: {contamination/NAME: reason}."
        )
    if faults:
        words += (
            f" If the judge {judge} misreads the language of the {rows}, name another one: judge."
        )
    return words
