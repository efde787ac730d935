"""Gated steering: a step away from refusal in the residual stream, for the prompts that a gate
takes for harmless.

    {name: steering}
    {name: steering, strengths: [0.1], against: benign, gate: none}

Cao et al. (2024, SCANS, arXiv 2408.11491). Behind each block l in the middle of the
model, x <- x + s a m v_l at the positions behind the user's text and at every generated token.
v_l = unit(mean of h_l over harmful prompts - the same over ordinary ones that the model answers),
h_l the state behind block l at the prompt's last token. s is -1 for a prompt that the gate takes
for harmless. The paper has s = +1 for the others; here they stay as they are, since a step forward
can only add refusals. The paper gives a step in absolute units, tuned for two models. Here m is the
norm of the mean state of these ordinary prompts, and a is chosen on the dev prompts.

The paper's gate compares cosines with a threshold that was tuned on each test set. Ours is a probe
(`_gate.py`). It can be served only where this program runs the model: it decides for each prompt.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from overrefusal_po.model.blocks import blocks
from overrefusal_po.model.remedy import Form, Gate, Remedy, Steering
from overrefusal_po.records import Message
from overrefusal_po.remedies import Anchors, Candidate, Subject
from overrefusal_po.remedies._directions import answered, mean_step, unit
from overrefusal_po.remedies._gate import fit_gate
from overrefusal_po.remedies._strengths import Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.chat import ChatTemplate

FORM: Form = "hooks"

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of a model's depth."""

MARK = "\u2402user\u2403"
"""A text that no template contains."""


class Settings(BaseModel):
    """How far a state is moved away from refusal, where, and for which prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    strengths: tuple[Strength, ...] = Field(default=(0.05, 0.1, 0.2), min_length=1)
    """Lengths of the step to try, as shares of the norm of the mean state of ordinary prompts that
    are answered."""
    layers: tuple[Share, Share] = (0.3, 0.6)
    """The blocks that are steered, as shares of the depth: from the first, up to the second without
    it."""
    against: Literal["ordinary", "benign"] = "ordinary"
    """Which harmless prompts the harmful ones are compared with for the direction."""
    gate: Literal["probe", "none"] = "probe"
    """A probe that leaves harmful prompts alone, or none: then every prompt is steered."""

    @field_validator("layers")
    @classmethod
    def layers_rise(cls, layers: tuple[float, float]) -> tuple[float, float]:
        """The second share is above the first."""
        if layers[0] >= layers[1]:
            raise ValueError("give two rising shares of the depth, such as [0.3, 0.6]")
        return layers


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises ValueError if a model has no block between the two shares."""
    steered_layers(len(blocks(model)), settings.layers)


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """Each strength behind each gate to try, the smallest strength and the strictest gate first.

    Candidates of one strength share their change and differ by the gate's threshold alone. So a
    dev prompt says the same in all whose gate lets it through.
    """
    states = subject.states(train.harmful)  # (N, layers, D)
    kept = answered(subject, train.ordinary)
    ordinary = subject.states(kept)
    layers = steered_layers(states.shape[1], settings.layers)
    benign = settings.against == "benign"
    step = mean_step(states, subject.states(train.benign) if benign else ordinary)
    size = mean_size(ordinary, layers)
    vectors = stacked([-size * unit(step[layer]) for layer in layers])
    change = Steering(layers, vectors, tail_of(subject.template))
    facts: dict[str, object] = {
        "layers": list(layers),
        "step_unit": size,
        "tail": change.tail,
        "ordinary_answered": f"{len(kept)} of {len(train.ordinary)}",
    }
    gates: list[tuple[Gate | None, dict[str, object]]] = [(None, {})]
    if settings.gate == "probe":
        found = fit_gate(subject, train, dev)
        gates = [(gate, found.facts(gate)) for gate in found.gates(subject.tolerance)]
    return [
        Candidate(Remedy("steering", change, strength, gate), {**facts, **known})
        for strength in settings.strengths
        for gate, known in gates
    ]


def steered_layers(depth: int, shares: tuple[float, float]) -> tuple[int, ...]:
    """The blocks from the first share of the depth up to the second: 10 to 19 of 32 for .3 and .6.

    ValueError if there is none.
    """
    first, end = (math.ceil(round(share * depth, 6)) for share in shares)
    if not 0 <= first < end <= depth:
        raise ValueError(
            f"layers is [{shares[0]}, {shares[1]}], which are no blocks of a model with {depth}. "
            "Give two rising shares of the depth, such as [0.3, 0.6]."
        )
    return tuple(range(first, end))


def mean_size(states: Tensor, layers: tuple[int, ...]) -> float:
    """The norm of the mean state (N, layers, D), averaged over these layers."""
    return float(states.float().mean(0)[list(layers)].norm(dim=-1).mean())


def stacked(vectors: list[Tensor]) -> Tensor:
    """(n, D)."""
    import torch

    return torch.stack(vectors)


def tail_of(template: ChatTemplate) -> int:
    """How many tokens of a prompt stand behind the user's text: the end of the turn and what opens
    the assistant's. At least 1. A token that holds both counts as the text's, if it is not the
    last."""
    text = template.prompt_text((Message(role="user", content=MARK),))
    behind = text.rindex(MARK) + len(MARK)
    encoded = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans: list[tuple[int, int]] = encoded["offset_mapping"]
    return max(1, sum(start >= behind for start, _ in spans))
