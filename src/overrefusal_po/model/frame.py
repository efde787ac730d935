"""What a chat template puts around a response: its header, its thinking block and its end.

    frame = frame_of(prompt, whole, control, eos="</s>")
    frame.end                # "<|im_end|>\\n"
    system_head(render, control, bos="<s>")    # "" or the system turn that the template writes

A row ends with what the template itself writes behind a response, for every method. If that holds
no control token, generation would never stop, and the tokenizer's eos_token stands behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SENTINEL = "\u2402content\u2403"
"""A text that no template and no message contains."""
SHORT = "Hello"
"""What the user asks in the conversation whose frame is read."""
SECOND = "\u2402second\u2403"
SYSTEM = "\u2402system\u2403"
THINKING = r"(?:think|thinking|thought|reasoning)>"
THINKING_TAG = re.compile(rf"<(/?){THINKING}", re.IGNORECASE)
"""A tag that opens or closes a thinking block. Group 1 is "/" if it closes one."""
BLOCK_START = re.compile(rf"\s*<{THINKING}", re.IGNORECASE)
BLOCK_END = re.compile(rf"</{THINKING}", re.IGNORECASE)
QUOTES = ("`", "'", '"')

USER = {"role": "user", "content": SENTINEL}

TRIAL = (
    {"role": "user", "content": "Which harbour lies beyond the walnut trees?"},
    {"role": "assistant", "content": "The copper lantern hangs over the northern quay."},
    {"role": "user", "content": "Then who paints the ladder of the windmill?"},
)
"""A conversation of plain words with which a template is tried."""

TEMPLATE_FAULTS = (
    *(TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError),
)
"""What a template's own code may raise beside Jinja's errors."""

Render = Callable[[Sequence[Mapping[str, str]]], str]
"""Messages as dicts -> the rendered conversation, without generation prompt."""


def thinking_end(response: str) -> int:
    """The place where the answer starts: behind the thinking blocks at its beginning, 0 without
    one.

    The prompt may have opened the block: then the first tag of the response closes it. If a block
    is never closed, it is the end of the text. Tags further on are words of the answer.
    """
    first = THINKING_TAG.search(response)
    end = first.end() if first and first[1] and not is_quoted(first) else 0
    while opened := BLOCK_START.match(response, end):
        closed = BLOCK_END.search(response, opened.end())
        if closed is None:
            return len(response)
        end = closed.end()
    return end


def is_quoted(tag: re.Match[str]) -> bool:
    """Whether a tag stands between two quotation marks, and so is spoken of."""
    text, start, end = tag.string, tag.start(), tag.end()
    return start > 0 and text[start - 1] in QUOTES and text[end : end + 1] == text[start - 1]


def read_chat_template(path: str) -> str:
    """The text of a file with a Jinja chat template; ValueError if it is none."""
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        # transformers' own tags and statements: {% generation %}, {% break %}
        plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"chat.template: {path} cannot be read ({error}). Give a text file with a Jinja chat "
            "template; its path is relative to the recipe."
        ) from None
    except TemplateSyntaxError as error:
        raise ValueError(
            f"chat.template: {path}, line {error.lineno}: {error.message}. Fix the template."
        ) from None
    if "messages" not in text:
        raise ValueError(
            f"chat.template: {path} does not read `messages`, so it is no chat template."
        )
    return text


class Frame(NamedTuple):
    """What a template puts around a response, behind the prompt that it generates from."""

    header: str
    """The assistant's header if the template ignores `add_generation_prompt`; "" if it does not.
    It belongs to the prompt: else the model would have to write it."""
    thought: str
    """An empty thinking block, or what closes the block that the prompt opens; "" without one."""
    glue: str
    """What else stands before the response, such as the space of Mistral's "[/INST] To"."""
    end: str
    """What stands behind the response; it holds a token at which generation stops."""
    stop: str
    """The first control token of `end`."""


def thought_opener(prompt: str) -> str:
    """The tag with which a prompt opens a thinking block ("<think>\\n"); "" without one."""
    tag = re.search(rf"(?:{THINKING_TAG.pattern})\s*\Z", prompt, re.IGNORECASE)
    return tag[0] if tag and not tag[1] else ""


def frame_of(prompt: str, whole: str, control: re.Pattern[str], eos: str | None) -> Frame:
    """What stands around `SENTINEL` in `whole`, behind the prompt that is generated from.

    Raises ValueError if the template does not show an assistant message, or if nothing ends it.
    """
    head, found, tail = whole.partition(SENTINEL)
    if not found:
        raise ValueError(
            "The chat template does not show an assistant message whose content is a text (a "
            "template of a vision model wants a list of parts); it cannot be used for training. "
            "Give another template (chat.template: FILE.jinja)."
        )
    before = written_before(head, prompt)
    opener = thought_opener(prompt)
    thinks = THINKING_TAG.search(before)
    block = re.match(r".*</\w+>\s*", before, re.DOTALL) if thinks else None
    thought = block[0] if block else ""
    if opener and not block:  # the template leaves past thinking blocks out
        thought = "\n" + opener.strip().replace("<", "</") + "\n\n"
    glue = before[len(block[0]) :] if block else before
    header, glue = (glue, "") if glue.strip() else ("", glue)
    return Frame(header, thought, glue, *end_of_turn(tail, prompt, control, eos))


