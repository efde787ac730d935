"""A part of a curation's prompts, or of a training's pairs: `shard: 2/4` in a recipe. Imports no
torch.

Shard.of("2/4").has(prompt.id)      # whether the prompt belongs to the second of four parts
in_shard(pairs, "2/4")              # the pairs on such prompts
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple, TypeVar

from pydantic import AfterValidator

from overrefusal_po.records import LabelledResponse, PreferencePair, content_id

Row = TypeVar("Row", PreferencePair, LabelledResponse)


class Shard(NamedTuple):
    """Part `number` (from 1) of `parts`."""

    number: int
    parts: int

    @classmethod
    def of(cls, text: str) -> Shard:
        """ "2/4" -> Shard(2, 4). ValueError for anything else."""
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if not found or int(found[1]) > int(found[2]):
            raise ValueError(
                f"shard is {text!r}; allowed is i/n with i from 1 to n, for example 2/4."
            )
        return cls(int(found[1]), int(found[2]))

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"shard-{self.number}-of-{self.parts}"

    def has(self, prompt_id: str) -> bool:
        """Whether a prompt is this shard's: by its id alone, so order and source do not matter."""
        return int(content_id("shard", prompt_id), 16) % self.parts == self.number - 1


def shard_text(text: str) -> str:
    """A checked `i/n`."""
    Shard.of(text)
    return text


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
