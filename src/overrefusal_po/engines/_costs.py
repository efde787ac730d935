"""What a completion cost: the rows of a token ledger."""

from __future__ import annotations

from pydantic import Field

from overrefusal_po.records import Record


class Cost(Record):
    """The requests behind one completion, or behind its failure.

    Every request ends as an answer or as a fault. So requests = answers + faults over any rows, at
    each endpoint and in total.
    """

    prompt_id: str
    sample: int
    model: str
    requests: dict[str, int]
    """{endpoint: requests sent there}."""
    faults: dict[str, dict[str, int]] = Field(default_factory=dict)
    """{endpoint: {kind: requests that ended so}}; kinds are status codes and the words in
    `_endpoints`."""
    answered_by: str | None = None
    """The endpoint that gave the completion; None if none did."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    empty: str | None = None
    """Why the completion has no text, if the server answered without one."""
