"""The false-refusal vector is taken out of everything that the model writes into its residual
stream.

    {name: ablation}
    {name: ablation, protect: 0.8, max_divergence: 0.1}

Wang et al. (2025, "Surgical, Cheap, and Flexible", arXiv 2410.03415). For each layer l
with h_l, the state (D,) behind it at the prompt's last token:

    r = mean of h over harmful prompts - the same over answered ones       (true refusal)
    w = mean of h over over-refused prompts - the same over answered ones  (false refusal)
    v = unit(w - protect * (w.r / r.r) r)

Over-refused are benign prompts with a refusal score above 0: log P - log(1 - P), in nats, P the
probability that the response opens as the model's own refusals do. Answered are ordinary prompts
with one below 0 (ours: a model that refuses nearly everything refuses ordinary prompts too, and r
and w would be one direction). One layer's v is chosen on the dev prompts and applied at all layers:
x <- x - c (x.v) v. In weights that is W - c v (v^T W) for each matrix that writes into the stream,
an adapter of rank 1. The embedding is left out: where it is tied to the output head, an edit of one
would change the other. Biases are left out too.

The choice is the paper's, with one condition more (ours). Least is the mean refusal score of
over-refused dev prompts, among the layers below 0.8 of the depth. The mean KL divergence of the
first token on ordinary prompts may be at most `max_divergence`. The mean refusal score of harmful
dev prompts may fall by 1 at most. If nothing is left that helps, no direction was found: small
models may have none, since there w and r are nearly the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.blocks import writers
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Deltas, Form, Remedy
from overrefusal_po.remedies import Anchors, Candidate, NoRemedy, Subject
from overrefusal_po.remedies._directions import (
    answered,
    cosine,
    divergence,
    mean_step,
    over_refused,
    unit,
    without,
)
from overrefusal_po.remedies._strengths import Strength

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel

FORM: Form = "weights"

CHOSEN_ON = 32
"""Dev prompts of each kind that a layer is chosen on."""

DEPTH = 0.8
"""Layers from this share of the depth on are no candidates: they are near the output."""

MAY_FALL = 1.0
"""Nats by which the mean refusal score of harmful prompts may fall."""


class Settings(BaseModel):
    """What is taken out of the residual stream, and how much ordinary prompts may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    protect: float = Field(default=1.0, ge=0, le=1)
    """How much of the direction of true refusal stays in the stream (lambda of the paper). 0
    protects nothing."""
    strengths: tuple[Strength, ...] = Field(default=(0.5, 1.0), min_length=1)
    """Shares of the direction that are taken out."""
    max_divergence: float = Field(default=0.2, gt=0)
    """The mean KL divergence, in nats, that ordinary prompts may have at their first token."""


class Measured(NamedTuple):
    """What a whole ablation of one layer's direction does on the dev prompts.

    Attributes:
        layer: whose direction it is.
        cosine: between r and w.
        divergence: mean KL on ordinary prompts, in nats.
        over_refused: mean refusal score of over-refused prompts, in nats.
        harmful: mean refusal score of harmful prompts, in nats.
    """

    layer: int
    cosine: float
    divergence: float
    over_refused: float
    harmful: float


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """The chosen direction at each strength. NoRemedy that begins with "no direction found" if no
    layer holds the conditions and lowers the refusal score. Also NoRemedy for a model whose weights
    cannot be edited: norms behind its matrices, experts, 4 bits. ValueError without ordinary dev
    prompts."""
    writers(subject.model)  # before the prompts are read
    if not dev.ordinary:
        raise ValueError(
            "Ablation is chosen by ordinary dev prompts too, which it may hardly change; there are "
            "none. Name sets that have some (data.choose.sets), such as starter."
        )
    asked = Anchors(*(part[:CHOSEN_ON] for part in dev))
    asked = asked._replace(benign=over_refused(subject, dev.benign)[:CHOSEN_ON])
    ordinary = answered(subject, train.ordinary)
    found = directions(settings, subject, train._replace(ordinary=ordinary))
    before = scores(subject, asked)
    tried = [
        measured(subject, asked, change_of(subject.model, v), layer, cos)
        for layer, (v, cos) in enumerate(found)
    ]
    best = chosen(tried, before, settings.max_divergence)
    change = change_of(subject.model, found[best.layer][0])
    facts: dict[str, object] = {
        "layer": best.layer,
        "ordinary_answered": f"{len(ordinary)} of {len(train.ordinary)}",
        "cosine_true_false": best.cosine,
        "divergence": best.divergence,
        "over_refused_score": [before[0], best.over_refused],
        "harmful_score": [before[1], best.harmful],
        "layers_tried": [row._asdict() for row in tried],
        "left_out": "the embedding, and biases",
    }
    return [Candidate(Remedy("ablation", change, c), facts) for c in settings.strengths]


