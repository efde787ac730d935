"""A run whose responses have no verdict fails: exit code 1, with the reasons and the way on.

check_scored(verdicts, 0.1, folder, what="the evaluation")      # RunFailed if too few are scored
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from overrefusal_po.records import Verdict

REASONS_SHOWN = 3
LONGEST_REASON = 200
"""Characters of a reason in the sentence."""


class RunFailed(Exception):
    """A run that did its work and has no result: the message says why, and what to do."""


def check_scored(
    verdicts: Sequence[Verdict],
    limit: float,
    folder: Path | None = None,
    *,
    what: str,
    key: str | None = "unscored_max",
) -> None:
    """Raises RunFailed if no verdict is scored, or if the unscored share is above `limit`.

    Args:
        verdicts: of one judge; none at all is no fault.
        limit: the greatest share.
        folder: the run folder, whose files the sentence names.
        what: who scored what, the beginning of the sentence.
        key: the recipe key of the limit; None if there is none.
    """
    reasons = Counter(v.unscored[:LONGEST_REASON] for v in verdicts if v.unscored is not None)
    unscored = reasons.total()
    if not unscored or (unscored < len(verdicts) and unscored <= limit * len(verdicts)):
        return
    common = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(REASONS_SHOWN))
    allowed = f" {key} allows a share of {limit:g}." if key and unscored < len(verdicts) else ""
    raise RunFailed(
        f"{what}: {unscored} of {len(verdicts)} responses have no verdict ({common}).{allowed} "
        f"{way_on(folder)}"
    )


def way_on(folder: Path | None) -> str:
    """What to do: files to delete, if there are any, and the same command again."""
    files = [] if folder is None else [*folder.glob("*.failed.jsonl"), folder / "verdicts.jsonl"]
    kept = [str(file) for file in sorted(files) if file.is_file()]
    delete = f" delete {' and '.join(kept)} to ask again," if kept else ""
    return (
        "Remove the cause (restart the server, change the prompts that it filters, use another "
        f"judge),{delete} and give the same command again."
    )
