"""The costs of completions -> their sums.

sum_ledger(folder / "completions.ledger.jsonl")["tokens"]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from overrefusal_po.engines._costs import Cost
from overrefusal_po.run.appender import rows_if_any

VERDICTS_LEDGER = "verdicts.ledger.jsonl"
"""The ledger of a folder's judges. No budget of an engine counts it, also if both models have one
name."""


class EndpointSums(TypedDict):
    """The requests to one endpoint."""

    requests: int
    answers: int
    faults: dict[str, int]
    """{kind: requests that ended so}."""


class LedgerSums(TypedDict):
    """The sums of a ledger: requests = answers + faults, in total and at each endpoint."""

    rows: int
    requests: int
    answers: int
    faults: int
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    endpoints: dict[str, EndpointSums]


def sum_ledger(path: Path, model: str | None = None) -> LedgerSums:
    """The sums over a ledger's rows, or over those of one model. Zeros for a missing file."""
    rows = prompt_tokens = completion_tokens = 0
    endpoints: dict[str, EndpointSums] = {}
    for cost in costs(path, model):
        rows += 1
        prompt_tokens += cost.prompt_tokens
        completion_tokens += cost.completion_tokens
        add_requests(endpoints, cost)
    sums = endpoints.values()
    return {
        "rows": rows,
        "requests": sum(one["requests"] for one in sums),
        "answers": sum(one["answers"] for one in sums),
        "faults": sum(sum(one["faults"].values()) for one in sums),
        "tokens": prompt_tokens + completion_tokens,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "endpoints": endpoints,
    }


def costs(path: Path, model: str | None) -> Iterator[Cost]:
    """The rows of a ledger, one at a time; None: of all models."""
    # written by us and never by hand, so the rows are not validated again
    for row in rows_if_any(path):
        if model is None or row["model"] == model:
            yield Cost.model_construct(**row)


def add_requests(endpoints: dict[str, EndpointSums], cost: Cost) -> None:
    """Adds one row's requests to the sums of their endpoints."""
    for url, requests in cost.requests.items():
        sums = endpoints.setdefault(url, {"requests": 0, "answers": 0, "faults": {}})
        sums["requests"] += requests
        sums["answers"] += cost.answered_by == url
        for kind, count in cost.faults.get(url, {}).items():
            sums["faults"][kind] = sums["faults"].get(kind, 0) + count
