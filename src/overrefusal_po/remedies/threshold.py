"""Threshold: a constant off the logits of the tokens that open refusals, at the first position.

It moves a model along its own curve of refusals and answers, and costs nothing. So it is the rival
that every other remedy has to beat. `as_weights` folds the constant into the last layer, so that
plain weights are left (`model.opener_bias`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.remedy import Deltas, FirstLogits, Form, Remedy
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import Anchors, Candidate, NoRemedy, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from overrefusal_po.model.remedy import Change

TEXTS = 128
"""Prompts of each kind whose responses show the bias where a response begins, at most."""


class Settings(BaseModel):
    """Strengths are given by what they give up, since logits differ from model to model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5), min_length=1
    )
    """Each strength lets this share of the harmful dev prompts that are refused open in another
    way. They may be refused all the same."""
    as_weights: bool = False
    """Fold the constant into the weights of the last layer. It is then about a constant."""


def form(settings: Settings) -> Form:
    """Plain weights if it is folded in."""
    return "weights" if settings.as_weights else "logits"


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """A candidate for each share, the smallest first."""
    import numpy as np

    margins = opener_margins(subject, dev.harmful)
    refused = margins[margins > 0]
    if not len(refused):
        raise NoRemedy(
            "No harmful dev prompt's response opens with a token that opens refusals, so a "
            "constant on these tokens decides nothing."
        )
    change = (weights_change if settings.as_weights else logits_change)(subject, train)
    strengths = [float(np.quantile(refused.numpy(), drop)) for drop in sorted(settings.drops)]
    facts = {"openers": [str(subject.template.tokenizer.decode([i])) for i in subject.openers()]}
    return [Candidate(Remedy("threshold", change, -size), facts) for size in strengths]


def opener_margins(subject: Subject, prompts: Sequence[Prompt]) -> Tensor:
    """(N,): by how much the best opener's logit is above the best other's."""
    import torch

    found = subject.first_log_probs(prompts).clone()
    openers = list(subject.openers())
    best = found[:, openers].amax(-1)
    found[:, openers] = -torch.inf
    return best - found.amax(-1)


def logits_change(subject: Subject, train: Anchors) -> Change:
    """One logit on each opener, at the first position of a response."""
    import torch

    openers = torch.tensor(subject.openers())
    return FirstLogits(openers, torch.ones(1, len(openers)))


def weights_change(subject: Subject, train: Anchors) -> Change:
    """About one logit on the openers, as a change of rank 1 of the last layer's down projection.
    ValueError for a model that has no place for it."""
    from overrefusal_po.model.opener_bias import TextIds, bias_site, first_states, opener_bias

    try:
        site = bias_site(subject.model)
    except ValueError:
        raise ValueError(
            f"as_weights: no constant can be folded into a {type(subject.model).__name__}, whose "
            "last layer is built otherwise. Take as_weights out."
        ) from None
    tokenizer, template = subject.template.tokenizer, subject.template
    prompts = [*train.harmful[:TEXTS], *train.benign[:TEXTS]]
    texts = []
    for outcome in subject.outcomes(prompts):
        prompt = outcome.prompt
        asked = template.prompt_ids(prompt.messages, prompt.assistant_prefix)
        said = tokenizer(outcome.completion.text, add_special_tokens=False)["input_ids"]
        texts.append(TextIds(asked, said))
    states = first_states(subject.model, site, texts, batch_size=16)
    bias = opener_bias(subject.model, site, states, subject.openers())
    # Granite scales what a layer adds
    gain = getattr(subject.model.config, "residual_multiplier", 1.0)
    return Deltas({site.down: bias.position[None]}, {site.down: (bias.direction / gain)[:, None]})
