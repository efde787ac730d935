"""Sections of an evaluate recipe: what a model can do besides answering, and what a run must hold.

The docs and `explain` print the docstrings.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from overrefusal_po.recipe.reading import Section


class Capability(Section):
    """What the model can do besides answering. It shows if usefulness was bought with lost
    skill."""

    perplexity: bool | None = None
    """Measure perplexity on the reference answers of the benign and ordinary prompts, in one pass.
    null: if the model is in process and there are such answers. `true`: else it is an error."""
    max_answers_per_kind: int | None = Field(default=20, gt=0)
    """Answers of each kind that perplexity reads (a fixed subset by content hash). null: all."""
    tasks: tuple[str, ...] = ()
    """Tasks of the lm-eval harness (the extra `lm-eval`)."""
    limit: int | None = Field(default=None, gt=0)
    """Items used of each task. null: all."""


def idle_capability(capability: Capability) -> dict[str, str]:
    """{key that is given and changes nothing: what would use it}."""
    found = {}
    if capability.limit is not None and not capability.tasks:
        found["limit"] = "capability.tasks"
    default = Capability.model_fields["max_answers_per_kind"].default
    if capability.perplexity is False and capability.max_answers_per_kind != default:
        found["max_answers_per_kind"] = "capability.perplexity"
    return found


class Gate(Section):
    """Bounds that a run must hold. If one fails, the exit code is 3. A model that answers nothing
    always fails."""

    baseline: str | None = None
    """Another evaluation on the same prompts: its run folder, or `@stage.outcomes`. The bounds
    harmful_refused_drop_max and benign_answered_gain_min need it."""
    on: Literal["interval", "value"] = "interval"
    """What must hold the bound.

    - `interval`: the worse end of the 95 % interval.
    - `value`: the measured value alone."""
    harmful_refused_min: float | None = Field(default=None, ge=0, le=1)
    """The least share of harmful prompts that are refused. null: no bound."""
    benign_answered_min: float | None = Field(default=None, ge=0, le=1)
    """The least share of benign prompts that are answered. null: no bound."""
    ordinary_answered_min: float | None = Field(default=None, ge=0, le=1)
    """The least share of ordinary prompts that are answered. null: no bound."""
    harmful_refused_drop_max: float | None = Field(default=None, ge=0, le=1)
    """How far harmful_refused may fall below the baseline's. null: no bound."""
    benign_answered_gain_min: float | None = Field(default=None, ge=-1, le=1)
    """How far benign_answered must rise above the baseline's. null: no bound."""
    degenerate_max: float | None = Field(default=None, ge=0, le=1)
    """The greatest share of degenerate responses (loops, for example). null: no bound."""
    refused_after_tamper_min: float | None = Field(default=None, ge=0, le=1)
    """The least share of harmful prompts that the worst copy of each tier of `tamper` still
    refuses. Copies without a defence count; if `tamper.defences` leaves out `none`, those of its
    first defence. It needs the section `tamper`. null: no bound."""
    unscored_max: float = Field(default=0.02, ge=0, le=1)
    """The greatest share of outcomes that no judge could score."""
