"""Threshold: a constant off the logits of the tokens that open refusals, at the first position.

It moves a model along its own curve of refusals and answers, and costs nothing. So it is the rival
that every other remedy has to beat. `as_weights` folds the constant into the last layer, so that
plain weights are left (`model.opener_bias`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.blocks import UnfitModel
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Deltas, FirstLogits, Form, Remedy
from overrefusal_po.records import Outcome, Prompt
from overrefusal_po.remedies import Anchors, Candidate, NoRemedy, Subject

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.opener_bias import FirstStates, Site, TextIds
    from overrefusal_po.model.remedy import Change

TEXTS, BATCH = 128, 16
"""Prompts of each kind whose responses show where a response begins, at most; texts of a batch."""

LIMIT = 16.0
"""The greatest constant in weights, in logits."""

BARRED = -100.0
"""A constant with which no response begins with an opener."""


class Settings(BaseModel):
    """Strengths are given by what they change, since logits differ from model to model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.1, 0.2, 0.35, 0.5, 0.7, 0.95), min_length=1
    )
    """Each strength makes this share of the refused harmless dev prompts open in another way. They
    may be refused all the same."""
    as_weights: bool = False
    """Fold the constant into the weights of the last layer. It is then about a constant."""


def form(settings: Settings) -> Form:
    """Plain weights if it is folded in."""
    return "weights" if settings.as_weights else "logits"


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises ValueError if the constant is to be folded into a model that has no place for it."""
    try:
        if settings.as_weights:
            weights_site(model)
    except UnfitModel as error:
        raise ValueError(str(error)) from None  # another setting fits this model


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """A candidate for each share, the smallest first."""
    import numpy as np

    found = (in_weights if settings.as_weights else in_logits)(subject, train, dev)
    if not len(found.points):
        raise NoRemedy(
            "No response to a harmless dev prompt opens with a token that opens refusals, so a "
            "constant on these tokens gives nothing back."
        )
    sizes = [float(np.quantile(found.points.numpy(), share)) for share in sorted(settings.shares)]
    facts = {"openers": [str(subject.template.tokenizer.decode([i])) for i in subject.openers()]}
    return [Candidate(Remedy("threshold", found.change, -size), facts) for size in sizes]


class Constant(NamedTuple):
    """A constant of one logit as a change of a model.

    Attributes:
        change: the change.
        points: (N,) by how much it has to be lowered until each of the refused harmless dev prompts
            opens in another way.
    """

    change: Change
    points: Tensor


def in_logits(subject: Subject, train: Anchors, dev: Anchors) -> Constant:
    """The constant on the logits of the first position."""
    margins = opener_margins(subject, dev.benign)
    return Constant(logits_change(subject), margins[margins > 0])


def logits_change(subject: Subject) -> Change:
    """One logit on each opener, at the first position of a response."""
    import torch

    openers = torch.tensor(subject.openers())
    return FirstLogits(openers, torch.ones(1, len(openers)))


def opener_margins(subject: Subject, prompts: Sequence[Prompt]) -> Tensor:
    """(N,): by how much the best opener's logit is above the best other's."""
    from overrefusal_po.model.opener_bias import above_others

    return above_others(subject.first_log_probs(prompts), subject.openers())


def in_weights(subject: Subject, train: Anchors, dev: Anchors) -> Constant:
    """About the constant, as a change of rank 1 of the last layer's down projection. UnfitModel for
    a model that has no place for it."""
    from overrefusal_po.model.opener_bias import flip_points, opener_bias

    site = weights_site(subject.model)
    openers, model = subject.openers(), subject.model
    states = states_of(subject, site, [*train.harmful[:TEXTS], *train.benign[:TEXTS]])
    bias = opener_bias(model, site, states, openers)
    here = states_of(subject, site, dev.benign)
    flips = flip_points(model, site, here, bias, openers, limit=LIMIT)
    # Granite scales what a layer adds
    up = bias.direction / getattr(model.config, "residual_multiplier", 1.0)
    change = Deltas({site.down: bias.position[None]}, {site.down: up[:, None]})
    return Constant(change, -flips[(flips < 0) & flips.isfinite()])


def weights_site(model: PreTrainedModel) -> Site:
    """Where the constant goes; it reads names alone. UnfitModel for a model without a place."""
    from overrefusal_po.model.opener_bias import bias_site

    try:
        return bias_site(model)
    except UnfitModel as error:
        raise UnfitModel(f"as_weights: {error}. Take as_weights out.") from None


def states_of(subject: Subject, site: Site, prompts: Sequence[Prompt]) -> FirstStates:
    """The last layer's states where the responses to these prompts begin, and elsewhere.

    Elsewhere is behind both decisions, what the model says and what it says without its openers:
    the constant may not go on there.
    """
    from overrefusal_po.model.opener_bias import first_states

    texts = [text_ids(subject, outcome) for outcome in subject.outcomes(prompts)]
    with remedied(subject.model, Remedy("barred", logits_change(subject), BARRED)):
        texts += [text_ids(subject, outcome) for outcome in subject.outcomes(prompts)]
    return first_states(subject.model, site, texts, batch_size=BATCH, firsts=len(prompts))


def text_ids(subject: Subject, outcome: Outcome) -> TextIds:
    """The token ids of a prompt and of what was said to it."""
    from overrefusal_po.model.opener_bias import TextIds

    template, prompt = subject.template, outcome.prompt
    said = template.tokenizer(outcome.completion.text, add_special_tokens=False)["input_ids"]
    return TextIds(template.prompt_ids(prompt.messages, prompt.assistant_prefix), said)
