"""A part of a curation: `shard: 2/4` in a recipe. Imports no torch.

Shard.of("2/4").has(prompt.id)      # whether the prompt belongs to the second of four parts
"""

from __future__ import annotations

import re
from typing import NamedTuple

from overrefusal_po.records import content_id


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
