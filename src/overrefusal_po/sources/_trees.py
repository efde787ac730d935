"""A row of a file -> a tree of steps: checked nodes, with the path of text that leads to each.

    tree = read_tree({"prompt": "How?", "nodes": [{"id": "a", "text": "So."}]}, "x, line 1", unread)
    tree.children[None]        # the first steps

A row has our own form, or the one that STAIR's released tree search writes. Nothing here recurses,
so that a deep tree is no fault.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from overrefusal_po.records import JsonObject
from overrefusal_po.sources._turns import Unread, is_blank, is_seen, short

NODE_FIELDS = ("id", "parent", "text", "value", "visits", "terminal", "safe", "helpful")
"""The fields of a node that are read."""

STAIR_KEY = re.compile(r"0(?:\.\d+)*")
"""How STAIR names a node: the root is "0", its second child "0.1"."""

STAIR_END = re.compile(r"(?:<\|(?:eot_id|end_of_text|im_end|endoftext)\|>|</s>)\s*\Z")
"""The end of turn that STAIR's search keeps in the text of a last step."""

SHORTEST_LOOP = 4
"""Nodes of a loop that a message names."""


class Step(NamedTuple):
    """A node: one step of a response.

    Attributes:
        id: its name in its tree.
        parent: the step before it; None for a first step.
        text: what the model says in it.
        value: how good it is; None if that is not known.
        visits: how often the search came by; None if that is not known.
        terminal: whether the response ends with it.
    """

    id: str
    parent: str | None
    text: str
    value: float | None
    visits: int | None
    terminal: bool


class Tree(NamedTuple):
    """A prompt's row and the steps of its responses. `children` are in the order of the row."""

    steps: Mapping[str, Step]
    children: Mapping[str | None, Sequence[Step]]

    def path(self, step: Step) -> str:
        """The text of all steps before this one, without blanks at its start, as templates have
        it."""
        texts: list[str] = []
        parent = step.parent
        while parent is not None:
            texts.append(self.steps[parent].text)
            parent = self.steps[parent].parent
        return "".join(reversed(texts)).lstrip()


def reward(safe: float, helpful: float) -> float:
    """R = 2 S + S H of a whole response (STAIR, arXiv 2502.02384): help counts only if it is safe.

    Both are in [-1, 1].
    """
    return 2 * safe + safe * helpful


def read_tree(row: JsonObject, place: str, unread: Unread) -> Tree:
    """The tree of a row in either form. ValueError names the place and the node."""
    nodes = stair_nodes(row, place) if is_stair(row) else row.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        raise ValueError(
            f"{place}: no nodes. A tree has a prompt and `nodes`: a list of {{id, parent, text, "
            f"value, visits, terminal}}. The columns found are {', '.join(map(str, row))}."
        )
    steps: dict[str, Step] = {}
    for number, node in enumerate(nodes, 1):
        step = read_step(node, f"{place}, node {number}", unread)
        if step.id in steps:
            raise ValueError(
                f"{place}, node {number}: the id {short(step.id)} is there twice. Give each node "
                "of a tree its own id."
            )
        steps[step.id] = step
    return joined(steps, place)


def joined(steps: Mapping[str, Step], place: str) -> Tree:
    """The steps as a tree. ValueError for a parent that is not there, steps behind a terminal one,
    and a loop."""
    children: defaultdict[str | None, list[Step]] = defaultdict(list)
    for step in steps.values():
        if step.parent is not None and step.parent not in steps:
            raise ValueError(
                f"{place}, node {short(step.id)}: its parent {short(step.parent)} is not among the "
                f"{len(steps)} nodes. Add it, or write null if this is a first step."
            )
        if step.parent is not None and steps[step.parent].terminal:
            raise ValueError(
                f"{place}, node {short(step.id)}: its parent {short(step.parent)} is terminal, and "
                "nothing can stand behind it. Correct `terminal` or `parent`."
            )
        children[step.parent].append(step)
    check_loops(steps, children, place)
    return Tree(steps, dict(children))


def check_loops(
    steps: Mapping[str, Step], children: Mapping[str | None, Sequence[Step]], place: str
) -> None:
    """Raises ValueError if a step is not reached from the prompt: then its parents are a loop."""
    reached: set[str] = set()
    waiting = list(children.get(None, ()))
    while waiting:
        step = waiting.pop()
        reached.add(step.id)
        waiting += children.get(step.id, ())
    lost = next((step for step in steps.values() if step.id not in reached), None)
    if lost is not None:
        loop = " -> ".join(short(name) for name in parents_of(lost, steps))
        raise ValueError(
            f"{place}, node {short(lost.id)}: its parents are a loop ({loop}). Give the first step "
            "the parent null."
        )


def parents_of(step: Step, steps: Mapping[str, Step]) -> Iterator[str]:
    """The ids from a step upwards, at most as many as a message shows."""
    name: str | None = step.id
    for _ in range(SHORTEST_LOOP):
        if name is None:
            return
        yield name
        name = steps[name].parent


