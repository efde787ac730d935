"""What the linter gives: findings by row, those that are waived, and statistics of the set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from overrefusal_po.pairs.prompt_free import PromptFree
from overrefusal_po.pairs.shortcuts import Length

Severity = Literal["error", "warning"]
ResponseSide = Literal["chosen", "rejected"]
SideName = Literal["chosen", "rejected", "prompt", "both"]

RESPONSE_SIDES: tuple[ResponseSide, ...] = ("chosen", "rejected")


class Finding(NamedTuple):
    """One thing that is wrong with one row, or with the whole set."""

    id: str
    check: str
    severity: Severity
    side: SideName
    message: str


class Statistics(NamedTuple):
    """What is only reported. `over_length`: sides longer than max_length; `unscored`: sides that
    the judge left out."""

    num_pairs: dict[str, int]
    lengths: dict[str, Length]
    prompt_free: dict[str, PromptFree]
    over_length: dict[str, int]
    unscored: int


class Lint(NamedTuple):
    """Findings that count, those that are waived with the reason, and the statistics."""

    findings: list[Finding]
    waived: list[tuple[Finding, str]]
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
    reasons = {name: reason for name, reason in waive.items() if reason.strip()}
    count = [f for f in found if f.id not in reasons]
    aside = [(f, reasons[f.id]) for f in found if f.id in reasons]
    ids = {f.id for f in found}
    for name in waive:
        if name not in reasons:
            message = "is waived without a reason, so it is not waived"
        elif name not in ids:
            message = "is waived, but nothing is found there"
        else:
            continue
        count.append(Finding(name, "waiver", "warning", "both", message))
    return Lint(count, aside, statistics)
