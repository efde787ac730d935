"""How long the rows of a training are: what becomes of those over `max_length`, and batches of rows
of similar length.

    kept = fit(pairs, longest, max_length=512, too_long="drop")
    kept.kept, kept.left_out     # places of what is trained on, and ids of what is not
    group_by_length(trainer)     # for trainer.train_sampling_strategy=group_by_length

No row is ever cut, since a cut answer is a corrupted label: TRL's `truncation_mode` has nothing to
do. Only KTO's comparison rows (a prompt with the response of another one) may be cut, and they are
counted (`kto.warn_of_cut`).

Batches of similar length have less padding, but they are not random: a speed-up outside of what is
exact. With a shared prefix nothing is padded anyway. Plain rows (SFT, DeRTa without the tree) gain.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair, Prompt, Triple
from overrefusal_po.train.windows import is_shared

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.nn import Module
    from transformers import Trainer

logger = logging.getLogger(__name__)

SHOWN_IDS = 5
"""Ids of rows left out that a log line names."""


class Fitting(NamedTuple):
    """Which of some records fit into `max_length` tokens.

    Attributes:
        kept: places of the records that fit, in their order.
        left_out: ids of the others.
        longest: tokens of the longest row kept.
        max_length: the limit; None means no limit.
        name: what a message calls a record.
    """

    kept: list[int]
    left_out: list[str]
    longest: int
    max_length: int | None
    name: str

    def __str__(self) -> str:
        """`; 3 of 135 pairs left out as too long (a, b, c)`, or nothing if all fit."""
        if not self.left_out:
            return ""
        return f"; {left_out_text(self.name, self.left_out, len(self.kept) + len(self.left_out))}"

    def warned(self) -> list[int]:
        """The places of what fits, after a warning that counts what does not."""
        warn_of_left_out(self.note)
        return self.kept

    @property
    def note(self) -> dict[str, dict[str, object]]:
        """The entry of too_long.json: {noun: counts and ids}; empty if all fit."""
        if not self.left_out:
            return {}
        counts: dict[str, object] = {
            "left_out": len(self.left_out),
            "of": len(self.kept) + len(self.left_out),
            "max_length": self.max_length,
            "ids": self.left_out,
        }
        return {self.name: counts}


def left_out_text(name: str, ids: Sequence[str], number: int) -> str:
    """`3 of 135 pairs left out as too long (a, b, c)`."""
    shown = ", ".join(ids[:SHOWN_IDS]) + (", ..." if len(ids) > SHOWN_IDS else "")
    return f"{len(ids)} of {number} {name}s left out as too long ({shown})"


def warn_of_left_out(notes: Mapping[str, Mapping[str, Any]]) -> None:
    """A warning for each kind of record in `Fitting.note`."""
    for name, note in notes.items():
        text = left_out_text(name, note["ids"], note["of"])
        logger.warning("max_length is %s; %s", note["max_length"], text)


def fit(
    records: Sequence[PreferencePair] | Sequence[Prompt] | Sequence[Triple],
    longest: Sequence[int],
    *,
    max_length: int | None,
    too_long: TooLong = "error",
) -> Fitting:
    """Which records fit into `max_length` tokens (None: all of them), in their order.

    Args:
        records: preference pairs, prompts with references, or triples.
        longest: tokens of the longest training row that each may become, prompt included.
        too_long: "error" stops at the first record that is longer; "drop" leaves such ones out.

    Raises:
        ValueError: a record is too long and `too_long` is "error", or all are.
    """
    name = noun(records[0]) if records else "row"
    over = [i for i, n in enumerate(longest) if max_length is not None and n > max_length]
    if over and (too_long == "error" or len(over) == len(records)):
        raise ValueError(
            f"{name.capitalize()} {record_label(records[over[0]])}: prompt and response are "
            f"{longest[over[0]]} tokens, more than max_length {max_length} (as {len(over)} of all "
            f"{len(records)} {name}s, before data.max_* draws), and no row is cut. Raise "
            "trainer.max_length"
            + (
                ", or leave such rows out (data.too_long: drop)."
                if len(over) < len(records)
                else "."
            )
        )
    out = set(over)
    kept = [i for i in range(len(records)) if i not in out]
    left_out = [record_id(records[i]) for i in over]
    return Fitting(kept, left_out, max((longest[i] for i in kept), default=0), max_length, name)


def noun(record: PreferencePair | Prompt | Triple) -> str:
    """What a message calls a record."""
    return "pair" if isinstance(record, PreferencePair) else type(record).__name__.lower()


def record_id(record: PreferencePair | Prompt | Triple) -> str:
    """The user's own id of a record, else ours; a triple has that of its prompt."""
    known = record.prompt if isinstance(record, Triple) else record
    return (known.origin.id if known.origin else None) or known.id


def record_label(record: PreferencePair | Prompt | Triple) -> str:
    """A record's id with its place, as messages name it."""
    return record.prompt.label if isinstance(record, Triple) else record.label


def group_by_length(trainer: Trainer) -> None:
    """Has the trainer draw batches of rows of similar length if its settings ask for them.

    transformers' own sampler finds no lengths in TRL's preference rows.
    """
    if str(trainer.args.train_sampling_strategy) != "group_by_length":
        return
    from overrefusal_po.train.trl_private import use_sampler

    shared = is_shared(cast("Module", trainer.model))
    rows = cast("Dataset", trainer.train_dataset)
    use_sampler(trainer, [step_tokens(row, shared=shared) for row in rows])


def step_tokens(row: Mapping[str, Any], *, shared: bool) -> int:
    """The tokens of a dataset row that a step computes, without padding: the longer side, or with
    `shared` a common beginning once and both sides."""
    if "branches" in row:
        sides = [branch["input_ids"] for branch in row["branches"]]
    elif "chosen_ids" in row:
        sides = [row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")]
    elif "completion_ids" in row:
        sides = [row["prompt_ids"] + row["completion_ids"]]
    else:
        sides = [row["input_ids"]]
    if not shared or len(sides) == 1:
        return max(map(len, sides))
    common = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(*sides, strict=False)))
    return sum(map(len, sides)) - common
