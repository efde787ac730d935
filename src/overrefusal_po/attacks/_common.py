"""A prompt as it was asked -> its attacked form; used by every attack.

question = as_asked(prompt)
attacked = derive(prompt, "name-variant", text=f"... {question} ...")
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from overrefusal_po.json_files import is_file
from overrefusal_po.records import Message, Prompt, content_id

Text = Annotated[str, StringConstraints(pattern=r"\S")]
"""Text that is not blank, kept unchanged."""


def as_asked(prompt: Prompt) -> str:
    """The last user message of a prompt that nobody has attacked yet.

    Raises ValueError for a prompt that is attacked already, goes without a template or begins the
    answer. A rate of two attacks at once would say nothing about either.
    """
    done = (
        prompt.attack
        or (prompt.raw_text is not None and "raw text")
        or (prompt.assistant_prefix and "prefilling")
    )
    if done:
        raise ValueError(
            f"Prompt {prompt.label} carries an attack already ({done}); attack the prompt as it "
            "was asked."
        )
    if not any(message.role == "user" for message in prompt.messages):
        raise ValueError(
            f"Prompt {prompt.label} has no user message, so there is no question to attack. Add "
            "one."
        )
    return prompt.text


def derive(
    prompt: Prompt,
    attack: str,
    *,
    text: str | None = None,
    messages: tuple[Message, ...] | None = None,
    raw_text: str | None = None,
    assistant_prefix: str = "",
) -> Prompt:
    """`prompt` in its attacked form: the same kind, category, source, split, topic, contrast and
    reference.

    Args:
        prompt: as it was asked.
        attack: the attack's name, its variant in it.
        text: takes the place of the last user message; the turns before it stay.
        messages: take the place of the whole conversation.
        raw_text: goes to the model without a chat template; the messages stay and only say what was
            asked.
        assistant_prefix: begins the assistant's turn.

    The id is made from the original's id, the attack's name and all that the model reads.
    """
    turns = prompt.messages if messages is None else messages
    if text is not None:
        last = max(i for i, message in enumerate(turns) if message.role == "user")
        turns = (*turns[:last], Message(role="user", content=text), *turns[last + 1 :])
    read = [(turn.role, turn.content) for turn in turns]
    changed = {
        "id": content_id(prompt.id, attack, read, raw_text, assistant_prefix),
        "messages": turns,
        "raw_text": raw_text,
        "assistant_prefix": assistant_prefix,
        "attack": attack,
        "original_id": prompt.id,
        "question": prompt.asked,
        "context": before_question(prompt),
    }
    return prompt.model_copy(update=changed)


def before_question(prompt: Prompt) -> tuple[Message, ...]:
    """The turns before the last user turn, which a judge has to know too."""
    last = max((at for at, m in enumerate(prompt.messages) if m.role == "user"), default=0)
    return prompt.messages[:last]


def variant_name(name: str, *content: object) -> str:
    """`name-1a2b3c`: a variant from a user's own content, so that a table does not mix two of
    them."""
    return f"{name}-{content_id(*content)[:6]}"


def file_stamp(path: str) -> str:
    """A text that changes when the file does, the key under which its rows are kept; "" if there is
    no file."""
    file = Path(path)
    if not is_file(file):
        return ""  # the reader says so, with the path
    about = file.stat()
    return f"{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_size}-{about.st_ino}"
