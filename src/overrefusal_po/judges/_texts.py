"""What every judge does first: each completion's prompt, and the part of its text that is the
answer."""

from __future__ import annotations

from collections.abc import Sequence

from overrefusal_po.model.chat import thinking_end as thinking_end
from overrefusal_po.records import Completion, Prompt


def prompts_of(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Prompt]:
    """The prompt of each completion; ValueError where it is not given."""
    by_id = {prompt.id: prompt for prompt in prompts}
    for completion in completions:
        if completion.prompt_id not in by_id:
            raise ValueError(
                f"completion {completion.id} answers prompt {completion.prompt_id}, which is not "
                f"among the {len(by_id)} "
                "prompts given. Give the prompts that the completions were made from."
            )
    return [by_id[completion.prompt_id] for completion in completions]


def read_texts(prompt: Prompt) -> tuple[str, ...]:
    """The question, then what the model read in its place under an attack: a response may be an
    echo of any of them."""
    return tuple(dict.fromkeys((prompt.asked, prompt.text, prompt.raw_text or "")))
