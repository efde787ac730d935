"""A text in the system turn -> as many new tokens, which the chat template puts there first.

    soft = soft_prompt(template, "You are a helpful assistant.")
    soft.ids, soft.start        # ids of the new tokens, and of the text's tokens
    soft.template               # the same template with the new tokens; what it renders holds them

The new tokens are control tokens of the tokenizer, `<|soft_1|>` and on. So a user's text cannot
hold them (`ChatTemplate.neutral`), and a decoded response does not show them. No weights are read
here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.model.chat import SHORT_CONVERSATION, ChatTemplate
from overrefusal_po.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOFT = re.compile(r"<\|soft_(\d+)\|>")
"""What a soft token is called."""

BETWEEN = "\n\n"
"""What stands between the soft tokens, or their text, and a system message of the conversation."""

HEAD = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set messages = [{'role': 'system', 'content': 'TOKENS\\n\\n' + messages[0]['content']}]"
    " + messages[1:] -%}"
    "{%- else -%}"
    "{%- set messages = [{'role': 'system', 'content': 'TOKENS'}] + messages -%}"
    "{%- endif -%}"
    "{{- '' }}"
)
"""What stands before a chat template. The empty text at its end keeps what the template begins
with: Jinja drops a line end behind a block."""


class SoftPrompt(NamedTuple):
    """New tokens in the place of a text.

    Attributes:
        template: renders every conversation with the new tokens; its tokenizer has them.
        ids: (n,) the new tokens.
        start: (n,) the tokens of the text that they stand for.
        exact: whether both renderings have the same tokens around the text. If they have not, a
            token of the text reaches over its end, and a training does not begin exactly there.
    """

    template: ChatTemplate
    ids: list[int]
    start: list[int]
    exact: bool


def soft_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a tokenizer's soft tokens; [] if it has none."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted(i for i, token in added.items() if SOFT.fullmatch(token.content))


def with_text(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with `text` first in its system turn."""
    if messages[0].role == "system":
        whole = text + BETWEEN + messages[0].content
        return (messages[0].model_copy(update={"content": whole}), *messages[1:])
    return (Message(role="system", content=text), *messages)


def soft_prompt(template: ChatTemplate, text: str) -> SoftPrompt:
    """New tokens in the place of `text`, one for each of its tokens.

    ValueError for an empty text, for a template with a system prompt of its own choice, and for one
    that cannot be wrapped or shows no system message.
    """
    if template.system_prompt is not None:
        raise ValueError(
            f"chat.system_prompt is {template.system_prompt!r}, and soft tokens stand in its "
            "place. Leave it out, and give the text that they begin as (data.prompt)."
        )
    text = text.strip()
    if not text:
        raise ValueError("The text that soft tokens begin as is empty (data.prompt). Give a text.")
    written = template.prompt_ids(with_text(SHORT_CONVERSATION, text))
    one = with_tokens(template, 1)
    before, after = around(one.prompt_ids(SHORT_CONVERSATION), soft_ids(one.tokenizer)[-1:])
    head = shared(written, before)
    tail = shared(written[head:][::-1], after[::-1])
    start = written[head : len(written) - tail]
    whole = with_tokens(template, len(start))
    ids = soft_ids(whole.tokenizer)[-len(start) :]
    if around(whole.prompt_ids(SHORT_CONVERSATION), ids) != (before, after):
        raise ValueError("The chat template renders several soft tokens otherwise than one.")
    return SoftPrompt(whole, ids, start, (head, tail) == (len(before), len(after)))


def around(rendered: list[int], ids: list[int]) -> tuple[list[int], list[int]]:
    """The tokens before and behind `ids`. ValueError if they do not stand there once, in a row."""
    found = [at for at, token in enumerate(rendered) if token in ids]
    if not found or rendered[found[0] : found[0] + len(ids)] != ids or len(found) != len(ids):
        raise ValueError(
            "The chat template does not show what is put into its system turn as it is, so no soft "
            "tokens can stand there. Give another template (chat.template: FILE.jinja)."
        )
    return rendered[: found[0]], rendered[found[0] + len(ids) :]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of first tokens that two rows share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def with_tokens(template: ChatTemplate, number: int) -> ChatTemplate:
    """The template over a copy of its tokenizer that has `number` more soft tokens, which stand
    first in each system turn. ValueError if the tokenizer has several chat templates."""
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(template.tokenizer)
    if not isinstance(tokenizer.chat_template, str):
        raise ValueError(
            f"The tokenizer has several chat templates ({', '.join(tokenizer.chat_template)}), and "
            "soft tokens are written into one. Give it: chat.template: FILE.jinja."
        )
    last = max((int(SOFT.fullmatch(t)[1]) for t in soft_names(tokenizer)), default=0)  # type: ignore[index]  # they match
    names = [f"<|soft_{last + n}|>" for n in range(1, number + 1)]
    tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    tokenizer.chat_template = HEAD.replace("TOKENS", "".join(names)) + tokenizer.chat_template
    return ChatTemplate(tokenizer, template_kwargs=template.template_kwargs)


def soft_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The names of a tokenizer's soft tokens."""
    decoder = getattr(tokenizer, "added_tokens_decoder", {})
    return [decoder[i].content for i in soft_ids(tokenizer)]
