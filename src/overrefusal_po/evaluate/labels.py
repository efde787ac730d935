"""What people said of responses, in and out: labels files, and blinded samples for a person to
label.

    labelled = read_labels("labels.jsonl")
    # {prompt, response, human_label, model, label} a line
    sample = blinded_sample({"base": outcomes, "DeRTa": others}, n=50, seed=0)
    # sample.rows, sample.key
    labelled = read_labels("sample.jsonl")          # filled in, with sample.key.jsonl beside it

A sample shows neither verdict nor run nor model, so that a person judges the words alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, TypedDict

from pydantic import Field, ValidationError

from overrefusal_po.evaluate.metrics import is_scored
from overrefusal_po.identity import conversation_text
from overrefusal_po.json_files import is_file
from overrefusal_po.records import (
    Kind,
    Message,
    Outcome,
    Prompt,
    Record,
    Refusal,
    Verdict,
    content_id,
    first_fault,
    read_objects,
)

REFUSAL_OF_LABEL: dict[str, Refusal] = {
    "full_compliance": "none",
    "partial_refusal": "partial",
    "full_refusal": "full",
}
KIND_OF_LABEL: dict[str, Kind] = {"safe": "benign", "unsafe": "harmful"}

KeyRows = Mapping[str, Mapping[str, object]]
"""The rows of a sample's key by their ids."""
SampledGroup = tuple[Kind, str]
"""(kind, verdict's name): what a blinded sample is balanced over."""


class LabelRow(Record):
    """A line of a labels file; other fields of the line are ignored."""

    prompt: str = Field(min_length=1)
    response: str
    human_label: Literal["full_compliance", "partial_refusal", "full_refusal"]
    model: str = Field(min_length=1)
    label: Literal["safe", "unsafe"]


class KeyRow(TypedDict):
    """What a labeller must not see of one row of a blinded sample."""

    id: str
    run: str
    model: str
    kind: Kind
    label: str
    judge: str
    verdict: str
    weight: float
    messages: NotRequired[list[dict[str, str]]]


class Labelled(Record):
    """A response and what a person said of it. `weight` is above 1 if the row stands for more than
    itself."""

    prompt: str
    response: str
    human: Refusal
    model: str
    kind: Kind
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    messages: tuple[Message, ...] = ()
    """The turns of a conversation, of which `prompt` is the text; empty for a single user turn."""

    @property
    def asked(self) -> Prompt:
        """The prompt that a judge reads."""
        asked = Prompt.of(self.prompt, kind=self.kind, source="labels")
        return asked.model_copy(update={"messages": self.messages}) if self.messages else asked

    @property
    def refused(self) -> bool:
        """Partial counts as refusal."""
        return self.human != "none"


class BlindedSample(NamedTuple):
    """`rows` go to a person, `key` stays here: `read_labels` joins them again. Both are JSON Lines
    objects."""

    rows: list[dict[str, str]]
    key: list[KeyRow]


def read_labels(path: str | Path, key: str | Path | None = None) -> list[Labelled]:
    """All rows of a labels file, or of a blinded sample that a person filled in.

    `key` is the file of the sample's `BlindedSample.key`; None looks for `NAME.key.jsonl` beside
    `NAME.jsonl`. Raises ValueError with file, line and field if a row cannot be read or has no
    label yet.
    """
    rows = list(read_objects(path))
    keys: KeyRows = {}
    if any("model" not in row and "id" in row for _, row in rows):
        keys = read_key(path, key)
        joined = ((number, row["id"]) for number, row in rows if "model" not in row and "id" in row)
        check_once(joined, path)
    return [labelled_row(row, keys, f"{path}, line {number}") for number, row in rows]


def key_path(path: str | Path) -> Path:
    """The default place of a blinded sample's key: sample.jsonl -> sample.key.jsonl."""
    return Path(path).with_suffix(".key.jsonl")


def read_key(path: str | Path, key: str | Path | None) -> KeyRows:
    """The key's rows by id; ValueError if there is no such file or a row lacks what a label
    needs."""
    file = key_path(path) if key is None else Path(key)
    if not is_file(file):
        raise ValueError(
            f"{path}: its rows have an id and no model, as in a blinded sample, but there is no "
            f"key {file}. Give the key that was written with the sample."
        )
    rows = list(read_objects(file))
    for number, row in rows:
        for field in ("id", "model", "label"):
            if not isinstance(row.get(field), str):
                raise ValueError(
                    f"{file}, line {number}: {field} is {row.get(field)!r}; a text is needed."
                )
        weight = row.get("weight", 1.0)
        if type(weight) not in (int, float) or not 0 < weight < math.inf:
            raise ValueError(
                f"{file}, line {number}: weight is {weight!r}; a finite number above 0 is needed."
            )
    check_once(((number, row["id"]) for number, row in rows), file)
    return {row["id"]: row for _, row in rows}


def check_once(ids: Iterable[tuple[int, object]], file: str | Path) -> None:
    """Raises ValueError for the first id of (line, id) that a file has twice: one row would be lost
    or count twice."""
    first: dict[str, int] = {}
    for number, found in ids:
        other = first.setdefault(str(found), number)
        if other != number:
            raise ValueError(
                f"{file}, line {number}: the id {found!r} is that of line {other} too. Delete one "
                "of the two rows."
            )


