"""Messages -> token ids: the one place, so that training, generation and evaluation see the same
template.

    template = ChatTemplate(tokenizer)
    template.prompt_text(messages)
    # '<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n'
    turn = template.turn(messages, "Sorry, no.") # turn.prompt_ids, turn.response_ids (end of turn included)

A response's tokens are the tokens that the whole turn has there, not those of the response alone.
Control tokens that stand in user text ("<|im_end|>") are broken up with a zero-width space, so that
text never turns into control.

Models that think: what is trained on stands after the thinking block, which is empty there and
belongs to the prompt, whether the template opens it, writes it, or leaves it to the model. A
response's own thinking block is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from overrefusal_po.records import Message

HELLO = (Message(role="user", content="Hello"),)
SENTINEL = "\u2402content\u2403"
ZERO_WIDTH_SPACE = "\u200b"
THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>\s*\Z", re.IGNORECASE)
VERBATIM = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
"""A chat template for messages that are rendered already."""


def thinking_end(response: str) -> int:
    """Where the answer starts: after the last thinking block; the end of the text if that block is
    never closed."""
    marks = list(THOUGHT.finditer(response))
    if not marks:
        return 0
    return marks[-1].end() if marks[-1][1] else len(response)


class Turn(NamedTuple):
    """One assistant turn. `offsets[i]` is the character span of `response_ids[i]` in `text`, the
    response as rendered."""

    prompt_ids: list[int]
    response_ids: list[int]
    offsets: list[tuple[int, int]]
    text: str = ""


class Frame(NamedTuple):
    """What a template puts around a response, behind the prompt that it generates from."""

    thought: str
    """An empty thinking block, or what closes the one that the prompt opens; "" for models that do
    not think."""
    glue: str
    """What else stands before the response, such as the space of Mistral's "[/INST] To"."""
    end: str
    """The first control token behind the response: it ends the turn."""


