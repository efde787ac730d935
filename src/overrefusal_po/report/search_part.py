"""A run folder with search.jsonl -> the part of its model card that shows every trial.

for part in search_parts(Path("runs/dpo-1a2b")):
    print(part)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from overrefusal_po.records import read_objects
from overrefusal_po.report.texts import one_line
from overrefusal_po.report.training import public_value, search_summary

Values = Mapping[str, object]

HEADS = (
    "trial",
    "settings",
    "holds",
    "harmful prompts refused",
    "harmless prompts answered",
    "bias",
    "first-token AUC",
    "seconds",
)


def search_parts(stage: Path) -> Iterator[str]:
    """The card's Markdown on a search, a part at a time; nothing if the training was none."""
    chosen = search_summary(stage)
    file = stage / "search.jsonl"
    if not chosen or not file.is_file():
        return
    rows = [row for _, row in read_objects(file)]
    yield "### Search"
    yield (
        f"{one_line(str(chosen.get('why')))}. Each trial was a training from the same start. "
        "Measured on the dev prompts of `hold`, by which the trial was chosen: on other prompts "
        "it may do less well."
    )
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    yield "\n".join([*lines, *start_line(rows), *map(trial_line, rows)])


def start_line(rows: list[dict[str, object]]) -> Iterator[str]:
    """The line of the start policy, if a trial measured it."""
    start = next((row["start"] for row in rows if isinstance(row.get("start"), list)), None)
    if isinstance(start, list):
        refused, answered = map(number, start)
        yield f"| start | – | – | {refused} | {answered} | – | – | – |"


def trial_line(row: Values) -> str:
    """The line of one trial."""
    settings = row.get("settings")
    shown = setting_words(settings) if isinstance(settings, Mapping) else "–"
    held = "yes" if row.get("held") else "no"
    rates = [number(row.get(key)) for key in ("harmful_refused", "benign_answered")]
    more = [number(row.get("bias"), "+.2f"), number(row.get("first_token_auc"))]
    cells = [number(row.get("number"), "d"), shown, held, *rates, *more]
    return f"| {' | '.join([*cells, number(row.get('seconds'), '.0f')])} |"


def setting_words(settings: Values) -> str:
    """`trainer.beta 0.3`, each value as far as it may be published."""
    words = []
    for key, value in settings.items():
        known = public_value(key.rpartition(".")[2], value)
        shown = json.dumps(known) if known is not None or value is None else "of the recipe"
        words.append(one_line(f"{key} {shown}"))
    return ", ".join(words)


def number(value: object, form: str = ".2f") -> str:
    """A number, or a dash."""
    return format(value, form) if isinstance(value, int | float) else "–"
