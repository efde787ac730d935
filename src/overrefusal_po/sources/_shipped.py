"""The files of prompts that this package ships -> prompts.

[row_prompt(row, "starter") for row in shipped_rows("starter", "test")]
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from overrefusal_po.records import JsonObject, Prompt, Split, read_objects


def shipped_rows(name: str, split: Split | None) -> Iterator[JsonObject]:
    """The rows of `data/<name>.jsonl` in one split (None: all)."""
    path = str(files("overrefusal_po") / "data" / f"{name}.jsonl")
    for _, row in read_objects(path):
        if split is None or row["split"] == split:
            yield row


def row_prompt(row: JsonObject, source: str) -> Prompt:
    """The prompt of a row, with the responses that the row carries."""
    return Prompt.of(
        row["prompt"],
        kind=row["kind"],
        category=row["category"],
        source=source,
        split=row["split"],
        topic=row["topic"],
        contrast=row["contrast"],
        reference=row["response"],
        overcautious=row.get("refusal"),
    )
