"""DeRTa's two rows of a question as one: prompt and harmful prefix are computed once.

    rows = derta_rows(...)    # both rows of each triple; helpful rows follow
    collator = TreeCollator(pad_token_id=0)
    batch = collator(trees(rows)[:8])    # (2 * 8, T): first branches, then second ones

The RTO row [q, h] and the prefix row [q, h_<k, r] have the same beginning. So have any two rows of
a question, whatever `data.rows` are. A tree is a training
example with both, so that they come into one batch. The batch has the layout of preference pairs.
`share_prefix` then runs each tree as one row, with the same loss and gradients. A helpful row is a
tree of one branch. A batch counts trees, not rows, so batches differ from those without trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from overrefusal_po.recipe.harmful_rows import HarmfulRow
from overrefusal_po.train.derta_rows import IGNORED, DertaCollator, Row, RowColumns, rows_dataset

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


Tree = dict[str, list[RowColumns]]
"""{"branches": one row or two}: a training example."""


def tree_or_rows(rows: Sequence[Row], tree: bool) -> Dataset:
    """Rows as a dataset, or as trees of both rows of a question (see `derta_tree`)."""
    from datasets import Dataset

    return Dataset.from_list(trees(rows)) if tree else rows_dataset(rows)


def trees(rows: Sequence[Row]) -> list[Tree]:
    """Rows as trees: the two rows of a question, which stand side by side; helpful rows alone."""
    found: list[list[Row]] = []
    for row in rows:
        last = found[-1] if found else []
        if len(last) == 1 and question_of(last[0]) == question_of(row) is not None:
            last.append(row)
        else:
            found.append([row])
    return [{"branches": [row.columns() for row in branches]} for branches in found]


def question_of(row: Row) -> str | None:
    """The id that both rows of a harmful question have; None for a helpful row."""
    return row.row_id if row.kind in get_args(HarmfulRow) else None


class TreeCollator(DertaCollator):
    """Trees -> the padded batch of their rows, first branches and then second ones.

    Attributes:
        paired: True if the model shares prefixes. It then needs as many second branches as first
            ones. A tree of one branch gets its own first token again, without label, which costs
            nothing there. False leaves that out.
    """

    paired = True

    def __call__(self, rows: Sequence[Tree]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels, (2 * trees or fewer, T) each."""
        branches = [example["branches"] for example in rows]
        second = [
            b[1] if len(b) > 1 else unlabelled_start(b[0])
            for b in branches
            if len(b) > 1 or self.paired
        ]
        return self.padded([b[0] for b in branches] + second)


def unlabelled_start(row: RowColumns) -> RowColumns:
    """The first token of a row, without label."""
    return {**row, "kind": "sft", "input_ids": list(row["input_ids"])[:1], "labels": [IGNORED]}
