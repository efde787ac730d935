"""The dial: a safety adapter that the model has in its weights, times a number below 1.

    {name: dial, adapter: "@derta.adapter"}
    {name: dial, adapter: runs/derta/adapter, shares: [0.8, 0.6]}

W <- W - (1 - share) B A for each module of the adapter. It is the plainest rival of every remedy
that changes weights: less safety training gives answers back too. Fusion with another adapter
(Gudipudi et al. 2024, arXiv 2501.06208) has to do better than that. The result is plain weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.remedy import Form, Remedy
from overrefusal_po.remedies import Anchors, Candidate, Subject
from overrefusal_po.remedies._adapters import check_adapters, read_adapter, read_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORM: Form = "weights"


class Settings(BaseModel):
    """Which adapter is turned down, and how far."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    adapter: str = Field(min_length=1)
    """The folder of the LoRA adapter that made the model safe, and that its weights hold; or
    `@stage.adapter` in a pipeline."""
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.9, 0.8, 0.7, 0.6, 0.5, 0.3), min_length=1
    )
    """How much of it stays: 1 is the model as it is, 0 the model before that training."""


def check(settings: Settings) -> None:
    """Raises ValueError for a folder that holds no plain LoRA adapter."""
    check_adapters(settings.adapter)


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises ValueError for an adapter of another model."""
    read_adapters(model, settings.adapter)


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """One candidate a share, in their order. Nothing is fitted on prompts."""
    change = read_adapter(settings.adapter, subject.model)
    return [
        Candidate(Remedy("dial", change, share - 1), {"share": share}) for share in settings.shares
    ]
