"""Messages -> token ids. Training, generation and evaluation all use this module.

    template = ChatTemplate(tokenizer)
    template.prompt_text(messages)
    # '<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n'
    turn = template.turn(messages, "Sorry, no.")
    turn.prompt_ids, turn.response_ids    # the response with its end of turn

A response has the tokens that it has in the whole turn, not those of the response alone. Control
tokens in a text ("<|im_end|>") are broken up with a zero-width space, so that text never becomes
control.

If a model thinks, the text to train on stands behind an empty thinking block. That block belongs to
the prompt. It makes no difference if the template opens it, writes it, or leaves it to the model.
A thinking block in the response itself is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

from overrefusal_po.model.frame import (
    SENTINEL,
    SHORT,
    TEMPLATE_FAULTS,
    THINKING_TAG,
    TRIAL,
    Frame,
    check_opened,
    check_prefix,
    check_shown,
    frame_of,
    refused,
    system_head,
    thinking_end,
    thought_opener,
)
from overrefusal_po.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORT_CONVERSATION = (Message(role="user", content=SHORT),)
ZERO_WIDTH_SPACE = "\u200b"


class Turn(NamedTuple):
    """One assistant turn as token ids."""

    prompt_ids: list[int]
    response_ids: list[int]
    """With all that the template writes behind a response: the end of turn, and a line end."""
    offsets: list[tuple[int, int]]
    """`offsets[i]` is the character span of `response_ids[i]` in `text`."""
    text: str = ""
    """The response as rendered."""

    @property
    def answer_ids(self) -> list[int]:
        """The response's ids up to its last character, without what ends the turn."""
        length = max((at + 1 for at, (a, b) in enumerate(self.offsets) if b > a), default=0)
        return self.response_ids[:length]

    @property
    def unended(self) -> Turn:
        """The turn without what ends it."""
        return self.first(len(self.answer_ids))

    def first(self, tokens: int | None) -> Turn:
        """The turn with the first ids of its response alone; None: all of them."""
        return self._replace(response_ids=self.response_ids[:tokens], offsets=self.offsets[:tokens])


class Encoded(TypedDict):
    """Several texts as token ids, and the character span of each token if asked for."""

    input_ids: list[list[int]]
    offset_mapping: list[list[tuple[int, int]]]


