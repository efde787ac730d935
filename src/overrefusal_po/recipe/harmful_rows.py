"""The two rows that DeRTa makes of each harmful question: its own, or those of its ablation.

    checked_rows(["rto", "safe"])       # ("safe", "rto")
    checked_rows(["rto", "rto"])        # ValueError

Each question gives two rows, so that trainings differ in what the rows teach and not in their
number (arXiv 2407.09121, ablation). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator

HarmfulRow = Literal["safe", "prefix", "rto"]
"""A row of a harmful question: the safe response, the same behind a harmful prefix, or RTO."""


def checked_rows(rows: Sequence[HarmfulRow]) -> tuple[HarmfulRow, HarmfulRow]:
    """Both rows in the order of HarmfulRow. ValueError unless they are two with a safe response."""
    known: tuple[HarmfulRow, ...] = get_args(HarmfulRow)
    if len(rows) != 2 or any(kind not in known for kind in rows):
        raise ValueError(
            f"rows is {list(rows)}; allowed are two of {', '.join(known)}, for example prefix, rto."
        )
    if all(kind == "rto" for kind in rows):
        raise ValueError(
            "rows is rto twice, and no row then holds a safe response: the model would not learn "
            "what follows the refusal opener. Put safe or prefix beside rto."
        )
    first, second = sorted(rows, key=known.index)
    return first, second


HarmfulRows = Annotated[tuple[HarmfulRow, HarmfulRow], AfterValidator(checked_rows)]
"""The two rows of a harmful question. The order in which they are named makes no difference."""

DERTA_ROWS: tuple[HarmfulRow, HarmfulRow] = ("prefix", "rto")
"""DeRTa's own two rows."""