def read_step(node: object, place: str, unread: Unread) -> Step:
    """One node of a row. ValueError names the place and the field."""
    if not isinstance(node, dict):
        raise ValueError(f"{place}: got {short(node)}. A node is {{id, parent, text, ...}}.")
    for name, value in node.items():
        if name not in NODE_FIELDS and not is_blank(value):
            unread[f"field {name} of a node"] += 1
    parent = None if node.get("parent") is None else name_of(node, "parent", place)
    terminal = node.get("terminal") if node.get("terminal") is not None else False
    if not isinstance(terminal, bool):
        raise ValueError(f"{place}: terminal is {short(terminal)}; allowed is true or false.")
    return Step(
        id=name_of(node, "id", place),
        parent=parent,
        text=step_text(node, parent, place),
        value=step_value(node, terminal, place),
        visits=visits_of(node, place),
        terminal=terminal,
    )


def name_of(node: JsonObject, field: str, place: str) -> str:
    """An id as text; ValueError if it is neither text nor a whole number."""
    value = node.get(field)
    named = isinstance(value, int) and not isinstance(value, bool)
    if not named and not (isinstance(value, str) and is_seen(value)):
        raise ValueError(f"{place}: {field} is {short(value)}; it must be text or a whole number.")
    return str(value)


def step_text(node: JsonObject, parent: str | None, place: str) -> str:
    """What a step says. It may be empty in a root, which stands before the first step."""
    text = node.get("text")
    if not isinstance(text, str) or not (is_seen(text) or (parent is None and not text)):
        raise ValueError(
            f"{place}: text is {short(text)}. Write what the model says in this step; only a node "
            'without a parent may have "".'
        )
    return text


def step_value(node: JsonObject, terminal: bool, place: str) -> float | None:
    """The value of a step, for a terminal one without it the reward of `safe` and `helpful`."""
    scores = {name: number_of(node, name, place) for name in ("value", "safe", "helpful")}
    for name in ("safe", "helpful"):
        score = scores[name]
        if score is not None and not -1 <= score <= 1:
            raise ValueError(f"{place}: {name} is {score:g}; allowed is -1 to 1.")
    value, safe, helpful = scores.values()
    if value is not None or not terminal:
        return value
    if safe is None or helpful is None:
        raise ValueError(
            f"{place}: a terminal node needs a value, or both safe and helpful (its value is then "
            "2 safe + safe x helpful)."
        )
    return reward(safe, helpful)


def number_of(node: JsonObject, field: str, place: str) -> float | None:
    """A number of a node, None if it has none. ValueError if it is no finite number."""
    value = node.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise ValueError(f"{place}: {field} is {short(value)}; it must be a finite number.")
    return float(value)


def is_finite(value: float) -> bool:
    """Whether a number is one that a float holds: JSON may have NaN, and integers of any size."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def visits_of(node: JsonObject, place: str) -> int | None:
    """How often the search came by; ValueError if it is no count."""
    visits = number_of(node, "visits", place)
    if visits is None:
        return None
    if visits < 0 or not visits.is_integer():
        raise ValueError(f"{place}: visits is {visits:g}; it must be a whole number from 0 on.")
    return int(visits)


# --- STAIR's own form -----------------------------------------------------------------------------


def is_stair(row: JsonObject) -> bool:
    """Whether a row is what STAIR's tree search writes: nodes under "0", "0.1", ..."""
    root = row.get("0")
    return "nodes" not in row and isinstance(root, dict) and "trajectory" in root


def stair_asked(row: JsonObject, place: str) -> JsonObject:
    """What a row of STAIR's form asks, as a row of ours; ValueError if a node asks another thing.

    Other columns of the row are kept.
    """
    others = {name: value for name, value in row.items() if not STAIR_KEY.fullmatch(name)}
    asked = row["0"].get("prompt")
    for name, node in row.items():
        if STAIR_KEY.fullmatch(name) and isinstance(node, dict) and node.get("prompt") != asked:
            raise ValueError(
                f"{place}, node {name}: its prompt is {short(node.get('prompt'))}, and that of "
                f"node 0 is {short(asked)}. All nodes of a tree have one prompt."
            )
    others.pop("tree_size", None)
    return {**others, "prompt": asked}


def stair_nodes(row: JsonObject, place: str) -> list[JsonObject]:
    """The nodes of a row of STAIR's form in our own form. ValueError names the node."""
    found = []
    for name, node in row.items():
        if not STAIR_KEY.fullmatch(name):
            continue
        said = node.get("trajectory") if isinstance(node, dict) else None
        if not isinstance(said, list) or not all(isinstance(text, str) for text in said):
            raise ValueError(f"{place}, node {name}: trajectory is {short(said)}; a list of texts.")
        if len(said) != name.count("."):
            raise ValueError(
                f"{place}, node {name}: trajectory holds {len(said)} steps, and the name says "
                f"{name.count('.')}."
            )
        text = said[-1] if said else ""
        terminal = node.get("is_terminal")
        text = STAIR_END.sub("", text) if terminal else text
        if terminal and not is_seen(text):
            continue  # nothing but an end of turn: no side of a pair can be empty
        found.append(
            {
                "id": name,
                "parent": name.rpartition(".")[0] or None,
                "text": text,
                "value": node.get("true_value"),
                "visits": node.get("visited_times"),
                "terminal": terminal,
            }
        )
    return found
