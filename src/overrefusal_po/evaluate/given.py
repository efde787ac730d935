"""Prompts that Python code gives -> Prompt: texts, rows, records, a dataset, a file or a source.

given_prompts({"benign": ["How do I kill a process?"]}, split=None)
given_prompts("starter", split="test")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

from overrefusal_po.identity import check_kinds
from overrefusal_po.prompts import measured_once, read_source
from overrefusal_po.records import Kind, Prompt, Split
from overrefusal_po.sources._given import given_rows
from overrefusal_po.sources._local import ENDINGS
from overrefusal_po.sources._row_source import Reader
from overrefusal_po.sources.file import Settings

KINDS: tuple[Kind, ...] = get_args(Kind)


def given_prompts(data: object, *, kind: Kind | None = None, split: Split | None) -> list[Prompt]:
    """The prompts that were given, each once.

    ValueError if there is none, if one has no kind, or if one is both harmful and harmless.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed is one of {', '.join(KINDS)}.")
    found = measured_once(all_prompts(data, kind=kind, split=split))
    if not found:
        raise ValueError("There is no prompt. Give at least one.")
    check_kinds(found)
    return found


def all_prompts(data: object, *, kind: Kind | None, split: Split | None) -> list[Prompt]:
    """The prompts of a source, a file, a mapping by kind, or a list."""
    if isinstance(data, Mapping) and data and data.keys() <= set(KINDS):
        return [p for of, part in data.items() for p in kind_prompts(part, cast(Kind, of))]
    if isinstance(data, str | Path):
        if Path(data).suffix.lower() in ENDINGS:
            return read_source({"name": "file", "path": str(data), "kind": kind}, None)
        return read_source(str(data), split)
    return listed_prompts(data, kind)


def kind_prompts(part: object, kind: Kind) -> Iterator[Prompt]:
    """The prompts under one kind; ValueError for one that says another kind."""
    if isinstance(part, str):
        raise TypeError(f"The prompts under {kind!r} are one text. Put it into a list: [text].")
    for prompt in listed_prompts(part, kind, f"prompts[{kind!r}]"):
        if prompt.kind != kind:
            raise ValueError(
                f"The prompt {prompt.text[:60]!r} stands under {kind!r}, but says that it is "
                f"{prompt.kind}."
            )
        yield prompt


def listed_prompts(data: object, kind: Kind | None, name: str = "prompts") -> list[Prompt]:
    """Prompts, texts and rows of a list or a dataset as prompts; `name` is what errors call it."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        return row_prompts(data, kind, name)
    if any(isinstance(item, str) for item in data) and kind is None:
        raise ValueError(
            "The kind of a prompt that is a text must be given: kind='benign' (or 'harmful', "
            "'general'), or {'benign': [...], 'harmful': [...]}."
        )
    rows = [{"prompt": item} if isinstance(item, str) else item for item in data]
    if all(isinstance(row, Prompt) for row in rows):
        return cast("list[Prompt]", rows)
    return row_prompts(rows, kind, name)


def row_prompts(data: object, kind: Kind | None, name: str) -> list[Prompt]:
    """The prompts of rows, read as a file of prompts is."""
    settings = Settings(path="prompts", kind=kind)
    return Reader(given_rows(data, name), settings, "prompts", None).prompts()
