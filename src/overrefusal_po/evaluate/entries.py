"""What an evaluation writes to metrics.json, as types. No code."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from overrefusal_po.evaluate.corrections import CorrectedEntry
from overrefusal_po.evaluate.first_token import FirstTokenEntry
from overrefusal_po.evaluate.metrics import RatesEntry
from overrefusal_po.evaluate.panel_agreement import PanelEntry
from overrefusal_po.evaluate.robustness import AttemptEntry


class PerplexityEntry(TypedDict):
    """`capability.Perplexity`, as metrics.json holds it."""

    value: float
    low: float | None
    high: float | None
    nats_per_token: float
    tokens: int
    n: int


TaskScores = dict[str, dict[str, float]]
"""{task: {metric: value, metric_stderr: value}} of the lm-eval harness."""


class CapabilityEntry(TypedDict, total=False):
    """What else the model can do, as far as the recipe asks."""

    perplexity: PerplexityEntry
    tasks: TaskScores


class GateEntry(TypedDict):
    """Whether the run passed its gate, and a sentence for every bound that failed."""

    passed: bool
    failures: list[str]
    baseline: str | None


class TruncatedEntry(TypedDict):
    """How many responses ended at the limit of new tokens, of those that there are."""

    count: int
    of: int


class MeasuredEntry(TypedDict):
    """What was measured how, in words for the report."""

    judge: str
    sets: list[str]
    engine: str
    guard: str | None
    attacks: list[str]
    model_form: str
    notes: list[str]


class MetricsEntry(RatesEntry):
    """metrics.json. Attacked prompts are in `attacks` and `positions` alone."""

    remedy: NotRequired[str]
    """The id of the remedy on the measured model."""
    verdicts: NotRequired[str]
    """A hash of the verdicts that it was computed from; see `stale.verdicts_id`."""
    sets: dict[str, RatesEntry]
    attacks: NotRequired[dict[str, RatesEntry]]
    positions: dict[str, dict[str, int]]
    corrected: NotRequired[CorrectedEntry]
    certificate: NotRequired[dict[str, str]]
    panel: NotRequired[PanelEntry]
    capability: NotRequired[CapabilityEntry]
    first_token: NotRequired[FirstTokenEntry]
    truncated: NotRequired[TruncatedEntry]
    measured: NotRequired[MeasuredEntry]
    gate: NotRequired[GateEntry]
    robustness: NotRequired[list[AttemptEntry]]
