"""Trees of steps, as a tree search over responses leaves them: siblings as preference pairs (STAIR,
arXiv 2502.02384).

    {name: steptree, path: trees.jsonl}
    {name: steptree, path: mct_data/0.json, kind: harmful, min_visits: 1}

A row is a prompt and `nodes`, in the form of docs/files.md, or what STAIR's released code writes.
Of two steps behind the same step, one is chosen over the other if its value is at least
`min_chosen`, and more than `min_gap` above. A step that does not end the response needs
`min_visits`.
The steps before both are the `assistant_prefix` of the pair: they belong to the prompt, since they
cancel in a margin. Behind a step that does not end the response no end of turn is trained.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.json_files import check_characters
from overrefusal_po.recipe.reading import BadRows
from overrefusal_po.records import (
    JsonObject,
    Kind,
    Origin,
    PreferencePair,
    Prompt,
    Split,
    content_id,
)
from overrefusal_po.sources._conversations import (
    NOT_READ,
    check_unanswered,
    count_unread,
    row_asked,
    unread_words,
)
from overrefusal_po.sources._faults import read_each
from overrefusal_po.sources._limits import LIMITS, Limits, Meter
from overrefusal_po.sources._local import local_rows
from overrefusal_po.sources._origins import ID_COLUMNS, row_origin
from overrefusal_po.sources._prompt_rows import KIND_OF_LABEL, check_labelled, label_kind
from overrefusal_po.sources._row_source import row_split
from overrefusal_po.sources._trees import Step, Tree, is_stair, read_tree, stair_asked
from overrefusal_po.sources._turns import Unread, prompt_id, short

logger = logging.getLogger(__name__)

ENDINGS = (".jsonl", ".json")
READ = ("nodes", *ID_COLUMNS, "origin", "kind", "label", "category", "source", "split")
"""The columns that are read, those of the conversation apart."""

ROUNDING = 1e-9
"""Values that differ from a bound by less are on it: 1.1 - 0.6 is above 0.5 in binary."""


class Settings(BaseModel):
    """`path`: the file. `kind`: of prompts whose rows say none. `min_gap`: the values of a pair
    differ by more. `min_chosen`: the chosen step has at least this value. `min_visits`: of a step
    that does not end the response."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    path: str
    kind: Kind = "general"
    min_gap: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    min_chosen: float = Field(default=0.8, allow_inf_nan=False)
    min_visits: int = Field(default=4, ge=0)
    bad_rows: BadRows = "error"
    """What happens to a tree that cannot be read."""
    limit_rows: int = Field(default=LIMITS.rows, gt=0)
    """Trees, and pairs, at most."""
    limit_row_mb: float = Field(default=LIMITS.row_mb, gt=0)
    limit_mb: float = Field(default=LIMITS.mb, gt=0)
    """Size of the file, and of the pairs with their paths, at most."""

    @property
    def limits(self) -> Limits:
        """How much is read, and made, at most."""
        return Limits(self.limit_rows, self.limit_row_mb, self.limit_mb)


class Row(NamedTuple):
    """A tree, what it answers, and where it stands."""

    asked: Prompt
    tree: Tree
    origin: Origin


def pairs(settings: Settings, split: Split | None) -> list[PreferencePair]:
    """The pairs of all trees; trees that name another split are left out. ValueError if a file
    cannot be read, names a node twice, has a loop, or gives more pairs than a limit."""
    if Path(settings.path).suffix.lower() not in ENDINGS:
        raise ValueError(
            f"{settings.path}: trees are read from {' or '.join(ENDINGS)} files: one object a tree."
        )
    unread: Unread = Counter()
    rows = local_rows(settings.path, settings.limits)

    def read(row: JsonObject, place: str) -> Row | None:
        named = row_split(row, place, "leave the column out of the file")
        wanted = split is None or named in (None, split)
        return tree_row(row, place, settings, unread) if wanted else None

    trees = read_each(rows, read, settings.path, settings.bad_rows)
    if any(unread.values()):
        logger.warning(NOT_READ, settings.path, unread_words(unread))
    found = list(metered(trees, settings))
    logger.info("%s: %d trees give %d pairs", settings.path, len(trees), len(found))
    if trees and not found:
        raise ValueError(no_pair(trees, settings))
    return found


def tree_row(row: JsonObject, place: str, settings: Settings, unread: Unread) -> Row:
    """A row as a tree and its prompt. ValueError names the place."""
    check_characters(row, place)
    tree = read_tree(row, place, unread)
    check_visits(tree, settings, place)
    plain = stair_asked(row, place) if is_stair(row) else row
    given = row_asked(plain, place, unread)
    check_unanswered(given, place)
    turns = given.turns
    count_unread(plain, READ, place, unread)
    kind = row_kind(plain, settings.kind, place)
    asked = Prompt(
        id=prompt_id(kind, turns),
        messages=turns,
        kind=kind,
        category=str(plain.get("category") or "uncategorised"),
        source=str(plain.get("source") or "steptree"),
    )
    return Row(asked, tree, row_origin(plain, place, READ, unread))


