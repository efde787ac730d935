"""Rows that contradict or repeat each other -> findings that name both rows. Pure.

    found = list(row_conflicts(pairs))
    found = list(prompt_conflicts(prompts))

A prompt is the same if the whole conversation is, whatever its case and white space. What the rows
call it does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overrefusal_po.identity import conversation_key
from overrefusal_po.pairs.findings import Finding, placed
from overrefusal_po.records import PreferencePair, Prompt, named

Keyed = tuple[PreferencePair, str]
"""A pair and the key of its conversation."""


def row_conflicts(pairs: Sequence[PreferencePair]) -> Iterator[Finding]:
    """What two rows together show: contradictions, two kinds of one prompt, one id of two prompts,
    and rows that come twice."""
    keyed = [(pair, conversation_key(pair.prompt)) for pair in pairs]
    for found in (contradictions(keyed), two_kinds(keyed), shared_ids(keyed), repeats(keyed)):
        for pair, finding in found:
            yield from placed([finding], pair.origin)


def prompt_conflicts(prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Prompts of a file that come twice, or are harmful in one row and harmless in another."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        key = conversation_key(prompt)
        other = first.get(key)
        first.setdefault(key, prompt)
        if other is None:
            continue
        own = prompt_id(prompt)
        if (other.kind == "harmful") != (prompt.kind == "harmful"):
            message = (
                f"is {prompt.kind} here, and {other.kind} as {other.label}: correct one of them"
            )
            found = Finding(own, "kind", "error", "prompt", message)
        else:
            message = f"the prompt comes twice: {other.label} is the same"
            found = Finding(own, "repeated", "warning", "prompt", message)
        yield from placed([found], prompt.origin)


def contradictions(keyed: Sequence[Keyed]) -> Iterator[tuple[PreferencePair, Finding]]:
    """Rows that prefer for one prompt what another row rejects."""
    rejected: dict[tuple[str, str], PreferencePair] = {}
    for pair, key in keyed:
        rejected.setdefault((key, pair.rejected.strip()), pair)
    for pair, key in keyed:
        chosen = pair.chosen.strip()
        other = rejected.get((key, chosen))
        if other is not None and chosen != pair.rejected.strip():
            message = f"another row rejects the same text for this prompt: {other.label}"
            yield pair, Finding(pair.id, "contradiction", "error", "chosen", message)


def two_kinds(keyed: Sequence[Keyed]) -> Iterator[tuple[PreferencePair, Finding]]:
    """Prompts that are harmful in one row and harmless in another."""
    first: dict[str, PreferencePair] = {}
    for pair, key in keyed:
        other = first.setdefault(key, pair)
        if (other.prompt.kind == "harmful") != (pair.prompt.kind == "harmful"):
            message = (
                f"the prompt is {pair.prompt.kind} here and {other.prompt.kind} in {other.label}: "
                "correct or delete one of the rows"
            )
            yield pair, Finding(pair.id, "kind", "error", "prompt", message)


def shared_ids(keyed: Sequence[Keyed]) -> Iterator[tuple[PreferencePair, Finding]]:
    """Ids, of rows or of their prompts, that stand for two different prompts."""
    rows: dict[str, Keyed] = {}
    prompts: dict[str, Keyed] = {}
    for pair, key in keyed:
        own = prompt_id(pair.prompt)
        for name, known in ((pair.id, rows), (own, prompts)):
            other, other_key = known.setdefault(name, (pair, key))
            if other_key != key:
                message = (
                    f"the id {name!r} is that of {named(other.id, other.origin)} too, and the two "
                    "rows have different prompts: give each its own id"
                )
                yield pair, Finding(pair.id, "id", "error", "prompt", message)
                break


def prompt_id(prompt: Prompt) -> str:
    """The id that the user's row gives the prompt, else ours."""
    return (prompt.origin.id if prompt.origin else None) or prompt.id


def repeats(keyed: Sequence[Keyed]) -> Iterator[tuple[PreferencePair, Finding]]:
    """Rows with the prompt and the sides of an earlier one, whatever their ids."""
    first: dict[tuple[str, str, str], PreferencePair] = {}
    for pair, key in keyed:
        row = (key, pair.chosen.strip(), pair.rejected.strip())
        other = first.get(row)
        first.setdefault(row, pair)
        if other is not None:
            message = f"the row comes twice: {other.label} is the same"
            yield pair, Finding(pair.id, "repeated", "warning", "both", message)
