"""A chat template and a safety text -> where the text stands in a rendered prompt, as token ids.

    place = safety_place(template, "Please refuse to answer me!")
    place.openings       # the ids that a prompt may begin with, and what stands there with the text
    share_placed(template, text, contrast, prompts)      # of prompts that look as the template asks

The text is a system message. If the prompt has one already, the text stands in front of it, with an
empty line between; the template's own default is replaced, as the template does it. If the
template takes no system message, the text stands at the start of the user's first turn. A prompt
that does not begin as the template begins (a raw text) gets the system turn in front of it, or the
text alone if the template has no turn for it.

Only ids are put in and taken out, so the second prompt ends in exactly the tokens of the first. If
a space before the user's text is part of a token (SentencePiece), it stays behind the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.contrast import Contrast, Opening, twin_ids
from overrefusal_po.model.frame import SENTINEL
from overrefusal_po.records import Message, Prompt

WORD = "You"
"""What stands behind a place when it is tokenised: texts begin with a word."""

BETWEEN = "\n\n"
"""What stands between the safety text and what follows it in the same turn."""


class Place(NamedTuple):
    """How prompts may begin, the longest way first, and the BOS that may stand before that."""

    openings: tuple[Opening, ...]
    bos: int | None


def safety_place(template: ChatTemplate, text: str) -> Place:
    """Where a safety text stands. ValueError for a template that shows no user's text."""
    text = template.neutral(text)
    found = list(openings_of(template, text, system=None))
    with suppress(ValueError):  # the template may always write a system prompt
        found += openings_of(template, text, system="")
    found.append(opening(template, "", text + BETWEEN))
    by_start = {one.before: one for one in reversed(found)}  # of equal ones the first
    ordered = sorted(by_start.values(), key=lambda one: -len(one.before))
    return Place(tuple(ordered), template.tokenizer.bos_token_id)


def openings_of(template: ChatTemplate, text: str, *, system: str | None) -> Iterator[Opening]:
    """How prompts without a system message may begin, and those with one; `system` as in
    ChatTemplate."""
    bare = ChatTemplate(
        template.tokenizer, system_prompt=system, template_kwargs=template.template_kwargs
    )
    user = Message(role="user", content=SENTINEL)
    plain = before_mark(bare, (user,))
    if not takes_system(bare):
        yield opening(bare, plain, plain + text + BETWEEN)
        return
    yield opening(bare, plain, before_mark(bare, (Message(role="system", content=text), user)))
    asked = Message(role="user", content=WORD)
    turn = before_mark(bare, (Message(role="system", content=SENTINEL), asked))
    yield opening(bare, turn, turn + text + BETWEEN)


def takes_system(template: ChatTemplate) -> bool:
    """Whether a template shows a system message."""
    try:
        template.prompt_text(with_text((Message(role="user", content=WORD),), SENTINEL))
    except ValueError:
        return False
    return True


def before_mark(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """What a template writes in front of SENTINEL. ValueError if it leaves it out."""
    head, found, _ = template.prompt_text(messages).partition(SENTINEL)
    if not found:
        raise ValueError(
            "The chat template does not show the text of a message, so no safety text can stand "
            "beside it. Give another template (chat.template: FILE.jinja)."
        )
    return head


def opening(template: ChatTemplate, before: str, after: str) -> Opening:
    """The opening of two texts that may stand in front of the same words, without a BOS."""
    first, behind = ids_before(template, before, len(before))
    second, _ = ids_before(template, after + behind, len(after))
    bos = template.tokenizer.bos_token_id
    first, second = (ids[1:] if ids[:1] == (bos,) else ids for ids in (first, second))
    if second[len(second) - len(first) :] == first:  # a turn of its own stands in front
        return Opening((), second[: len(second) - len(first)])
    return Opening(first, second)


def ids_before(template: ChatTemplate, text: str, end: int) -> tuple[tuple[int, ...], str]:
    """The ids of a text's first `end` characters, as they are in front of a word, and the last of
    those characters that are in a token with what follows."""
    found = template.tokenizer(text + WORD, add_special_tokens=False, return_offsets_mapping=True)
    spans = found["offset_mapping"]
    at = next(number for number, (_, stop) in enumerate(spans) if stop > end)
    return tuple(found["input_ids"][:at]), text[spans[at][0] : end]


def with_text(messages: Sequence[Message], text: str, own: str | None = None) -> list[Message]:
    """A conversation with the text as system message, in front of what it has; `own`: the system
    prompt that it gets if it has none."""
    first, rest = messages[0], list(messages)
    if first.role == "system":
        own, rest = first.content, rest[1:]
    return [Message(role="system", content=text + BETWEEN + own if own else text), *rest]


def share_placed(
    template: ChatTemplate, text: str, change: Contrast, prompts: Sequence[Prompt]
) -> float:
    """The share of prompts whose second form is what the template writes with the text as system
    message, or as the first words of the user; white space does not count."""
    as_system = takes_system(template)

    def wanted(prompt: Prompt) -> str:
        messages = prompt.messages
        if as_system:
            messages = tuple(with_text(messages, text, template.system_prompt))
        else:
            first = Message(role="user", content=text + BETWEEN + messages[0].content)
            messages = (first, *messages[1:])
        return template.prompt_text(messages, prompt.assistant_prefix)

    asked = [prompt for prompt in prompts if prompt.raw_text is None]
    good = 0
    for prompt in asked:
        ids = twin_ids(change, template.prompt_ids(prompt.messages, prompt.assistant_prefix))
        good += squeezed(str(template.tokenizer.decode(ids))) == squeezed(wanted(prompt))
    return good / len(asked) if asked else 1.0


def squeezed(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())