class ChatTemplate:
    """A tokenizer's chat template with fixed options.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        system_prompt: put before each conversation that has no system message; None leaves that to
            the template, and "" means none, not even the template's own.
        template_kwargs: passed to the template (`enable_thinking: false`, ...). Any: each template
            has its own keys.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "?")
            raise ValueError(
                f"The tokenizer of {name!r} has no chat template, so messages cannot be turned "
                "into tokens. Use a chat (instruct) model, or give a template: chat.template: "
                "FILE.jinja in a recipe, `tokenizer.chat_template = ...` in Python."
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})

    def messages(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Messages as dicts for the template, with the system prompt.

        Control tokens in the texts are broken up.
        """
        rows = [{"role": m.role, "content": self.content(m)} for m in messages]
        if self.system_prompt and rows[0]["role"] != "system":
            rows.insert(0, {"role": "system", "content": self.system_prompt})
        return rows

    def content(self, message: Message) -> str:
        """A message's text with control tokens broken up; an assistant's without its thinking."""
        start = thinking_end(message.content) if message.role == "assistant" else 0
        return self.neutral(message.content[start:])

    def neutral(self, text: str) -> str:
        """`text` with each control token broken up: "<|im_end|>" -> "<\\u200b|im_end|>"."""
        if not self._control.search(text):
            return text
        return self._control.sub(lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], text)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        tokens = {t.content for t in added if t.special or THINKING_TAG.fullmatch(t.content)}
        tokens |= set(self.tokenizer.all_special_tokens)
        tokens = {token for token in tokens if len(token) > 1}
        return re.compile(
            "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) or r"(?!)"
        )

    def prompt_text(self, messages: Sequence[Message], assistant_prefix: str = "") -> str:
        """The rendered conversation up to the place where the assistant goes on writing.

        That is behind `assistant_prefix`, which stands at the start of the response.
        """
        text = self._generation_prompt(messages)
        if not assistant_prefix:
            return text
        return text + self._frame.thought + self._frame.glue + self.neutral(assistant_prefix)

    def prompt_ids(self, messages: Sequence[Message], assistant_prefix: str = "") -> list[int]:
        """Token ids of `prompt_text`."""
        return self._encode(self.prompt_text(messages, assistant_prefix))

    def turn(self, messages: Sequence[Message], response: str) -> Turn:
        """The tokens of a whole assistant turn as the template renders it, with its end of turn.

        Raises ValueError if the prompt's tokens are not the first tokens of the whole turn.
        """
        return self.turns([(messages, response)])[0]

    def turns(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Turn]:
        """The turn of each (messages, response).

        All are tokenised together, which is several times faster.
        Raises ValueError if a prompt's tokens are not the first tokens of its whole turn.
        """
        glue, end = self._frame.glue, self._frame.end
        sides = [self._sides(messages, response) for messages, response in items]
        prompts = self._encode_all([prompt for prompt, _ in sides])["input_ids"]
        whole = self._encode_all([p + glue + text + end for p, text in sides], offsets=True)
        found = []
        for (prompt, text), prompt_ids, ids, spans in zip(
            sides, prompts, whole["input_ids"], whole["offset_mapping"], strict=True
        ):
            check_prefix(ids, prompt_ids, prompt + glue)
            start = len(prompt) + len(glue)
            offsets = [
                (min(max(a - start, 0), len(text)), min(max(b - start, 0), len(text)))
                for a, b in spans[len(prompt_ids) :]
            ]
            found.append(Turn(prompt_ids, ids[len(prompt_ids) :], offsets, text))
        return found

    def pair_tokens(
        self, items: Sequence[tuple[Sequence[Message], str, str]]
    ) -> list[tuple[list[int], list[int], list[int]]]:
        """(prompt ids, chosen ids, rejected ids) of each (messages, chosen, rejected).

        The ids of both sides are those of `turns`. TRL's preference trainers make the same ids
        where its rendering is a prompt and a side: the prompt with the generation prompt, and what
        the template renders behind it (ChatML's last newline too). For a model that thinks, the
        prompt ends with an empty thinking block.

        Raises ValueError if a prompt's tokens are not the first tokens of both whole turns.
        """
        texts = [self._pair_texts(*item) for item in items]
        ids = self._encode_all([text for three in texts for text in three])["input_ids"]
        found = []
        for at, (prompt, _, _) in enumerate(texts):
            asked, chosen, rejected = ids[3 * at : 3 * at + 3]
            for side in (chosen, rejected):
                check_prefix(side, asked, prompt)
            found.append((asked, chosen[len(asked) :], rejected[len(asked) :]))
        return found

    def _pair_texts(
        self, messages: Sequence[Message], chosen: str, rejected: str
    ) -> tuple[str, str, str]:
        """The prompt, and the prompt with each side, as text."""
        prompt, first = self._sides(messages, chosen)
        second = self._sides(messages, rejected)[1]
        _, _, glue, end, _ = self._frame
        return prompt, prompt + glue + first + end, prompt + glue + second + end

    def _whole(self, rows: list[dict[str, str]], response: str) -> str:
        """The rendered conversation with the assistant's response."""
        return self._render([*rows, {"role": "assistant", "content": response}])

    def _sides(self, messages: Sequence[Message], response: str) -> tuple[str, str]:
        """(the prompt with a closed thinking block, the response without one), as text.

        Control tokens in the response are broken up.
        """
        prompt = self._generation_prompt(messages) + self._frame.thought
        return prompt, self.neutral(response[thinking_end(response) :].strip())

    def _generation_prompt(self, messages: Sequence[Message]) -> str:
        """The rendered conversation up to where the assistant writes."""
        return self._open(messages) + self._frame.header

    def _open(self, messages: Sequence[Message]) -> str:
        """The rendered conversation with the template's own generation prompt, if it has one.

        Raises ValueError for a template that leaves a message out without a word.
        """
        rows = self.messages(messages)
        if sum(row["role"] == "user" for row in rows) > 1:
            _ = self._turns_tried
        text = self._render(rows, add_generation_prompt=True)
        if rows[0]["role"] == "system" and (first := rows[0]["content"].strip()) not in text:
            raise ValueError(
                f"The chat template leaves the system message out ({first[:60]!r}). Take "
                "chat.system_prompt out, or say it in the user turn."
            )
        return text

    def first_response_token(self, text: str) -> tuple[int, int]:
        """(id of the first token, number of tokens) of `text` at the start of a response."""
        turn = self.turn(SHORT_CONVERSATION, text)
        ids = [i for i, (a, b) in zip(turn.response_ids, turn.offsets, strict=True) if b > a]
        return ids[0], len(ids)

    @property
    def end(self) -> str:
        """What stands behind every response that is trained on, in all methods."""
        return self._frame.end

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The id of the control token that ends a turn; None if it is not a single token."""
        ids = self._encode(self._frame.stop)
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def thought_opener(self) -> str:
        """The tag with which the prompt opens a thinking block ("<think>\\n"); "" without one."""
        return thought_opener(self._open(SHORT_CONVERSATION))

    @cached_property
    def _frame(self) -> Frame:
        """What stands around the response to a short conversation; raises what `frame_of` does."""
        prompt = self._open(SHORT_CONVERSATION)
        whole = self._whole(self.messages(SHORT_CONVERSATION), SENTINEL)
        eos = self.tokenizer.eos_token
        frame = frame_of(prompt, whole, self._control, None if eos is None else str(eos))
        check_shown(self._rendered, TRIAL[:1])
        return frame

    @cached_property
    def _turns_tried(self) -> None:
        """Raises what `check_shown` and `check_opened` do for several turns."""
        check_shown(self._rendered, TRIAL)
        check_opened(self._rendered)

    @cached_property
    def _system_head(self) -> str:
        """The template's own system turn, if the recipe asks for none; raises `system_head`'s."""
        if self.system_prompt != "":
            return ""
        bos = self.tokenizer.bos_token
        return system_head(self._rendered, self._control, None if bos is None else str(bos))

    def _render(self, rows: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        """`_rendered`, without the template's own system turn if the recipe asks for none."""
        text = self._rendered(rows, add_generation_prompt=add_generation_prompt)
        head = self._system_head if rows[0]["role"] != "system" else ""
        if not head:
            return text
        before, found, after = text.partition(head)
        if not found or before not in ("", self.tokenizer.bos_token):
            raise ValueError(
                "chat.system_prompt is empty, and the chat template writes its own system prompt "
                f"in another way before {rows[0]['content'][:60]!r}. Give your own text or null."
            )
        return before + after

    def _rendered(
        self, rows: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
    ) -> str:
        """What the chat template makes of a conversation; ValueError if it refuses it."""
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(row) for row in rows],
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self.template_kwargs,
            )
        except TemplateSyntaxError as error:
            raise ValueError(
                f"The chat template is damaged (line {error.lineno}: {error.message}). Copy the "
                "model's again, or give another one: chat.template: FILE.jinja in a recipe."
            ) from None
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            raise refused([row["role"] for row in rows], error) from None
        return cast(str, text)

    def _encode(self, text: str) -> list[int]:
        """The token ids of one text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _encode_all(self, texts: list[str], *, offsets: bool = False) -> Encoded:
        """The token ids of several texts; empty lists if there is no text."""
        if not texts:
            return {"input_ids": [], "offset_mapping": []}
        encoding = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=offsets)
        return cast(Encoded, encoding)
