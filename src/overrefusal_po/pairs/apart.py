"""Measured and trained sets -> the prompts that they share, found by id, original and words. Pure.

    check_apart({"stage tuned": measured}, {"stage derta": trained})
    # ValueError if a measured prompt is trained on
    check_not_chosen_by({"stage tuned": measured}, {"stage dpo, hold.sets": calibrated})

Case and punctuation make no difference, and an attack counts as its original. Signs do: "C++" is
not "C#". System prompts and the assistant's turns are not looked at: a question that is trained on
stays known under another system prompt. The benchmark `firewall` finds prompts that differ by a
word or more, but of public benchmarks only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from overrefusal_po.identity import bare_text
from overrefusal_po.pairs.firewall import contamination
from overrefusal_po.records import Message, Prompt


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
    if found := overlaps(measured, trained):
        raise ValueError(
            f"What is measured may not be trained on: {shared_words(found)}. Name another split or "
            "set for one of the two, or take these prompts out of the training data."
        )


def check_not_chosen_by(
    measured: Mapping[str, Iterable[Prompt]], looked_at: Mapping[str, Iterable[Prompt]]
) -> None:
    """Raises ValueError that names every measured set of which a prompt is in a set that a training
    selects or calibrates by."""
    if found := overlaps(measured, looked_at):
        raise ValueError(
            f"What is measured may not choose the model: {shared_words(found)}. On prompts that "
            "chose a step or a bias, a model looks better than it is. Name another split or set "
            "for one of the two."
        )


def shared_words(found: Iterable[Overlap]) -> str:
    """Each overlap in words."""
    return "; ".join(
        f"{o.measured} and {o.trained} share {o.num_shared} (from {', '.join(o.sources)}; for "
        f"example {o.example})"
        for o in found
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


def check_not_measured(
    measured: Mapping[str, Iterable[Prompt]], benchmarks: Mapping[str, Iterable[str]]
) -> None:
    """Raises ValueError if a measured set holds prompts of a benchmark that may be trained on.

    `benchmarks` is {trained set: the benchmarks of which its recipe lets prompts stand}.
    """
    waived = {name: owner for owner, names in benchmarks.items() for name in names}
    if not waived:
        return
    for owner, prompts in measured.items():
        for hit in contamination(prompts):
            if hit.benchmark in waived:
                raise ValueError(
                    f"{owner} measures prompts of {hit.benchmark}, which {waived[hit.benchmark]} "
                    "is allowed to train on (data.waive). A waiver is for a benchmark that is "
                    "never measured: take the set out of the evaluation, or the waiver out of the "
                    "training."
                )


def waived_benchmarks(waive: Mapping[str, str], trained: Iterable[Prompt]) -> set[str]:
    """The benchmarks of which prompts may stand: those that waivers name, and those of the trained
    prompts. A training with waivers has no other ones."""
    if not waive:
        return set()
    named = {key.partition("/")[2] for key in waive if key.startswith("contamination/")}
    return named | {hit.benchmark for hit in contamination(trained)}


def same_prompt_marks(prompt: Prompt) -> set[str]:
    """Marks of which two equal prompts share one: id, original's id, and the words, as asked and
    before an attack.

    The words are those of all user turns: many conversations end in the same way ("Go on."), also
    those that were attacked.
    """
    forms: tuple[Sequence[Message], ...] = (prompt.messages, prompt.conversation)
    said = ("\n".join(m.content for m in turns if m.role == "user") for turns in forms)
    return {prompt.id, prompt.cluster, *(f"words: {bare_text(t)}" for t in said if t.strip())}
