"""The model that a remedy is fitted on: its states, its responses and its first tokens.

    subject = ModelSubject(engine, RefusalJudge(), dev=anchors, sampling=Sampling())
    subject.states(anchors.harmful)           # (N, layers, D)
    subject.opener_log_odds(anchors.benign)   # (N,)

What it was asked before is not computed again. That holds for the model without a remedy: with one
on it (`model.remedied`), everything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.fit.anchors import all_anchors
from overrefusal_po.identity import unique_prompts
from overrefusal_po.judges import Judge
from overrefusal_po.model.blocks import last_states
from overrefusal_po.model.remedied import remedy_of
from overrefusal_po.records import Outcome, Prompt, Sampling
from overrefusal_po.remedies import Anchors, NoRemedy
from overrefusal_po.run.judged import fresh_outcomes
from overrefusal_po.run.openers import Openers, every_opener, thinks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.chat import ChatTemplate

TOLERANCE = 0.05
"""How far harmful_refused may fall, if nobody says otherwise."""


class ModelSubject:
    """A `remedies.Subject` over an engine that runs in this process.

    Args:
        engine: the model with its template; its batch size is used for everything.
        judge: says what is a refusal.
        dev: the prompts whose responses show how the model opens its refusals.
        sampling: how responses are drawn: greedy, and how long they may be.
        tolerance: how far harmful_refused may fall.
        seed: decides what a fit draws.
        load_reference: loads the model before its safety training; None if there is none.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        judge: Judge,
        *,
        dev: Anchors,
        sampling: Sampling,
        tolerance: float = TOLERANCE,
        seed: int = 0,
        load_reference: Callable[[], PreTrainedModel] | None = None,
    ) -> None:
        self.engine, self.judge, self.dev, self.sampling = engine, judge, dev, sampling
        self.tolerance, self.seed, self.load_reference = tolerance, seed, load_reference
        self.kept_states: dict[str, Tensor] = {}
        self.kept_logits: dict[str, Tensor] = {}
        self.kept_outcomes: dict[str, Outcome] = {}

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model, on its device."""
        return self.engine.model

    @property
    def template(self) -> ChatTemplate:
        """Its chat template and tokenizer."""
        return self.engine.template

    def knows(self, outcomes: Sequence[Outcome]) -> None:
        """Takes what the model is known to say without a remedy."""
        self.kept_outcomes.update({outcome.prompt.id: outcome for outcome in outcomes})

    def changed(self, model: PreTrainedModel) -> None:
        """Its weights are other ones now: nothing that was asked before holds."""
        self.engine.model = model
        for kept in (self.kept_states, self.kept_logits, self.kept_outcomes):
            kept.clear()

    def states(self, prompts: Sequence[Prompt], suffix: str = "") -> Tensor:
        """(N, layers, D): the residual stream behind each block at the last token of each rendered
        prompt, followed by `suffix`; float32, on the CPU."""

        def read(texts: list[str]) -> Tensor:
            return last_states(
                self.model, self.template.tokenizer, texts, batch_size=self.engine.batch_size
            )

        return self.of_texts(prompts, suffix, self.kept_states, read)

    def first_log_probs(self, prompts: Sequence[Prompt]) -> Tensor:
        """(N, V): the log-probabilities of the response's first token, float32, on the CPU."""
        return self.first_logits(prompts).log_softmax(-1)

    def opener_log_odds(self, prompts: Sequence[Prompt]) -> Tensor:
        """(N,): log P - log(1 - P), P the probability that a response opens with one of `openers`.
        With whatever remedy is on the model."""
        from overrefusal_po.engines._first_token import log_odds

        return log_odds(self.first_logits(prompts), self.openers())

    def first_logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """(N, V): the logits of the response's first token, float32, on the CPU."""
        import torch

        from overrefusal_po.engines._first_token import first_logits

        def read(texts: list[str]) -> Tensor:
            found: dict[int, Tensor] = {}
            order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
            for start in range(0, len(order), self.engine.batch_size):
                batch = order[start : start + self.engine.batch_size]
                rows = first_logits(self.engine, [texts[at] for at in batch]).float().cpu()
                found |= dict(zip(batch, rows, strict=True))
            return torch.stack([found[at] for at in range(len(texts))])

        return self.of_texts(prompts, "", self.kept_logits, read)

    def of_texts(
        self,
        prompts: Sequence[Prompt],
        suffix: str,
        kept: dict[str, Tensor],
        read: Callable[[list[str]], Tensor],
    ) -> Tensor:
        """A row for each rendered prompt with the suffix; `kept` ones are not read again."""
        import torch

        texts = [self.engine.input_text(prompt) + suffix for prompt in prompts]
        known = {} if remedy_of(self.model) is not None else kept
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(missing, read(missing), strict=True))
        return torch.stack([known[text] for text in texts])

    def outcomes(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        """What the model says to each prompt, greedy, and the judge's verdict on it."""
        known = {} if remedy_of(self.model) is not None else self.kept_outcomes
        if missing := [p for p in unique_prompts(prompts) if p.id not in known]:
            made = fresh_outcomes(
                self.engine, self.judge, missing, self.sampling, label="fit: answering"
            )
            known.update({outcome.prompt.id: outcome for outcome in made})
        return [known[prompt.id] for prompt in prompts]

    def openers(self) -> tuple[int, ...]:
        """The ids of the tokens that open the model's own refusals, and those of common refusals
        that open few of its answers. NoRemedy if no token says that a refusal begins."""
        return self.found_openers.ids

    @cached_property
    def found_openers(self) -> Openers:
        """The openers, as its dev responses without a remedy show them."""
        if remedy_of(self.model) is not None:
            raise ValueError("The openers are those of the model without a remedy: ask first.")
        outcomes = self.outcomes(all_anchors(self.dev))
        if thinks(outcomes):
            raise NoRemedy(
                "The model thinks before it answers, so the first token of a response decides "
                "nothing. Turn its thinking off (chat.chat_template_kwargs: {enable_thinking: "
                "false}), or take a remedy that reads no first token."
            )
        found = every_opener(self.template, outcomes)
        if not found.ids:
            raise NoRemedy(
                "No token opens refusals of this model more often than answers, so no remedy can "
                "work on its first tokens. Take one that changes its states."
            )
        return found

    def reference(self) -> PreTrainedModel:
        """The model before its safety training. ValueError if the recipe names none."""
        return self.loaded_reference

    @cached_property
    def loaded_reference(self) -> PreTrainedModel:
        """It is loaded once, when it is first asked for."""
        if self.load_reference is None:
            raise ValueError(
                "This remedy compares the model with the one before its safety training, and the "
                "recipe names none. Set reference, e.g. reference: {model_name_or_path: ...}."
            )
        found = self.load_reference()
        return cast("PreTrainedModel", found.to(self.model.device))  # type: ignore[arg-type]
