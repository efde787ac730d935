"""Words of errors about keys: the nearest known key, and the kind of a value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def unknown_key(name: str, known: Iterable[str], section: str, *, owner: str = "") -> str:
    """The error text for a key that is not known: names the nearest ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    where = f"{section}.{name}" if section else name
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"Known keys: {', '.join(sorted(known)[:40])}."
    )
    return f"{where} is not a known key{f' of {owner}' if owner else ''}. {hint}"


def kind_of(value: Any) -> str:
    names = {
        bool: "true/false",
        int: "whole number",
        float: "number",
        str: "text",
        list: "list",
        dict: "mapping",
    }
    return names.get(type(value), "null")
