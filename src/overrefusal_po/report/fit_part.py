"""A fit's run folder -> the part of a model card that says which remedy is in the weights.

for part in remedy_parts(Path("runs/fit-1a2b")):
    print(part)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overrefusal_po.records import read_state
from overrefusal_po.report.numbers import interval_words
from overrefusal_po.report.texts import one_line
from overrefusal_po.report.training import public_settings

# Any: remedy.json
Facts = Mapping[str, Any]


def remedy_facts(stage: Path) -> dict[str, Any]:
    """What remedy.json of a stage's folder says; empty if the stage kept no remedy."""
    file = stage / "remedy" / "remedy.json"
    return read_state(file) if file.is_file() else {}


def remedy_parts(stage: Path) -> Iterator[str]:
    """The card's Markdown on a fit, a part at a time; nothing if the folder holds none."""
    facts = remedy_facts(stage)
    if not facts:
        return
    yield "## Remedy"
    rows = [(head, text) for head, text in remedy_rows(facts) if text]
    yield "\n".join(["| | |", "|---|---|", *(f"| {head} | {text} |" for head, text in rows)])


def remedy_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """(what, how) of a fit."""
    yield "remedy", one_line(str(facts["name"]))
    yield "strength", f"{facts['strength']:.4g}"
    shown = public_settings(facts.get("settings", {}))
    yield "settings", ", ".join(f"{one_line(key)} {value}" for key, value in shown.items())
    for side, anchors in facts.get("anchors", {}).items():
        counts = ", ".join(f"{row['n']} {one_line(kind)}" for kind, row in anchors.items())
        yield f"prompts ({'fitted on' if side == 'train' else 'chosen by'})", counts
    for key, head in (("before", "dev prompts without it"), ("after", "dev prompts with it")):
        if facts.get(key):
            yield head, rates_words(facts[key])
    yield "seed", str(facts.get("seed", ""))


def rates_words(rates: Facts) -> str:
    """`harmful refused 0.90 [0.83, 0.94], benign answered 0.45 [0.36, 0.54]`."""
    return ", ".join(
        f"{name.replace('_', ' ')} "
        f"{interval_words(rates[name], *(rates['intervals'].get(name) or (None, None)))}"
        for name in ("harmful_refused", "benign_answered", "ordinary_answered")
        if rates.get(name) is not None
    )
