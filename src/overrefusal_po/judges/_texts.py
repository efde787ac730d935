"""Completions -> their prompts, and the part of each text that is the answer; used by every
judge."""

from __future__ import annotations

from collections.abc import Sequence

from overrefusal_po.model.frame import thinking_end as thinking_end
from overrefusal_po.records import Completion, Prompt

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


def judged_texts(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[tuple[str, str]]:
    """(what was asked, the response after its thinking block) of each completion; ValueError for an
    unknown prompt."""
    answered = zip(prompts_of(prompts, completions), completions, strict=True)
    return [(prompt.asked, c.text[thinking_end(c.text) :].strip()) for prompt, c in answered]
