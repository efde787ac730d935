"""A local file of prompts, pairs or triples (JSON Lines, a JSON list, CSV, TSV, Parquet), in the
forms of docs/files.md.

    {name: file, path: my_prompts.jsonl, kind: benign}
    {name: file, path: x.csv, columns: {prompt: question, label: tag},
     labels: {ok: benign, bad: harmful}}
    {name: file, path: pairs.csv, columns: {prompt: asked, chosen: good, rejected: bad}}
    {name: file, path: triples.csv, kind: harmful, where: {agreed: true},
     columns: {safe_response: good, harmful_response: bad}}

A prompt needs `kind` or `label`. `label` is safe / unsafe as public sets have it (safe = should be
answered), or what `labels` says (`labels: {safe: general}` for ordinary prompts). A reference is
read from `reference`, for harmless prompts also from `response`, for harmful ones from
`safe_response`. `category`, `split`, `topic` and `contrast` are read if present. `assistant_prefix`
begins the assistant's turn. The row's own id is read from `id`, `uid` or `prompt_id`. Other fields
are counted in the log and kept in `origin.meta`. As triples (DeRTa) the file gives its harmful rows
that have a `safe_response` and a `harmful_response`, or our own triples.jsonl.
"""

from __future__ import annotations

from overrefusal_po.records import LabelledResponse, PreferencePair, Prompt, Split, Triple
from overrefusal_po.sources._local import local_rows
from overrefusal_po.sources._row_source import Reader, RowSettings


class Settings(RowSettings):
    """`path`: the file."""

    path: str


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The file's prompts; rows that name another split are left out."""
    return reader(settings, split).prompts()


def pairs(settings: Settings, split: Split | None) -> list[PreferencePair]:
    """The file's preference pairs; those of others have no rule, and are general without a kind."""
    return reader(settings, split).pairs()


def responses(settings: Settings, split: Split | None) -> list[LabelledResponse]:
    """The labelled responses of rows with prompt, completion and label, for KTO."""
    return reader(settings, split).responses()


def unpaired(settings: Settings) -> bool:
    """Whether the first row has a completion and no sides."""
    return reader(settings, None).is_unpaired()


def triples(settings: Settings, split: Split | None) -> list[Triple]:
    """The file's triples; ValueError if no row is one."""
    return reader(settings, split).triples()


def reader(settings: Settings, split: Split | None) -> Reader:
    """The file's rows, to be read."""
    rows = local_rows(settings.path, settings.limits)
    return Reader(rows, settings, settings.path, split)
