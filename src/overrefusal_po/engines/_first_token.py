"""Prompts -> how near a response is to opening with one of some tokens; and an engine that has
responses open with them, or never.

for prompt, log_odds, margin in opener_scores(engine, prompts, [2121]):
    ...
without_openers(engine, [2121]).complete(prompts, sampling)
other_decision(engine, [2121], opens=True)      # the same; with False every response opens so
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.engines._batches import in_parts, response_tokens
from overrefusal_po.engines._first_states import FirstStates
from overrefusal_po.model import generation
from overrefusal_po.model.decoding import own_loop_serves
from overrefusal_po.model.finite import FiniteLogits
from overrefusal_po.model.opener_bias import above_others
from overrefusal_po.records import Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from overrefusal_po.engines.transformers import TransformersEngine


class OpenerScore(NamedTuple):
    """How near the response to a prompt is to opening with one of some tokens.

    `log_odds` is log P - log(1 - P). P is the probability that its first token is one of them: the
    sum of their softmax over the model's logits at the last position of the prompt. `margin` is by
    how much the best of them lies above the best other token, in logits: a greedy response opens so
    if it is above 0.
    """

    prompt: Prompt
    log_odds: float
    margin: float


def opener_scores(
    engine: TransformersEngine,
    prompts: Sequence[Prompt],
    openers: Sequence[int],
    *,
    had: Container[str] = frozenset(),
    answered: Sequence[Prompt] = (),
) -> Iterator[OpenerScore]:
    """The score of each prompt whose id is not in `had`, longest prompts first.

    The logits are the model's own, before temperature and any other setting of generation. If
    `complete` kept what the output layer read (`engine.first_states`), the prompts are not read
    again.

    Batches are planned over all prompts, and over those that `complete` has `answered` beside them.
    A resumed run reads the same batches in the same way, so its numbers are equal to the last bit.
    """
    asked = {prompt.id for prompt in prompts}
    every = {prompt.id: prompt for prompt in (*answered, *prompts)}.values()
    inputs = sorted(((p, engine.input_text(p)) for p in every), key=lambda row: -len(row[1]))
    for start in range(0, len(inputs), engine.batch_size):
        batch = inputs[start : start + engine.batch_size]
        wanted = [(prompt, text) for prompt, text in batch if prompt.id in asked]
        if all(prompt.id in had for prompt, _ in wanted):
            continue
        logits = kept_logits(engine, batch, [prompt.id for prompt, _ in wanted])
        if logits is None:
            logits = first_logits(engine, [text for _, text in wanted])
        margins = above_others(logits.float(), openers)
        rows = zip(wanted, log_odds(logits, openers).tolist(), margins.tolist(), strict=True)
        yield from (OpenerScore(p, odds, by) for (p, _), odds, by in rows if p.id not in had)


def kept_logits(
    engine: TransformersEngine, batch: Sequence[tuple[Prompt, str]], wanted: Sequence[str]
) -> Tensor | None:
    """(B, V): the logits of the first tokens of `wanted` (ids), from what `complete` kept of their
    batch, which is read again if it did not come to that. None if one cannot be kept."""
    states = engine.first_states
    if states is None or engine.continuous_batching:
        return None
    if not states.seen.issuperset(wanted):
        states.wanted.update(wanted)
        read_again(engine, batch, states)
    if not all(one in states for one in wanted):
        return None
    return states.logits(engine.model, wanted)


def read_again(
    engine: TransformersEngine, batch: Sequence[tuple[Prompt, str]], states: FirstStates
) -> None:
    """Reads a batch of (prompt, text) as `complete` does, which only then gives the same bits: our
    own loop reads what all prompts begin with once."""
    config = generation.generation_config(engine.options(Sampling(max_new_tokens=1)))
    if not own_loop_serves(engine.model, config):
        return

    def read(part: Sequence[tuple[Prompt, str]]) -> list[list[int]]:
        keeper = states.keeper([prompt.id for prompt, _ in part])
        inputs = engine.padded([text for _, text in part])
        return response_tokens(engine.model, inputs, config, name=engine.name, first_seen=keeper)

    for _ in in_parts(batch, engine.at_once, read):
        pass


def without_openers(engine: TransformersEngine, tokens: Sequence[int]) -> TransformersEngine:
    """An engine with the same weights, whose responses begin with none of `tokens` (ids).

    The user's own `begin_suppress_tokens` stay. It decodes in plain batches: continuous batching
    puts many responses into one row, and transformers then does not know which token is a first.
    """
    found = copy.copy(engine)
    own = engine.settings.get("begin_suppress_tokens") or ()
    assert isinstance(own, Sequence), "transformers takes nothing else"
    found.settings = {**engine.settings, "begin_suppress_tokens": sorted({*own, *tokens})}
    found.continuous_batching = False
    found.first_states = None
    return found


def other_decision(
    engine: TransformersEngine, openers: Sequence[int], *, opens: bool
) -> TransformersEngine:
    """The engine for prompts whose responses do or do not open with one of `openers` (ids): with it
    they do the other thing."""
    if opens:
        return without_openers(engine, openers)
    head = engine.model.get_output_embeddings()
    assert head is not None, "a model that writes has one"
    allowed = set(openers)
    every = range(len(next(head.parameters())))
    return without_openers(engine, [token for token in every if token not in allowed])


def first_logits(engine: TransformersEngine, texts: list[str]) -> Tensor:
    """(B, V): the logits of the first token behind each text. NotFiniteError if one is NaN."""
    import torch

    inputs = engine.padded(texts)
    # a greedy step of `generate`: it makes the position ids that left padding needs, and asks the
    # model for the logits of the last position alone
    options = engine.options(Sampling(max_new_tokens=1))
    asked = {**options, "return_dict_in_generate": True, "output_logits": True}
    config = generation.generation_config(asked)
    watch = FiniteLogits(engine.name)
    with torch.inference_mode(), generation.generating_by(engine.model, config):
        # transformers does not annotate `generate`
        found = engine.model.generate(  # type: ignore[operator]
            **inputs, generation_config=config, logits_processor=[watch]
        )
    watch.check()
    logits: Tensor = found.logits[0]
    return logits


def log_odds(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """(B,): log P - log(1 - P) in float32, P being the softmax (B, V) summed over `tokens`."""
    import torch

    meant = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    meant[list(tokens)] = True
    logits = logits.float()
    # the normaliser falls out, so P near 0 or 1 loses no digits
    return logits[:, meant].logsumexp(-1) - logits[:, ~meant].logsumexp(-1)
