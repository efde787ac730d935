"""Whether what was computed from verdicts is still that of the verdicts in outcomes.jsonl.

    metrics["verdicts"] = verdicts_id(outcomes)       # when metrics.json is written
    found = fresh_metrics(metrics, outcomes)          # when it is read
    found.metrics, found.note                         # note: what was computed again, or left out

metrics.json, the files on first tokens and tamper.jsonl follow from the verdicts. A user may judge
the responses again, with another judge or a newer one, and write outcomes.jsonl anew. Then rates
are computed again. What needs the model is left out, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overrefusal_po.evaluate.comparisons import judge_names
from overrefusal_po.evaluate.metrics import RATE_NAMES, run_metrics
from overrefusal_po.records import Outcome, content_id, read_jsonl, read_state

FROM_VERDICTS = {
    "sets": "the rates by set",
    "attacks": "the rates by attack",
    "positions": "where refusals start",
    "corrected": "corrected rates",
    "certificate": "the certificate",
    "panel": "the agreement of the judges",
    "first_token": "first tokens",
    "robustness": "tampered copies",
    "gate": "the gate",
}
"""Keys of metrics.json that follow from verdicts and are not computed again, in words."""

# Any: metrics.json, as JSON holds it
Values = Mapping[str, Any]

MEASURE_AGAIN = (
    "Restore the file, or delete it and run the same command again: the responses are kept."
)
"""What to do about a metrics.json that cannot be read."""


class FreshMetrics(NamedTuple):
    """metrics.json without what is stale in it. `note`: what a reader has to know; "" if nothing
    is."""

    metrics: Values
    note: str = ""


def verdicts_id(outcomes: Iterable[Outcome]) -> str:
    """16 hex digits for the responses and the verdicts on them, in any order."""
    return content_id(sorted(map(verdict_row, outcomes)))


def verdict_row(outcome: Outcome) -> list[str]:
    """What decides the rates of an outcome, as texts."""
    said = outcome.verdict
    decided = (said.refusal, said.refusal_start, said.degenerate, said.unsafe_probability)
    parts = (outcome.prompt.id, outcome.completion.id, said.judge, said.version, said.unscored)
    return [str(part) for part in (*parts, *decided)]


def is_stale(folder: Path, outcomes: Iterable[Outcome] | None = None) -> bool:
    """Whether a run folder's metrics.json was computed from other verdicts than its outcomes.jsonl
    holds. False if one of both is missing, or if an older version wrote it. `outcomes`: all that
    outcomes.jsonl holds, if they were read already."""
    file = folder / "metrics.json"
    known = read_state(file, remedy=MEASURE_AGAIN).get("verdicts") if file.is_file() else None
    if known is None:
        return False
    return bool(known != (verdicts_now(folder) if outcomes is None else verdicts_id(outcomes)))


def verdicts_now(folder: Path) -> str | None:
    """`verdicts_id` of a run folder's outcomes.jsonl. Without that file it is the one that
    metrics.json holds; None if an older version wrote that, or if it is not there."""
    file, rows = folder / "metrics.json", folder / "outcomes.jsonl"
    if rows.is_file():
        return verdicts_id(read_jsonl(rows, Outcome))
    return read_state(file).get("verdicts") if file.is_file() else None


def fresh_metrics(metrics: Values, outcomes: Sequence[Outcome]) -> FreshMetrics:
    """The metrics of a run whose outcomes.jsonl holds these outcomes. If they are not those that
    the metrics were computed from, the rates are computed again, and what else follows from
    verdicts is left out. Metrics of an older version stay."""
    now = verdicts_id(outcomes)
    if metrics.get("verdicts") in (None, now):
        return FreshMetrics(metrics)
    plain = [outcome for outcome in outcomes if outcome.prompt.attack is None]
    rates = run_metrics(plain).as_dict(metrics["name"], metrics["model"])
    gone = {*FROM_VERDICTS, *RATE_NAMES}
    kept = {key: value for key, value in metrics.items() if key not in gone}
    judge = " and ".join(judge_names(outcomes))
    measured = {**metrics["measured"], "judge": judge}
    lost = [words for key, words in FROM_VERDICTS.items() if metrics.get(key)]
    note = (
        f"JUDGED AGAIN: {metrics['name']} was measured with other verdicts than its outcomes.jsonl "
        f"holds now ({judge}). Its rates are computed again"
        f"{f'; left out are {_listed(lost)}' if lost else ''}."
    )
    return FreshMetrics({**kept, **rates, "measured": measured, "verdicts": now}, note)


def _listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