def written_before(head: str, prompt: str) -> str:
    """What a template writes between the prompt and the response; `head` ends at the response.

    Some templates write a system prompt only if the user's turn is the last message. Then what
    stands behind the user's text is compared; "" if that differs too.
    """
    if head.startswith(prompt):
        return head[len(prompt) :]
    shown, opened = (text.rpartition(SHORT)[2] for text in (head, prompt))
    return shown.removeprefix(opened) if shown.startswith(opened) else ""


def refused(roles: Sequence[str], error: Exception) -> ValueError:
    """The error of a template that raises on a conversation of these roles."""
    hint = "Use a model whose template takes them, or change the conversation."
    if roles[0] == "system":
        hint = (
            "If the template takes no system message, leave chat.system_prompt out, or say it in "
            "the user turn."
        )
    return ValueError(
        f"The chat template refuses a conversation of {', '.join(roles)}: {error}. {hint}"
    )


def check_opened(render: Callable[..., str]) -> None:
    """Raises ValueError if a template opens the assistant's turn behind the first question and not
    behind a later one: the model would have to write its own header."""
    first, later = (
        render(asked, add_generation_prompt=True) != render(asked) for asked in (TRIAL[:1], TRIAL)
    )
    if first != later:
        raise ValueError(
            "The chat template opens the assistant's turn (add_generation_prompt) after "
            f"{'the first question alone' if first else 'later questions alone'}. Give another "
            "template (chat.template: FILE.jinja)."
        )


def end_of_turn(
    tail: str, prompt: str, control: re.Pattern[str], eos: str | None
) -> tuple[str, str]:
    """(what ends a response, its first control token); `tail` is what the template writes there.

    Raises ValueError if there is no control token and the tokenizer has no eos_token.
    """
    first = control.search(tail)
    if first is None:
        if eos is None:
            raise ValueError(
                "Neither the chat template nor the tokenizer has a token that ends a turn "
                "(eos_token). Set tokenizer.eos_token, or write it into the template."
            )
        return tail.rstrip() + eos, eos
    # some templates write the next generation prompt whether it is asked for or not
    for token in control.finditer(tail):
        rest = tail[token.end() :]
        if rest.strip() and prompt.endswith(rest):
            return tail[: token.end()], first[0]
    return tail, first[0]


def check_shown(render: Render, messages: Sequence[Mapping[str, str]]) -> None:
    """Raises ValueError if a template leaves one of the messages out: the model would never read
    it. Case and blanks may differ."""
    rendered = render(messages)
    text = " ".join(rendered.lower().split())
    for message in messages:
        if " ".join(message["content"].lower().split()) not in text:
            whose = "what the user asks" if message["role"] == "user" else "an earlier answer"
            raise ValueError(
                f"The chat template leaves {whose} out: of {message['content']!r} it makes "
                f"{rendered[-160:]!r}. Give another template (chat.template: FILE.jinja)."
            )


def check_prefix(whole: Sequence[int], prompt_ids: Sequence[int], prompt: str) -> None:
    """Raises ValueError if a prompt's tokens are not the first tokens of its whole turn."""
    if whole[: len(prompt_ids)] != prompt_ids:
        raise ValueError(
            "The prompt's tokens change when a response follows (tokens merge across the "
            "boundary), so a response cannot be separated from its prompt, which ends with "
            f"{prompt[-40:]!r}. Use a chat template that ends the prompt at a token boundary."
        )


def shared_end(one: str, other: str) -> int:
    """The number of last characters that two texts share."""
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def system_head(render: Render, control: re.Pattern[str], bos: str | None) -> str:
    """The system turn that a template writes by itself, from its first to its last token.

    It is "" if the template writes none. It begins behind BOS and ends where the user turn begins.

    Raises ValueError if the template cannot be asked for none.
    """
    head = render([USER]).partition(SENTINEL)[0].removeprefix(bos or "")
    ended, between = around_answer(render)
    opening = between.removeprefix(ended)
    clear = opening != between and opening.strip() and head.endswith(opening)
    own = head[: len(head) - (len(opening) if clear else shared_end(head, between))]
    text = control.sub(" ", own).strip()
    if not text:
        return ""
    if not clear:
        raise no_way(text)
    try:
        given = render([{"role": "system", "content": SYSTEM}, USER])
    except ValueError:
        raise no_way(text) from None
    if not own.startswith(given.removeprefix(bos or "").partition(SYSTEM)[0]):
        raise no_way(text)  # what it writes is not where a system message would stand
    return own


def around_answer(render: Render) -> tuple[str, str]:
    """(what a template writes behind a last answer, and between an answer and a user's text)."""
    answer = {"role": "assistant", "content": SECOND}
    ended = render([USER, answer]).partition(SECOND)[2]
    between = render([USER, answer, USER]).partition(SECOND)[2].partition(SENTINEL)[0]
    return ended, between


def no_way(default: str) -> ValueError:
    """The error of a template that always writes a system prompt."""
    return ValueError(
        f"chat.system_prompt is empty, but the chat template writes a system prompt itself "
        f"({default[:60]!r}) and cannot be asked for none. Give your own text, null to keep the "
        "template's, or a template without it (chat.template: FILE.jinja)."
    )
