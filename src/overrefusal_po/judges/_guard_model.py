"""A guard's tokenizer and weights -> the text that it reads, and its answers in tokens.

guard = LoadedGuard(tokenizer, FORMATS["llama-guard-3"], "my guard")
guard.take(model)                                   # or know(config, generation), without weights
guard.render(prompt.conversation, "First, ...")     # the guard's prompt
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

from overrefusal_po.judges._guard_formats import Format
from overrefusal_po.judges._texts import alternating
from overrefusal_po.judges._weights import placed
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.frame import SENTINEL
from overrefusal_po.model.generation import config_length
from overrefusal_po.records import Message

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

Content = str | list[dict[str, str]]
"""A message's content, as chat templates take it: a text, or a list of parts."""


class GuardAnswer(NamedTuple):
    """A guard's answer: its text, its token ids, and for each token the logits of the labels
    (tokens, labels)."""

    text: str
    ids: list[int]
    logits: list[list[float]]
    doubts: list[float] | None = None
    """For each token, by how much the share of a label may be off; None: not at all."""


class Labels(NamedTuple):
    """The token of each label at the first place where they differ, and how many tokens that is
    before the label's first letter.

    In most tokenizers "yes" and "no" differ at the word itself (0 before); some write a blank of
    its own before one of them.
    """

    ids: list[int]
    before: list[int]


def label_tokens(tokenizer: PreTrainedTokenizerBase, form: Format) -> Labels:
    """The tokens by which the labels differ behind `form.lead`; ValueError if two have the same
    token there."""
    coded = [
        tokenizer(form.lead + x, add_special_tokens=False, return_offsets_mapping=True)
        for x in form.labels
    ]
    places = zip(*(row["input_ids"] for row in coded), strict=False)
    place, ids = next(
        ((n, list(tokens)) for n, tokens in enumerate(places) if len(set(tokens)) > 1), (0, [])
    )
    if len(set(ids)) < len(form.labels):
        raise ValueError(
            f"The tokenizer begins {', '.join(map(repr, form.labels))} with the same token, so "
            "their probabilities cannot be separated. This is not the tokenizer of such a guard; "
            "give another model or format."
        )
    ends = [[end for _, end in row["offset_mapping"]] for row in coded]
    starts = [next(n for n, end in enumerate(row) if end > len(form.lead)) for row in ends]
    return Labels(ids, [start - place for start in starts])


class LoadedGuard:
    """Tokenizer and weights of a guard; the weights may be at servers instead. `labels` says which
    tokens distinguish the labels.

    Raises:
        ValueError: there is no chat template, it shows no response, or two labels begin with the
            same token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: Format, name: str) -> None:
        if form.template is not None:
            tokenizer.chat_template = form.template
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer)
        self._model: PreTrainedModel | None = None
        self.labels = label_tokens(tokenizer, form)
        self._content = self._content_form(name)

    def take(self, model: PreTrainedModel) -> None:
        """Takes the model, on the GPU if there is one."""
        self._model = placed(model)
        self.know(model.config, model.generation_config)

    def know(self, config: PretrainedConfig, generation: GenerationConfig | None) -> None:
        """Takes what the model's files say without its weights: its context in tokens (None if they
        do not say), how many tokens it knows, and the ids that end an answer."""
        self.context = config_length(config)
        self.size = max(len(self.tokenizer), getattr(config.get_text_config(), "vocab_size", 0))
        said = getattr(generation, "eos_token_id", None)
        ids = [*(said if isinstance(said, list) else [said]), self.tokenizer.eos_token_id]
        self.stop_tokens = sorted({i for i in ids if i is not None})

    @property
    def model(self) -> PreTrainedModel:
        """The weights, once they are taken."""
        assert self._model is not None, "take comes first"
        return self._model

    def render(self, turns: Sequence[Message], response: str) -> str:
        """The guard's prompt: the conversation and the response, control tokens of its tokenizer in
        all texts broken up."""
        whole = [*alternating(turns), Message(role="assistant", content=response)]
        rows = [
            {"role": turn.role, "content": self._content(self.chat.neutral(turn.content))}
            for turn in whole
        ]
        # parts are allowed as well, though its annotation leaves them out
        shown = cast("list[dict[str, str]]", rows)
        text = self.tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)
        return str(text)

    def answer(self, ids: list[int], logits: list[list[float]]) -> GuardAnswer:
        """An answer from what was generated, up to the token that ends it."""
        ids = self.before_stop(ids)
        return GuardAnswer(self._decode(ids), ids, logits[: len(ids)])

    def before_stop(self, ids: list[int]) -> list[int]:
        """The ids up to the first one that ends an answer."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.stop_tokens), None)]

    @cached_property
    def label_texts(self) -> list[str | None]:
        """The text of each label's token alone; None if another token has the same text."""
        texts = Counter(self._decode([i]) for i in range(len(self.tokenizer)))
        own = [self._decode([i]) for i in self.labels.ids]
        return [text if texts[text] == 1 else None for text in own]

    def token_at(self, ids: list[int], character: int) -> int:
        """The place among `ids` of the token that writes a character of their text."""
        lengths = (len(self._decode(ids[: i + 1])) for i in range(len(ids)))
        return next(place for place, length in enumerate(lengths) if length > character)

    def _decode(self, ids: list[int]) -> str:
        # without the clean-up that many tokenizers are saved with: it would move characters
        return str(
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _content_form(self, name: str) -> Callable[[str], Content]:
        """How the template takes a message's content: as text, or as a list of parts.

        Llama Guard 3 1B and vision and Llama Guard 4 want parts, and leave plain text out without a
        word.
        """
        from jinja2 import TemplateError

        for content in (plain_text, text_part):
            self._content = content
            try:
                shown = self.render([Message(role="user", content=SENTINEL)], SENTINEL)
            except (TemplateError, TypeError):
                continue
            if shown.count(SENTINEL) == 2:
                return content
        raise ValueError(
            f"{name}: the chat template does not show a request and its response, so this is not "
            "the tokenizer of such a guard. Give the guard's own model, or another format."
        )


def plain_text(text: str) -> Content:
    """A message's content as most templates take it."""
    return text


def text_part(text: str) -> Content:
    """A message's content as templates of models for pictures and text take it."""
    return [{"type": "text", "text": text}]
