r"""Hostile texts -> material for a model: between marked lines, control tokens broken up.

    mark = unique_mark(0, "an id", [text])
    filled("Rate this:\n{{text}}", {"text": fenced("response", text, mark)})

A template is filled by a single substitution whose result is never looked at again. Each text
stands between two lines with a mark that it cannot know. Control tokens of chat templates in it
are broken up: a local server would read them as the end of the user's turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from overrefusal_po.records import content_id

FIELD = re.compile(r"\{\{\s*(\w*)\s*\}\}")
"""A place of a template: `{{name}}`."""

ZERO_WIDTH_SPACE = "\u200b"  # as in chat.py: breaks a control token up and cannot be seen

CONTROL = re.compile(
    # ChatML, Llama 3 and 4, Phi, GLM, GPT-OSS, Gemma 4, DeepSeek
    r"<[|｜][^<>\n]{1,40}>|<[^<>\n]{1,40}[|｜]>"
    r"|</?s>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_(?:turn|image)>|</?start_of_turn>"  # Gemma
    # Mistral
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|ARGS"
    r"|CALL_ID)\]"
    r"|<</?SYS>>"  # Llama 2
    r"|</?think>",  # read by the templates of reasoning models
    re.IGNORECASE,
)
"""Control tokens of chat templates in use; a server that renders a template reads them inside a
user's text, too."""


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields replaced; what stands in a value is never expanded."""
    return FIELD.sub(lambda found: values[found[1]], template)


def fenced(what: str, text: str, mark: str) -> str:
    """`text` between an opening and a closing line that carry `mark`."""
    return f"<<<{what} {mark}>>>\n{harmless(text)}\n<<<end of {what} {mark}>>>"


def harmless(text: str) -> str:
    """`text` with control tokens broken up ("<|im_end|>" -> "<\\u200b|im_end|>") and lone
    surrogates replaced by "?"."""
    sendable = text.encode("utf-8", "replace").decode()
    return CONTROL.sub(lambda found: found[0][0] + ZERO_WIDTH_SPACE + found[0][1:], sendable)


def unique_mark(seed: int, item: str, texts: Sequence[str]) -> str:
    """16 hex digits that occur in none of `texts`, the same for the same seed, item id and texts.

    The texts go into the hash, so that a text can hold its own mark only by chance; then the next
    one is taken.
    """
    attempt = 0
    while True:
        mark = content_id("mark", seed, *[harmless(text) for text in (item, *texts)], attempt)
        if not any(mark in text.lower() for text in texts):
            return mark
        attempt += 1
