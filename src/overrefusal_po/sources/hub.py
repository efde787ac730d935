"""Any data set of the hub with prompts, pairs or triples, in the forms of docs/files.md.

    {name: hub, repo: my/pairs}                      # split train
    {name: hub, repo: my/questions, config: main, split: test, kind: benign,
     columns: {prompt: question}}

All keys of the source `file` hold here too: `columns`, `labels`, `where`, `ignore`, `bad_rows`,
and the limits. `split` is the hub's split, whatever split a stage asks for. `file` names one file
of the set. `revision` pins a version; without it the newest is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from overrefusal_po.records import (
    JsonObject,
    LabelledResponse,
    PreferencePair,
    Prompt,
    Split,
    Triple,
)
from overrefusal_po.sources._hub import HubSet, load
from overrefusal_po.sources._limits import Meter
from overrefusal_po.sources._row_source import Reader, RowSettings


class Settings(RowSettings):
    """`repo`: the set's name, OWNER/NAME. `config`, `split`, `revision`, `file`: a part of it."""

    repo: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    file: str | None = None


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The set's prompts; rows that name another split are left out."""
    return reader(settings, split).prompts()


def pairs(settings: Settings, split: Split | None) -> list[PreferencePair]:
    """The set's preference pairs, without a rule."""
    return reader(settings, split).pairs()


def responses(settings: Settings, split: Split | None) -> list[LabelledResponse]:
    """The labelled responses of rows with prompt, completion and label, for KTO."""
    return reader(settings, split).responses()


def unpaired(settings: Settings) -> bool:
    """Whether the first row has a completion and no sides."""
    return reader(settings, None).is_unpaired()


def triples(settings: Settings, split: Split | None) -> list[Triple]:
    """The set's triples; ValueError if no row is one."""
    return reader(settings, split).triples()


def reader(settings: Settings, split: Split | None) -> Reader:
    """The set's rows, to be read."""
    return Reader(hub_set_rows(settings), settings, settings.repo, split)


def hub_set_rows(settings: Settings) -> Iterator[tuple[str, JsonObject]]:
    """(place, row) for every row; ValueError for more than the limits."""
    wanted = HubSet(
        settings.repo, settings.config, settings.split, settings.revision, settings.file
    )
    found, limits = load(wanted), settings.limits
    limits.check_rows(settings.repo, len(found))
    limits.check_size(settings.repo, found.data.nbytes)
    share = found.data.nbytes / max(len(found), 1)
    meter = Meter(settings.repo, limits)
    for number, row in enumerate(found, 1):
        place = f"{wanted.place}, row {number}"
        meter.add(place, share)
        yield place, row
    if not meter.rows:
        raise ValueError(f"{settings.repo}: the split {settings.split} holds no rows.")