def directions(settings: Settings, subject: Subject, train: Anchors) -> list[tuple[Tensor, float]]:
    """(v (D,) of length 1, the cosine between r and w) of each layer that is a candidate."""
    ordinary = subject.states(train.ordinary)
    r = mean_step(subject.states(train.harmful), ordinary)  # (layers, D)
    w = mean_step(subject.states(over_refused(subject, train.benign)), ordinary)
    layers = range(math.ceil(round(DEPTH * len(r), 6)))
    return [
        (unit(without(w[layer], r[layer], settings.protect)), cosine(r[layer], w[layer]))
        for layer in layers
    ]


def change_of(model: PreTrainedModel, v: Tensor) -> Deltas:
    """W - v (v^T W) for each matrix W (D, inputs) that writes into the stream: A = v^T W
    (1, inputs), B = -v (D, 1)."""
    down, up = {}, {}
    for path in writers(model):
        weight = cast("Linear", model.get_submodule(path)).weight
        if not weight.is_floating_point():
            raise NoRemedy(
                f"{path} is quantised, so a direction cannot be taken out of it. Load the model in "
                "16 bits (model.load_in_4bit: false)."
            )
        down[path] = (v.to(weight.device) @ weight.detach().float())[None].cpu()
        up[path] = -v[:, None]
    return Deltas(down, up)


def scores(subject: Subject, asked: Anchors) -> tuple[float, float]:
    """The mean refusal scores of over-refused and of harmful prompts, in nats."""
    parts = (asked.benign, asked.harmful)
    benign, harmful = (float(subject.opener_log_odds(part).mean()) for part in parts)
    return benign, harmful


def measured(subject: Subject, asked: Anchors, change: Deltas, layer: int, cos: float) -> Measured:
    """A layer's direction on the dev prompts."""
    before = subject.first_log_probs(asked.ordinary)
    with remedied(subject.model, Remedy("ablation", change)):
        after = subject.first_log_probs(asked.ordinary)
        benign, harmful = scores(subject, asked)
    return Measured(layer, cos, float(divergence(before, after).mean()), benign, harmful)


def chosen(tried: Sequence[Measured], before: tuple[float, float], limit: float) -> Measured:
    """The layer that lowers the score of over-refused prompts most, among those that hold both
    conditions. NoRemedy if none does."""
    held = [
        row
        for row in tried
        if row.divergence <= limit
        and row.harmful >= before[1] - MAY_FALL
        and row.over_refused < before[0]
    ]
    if held:
        return min(held, key=lambda row: row.over_refused)
    least = min(tried, key=lambda row: row.over_refused)
    raise NoRemedy(
        f"no direction found: of {len(tried)} layers, none lowers the refusal score of "
        f"over-refused prompts ({before[0]:.2f} nats), changes ordinary prompts by at most {limit} "
        f"nats, and lowers that of harmful prompts ({before[1]:.2f}) by at most {MAY_FALL:.0f}. "
        f"Layer {least.layer} lowers it most, to {least.over_refused:.2f}; there the divergence is "
        f"{least.divergence:.2f}, the harmful score {least.harmful:.2f}, and the cosine between "
        f"true and false refusal {least.cosine:.2f}. This model has no false refusal apart from "
        "the true one that could be taken out."
    )
