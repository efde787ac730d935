"""DeRTa's two rows of a question as one: prompt and harmful prefix are computed once.

    rows = derta_rows(...)
    # RTO row and prefix row of each triple, then helpful rows
    collator = TreeCollator(pad_token_id=0)
    batch = collator(trees(rows)[:8])           # (2 * 8, seq): first branches, then second ones

The RTO row [q, h] and the prefix row [q, h_<k, r] begin alike. A tree is a training example with
both, so that they meet in one batch, laid out as a preference pair is; `share_prefix` then runs
each tree as one row with the same loss and gradients. A helpful row is a tree of one branch. A
batch counts trees, not rows: batches are others than without trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overrefusal_po.train.derta_rows import IGNORED, DertaCollator, Row


def trees(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as examples {"branches": [row, ...]}: an RTO row with the prefix row behind it, others
    alone."""
    found: list[list[Row]] = []
    for row in rows:
        before = found[-1][0] if found else None
        if (
            row.kind == "prefix"
            and before is not None
            and before.kind == "rto"
            and before.row_id == row.row_id
        ):
            found[-1].append(row)
        else:
            found.append([row])
    return [{"branches": [row._asdict() for row in branches]} for branches in found]


class TreeCollator(DertaCollator):
    """Trees -> the padded batch of their rows, first branches and then second ones.

    Attributes:
        paired: True where the model shares prefixes, which needs as many second branches as first
        ones: a tree of one
            branch then gets its own first token again, without label. It costs nothing there; False
            leaves it out.
    """

    paired = True

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tensors input_ids, attention_mask and labels, all (2 * trees or fewer, seq)."""
        branches = [example["branches"] for example in rows]
        second = [b[1] if len(b) > 1 else stub(b[0]) for b in branches if len(b) > 1 or self.paired]
        return super().__call__([b[0] for b in branches] + second)


def stub(row: dict[str, Any]) -> dict[str, Any]:
    """The first token of a row, without label."""
    return {**row, "kind": "sft", "input_ids": list(row["input_ids"])[:1], "labels": [IGNORED]}
