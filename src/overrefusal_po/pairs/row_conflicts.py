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

Said = tuple[str, str]
"""The key of a conversation, and a response to it without blanks around it."""


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
    """Rows that prefer for one prompt what another row rejects.

    Rows without a rule may rank several texts: A over B, and B over C. Those contradict each other
    only in a circle.
    """
    rejected: dict[Said, PreferencePair] = {}
    for pair, key in keyed:
        rejected.setdefault((key, pair.rejected.strip()), pair)
    found = []
    for pair, key in keyed:
        other = rejected.get((key, pair.chosen.strip()))
        if other is not None and pair.chosen.strip() != pair.rejected.strip():
            found.append((pair, key, other))
    circle = circles(keyed) if found else {}
    for pair, key, other in found:
        chosen, worse = (circle[key, side.strip()] for side in (pair.chosen, pair.rejected))
        if pair.rule is None and other.rule is None and chosen != worse:
            continue
        message = f"another row rejects the same text for this prompt: {other.label}"
        yield pair, Finding(pair.id, "contradiction", "error", "chosen", message)


def circles(keyed: Sequence[Keyed]) -> dict[Said, int]:
    """A number for each side of each prompt: two sides have the same one if each is preferred to
    the other, directly or over other sides."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    places: dict[Said, int] = {}
    edges = [
        [places.setdefault((key, side.strip()), len(places)) for side in (p.chosen, p.rejected)]
        for p, key in keyed
    ]
    chosen, worse = zip(*edges, strict=True)
    size = (len(places), len(places))
    graph = coo_matrix(([1] * len(edges), (chosen, worse)), shape=size)
    _, numbers = connected_components(graph, directed=True, connection="strong")
    return {said: int(numbers[place]) for said, place in places.items()}


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
    """Ids, of rows or of their prompts, that stand for two different prompts of one file."""
    first: dict[tuple[str, str | None, str], Keyed] = {}
    for pair, key in keyed:
        ids = {
            "row": (pair.id, pair.origin),
            "prompt": (prompt_id(pair.prompt), pair.prompt.origin),
        }
        for what, (name, origin) in ids.items():
            file = origin.file if origin else None
            other, other_key = first.setdefault((what, file, name), (pair, key))
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
