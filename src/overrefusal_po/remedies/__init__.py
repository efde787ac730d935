"""Remedies: a model and prompts -> changes of the model that may give answers back. A file here is
a remedy; its name is its name in a recipe.

A remedy file, or a module of your own, defines:

    class Settings(BaseModel):
        strengths: tuple[float, ...] = (0.5, 1.0)

    def fit(settings, subject, train, dev):
        step = subject.states(train.harmful).mean(0) - subject.states(train.ordinary).mean(0)
        ...
        return [Candidate(Remedy("mine", change, strength)) for strength in settings.strengths]

The stage `fit` measures every candidate on the dev prompts. It keeps the one that answers most
harmless prompts and refuses about as much harm as the model without a remedy.

A file may say more, so that a recipe can be checked before anything is fitted:

    FORM = "weights"            # what every remedy of it is; or form(settings), if settings decide
    NEEDS_REFERENCE = True      # it asks for subject.reference(), of the model's architecture
    COMPARES_WEIGHTS = True     # it reads the weights of both, so neither may be quantised
    def check(settings): ...    # ValueError for what is wrong before any weight is loaded
    def check_model(settings, model): ...  # the same by a model that has no weights yet

Neither reads settings that begin with `@`: an earlier stage makes those files. An UnfitModel of
`check_model` stops nothing, since no other setting would fit: the fit ends with that reason.

This file says what a file of this room defines. It imports records and `model.remedy` alone, so
that any room may name these types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from pydantic import BaseModel

from overrefusal_po.model.remedy import Form, Remedy
from overrefusal_po.records import Outcome, Prompt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.chat import ChatTemplate


class Anchors(NamedTuple):
    """Prompts that a remedy is fitted on or chosen by."""

    harmful: Sequence[Prompt]
    benign: Sequence[Prompt]
    """Harmless, but they sound dangerous."""
    ordinary: Sequence[Prompt]


class Candidate(NamedTuple):
    """A remedy to try, and what its fit says about it: {name: number, text or list} (the gate's
    AUC, the KL divergence on ordinary prompts)."""

    remedy: Remedy
    facts: Mapping[str, object] = {}


class NoRemedy(Exception):
    """A remedy finds nothing to change on this model, or cannot work on it; the message says why.
    It is a result: the run keeps none, and a pipeline goes on. `model.blocks.UnfitModel` ends a fit
    in the same way."""


class Subject(Protocol):
    """The model that is fitted on. What it was asked before is not computed again."""

    tolerance: float
    """How far harmful_refused may fall on the dev prompts."""
    seed: int
    """Decides what a fit draws."""

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model, in eval mode on its device."""

    @property
    def template(self) -> ChatTemplate:
        """Its chat template and tokenizer."""

    def states(self, prompts: Sequence[Prompt], suffix: str = "") -> Tensor:
        """(N, layers, D): the residual stream behind each block at the last token of each rendered
        prompt, followed by `suffix`; float32, on the CPU."""

    def outcomes(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        """What the model says to each prompt, greedy, and the judge's verdict on it."""

    def openers(self) -> tuple[int, ...]:
        """The ids of the tokens that open the model's own refusals (run.openers). NoRemedy if there
        are none, or if the model thinks first."""

    def opener_log_odds(self, prompts: Sequence[Prompt]) -> Tensor:
        """(N,): log P - log(1 - P), P the probability that a response opens with one of `openers`:
        the refusal score. With whatever remedy is on the model."""

    def first_log_probs(self, prompts: Sequence[Prompt]) -> Tensor:
        """(N, V): the log-probabilities of the response's first token, float32, on the CPU."""

    def reference(self) -> PreTrainedModel:
        """The model before its safety training (`reference` of the recipe). ValueError if the
        recipe names none."""


class RemedyPlug(Protocol):
    """What a file of this room defines."""

    Settings: type[BaseModel]
    """The recipe keys of the remedy."""

    # Any: each file takes the Settings that it defines itself
    def fit(self, settings: Any, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
        """The candidates, plainest first. NoRemedy if there is nothing to change on this model, or
        if the remedy cannot work on it; ValueError for a fault of the recipe. The message says
        why."""


def check_settings(module: object, settings: BaseModel) -> None:
    """Raises ValueError for settings that a plug knows to be wrong before any weight is loaded."""
    if hasattr(module, "check"):
        module.check(settings)


def form_of(module: object, settings: BaseModel) -> Form | None:
    """The form that every remedy of a plug has with these settings; None if only a fit tells."""
    if hasattr(module, "form"):
        return cast("Form", module.form(settings))
    return cast("Form | None", getattr(module, "FORM", None))
