"""Judged answers to harmful prompts -> one entry a prompt, for sets of (prompt, response, safe or
not).

    asked = by_prompt(Answer(row["prompt"], row["response"], row["is_safe"], "") for row in rows)
    answer_triples(asked, source="beavertails", split="train", per_prompt=1)

These sets label answers, not prompts. So a prompt counts as harmful if people found at least one
answer to it unsafe. Rows of one answer are votes, and the majority decides; in a tie the answer is
left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from overrefusal_po.records import Prompt, Split, Triple

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """One row: what was asked, what was said, whether that is safe, and which harm it does if
    not."""

    prompt: str
    text: str
    safe: bool
    category: str


class Asked(NamedTuple):
    """The answers to one prompt, in the set's order, and the category of the first unsafe one."""

    safe: list[str]
    unsafe: list[str]
    category: str


def by_prompt(answers: Iterable[Answer]) -> dict[str, Asked]:
    """{prompt: its answers}, every answer once. Empty answers are left out."""
    votes: dict[str, Counter[str]] = {}
    categories: dict[str, str] = {}
    for answer in answers:
        said = votes.setdefault(answer.prompt, Counter())
        if answer.text.strip():
            said[answer.text] += 1 if answer.safe else -1
        if not answer.safe:
            categories.setdefault(answer.prompt, answer.category)
    return {
        prompt: Asked(
            [text for text, vote in said.items() if vote > 0],
            [text for text, vote in said.items() if vote < 0],
            categories.get(prompt, "uncategorised"),
        )
        for prompt, said in votes.items()
    }


def answered_prompts(asked: Mapping[str, Asked], *, source: str, split: Split) -> Iterator[Prompt]:
    """The harmful prompts; the reference is the first safe answer, None if there is none."""
    for text, answers in asked.items():
        if answers.unsafe:
            reference = answers.safe[0] if answers.safe else None
            yield harmful_prompt(text, answers, source=source, split=split, reference=reference)


def answer_triples(
    asked: Mapping[str, Asked], *, source: str, split: Split, per_prompt: int
) -> Iterator[Triple]:
    """At most `per_prompt` triples of each prompt that has safe and unsafe answers: the first with
    the first, ..."""
    made = 0
    for text, answers in asked.items():
        for safe, unsafe in list(zip(answers.safe, answers.unsafe, strict=False))[:per_prompt]:
            made += 1
            prompt = harmful_prompt(text, answers, source=source, split=split)
            yield Triple(prompt=prompt, safe_response=safe, harmful_response=unsafe)
    bare = sum(not answers.unsafe for answers in asked.values())
    alone = sum(bool(answers.unsafe) and not answers.safe for answers in asked.values())
    logger.info(
        "%s (%s): %d triples; of %d prompts %d have no unsafe answer and %d no safe one",
        *(source, split, made, len(asked), bare, alone),
    )


def harmful_prompt(
    text: str, answers: Asked, *, source: str, split: Split, reference: str | None = None
) -> Prompt:
    """A prompt of such a set."""
    return Prompt.of(
        text,
        kind="harmful",
        category=answers.category,
        source=source,
        split=split,
        reference=reference,
    )


def first_harm(harms: object) -> str:
    """The first harm that is set in {harm: whether}, `uncategorised` if none is."""
    if not isinstance(harms, Mapping):
        return "uncategorised"
    return next((str(harm) for harm, found in harms.items() if found), "uncategorised")


def label_truth(value: object, column: str, place: str) -> bool:
    """A label as True or False, also as text from a CSV; ValueError on anything else."""
    known = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in known:
        raise ValueError(
            f"{place}, column {column}: the label is {value!r}; expected is true or false."
        )
    return known[str(value).lower()]
