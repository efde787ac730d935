"""What a file of rows lacks for a training or a measurement, though no row of it is wrong.

without_anchor(pairs)    # a warning if no pair is about a harmful prompt
without_kind(2, 40)      # a warning: two of 40 rows do not say what kind their prompt is
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overrefusal_po.pairs.findings import Finding
from overrefusal_po.records import PreferencePair


def without_anchor(pairs: Sequence[PreferencePair]) -> Iterator[Finding]:
    """A warning if no pair is about a harmful prompt."""
    if not any(pair.prompt.kind == "harmful" for pair in pairs):
        message = (
            f"none of the {len(pairs)} pairs is about a harmful prompt, so nothing would keep "
            "those refused: a training stops unless data.allow_no_anchor is true"
        )
        yield Finding("anchor/all", "anchor", "warning", "prompt", message)


def without_kind(bare: int, rows: int) -> Iterator[Finding]:
    """A warning if `bare` of a file's rows do not say what kind their prompt is."""
    if bare:
        message = (
            f"{bare} of {rows} rows do not say what kind their prompt is: an evaluation, a "
            "curation and hold stop there. Add a column kind (harmful, benign, general) or label "
            "(safe, unsafe), or give the source a kind"
        )
        yield Finding("kind/all", "kind", "warning", "prompt", message)
