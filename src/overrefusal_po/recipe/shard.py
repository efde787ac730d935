"""A part of a curation's or an evaluation's prompts, or of a training's pairs: `shard: 2/4` in a
recipe. Imports no torch.

Shard.of("2/4").has(prompt.id)      # whether the prompt belongs to the second of four parts
Shard.of("auto", os.environ)        # the part of this task of a Slurm job array
in_shard(pairs, "2/4")              # the pairs on such prompts
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, TypeVar

from pydantic import AfterValidator

from overrefusal_po.records import LabelledResponse, PreferencePair, content_id

Row = TypeVar("Row", PreferencePair, LabelledResponse)


class Shard(NamedTuple):
    """Part `number` (from 1) of `parts`."""

    number: int
    parts: int

    @classmethod
    def of(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """ "2/4" -> Shard(2, 4); "auto" -> the part that `array_shard` reads from the environment.
        ValueError for anything else."""
        if text == "auto":
            return cls(*array_shard(environment))
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if not found or int(found[1]) > int(found[2]):
            raise ValueError(
                f"shard is {text!r}; allowed is i/n with i from 1 to n, for example 2/4, and auto "
                "in a Slurm job array."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """As a recipe says it: `2/4`."""
        return f"{self.number}/{self.parts}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"shard-{self.number}-of-{self.parts}"

    def has(self, prompt_id: str) -> bool:
        """Whether a prompt is this shard's: by its id alone, so order and source do not matter."""
        return int(content_id("shard", prompt_id), 16) % self.parts == self.number - 1


ARRAY = ("TASK_ID", "TASK_COUNT", "TASK_MIN", "TASK_MAX")
"""Ends of the variables by which Slurm tells a task its place in a job array."""


def array_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """(number, parts) of this task of a Slurm job array `1-n` or `0-(n-1)`.

    Raises ValueError outside of an array, and in one that leaves numbers out: the first task of
    `--array=3` would take itself for the whole.
    """
    found = [environment.get(f"SLURM_ARRAY_{end}", "") for end in ARRAY]
    if not all(text.isdecimal() for text in found):
        raise ValueError(
            "shard is auto, and this is no task of a Slurm job array (SLURM_ARRAY_TASK_ID is not "
            "set). Give i/n, for example 2/4, or submit with sbatch --array=1-4."
        )
    task, count, first, last = map(int, found)
    if first > 1 or last - first + 1 != count:
        raise ValueError(
            f"shard is auto, and the array's {count} tasks are numbered {first} to {last}; allowed "
            f"is an array from 1 (or 0) that leaves none out. To run one part again, give its "
            f"number: --shard={task}/n."
        )
    return task - first + 1, count


def shard_text(text: str) -> str:
    """A checked `i/n`; that of this task of a job array for `auto`."""
    return str(Shard.of(text))


ShardText = Annotated[str, AfterValidator(shard_text)]
"""The value of a key `shard`."""


def in_shard(rows: Sequence[Row], text: str | None) -> list[Row]:
    """The rows on a shard's prompts; all of them without a shard. ValueError if there are none."""
    if text is None:
        return list(rows)
    kept = [row for row in rows if Shard.of(text).has(row.prompt.id)]
    if rows and not kept:
        raise ValueError(
            f"data.shard is {text}, and none of {len(rows)} rows is in it. Give more rows, or make "
            "fewer shards."
        )
    return kept