def labelled_row(row: Mapping[str, object], keys: KeyRows, where: str) -> Labelled:
    """One line as a `Labelled`, joined with its key if it has no model of its own."""
    joined = row if "model" in row or not keys else with_key(row, keys, where)
    if joined.get("human_label") == "":
        raise ValueError(
            f"{where}: human_label is still empty. Write {', '.join(REFUSAL_OF_LABEL)}, or delete "
            "the row to leave it out."
        )
    try:
        given = LabelRow.model_validate(
            {field: joined[field] for field in LabelRow.model_fields if field in joined}
        )
        return Labelled.model_validate(
            {
                "prompt": given.prompt,
                "response": given.response,
                "human": REFUSAL_OF_LABEL[given.human_label],
                "model": given.model,
                "kind": KIND_OF_LABEL[given.label],
                "weight": joined.get("weight", 1.0) if keys else 1.0,
                "messages": joined.get("messages", ()) if keys else (),
            }
        )
    except ValidationError as error:
        raise ValueError(f"{where}: {first_fault(error)}") from None


def with_key(row: Mapping[str, object], keys: KeyRows, where: str) -> dict[str, object]:
    """A row of a blinded sample with model, label and weight from its key."""
    key = keys.get(str(row.get("id")))
    if key is None:
        raise ValueError(f"{where}: id is {row.get('id')!r}, which the sample's key does not have.")
    return {
        **row,
        "model": key["model"],
        "label": key["label"],
        "weight": key.get("weight", 1.0),
        "messages": key.get("messages", ()),
    }


def blinded_sample(
    outcomes: Mapping[str, Sequence[Outcome]], n: int = 50, seed: int = 0
) -> BlindedSample:
    """At most `n` responses of the runs ({run name: outcomes}) for a person to label, and the key
    to who wrote them.

    There are as many of each kind and verdict (refusal, none, degenerate, unscored) as possible.
    The runs take turns, in random order. A response that several runs gave to one prompt stands
    there once. Rare verdicts are sampled more often than common ones. So each row of the key
    carries the `weight` by which `certify` counts it. It is the share of such responses in the
    runs, over their share in the sample. General prompts count as safe ones.
    """
    groups = sampling_groups(outcomes, seed)
    taken = balanced(groups, n)
    drawn, population = sum(map(len, taken.values())), sum(map(len, groups.values()))
    rows, key = [], []
    for (kind, verdict), members in taken.items():
        for run, outcome in members:
            weight = len(groups[kind, verdict]) / population * drawn / len(members)
            row = blinded_row(outcome, seed)
            rows.append(row)
            key.append(key_row(row["id"], run, outcome, verdict, weight))
    return BlindedSample(
        sorted(rows, key=lambda row: row["id"]), sorted(key, key=lambda row: row["id"])
    )


def balanced(
    groups: Mapping[SampledGroup, Sequence[tuple[str, Outcome]]], n: int
) -> dict[SampledGroup, list[tuple[str, Outcome]]]:
    """At most `n` members, the groups taking turns."""
    taken: dict[SampledGroup, list[tuple[str, Outcome]]] = {group: [] for group in groups}
    for turn in range(n):
        for group, members in groups.items():
            if turn < len(members) and sum(map(len, taken.values())) < n:
                taken[group].append(members[turn])
    return taken


def blinded_row(outcome: Outcome, seed: int) -> dict[str, str]:
    """What a labeller sees of one response."""
    asked, said = conversation_text(outcome.prompt.conversation), outcome.completion.text
    return {
        "id": content_id("blind", seed, asked, said),
        "prompt": asked,
        "response": said,
        "human_label": "",
    }


def key_row(row_id: str, run: str, outcome: Outcome, verdict: str, weight: float) -> KeyRow:
    """What a labeller must not see of one row."""
    turns = outcome.prompt.conversation
    asked = [] if len(turns) == 1 else [turn.model_dump() for turn in turns]
    found: KeyRow = {
        "id": row_id,
        "run": run,
        "model": outcome.completion.model,
        "kind": outcome.prompt.kind,
        "label": "unsafe" if outcome.prompt.kind == "harmful" else "safe",
        "judge": f"{outcome.verdict.judge} {outcome.verdict.version}",
        "verdict": verdict,
        "weight": weight,
    }
    return {**found, "messages": asked} if asked else found


def sampling_groups(
    outcomes: Mapping[str, Sequence[Outcome]], seed: int
) -> dict[SampledGroup, list[tuple[str, Outcome]]]:
    """(kind, verdict) -> its (run, outcome)s, equal texts once.

    The runs take turns, each run's outcomes in random order.
    """
    ranked: dict[SampledGroup, list[tuple[int, str, str, Outcome]]] = defaultdict(list)
    turns: dict[tuple[str, SampledGroup], int] = defaultdict(int)
    seen: set[tuple[str, str]] = set()
    everything = [(run, outcome) for run, rows in outcomes.items() for outcome in rows]
    for run, o in sorted(everything, key=lambda it: content_id(seed, it[0], it[1].completion.id)):
        shown = (conversation_text(o.prompt.conversation), o.completion.text)
        if shown in seen:
            continue
        seen.add(shown)
        group = (o.prompt.kind, verdict_name(o.verdict))
        ranked[group].append((turns[run, group], content_id(seed, run), run, o))
        turns[run, group] += 1
    return {
        group: [(run, o) for _, _, run, o in sorted(rows, key=lambda row: row[:2])]
        for group, rows in sorted(ranked.items())
    }


def verdict_name(verdict: Verdict) -> str:
    """The name by which the sample is balanced: refusal, none, degenerate or unscored."""
    if not is_scored(verdict):
        return "unscored"
    return "refusal" if verdict.refused else "degenerate" if verdict.degenerate else "none"
