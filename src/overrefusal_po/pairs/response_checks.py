"""Labelled responses (TRL's unpaired form) -> what is wrong with each, as for the side of a pair.

    found = response_findings(responses, judge)

A good response is checked like a chosen side, a bad one like a rejected side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from overrefusal_po.judges import Judge
from overrefusal_po.pairs.findings import Finding, ResponseSide, placed
from overrefusal_po.pairs.firewall import benchmark_finding, contamination
from overrefusal_po.pairs.row_checks import (
    degenerate_sides,
    harmful_labels,
    harmless_labels,
    has_word,
    side_verdicts,
)
from overrefusal_po.records import LabelledResponse, PreferencePair, Verdict, content_id


def response_findings(responses: Sequence[LabelledResponse], judge: Judge) -> list[Finding]:
    """All findings: empty responses, loops, wrong labels, contradictions, benchmark prompts."""
    pairs = [doubled(row) for row in responses]
    verdicts = [both[0] for both in side_verdicts(pairs, judge)]
    found = [
        finding
        for row, pair, verdict in zip(responses, pairs, verdicts, strict=True)
        for finding in placed(findings(row, pair, verdict), pair.origin)
    ]
    return [*found, *both_ways(responses, pairs), *benchmark_findings(pairs)]


def benchmark_findings(pairs: Sequence[PreferencePair]) -> Iterator[Finding]:
    """Rows whose prompt is a benchmark's, or nearly."""
    hits = defaultdict(list)
    for hit in contamination({pair.prompt.id: pair.prompt for pair in pairs}.values()):
        hits[hit.id].append(hit)
    for pair in pairs:
        for hit in hits.get(pair.prompt.id, ()):
            yield benchmark_finding(hit, pair.id, pair.origin)


def doubled(row: LabelledResponse) -> PreferencePair:
    """A response as both sides of a pair: what the checks of pairs read."""
    text, origin = row.response or " ", row.prompt.origin
    own = (origin.id if origin else None) or content_id(row.prompt.id, text, row.desirable)
    return PreferencePair(id=own, prompt=row.prompt, chosen=text, rejected=text, origin=origin)


def findings(row: LabelledResponse, pair: PreferencePair, verdict: Verdict) -> Iterator[Finding]:
    """The findings about one response; the judge is silent about the other side."""
    side: ResponseSide = "chosen" if row.desirable else "rejected"
    if not has_word(row.response):
        yield Finding(pair.id, "empty", "error", side, "has no word")
        return
    silent = Verdict(
        completion_id="", judge=verdict.judge, version=verdict.version, unscored="no other side"
    )
    both = (verdict, silent) if row.desirable else (silent, verdict)
    labels = harmful_labels if pair.prompt.kind == "harmful" else harmless_labels
    for check in (degenerate_sides, labels):
        yield from check(pair, *both)


def both_ways(
    responses: Sequence[LabelledResponse], pairs: Sequence[PreferencePair]
) -> Iterator[Finding]:
    """Responses that one row calls good and another row calls bad."""
    known: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for row in responses:
        known[row.prompt.id, row.response.strip()].add(row.desirable)
    for row, pair in zip(responses, pairs, strict=True):
        if row.desirable and len(known[row.prompt.id, row.response.strip()]) == 2:
            message = "another row calls the same response to this prompt bad"
            finding = Finding(pair.id, "contradiction", "error", "chosen", message)
            yield from placed([finding], pair.origin)
