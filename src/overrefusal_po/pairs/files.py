"""A file of preference pairs -> PreferencePair: our own rows, or a public set's, which have no
rule.

    read_pairs("pairs.jsonl")
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from overrefusal_po.records import (
    JsonObject,
    Kind,
    PreferencePair,
    Prompt,
    content_id,
    first_fault,
    read_objects,
)

KIND_OF_LABEL: dict[str, Kind] = {
    "safe": "benign",
    "unsafe": "harmful",
    "unsafe_unverified": "harmful",
}


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """The pairs of a file: our own rows, or rows with prompt, chosen and rejected (texts, or
    messages as TRL has them).

    An empty side is read, so that the linter can name the row. ValueError names the line that is no
    pair.
    """
    return [read_row(value, f"{path}, line {number}") for number, value in read_objects(path)]


def read_row(value: JsonObject, place: str) -> PreferencePair:
    """One row as a pair without a rule, unless it is one of ours."""
    missing = [
        side for side in ("chosen", "rejected") if not isinstance(value.get(side), str | list)
    ]
    if missing:
        raise ValueError(
            f"{place}: no {missing[0]!r}. A pair has prompt, chosen and rejected; found: "
            f"{', '.join(value)}."
        )
    try:
        if isinstance(value.get("prompt"), dict):
            sides = {side: value[side] or " " for side in ("chosen", "rejected")}
            return PreferencePair.model_validate({**value, **sides})
        return imported_pair(value)
    except ValidationError as error:
        raise ValueError(f"{place}: not a PreferencePair: {first_fault(error)}") from None


def imported_pair(value: JsonObject) -> PreferencePair:
    """A public set's row; its kind from `kind` or `label` (safe, unsafe), else general."""
    chosen, rejected = value["chosen"], value["rejected"]
    asked = value.get("prompt")
    if asked is None:
        asked = chosen[:-1] if isinstance(chosen, list) else ""
    turns = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    kind = value.get("kind") or KIND_OF_LABEL.get(str(value.get("label")), "general")
    prompt = Prompt.model_validate(
        {
            "id": content_id(kind, [(t.get("role"), t.get("content")) for t in turns]),
            "messages": turns,
            "kind": kind,
            "category": str(value.get("category") or "uncategorised"),
            "source": str(value.get("source") or "user"),
        }
    )
    said = [last_content(side) for side in (chosen, rejected)]
    key = str(value.get("id") or content_id(prompt.id, *said))
    return PreferencePair(id=key, prompt=prompt, chosen=said[0] or " ", rejected=said[1] or " ")


def last_content(side: str | list[JsonObject]) -> str | None:
    """The text of a side, which is one or a list of messages; None if its message has none."""
    if isinstance(side, str):
        return side
    return side[-1].get("content") if side else ""
