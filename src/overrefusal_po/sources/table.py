"""Plain public sets, one line of facts each: OKTest, PHTest, FalseReject, JailbreakBench,
WildGuardTest, SORRY-Bench, ...

    {name: table, set: falsereject}
    {name: table, set: oktest, paths: [OKTest.csv]}      # the authors' file instead of the hub
    {name: table, set: advbench, repo: me/my-mirror}     # another hub data set of the same columns

The sets stand in `_table.py`. Benchmarks are never trained on. A set of one part that may be
trained on (PHTest, HarmfulQA) gives all of it for each split: measure on it, or train on it.
`described` says licence, gating, and whether the facts of a set were verified; `note` says what a
reader of a number has to know.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field, field_validator

from overrefusal_po.recipe.words import unknown_key
from overrefusal_po.records import Kind, Prompt, Split
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Item, set_items
from overrefusal_po.sources._table import SETS, PlainSet, TableLabels, described


class Settings(BaseModel):
    """`set`: the set's name. `paths`: local files instead of the hub. `repo`, `revision`: another
    hub data set."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    plain_set: str = Field(alias="set")
    paths: tuple[str, ...] = ()
    repo: str | None = None
    revision: str | None = None

    @field_validator("plain_set")
    @classmethod
    def check_set(cls, name: str) -> str:
        """The name must stand in the table."""
        if name not in SETS:
            raise ValueError(unknown_key(name, SETS, "", owner="the table of plain sets"))
        return name


def aliases() -> dict[str, str]:
    """{set: its facts in one line}: each of these names stands for `{name: table, set: ...}`."""
    return {name: described(name) for name in SETS}


def measures(settings: Settings, split: Split | None) -> bool:
    """All but the train part of a set. A set of one part is measured on, or trained on."""
    facts = SETS[settings.plain_set]
    return facts.train is None or (facts.train != facts.split and split != "train")


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts of a set. Of one that has a train split, None gives both parts; other splits give
    the test part. Local files are the split asked for."""
    facts = SETS[settings.plain_set]
    if facts.train in (None, facts.split):
        return list(read_hub_split(settings, facts, facts.split, None))
    if settings.paths:
        return list(read_hub_split(settings, facts, facts.split, split))
    found: list[Prompt] = []
    if facts.train is not None and split in ("train", None):
        found += read_hub_split(settings, facts, facts.train, "train")
    if split != "train":
        found += read_hub_split(settings, facts, facts.split, "test")
    return found


def note(settings: Settings) -> str | None:
    """What a reader of a number from this set has to know; None if there is nothing."""
    return SETS[settings.plain_set].note or None


def read_hub_split(
    settings: Settings, facts: PlainSet, hub_split: str, split: Split | None
) -> Iterator[Prompt]:
    """The prompts of one hub split, marked as our `split`."""
    repo = settings.repo or facts.repo
    if repo is None and not settings.paths:
        raise ValueError(f"{settings.plain_set}: {facts.note} Give it: paths: [...].")
    file = facts.files.get(hub_split)
    wanted = HubSet(repo or "", facts.config, hub_split, settings.revision or facts.revision, file)
    for item in set_items(settings.paths, wanted, facts.forms):
        kind = row_kind(item, facts.kind)
        if kind is None or (facts.keep and str(item.row.get(facts.keep[0])) != facts.keep[1]):
            continue
        yield Prompt.of(
            item.text,
            kind=kind,
            category=item.category,
            source=settings.plain_set,
            split=split,
            origin=item.origin,
        )


def row_kind(item: Item, kind: Kind | TableLabels) -> Kind | None:
    """The kind of a row, None if its label says to leave it out; ValueError on a label that is
    not known."""
    if isinstance(kind, str):
        return kind
    label = item.row[kind.column]
    if label not in kind.kinds:
        known = ", ".join(repr(name) for name in kind.kinds)
        raise ValueError(
            f"{item.place}, column {kind.column}: the label is {label!r}; expected is one of "
            f"{known}."
        )
    return kind.kinds[label]
