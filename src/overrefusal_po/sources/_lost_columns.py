"""The name of a column that is not read -> whether it carries text of the conversation.

is_lost("ContextString")     # True: a training without it learns another conversation
is_lost("context_length")    # False
"""

from __future__ import annotations

import re

LOST_COLUMNS = frozenset(
    {"context", "dialogue", "dialog", "turns", "query", "input", "tools", "functions"}
    | {"image", "images", "video", "videos", "audio", "audios", "attachments", "files"}
    | {"chat_history", "dialog_history", "dialogue_history", "conversation_history"}
    | {"previous_turns", "previous_messages", "past", "chat", "dialogs", "documents", "document"}
    | {"passage", "passages", "background", "assistant_prefix", "raw_text", "prefix"}
    | {"user_prompt", "user_message", "system_message", "tool_calls", "tool_results"}
    | {"sysprompt", "preamble", "persona", "instructions", "article"}
)
"""Columns that others have for text of the conversation, and that are not read."""

CARRIERS = frozenset(
    {"system", "sys", "developer", "context", "history", "conversation", "dialogue", "dialog"}
    | {"document", "passage", "image", "img", "video", "audio"}
)
PLAIN = frozenset(
    {"prompt", "message", "messages", "msg", "instruction", "instructions", "text", "content"}
    | {"string", "str", "json", "turns", "url", "path", "file", "list"}
)
"""Words beside one of `CARRIERS` in a name that still carries text: `systemPrompt`,
`image_path`."""


def is_lost(name: str) -> bool:
    """Whether a column that is not read is called as others call text of the conversation."""
    called = column_words(name)
    words = set(called.split("_"))
    return called in LOST_COLUMNS or (bool(words & CARRIERS) and words <= CARRIERS | PLAIN)


def column_words(name: str) -> str:
    """The words of a name in one spelling: `systemPrompt`, `System Prompt` -> system_prompt."""
    return "_".join(word.lower() for word in re.findall(r"[A-Z]*[a-z]+|[A-Z]+|[^\W_a-zA-Z]+", name))
