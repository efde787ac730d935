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
        return self._encode(self.prompt_text(messages, assistant_prefix))

    def turn(self, messages: Sequence[Message], response: str) -> Turn:
        """The tokens of a whole assistant turn, end of turn included, as the template renders it.

        Raises ValueError if the prompt's tokens are not the first tokens of the whole turn.
        """
        return self.turns([(messages, response)])[0]

    def turns(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Turn]:
        """`turn` of each (messages, response), tokenised together, which is several times faster.

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
            check_prefix(ids[: len(prompt_ids)] == prompt_ids, prompt + glue)
            start = len(prompt) + len(glue)
            offsets = [
                (max(a - start, 0), min(max(b - start, 0), len(text)))
                for a, b in spans[len(prompt_ids) :]
            ]
            found.append(Turn(prompt_ids, ids[len(prompt_ids) :], offsets, text))
        return found

    def pair_tokens(
        self, items: Sequence[tuple[Sequence[Message], str, str]]
    ) -> list[tuple[list[int], list[int], list[int]]]:
        """(prompt ids, chosen ids, rejected ids) of each (messages, chosen, rejected).

        They are the ids that TRL's preference trainers make: prompt with generation prompt, and
        what the template renders behind it for each side (ChatML's last newline too). A model that
        thinks is trained behind an empty thinking block, which belongs to the prompt.

        Raises ValueError if a prompt's tokens are not the first tokens of both whole turns.
        """
        texts = [self._pair_texts(*item) for item in items]
        ids = self._encode_all([text for three in texts for text in three])["input_ids"]
        found = []
        for at, (prompt, _, _) in enumerate(texts):
            asked, chosen, rejected = ids[3 * at : 3 * at + 3]
            for side in (chosen, rejected):
                check_prefix(side[: len(asked)] == asked, prompt)
            found.append((asked, chosen[len(asked) :], rejected[len(asked) :]))
        return found

    def _pair_texts(
        self, messages: Sequence[Message], chosen: str, rejected: str
    ) -> tuple[str, str, str]:
        """The prompt, and the prompt with each side, as text."""
        prompt, first = self._sides(messages, chosen)
        second = self._sides(messages, rejected)[1]
        if self._frame.thought:  # the template would leave the block out, or put it into the side
            glue, end = self._frame.glue, self._frame.end
            return prompt, prompt + glue + first + end, prompt + glue + second + end
        rows = self.messages(messages)
        whole = (
            self._render([*rows, {"role": "assistant", "content": side}])
            for side in (first, second)
        )
        return prompt, *whole  # type: ignore[return-value]  # two sides

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
        ids = self._encode(self._frame.end.strip())
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

    def _render(self, rows: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            rows,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.template_kwargs,
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _encode_all(self, texts: list[str], *, offsets: bool = False) -> Mapping[str, list[Any]]:
        """{"input_ids": [...], "offset_mapping": [...]} of texts, none if there is no text."""
        if not texts:
            return {"input_ids": [], "offset_mapping": []}
        found: Mapping[str, list[Any]] = self.tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=offsets
        )
        return found


def check_prefix(holds: bool, prompt: str) -> None:
    """Raises ValueError unless a prompt's tokens are the first tokens of its whole turn."""
    if not holds:
        raise ValueError(
            "The prompt's tokens change when a response follows (tokens merge across the "
            "boundary), so a response cannot be told from its prompt, which ends with "
            f"{prompt[-40:]!r}. Use a chat template that ends the prompt at a token boundary."
        )
