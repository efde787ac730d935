"""A gate in front of a change that exists already: a trained LoRA adapter, or a threshold on the
refusal openers.

    {name: gated, adapter: "@dpo.adapter"}       # the adapter answers, but only harmless prompts
    {name: gated, change: threshold}

A training against over-refusal gives up some refusals of harmful prompts. With a gate, the adapter
works on the prompts that a probe (`_gate.py`) takes for harmless. The others meet the model as it
was: LoRA per prompt, in one batch. The bias towards refusal that `hold` of a training folds into an
adapter is taken out again: behind a gate both would protect, and answers would be lost twice.
`change: threshold` subtracts a constant from the logits of the refusal openers at the first
position of a response, which is the plainest change there is. It shows how much of a gated remedy
is the gate. Both are ours; Lee et al. (2024, CAST, arXiv 2409.05907) put a condition in front of
steering. It can be served only where this program runs the model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from overrefusal_po.model.folding import unfolded
from overrefusal_po.model.remedy import Change, FirstLogits, Form, Remedy
from overrefusal_po.records import read_state
from overrefusal_po.remedies import Anchors, Candidate, Subject
from overrefusal_po.remedies._adapters import check_adapters, read_adapter, read_adapters
from overrefusal_po.remedies._gate import fit_gate
from overrefusal_po.remedies._strengths import Strength

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

HOLD_FILE = "hold.json"
"""What `hold` of a training writes beside the adapter's folder."""

STRENGTHS = {"adapter": (1.0,), "threshold": (2.0, 4.0, 8.0)}
FORMS: dict[str, Form] = {"adapter": "hooks", "threshold": "logits"}


class Settings(BaseModel):
    """What the gate switches, and how strong it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    change: Literal["adapter", "threshold"] = "adapter"
    """A trained LoRA adapter, or a constant off the logits of the refusal openers."""
    adapter: str | None = None
    """The folder of a LoRA adapter of the model that the remedy is fitted on."""
    strengths: tuple[Strength, ...] | None = Field(default=None, min_length=1)
    """By what the adapter is multiplied (null: 1), or how many nats are taken off the openers'
    logits (null: 2, 4 and 8)."""

    @model_validator(mode="after")
    def adapter_fits_change(self) -> Settings:
        """`adapter` names what `change: adapter` switches."""
        if (self.change == "adapter") != (self.adapter is not None):
            raise ValueError(
                f"change is {self.change} and adapter is {self.adapter!r}; give the folder of an "
                "adapter, or change: threshold without one"
            )
        return self


def form(settings: Settings) -> Form:
    """How the remedy can be served."""
    return FORMS[settings.change]


def check(settings: Settings) -> None:
    """Raises ValueError for a folder that holds no plain LoRA adapter."""
    check_adapters(settings.adapter)


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises ValueError for an adapter of another model."""
    read_adapters(model, settings.adapter)


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """Each strength behind each gate to try, the smallest strength and the strictest gate first.
    Candidates of one strength differ by the gate's threshold alone."""
    change, known = gated_change(settings, subject)
    found = fit_gate(subject, train, dev)
    return [
        Candidate(Remedy("gated", change, strength, gate), {**found.facts(gate), **known})
        for strength in settings.strengths or STRENGTHS[settings.change]
        for gate in found.gates(subject.tolerance)
    ]


def gated_change(settings: Settings, subject: Subject) -> tuple[Change, dict[str, object]]:
    """What the gate switches, for strength 1, and what is said about it."""
    if settings.adapter is None:
        return openers_down(subject.openers()), {}
    change, bias = read_adapter(settings.adapter, subject.model), held_bias(settings.adapter)
    if not bias:
        return change, {}
    try:
        change = unfolded(change)
    except ValueError as error:
        raise ValueError(
            f"{settings.adapter}: {HOLD_FILE} beside it says that hold folded a bias of "
            f"{bias:+.2f} into this adapter, but {error}. Give the adapter as the training left it."
        ) from None
    logger.info("%s: the bias of %+.2f that hold folded in is taken out", settings.adapter, bias)
    return change, {"bias_taken_out": bias}


def held_bias(adapter: str) -> float:
    """The bias in logits that `hold` folded into an adapter, as its run folder says; 0 if none."""
    file = Path(adapter).expanduser().resolve().parent / HOLD_FILE
    return float(read_state(file, ("bias",))["bias"]) if file.is_file() else 0.0


def openers_down(openers: tuple[int, ...]) -> FirstLogits:
    """One nat less for each opener at the first position: tokens (n,), values (1, n)."""
    import torch

    return FirstLogits(torch.tensor(openers), torch.full((1, len(openers)), -1.0))