class ChatTemplate:
    """A tokenizer's chat template with fixed options.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        system_prompt: put before every conversation that has no system message; None leaves it to
            the template.
        template_kwargs: passed to the template (`enable_thinking: false`, ...).

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        system_prompt: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "?")
            raise ValueError(
                f"The tokenizer of {name!r} has no chat template, so messages cannot be turned "
                "into tokens. Use a chat "
                "(instruct) model, or save a template with the tokenizer (`tokenizer.chat_template "
                "= ...`)."
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.template_kwargs = dict(template_kwargs or {})

    def messages(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Plain dicts for TRL and the template: system prompt added, control tokens in the text
        broken up."""
        rows = [{"role": m.role, "content": self.said(m)} for m in messages]
        if self.system_prompt is not None and rows[0]["role"] != "system":
            rows.insert(0, {"role": "system", "content": self.system_prompt})
        return rows

    def said(self, message: Message) -> str:
        """A message's text, control tokens broken up; of the assistant's earlier turns without what
        it thought."""
        return self.neutral(
            message.content[thinking_end(message.content) if message.role == "assistant" else 0 :]
        )

    def neutral(self, text: str) -> str:
        """`text` with every control token of this tokenizer broken up ("<|im_end|>" ->
        "<\\u200b|im_end|>")."""
        if not self._control.search(text):
            return text
        return self._control.sub(lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], text)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        tokens = {t.content for t in added.values() if t.special or THOUGHT.fullmatch(t.content)}
        tokens |= set(self.tokenizer.all_special_tokens)
        tokens = {token for token in tokens if len(token) > 1}
        return re.compile(
            "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) or r"(?!)"
        )

    def prompt_text(self, messages: Sequence[Message], assistant_prefix: str = "") -> str:
        """The rendered conversation up to where the assistant writes, `assistant_prefix` already
        written."""
        text = self._render(self.messages(messages), add_generation_prompt=True)
        frame = self._frame
        return text + (
            frame.thought + frame.glue + self.neutral(assistant_prefix) if assistant_prefix else ""
        )

    def prompt_ids(self, messages: Sequence[Message], assistant_prefix: str = "") -> list[int]:
        """Token ids of `prompt_text`."""
        return self._encode(self.prompt_text(messages, assistant_prefix))["input_ids"]  # type: ignore[no-any-return]

    def turn(self, messages: Sequence[Message], response: str) -> Turn:
        """The tokens of a whole assistant turn, end of turn included, the template's own rendering.

        Raises ValueError where the prompt's tokens are not the first tokens of the whole turn.
        """
        prompt, text = self._sides(messages, response)
        glue, end = self._frame.glue, self._frame.end
        prompt_ids = self._encode(prompt)["input_ids"]
        whole = self._encode(prompt + glue + text + end, offsets=True)
        if whole["input_ids"][: len(prompt_ids)] != prompt_ids:
            raise ValueError(
                "The prompt's tokens change when a response follows (tokens merge across the "
                "boundary), so a response "
                f"cannot be told from its prompt, which ends with {(prompt + glue)[-40:]!r}. Use a "
                "chat template that "
                "ends the prompt at a token boundary."
            )
        start = len(prompt) + len(glue)
        spans = whole["offset_mapping"][len(prompt_ids) :]
        offsets = [(max(a - start, 0), min(max(b - start, 0), len(text))) for a, b in spans]
        return Turn(prompt_ids, whole["input_ids"][len(prompt_ids) :], offsets, text)

    def preference_row(
        self, messages: Sequence[Message], chosen: str, rejected: str
    ) -> dict[str, Any]:
        """A row for TRL's preference trainers, which render `prompt`, `chosen` and `rejected` with
        the same template.

        For a model that thinks the row is rendered here: TRL would have the thinking block in what
        is scored, or, where the prompt opens it and the template drops it from the turn, not at
        all.
        """
        prompt, first = self._sides(messages, chosen)
        second = self._sides(messages, rejected)[1]
        kwargs = self.template_kwargs
        rows = self.messages(messages)
        if self._frame.thought:
            rows, kwargs = [{"role": "user", "content": prompt}], {"chat_template": VERBATIM}
            first, second = (self._frame.glue + side + self._frame.end for side in (first, second))
        sides = {"chosen": first, "rejected": second}
        row: dict[str, Any] = {
            name: [{"role": "assistant", "content": text}] for name, text in sides.items()
        }
        return {"prompt": rows, **row, **({"chat_template_kwargs": kwargs} if kwargs else {})}

    def _sides(self, messages: Sequence[Message], response: str) -> tuple[str, str]:
        """(rendered prompt with a closed thinking block, response without one and with control
        tokens broken up)."""
        prompt = (
            self._render(self.messages(messages), add_generation_prompt=True) + self._frame.thought
        )
        return prompt, self.neutral(response[thinking_end(response) :].strip())

    def first_response_token(self, text: str) -> tuple[int, int]:
        """(id of the first token that `text` has at the start of a response, number of tokens that
        it takes)."""
        turn = self.turn(HELLO, text)
        ids = [i for i, (a, b) in zip(turn.response_ids, turn.offsets, strict=True) if b > a]
        return ids[0], len(ids)

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The id of the control token that ends a turn; None where it is not a single token."""
        ids = self._encode(self._frame.end.strip())["input_ids"]
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def thought_opener(self) -> str:
        """The mark with which the prompt itself opens a thinking block ("<think>\\n"); "" where it
        does not."""
        found = OPENED.search(self._render(self.messages(HELLO), add_generation_prompt=True))
        return found[0] if found else ""

    @cached_property
    def _frame(self) -> Frame:
        """What stands around the response to a short conversation."""
        hello = self.messages(HELLO)
        prompt = self._render(hello, add_generation_prompt=True)
        whole = self._render(
            [*hello, {"role": "assistant", "content": SENTINEL}], add_generation_prompt=False
        )
        head, found, tail = whole.partition(SENTINEL)
        if not found:
            raise ValueError(
                "The chat template does not show an assistant message; it cannot be used for "
                "training."
            )
        before = head[len(prompt) :] if head.startswith(prompt) else ""
        block = re.match(r".*</\w+>\s*", before, re.DOTALL) if THOUGHT.search(before) else None
        thought = block[0] if block else ""
        if self.thought_opener and not block:  # the template leaves past thinking blocks out
            thought = "\n" + self.thought_opener.strip().replace("<", "</") + "\n\n"
        return Frame(thought, before[len(block[0]) :] if block else before, self._end_of_turn(tail))

    def _end_of_turn(self, tail: str) -> str:
        """The control token that follows a response, and the blanks before it."""
        control = self._control.match(tail.lstrip())
        if control:
            return tail[: len(tail) - len(tail.lstrip())] + control[0]
        if self.tokenizer.eos_token is None:
            raise ValueError(
                "Neither the chat template nor the tokenizer has a token that ends a turn "
                "(eos_token)."
            )
        return str(self.tokenizer.eos_token)

    def _render(self, rows: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            rows,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.template_kwargs,
        )

    def _encode(self, text: str, *, offsets: bool = False) -> Any:
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=offsets)
