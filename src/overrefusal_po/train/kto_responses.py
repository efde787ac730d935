"""Labelled responses (TRL's unpaired rows) -> the token ids that KTO trains on.

    found = response_tokens(responses, template, max_length=512, too_long="error")
    found.cut(8)[0]            # (prompt ids, completion ids, whether it is a good response)

The ids are those of the same response as a side of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import Prompt
from overrefusal_po.sources._completions import LabelledResponse
from overrefusal_po.train.lengths import fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

ResponseRow = tuple[tuple[int, ...], tuple[int, ...], bool]
BATCH = 128
"""Responses that are tokenised together."""


class ResponseTokens(NamedTuple):
    """The prompts of the responses that fit, and their rows of token ids."""

    prompts: list[Prompt]
    rows: list[ResponseRow]

    def cut(self, opening: int | None) -> list[ResponseRow]:
        """The rows, each different one once, with the first `opening` ids of each response."""
        return list(dict.fromkeys((asked, said[:opening], good) for asked, said, good in self.rows))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows, 2): tokens of prompt and response."""
        found = [(len(asked), len(said)) for asked, said, _ in self.rows]
        return np.array(found, dtype=np.int64).reshape(-1, 2)


def response_tokens(
    responses: Sequence[LabelledResponse],
    template: ChatTemplate,
    *,
    max_length: int | None,
    too_long: TooLong,
) -> ResponseTokens:
    """The responses that fit into `max_length` tokens; raises what `lengths.fit` raises."""
    rows: list[ResponseRow] = []
    for start in range(0, len(responses), BATCH):
        part = responses[start : start + BATCH]
        items = [(row.prompt.messages, row.response, row.response) for row in part]
        rows += [
            (tuple(asked), tuple(said), row.desirable)
            for row, (asked, said, _) in zip(part, template.pair_tokens(items), strict=True)
        ]
    prompts = [row.prompt for row in responses]
    longest = [len(asked) + len(said) for asked, said, _ in rows]
    kept = fit(prompts, longest, max_length=max_length, too_long=too_long).warned()
    return ResponseTokens([prompts[at] for at in kept], [rows[at] for at in kept])