def row_kind(row: JsonObject, default: Kind, place: str) -> Kind:
    """The kind of a row by `kind` or `label`, else the default; ValueError for another word."""
    check_labelled(row, place)
    given = row.get("kind")
    if given is None:
        return label_kind(row.get("label"), KIND_OF_LABEL, place) or default
    if given not in ("harmful", "benign", "general"):
        raise ValueError(f"{place}: kind is {short(given)}; allowed: harmful, benign, general.")
    kind: Kind = given
    return kind


def check_visits(tree: Tree, settings: Settings, place: str) -> None:
    """Raises ValueError for a step whose visits have to be known and are not."""
    for step in tree.steps.values():
        asked = settings.min_visits and step.value is not None and not step.terminal
        if asked and step.visits is None:
            raise ValueError(
                f"{place}, node {short(step.id)}: it has a value and no visits, and min_visits is "
                f"{settings.min_visits}. Write how often it was visited, or give min_visits: 0."
            )


def metered(rows: Sequence[Row], settings: Settings) -> Iterator[PreferencePair]:
    """The pairs of trees, counted. A small tree can have many pairs, each with a long path.

    ValueError at a limit.
    """
    meter = Meter(f"{settings.path}, as pairs", settings.limits)
    for row in rows:
        for siblings in row.tree.children.values():
            path = None
            for chosen, rejected in sibling_pairs(siblings, settings):
                path = row.tree.path(chosen) if path is None else path
                size = len(path) + len(chosen.text) + len(rejected.text)
                meter.add(f"{row.origin.place}, node {short(chosen.id)}", size)
                if rejected.text.strip() != chosen.text.strip():
                    yield step_pair(row, path, chosen, rejected)


def sibling_pairs(siblings: Sequence[Step], settings: Settings) -> Iterator[tuple[Step, Step]]:
    """(chosen, rejected) of the steps behind one step, in their order."""
    usable = [(at, step) for at, step in enumerate(siblings) if is_usable(step, settings)]
    ranked = sorted(usable, key=lambda item: value_of(item[1]))
    values = [value_of(step) for _, step in ranked]
    for _, chosen in usable:
        if value_of(chosen) < settings.min_chosen - ROUNDING:
            continue
        below = bisect_left(values, value_of(chosen) - settings.min_gap - ROUNDING)
        for _, rejected in sorted(ranked[:below], key=lambda item: item[0]):
            yield chosen, rejected


def is_usable(step: Step, settings: Settings) -> bool:
    """Whether a step's value is known well enough."""
    often = step.terminal or (step.visits or 0) >= settings.min_visits
    return step.value is not None and often


def value_of(step: Step) -> float:
    """The value of a usable step."""
    assert step.value is not None, "steps without a value are in no pair"
    return step.value


def step_pair(row: Row, path: str, chosen: Step, rejected: Step) -> PreferencePair:
    """A pair of sibling steps behind their path."""
    asked = row.asked
    own = prompt_id(asked.kind, asked.messages, path)
    of_prompt = row.origin.model_copy(update={"id": None})  # a tree has many prompts
    prompt = asked.model_copy(update={"id": own, "assistant_prefix": path, "origin": of_prompt})
    name = f"{row.origin.id or 'tree'}: {chosen.id} over {rejected.id}"
    sides = (("chosen", chosen), ("rejected", rejected))
    return PreferencePair.model_validate(
        {
            "id": content_id(own, chosen.text, rejected.text),
            "prompt": prompt,
            "chosen": chosen.text,
            "rejected": rejected.text,
            "reason": f"steptree: value {value_of(chosen):.3g} over {value_of(rejected):.3g}",
            "unfinished": [side for side, step in sides if not step.terminal],
            "origin": row.origin.model_copy(update={"id": name}),
        }
    )


def no_pair(rows: Sequence[Row], settings: Settings) -> str:
    """Why no tree gives a pair, in words."""
    steps = [step for row in rows for step in row.tree.steps.values()]
    usable = [value_of(step) for step in steps if is_usable(step, settings)]
    span = f"values {min(usable):.3g} to {max(usable):.3g}" if usable else "no value"
    return (
        f"{settings.path}: none of the {len(rows)} trees gives a pair. Of {len(steps)} steps "
        f"{len(usable)} end a response or have {settings.min_visits} visits ({span}). A pair needs "
        f"two steps behind the same step, one of at least {settings.min_chosen:g} and more than "
        f"{settings.min_gap:g} above the other. Lower min_chosen, min_gap or min_visits."
    )
