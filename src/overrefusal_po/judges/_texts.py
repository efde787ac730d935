"""Completions -> their prompts, and the part of each text that is the answer; used by every
judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from overrefusal_po.identity import conversation_text
from overrefusal_po.model.frame import thinking_end as thinking_end
from overrefusal_po.records import Completion, Message, Prompt

EMPTY = "there is no response to judge (empty, or nothing after its thinking block)"
"""`unscored` of a completion without an answer."""


def prompts_of(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Prompt]:
    """The prompt of each completion; ValueError if it is not given."""
    by_id = {prompt.id: prompt for prompt in prompts}
    for completion in completions:
        if completion.prompt_id not in by_id:
            raise ValueError(
                f"completion {completion.id} answers prompt {completion.prompt_id}, which is not "
                f"among the {len(by_id)} prompts given. Give the prompts that the completions were "
                "made from."
            )
    return [by_id[completion.prompt_id] for completion in completions]


def read_texts(prompt: Prompt) -> tuple[str, ...]:
    """The question, then the text that the model read in its place under an attack: a response may
    echo any of them."""
    return tuple(dict.fromkeys((prompt.asked, prompt.text, prompt.raw_text or "")))


class Judged(NamedTuple):
    """What a judge reads: all turns of the request with the system prompt, and the response after
    its thinking block."""

    turns: tuple[Message, ...]
    response: str


def judged_texts(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judged]:
    """What a judge reads of each completion; ValueError for an unknown prompt."""
    answered = zip(prompts_of(prompts, completions), completions, strict=True)
    return [Judged(p.conversation, c.text[thinking_end(c.text) :].strip()) for p, c in answered]


def alternating(turns: Sequence[Message]) -> list[Message]:
    """The turns as user, assistant, user, ...: what most templates of guards can show.

    Turns in a row by one role become one. What stands before the first user turn, and each system
    prompt, is written into the next user turn, under its role.
    """
    made: list[Message] = []
    held: list[Message] = []
    for turn in turns:
        if turn.role == "system" or (turn.role == "assistant" and not made):
            held.append(turn)
            continue
        if turn.role == "user" and held:
            turn = Message(role="user", content=conversation_text([*held, turn]))
            held = []
        if made and made[-1].role == turn.role:
            both = f"{made[-1].content}\n\n{turn.content}"
            made[-1] = Message(role=turn.role, content=both)
        else:
            made.append(turn)
    if held:  # the request ends with a system prompt
        made.append(Message(role="user", content=conversation_text(held)))
    return made
