"""What is measured is not trained on: the same prompts in sets of both kinds, found by id, original
and words. Pure.

    check_apart({"stage tuned": measured_prompts(evaluate.data)}, {"stage derta": trained_prompts(train)})

A prompt is another's twin whatever its case and punctuation, and an attack is its original's.
Prompts that differ by a word or more are the benchmark firewall's matter (`hygiene`), which knows
public benchmarks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from overrefusal_po.records import Prompt, bare_words


class Overlap(NamedTuple):
    """How many prompts of a measured set are trained on in another, where they come from, and the
    id of the first."""

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
            "the two, or take these "
            "prompts out of the training data."
        )


def overlaps(
    measured: Mapping[str, Iterable[Prompt]], trained: Mapping[str, Iterable[Prompt]]
) -> list[Overlap]:
    """Every pair of a measured and a trained set that share prompts, in the order of the sets."""
    marks = {
        name: {mark for prompt in prompts for mark in marks_of(prompt)}
        for name, prompts in trained.items()
    }
    found = []
    for name, prompts in measured.items():
        rows = [(prompt, marks_of(prompt)) for prompt in prompts]
        for other, known in marks.items():
            shared = [prompt for prompt, own in rows if own & known]
            if shared:
                sources = tuple(dict.fromkeys(prompt.source for prompt in shared))
                found.append(Overlap(name, other, len(shared), sources, shared[0].id))
    return found


def marks_of(prompt: Prompt) -> set[str]:
    """What two prompts share if they are the same: id, original's id, and the words, as asked and
    before an attack.

    The words are those of all user turns: many conversations end alike ("Go on.").
    """
    said = "\n".join(m.content for m in prompt.messages if m.role == "user")
    return {
        prompt.id,
        prompt.cluster,
        *(f"words: {bare_words(t)}" for t in (said, prompt.question or "") if t.strip()),
    }
