"""Measured and trained sets -> the prompts that they share, found by id, original and words. Pure.

    check_apart({"stage tuned": measured}, {"stage derta": trained})
    # ValueError if a measured prompt is trained on

Case and punctuation make no difference, and an attack counts as its original. Signs do: "C++" is
not "C#". System prompts and the assistant's turns are not looked at: a question that is trained on
stays known under another system prompt. The benchmark `firewall` finds prompts that differ by a
word or more, but of public benchmarks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from overrefusal_po.identity import words_and_signs
from overrefusal_po.records import Prompt


class Overlap(NamedTuple):
    """Prompts of a measured set that are trained on in another: how many, their sources, and the
    first one's name."""

    measured: str
    trained: str
    num_shared: int
    sources: tuple[str, ...]
    example: str


def check_apart(
    measured: Mapping[str, Iterable[Prompt]], trained: Mapping[str, Iterable[Prompt]]
) -> None:
    """Raises ValueError that names every measured set of which a prompt is in a trained one."""
    found = overlaps(measured, trained)
    if found:
        each = "; ".join(
            f"{o.measured} and {o.trained} share {o.num_shared} (from {', '.join(o.sources)}; for "
            f"example {o.example})"
            for o in found
        )
        raise ValueError(
            f"What is measured may not be trained on: {each}. Name another split or set for one of "
            "the two, or take these prompts out of the training data."
        )


def overlaps(
    measured: Mapping[str, Iterable[Prompt]], trained: Mapping[str, Iterable[Prompt]]
) -> list[Overlap]:
    """Every pair of a measured and a trained set that share prompts, in the order of the sets."""
    marks = {
        name: {mark for prompt in prompts for mark in same_prompt_marks(prompt)}
        for name, prompts in trained.items()
    }
    found = []
    for name, prompts in measured.items():
        rows = [(prompt, same_prompt_marks(prompt)) for prompt in prompts]
        for other, known in marks.items():
            shared = [prompt for prompt, own in rows if own & known]
            if shared:
                sources = tuple(dict.fromkeys(prompt.source for prompt in shared))
                found.append(Overlap(name, other, len(shared), sources, shared[0].label))
    return found


def same_prompt_marks(prompt: Prompt) -> set[str]:
    """Marks of which two equal prompts share one: id, original's id, and the words, as asked and
    before an attack.

    The words are those of all user turns: many conversations end in the same way ("Go on.").
    """
    said = "\n".join(m.content for m in prompt.messages if m.role == "user")
    return {
        prompt.id,
        prompt.cluster,
        *(f"words: {bare_text(t)}" for t in (said, prompt.question or "") if t.strip()),
    }


def bare_text(text: str) -> str:
    """A text's words and signs, without case, blanks and punctuation."""
    words, signs = words_and_signs(text)
    return f"{' '.join(words)} | {' '.join(signs)}"
