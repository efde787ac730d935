"""Labelled responses (TRL's unpaired rows) -> the token ids that KTO trains on.

    found = response_tokens(responses, template, max_length=512, too_long="error")
    found.cut(8)[0]            # (prompt ids, completion ids, whether it is a good response)

The ids are those of the same response as a side of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from overrefusal_po.judges import Judge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.findings import Finding, Waived, faults_words, split_waived
from overrefusal_po.pairs.response_checks import response_findings
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import LabelledResponse
from overrefusal_po.train.data import check_rendered, rendered
from overrefusal_po.train.lengths import Fitting, fit
from overrefusal_po.train.rows import TokenRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

ResponseRow = tuple[tuple[int, ...], tuple[int, ...], bool]
BATCH = 128
"""Responses that are tokenised together."""


class ResponseTokens(NamedTuple):
    """The responses that fit, their rows of token ids, and what was too long."""

    responses: list[LabelledResponse]
    rows: list[ResponseRow]
    fitting: Fitting

    def taken(self, places: Sequence[int]) -> ResponseTokens:
        """Those at some places, in that order."""
        return ResponseTokens(
            [self.responses[at] for at in places], [self.rows[at] for at in places], self.fitting
        )

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
    check_rendered([row.prompt for row in responses], begun=False)
    for start in range(0, len(responses), BATCH):
        part = responses[start : start + BATCH]
        sides = tokens_of_responses(part, template)
        rows += [
            (tuple(asked), tuple(said), row.desirable)
            for row, (asked, said, _) in zip(part, sides, strict=True)
        ]
    prompts = [row.prompt for row in responses]
    longest = [len(asked) + len(said) for asked, said, _ in rows]
    fitting = fit(prompts, longest, max_length=max_length, too_long=too_long)
    return ResponseTokens(list(responses), rows, fitting).taken(fitting.kept)


def tokens_of_responses(
    responses: Sequence[LabelledResponse], template: ChatTemplate
) -> list[TokenRow]:
    """`ChatTemplate.pair_tokens`; an error names the first response that has it."""
    items = [(row.prompt.messages, row.response, row.response) for row in responses]
    names = [f"Response to prompt {row.prompt.label}" for row in responses]
    return rendered(items, names, template.pair_tokens)


def checked_responses(
    responses: Sequence[LabelledResponse], judge: Judge, waive: Mapping[str, str]
) -> tuple[list[Finding], list[Waived]]:
    """The findings that count, and those that are waived. ValueError for errors."""
    found, waived = split_waived(response_findings(responses, judge), waive)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        raise ValueError(faults_words(errors, "responses", judge.name))
    return found, waived
