"""TSDI: what safety training adds to the logits of any text is subtracted at the first positions of
a response.

    {name: debias}                             # with `reference` in the recipe
    {name: debias, strengths: [0.5], positions: 4}

Tran et al. (2025, token-level safety-debiased inference, arXiv 2502.02153). For N prompts and
responses of random tokens,

    bias[t] = mean of (logits of the model - logits of the reference) at response position t < L

is (L, V), in nats, and decoding uses logits - alpha bias[t] while t < L. The reference is the model
before its safety training, with the same vocabulary. The tokens are drawn evenly from all that are
not control tokens (the paper draws from a pool). A constant over the vocabulary changes nothing, so
bias[t] is stored with mean 0. N, L and the number of prompt tokens are ours; alpha is chosen on the
dev prompts.

A model that can refuse late in a response, as DeRTa trains it, loses that at the first L positions:
measure it under attacks too. It can be served only where this program runs the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.compared import equal_weights
from overrefusal_po.model.remedy import FirstLogits, Form, Remedy
from overrefusal_po.records import Message
from overrefusal_po.remedies import Anchors, Candidate, Subject
from overrefusal_po.remedies._strengths import Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.chat import ChatTemplate

FORM: Form = "logits"
NEEDS_REFERENCE = True

MARK = "\u2402random\u2403"
"""A text that no template contains."""

BATCH = 16


class Settings(BaseModel):
    """How much of the bias is subtracted, where, and from how many random prompts it is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    strengths: tuple[Strength, ...] = Field(default=(0.25, 0.5, 1.0), min_length=1)
    """Alphas to try: shares of the bias that are subtracted."""
    positions: int = Field(default=8, ge=1, le=64)
    """L: how many tokens of a response, from the first, are drawn with other logits."""
    samples: int = Field(default=96, ge=1)
    """N: random prompts."""
    prompt_tokens: int = Field(default=16, ge=1)
    """Random tokens in each of them."""


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """One candidate a strength, in their order. No prompt is read. ValueError if the model and its
    reference have equal weights."""
    import torch

    sides = subject.model, subject.reference()
    if equal_weights(*(dict(model.named_parameters()) for model in sides)):
        raise ValueError(
            "The model and its reference have equal weights, but for rounding, so safety training "
            "added nothing to the logits. Give the model before its safety training as `reference`."
        )
    rows = random_rows(settings, subject.template, subject.seed)
    bias = centred_difference(*(mean_logits(model, rows, settings.positions) for model in sides))
    change = FirstLogits(torch.arange(bias.shape[1]), -bias)
    top = bias.argmax(-1).tolist()
    facts: dict[str, object] = {
        "greatest_bias": [round(float(value), 4) for value in bias.amax(-1)],
        "its_token": [str(subject.template.tokenizer.decode([token])) for token in top],
    }
    return [Candidate(Remedy("debias", change, alpha), facts) for alpha in settings.strengths]


def centred_difference(aligned: Tensor, reference: Tensor) -> Tensor:
    """(L, V) aligned - reference, with mean 0 over the vocabulary."""
    step = aligned - reference
    return step - step.mean(-1, keepdim=True)


def random_rows(settings: Settings, template: ChatTemplate, seed: int) -> Tensor:
    """(N, T) ids: the template around `prompt_tokens` random tokens, and L - 1 random tokens of a
    response."""
    import torch

    tokenizer = template.tokenizer
    text = template.prompt_text((Message(role="user", content=MARK),))
    head, _, tail = text.rpartition(MARK)
    before, behind = (
        torch.tensor(tokenizer(part, add_special_tokens=False)["input_ids"]).long()
        for part in (head, tail)
    )
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    pool = torch.tensor([i for i in range(len(tokenizer)) if i not in control])
    draw = torch.Generator().manual_seed(seed)
    size = settings.prompt_tokens + settings.positions - 1
    drawn = pool[torch.randint(len(pool), (settings.samples, size), generator=draw)]
    prompts, responses = drawn.split([settings.prompt_tokens, settings.positions - 1], 1)
    frame = [part.expand(settings.samples, -1) for part in (before, behind)]
    return torch.cat([frame[0], prompts, frame[1], responses], 1)


def mean_logits(model: PreTrainedModel, rows: Tensor, positions: int) -> Tensor:
    """(L, V) the mean logits over the rows at the last L places, float32 on the CPU: they predict
    the response's first L tokens."""
    import torch

    model.eval()
    total = torch.zeros(())
    with torch.inference_mode():
        for batch in rows.split(BATCH):
            given = batch.to(model.device)
            found = model(input_ids=given, use_cache=False, logits_to_keep=positions).logits
            total = total + found.float().sum(0).cpu()
    return total / len(rows)
