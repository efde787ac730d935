"""Preference pairs -> the token rows that DPO and ORPO train on.

    table = pair_table(pairs, template, opening=8)     # prompt_ids, chosen_ids, rejected_ids
    side_lengths(table)                                # (pairs, 3) tokens
    prepared_pairs(pairs, template, max_length=512).rows[0]

Both sides are rendered and tokenised in batches, once, to the ids that TRL itself would make
(`ChatTemplate.pair_tokens`). The ids lie in Arrow memory as 32-bit numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.findings import RESPONSE_SIDES
from overrefusal_po.pairs.token_checks import rendered_side
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.data import Prepared, as_dataset, check_rendered, rendered
from overrefusal_po.train.lengths import Fitting, fit
from overrefusal_po.train.opening import cut_sides, without_equal

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
HARMFUL = "harmful"
"""The column that says which rows are on harmful prompts, for trainings that weigh pairs."""
TokenRow = tuple[list[int], list[int], list[int]]
"""The ids of prompt, chosen side and rejected side."""
BATCH = 128
"""Pairs that are tokenised together: enough to keep all cores busy, few enough for memory."""


def pair_table(
    pairs: Sequence[PreferencePair], template: ChatTemplate, opening: int | None = None
) -> pa.Table:
    """The token ids of pairs, sides cut to their first `opening` tokens (None: whole).

    Raises ValueError if sides are equal, and what `ChatTemplate.pair_tokens` raises.
    """
    import pyarrow as pa

    check_sides(pairs)
    kind = pa.list_(pa.int32())
    schema = pa.schema([(name, kind) for name in COLUMNS])
    batches = [
        pa.record_batch([pa.array(column, kind) for column in columns], schema=schema)
        for columns in token_columns(pairs, template)
    ]
    return cut_sides(pa.Table.from_batches(batches, schema=schema), opening)


def token_columns(
    pairs: Sequence[PreferencePair], template: ChatTemplate
) -> Iterator[tuple[list[list[int]], ...]]:
    """(prompt ids, chosen ids, rejected ids) of one batch of pairs after the other."""
    for first in range(0, len(pairs), BATCH):
        part = pairs[first : first + BATCH]
        rows = tokens_of_pairs(part, template)
        rows = [trained_row(*item, template) for item in zip(part, rows, strict=True)]
        yield tuple([row[at] for row in rows] for at in range(len(COLUMNS)))


def tokens_of_pairs(pairs: Sequence[PreferencePair], template: ChatTemplate) -> list[TokenRow]:
    """`ChatTemplate.pair_tokens`; an error names the first pair that has it."""
    check_rendered([pair.prompt for pair in pairs], begun=True)
    items = [(p.prompt.messages, *whole_sides(p)) for p in pairs]
    return rendered(items, [f"Pair {pair.label}" for pair in pairs], template.pair_tokens)


def whole_sides(pair: PreferencePair) -> tuple[str, str]:
    """Both sides, each behind the text with which the assistant's turn already begins."""
    begun = pair.prompt.assistant_prefix
    return begun + pair.chosen, begun + pair.rejected


def trained_row(pair: PreferencePair, row: TokenRow, template: ChatTemplate) -> TokenRow:
    """The row with the tokens of `assistant_prefix` in the prompt, which the model need not learn,
    and without an end of turn behind an unfinished side.

    Raises ValueError if the template changes the prefix.
    """
    if not (pair.prompt.assistant_prefix or pair.unfinished):
        return row
    try:
        chosen, rejected = (rendered_side(pair, side, template) for side in RESPONSE_SIDES)
    except ValueError as error:
        raise ValueError(f"Pair {pair.label}: {error}") from None
    asked = min(chosen.prompt_ids, rejected.prompt_ids, key=len)
    good, bad = (
        [*side.prompt_ids, *side.response_ids][len(asked) :] for side in (chosen, rejected)
    )
    return asked, good, bad


def check_sides(pairs: Sequence[PreferencePair]) -> None:
    """Raises ValueError if there is no pair, or one whose sides are equal."""
    if not pairs:
        raise ValueError("Preference optimisation needs at least one pair; got none.")
    for pair in pairs:
        if pair.chosen.strip() == pair.rejected.strip():
            raise ValueError(
                f"Pair {pair.label}: chosen equals rejected ({pair.chosen[:60]!r}); there is "
                "nothing to prefer. Delete the pair."
            )


def side_lengths(table: pa.Table) -> NDArray[np.int64]:
    """(pairs, 3): tokens of the prompt, the chosen side and the rejected side."""
    import pyarrow.compute as pc

    columns = [pc.list_value_length(table[name]).to_numpy() for name in COLUMNS]
    return np.stack(columns, axis=1).astype(np.int64)


def longest_rows(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(pairs,): tokens of the prompt with the longer side."""
    found: NDArray[np.int64] = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    return found


def fit_pairs(
    pairs: Sequence[PreferencePair],
    table: pa.Table,
    *,
    max_length: int | None,
    too_long: TooLong = "error",
) -> Fitting:
    """Which pairs fit into `max_length` tokens; raises what `lengths.fit` raises."""
    longest = longest_rows(side_lengths(table)).tolist()
    return fit(pairs, longest, max_length=max_length, too_long=too_long)


def prepared_pairs(
    pairs: Sequence[PreferencePair] | Prepared,
    template: ChatTemplate,
    *,
    max_length: int | None,
    opening: int | None = None,
    too_long: TooLong = "error",
    kinds: bool = False,
) -> Prepared:
    """What DPO and ORPO train on, in the pairs' order; a `Prepared` is returned unchanged.

    `kinds`: with a column that says which prompts are harmful.

    Raises ValueError for no pair, equal sides, and a pair that is too long (see `lengths.fit`).
    """
    if isinstance(pairs, Prepared):
        return pairs
    table = pair_table(pairs, template, opening)
    kept = fit_pairs(pairs, table, max_length=max_length, too_long=too_long).warned()
    used, table = [pairs[at] for at in kept], table.take(kept)
    return pair_rows(used, with_kinds(table, used) if kinds else table, opening)


def with_kinds(table: pa.Table, pairs: Sequence[PreferencePair]) -> pa.Table:
    """The rows of pairs, with a column that says which of them are on harmful prompts."""
    return table.append_column(HARMFUL, [[pair.prompt.kind == "harmful" for pair in pairs]])


def pair_rows(pairs: Sequence[PreferencePair], table: pa.Table, opening: int | None) -> Prepared:
    """Pairs and their tokens as rows; openings that are equal on both sides are left out."""
    lengths = side_lengths(table)
    if opening is not None:
        table, _ = without_equal(table, opening)
    return Prepared(as_dataset(table), pairs, lengths=lengths)
