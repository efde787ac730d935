"""What trainings waived -> sentences for the report and the card.

waiver_notes(Path("runs/demo"))
# ["Waived in stage tuned: 3 prompts that are trained on are of the benchmark xstest, or ..."]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from overrefusal_po.pairs.findings import WAIVED_FILE
from overrefusal_po.records import read_state

PREFIX = "Waived in stage "


def waiver_notes(folder: Path) -> list[str]:
    """A sentence for each reason and kind of finding that a stage of a pipeline waived."""
    return [
        f"{PREFIX}{file.parent.name}: {what}. Reason: {reason}"
        for file in sorted(folder.glob(f"*/{WAIVED_FILE}"))
        for what, reason in waived_words(file)
    ]


def waived_words(file: Path) -> list[tuple[str, str]]:
    """(what was found, the reason) for each reason and kind of finding in a waived.json."""
    rows = read_state(file, ("waived",))["waived"]
    counts = Counter((row["check"], row.get("group"), row["reason"]) for row in rows)
    return [
        (finding_words(check, group, number), reason)
        for (check, group, reason), number in counts.items()
    ]


def finding_words(check: str, group: str | None, number: int) -> str:
    """What some findings of one kind say."""
    if check == "contamination" and group:
        benchmark = group.partition("/")[2]
        return (
            f"{number} of the prompts trained on {'are' if number > 1 else 'is'} of the benchmark "
            f"{benchmark}, or nearly, so no number on {benchmark} counts"
        )
    return f"{number} finding{'s' * (number > 1)} of the linter ({check})"
