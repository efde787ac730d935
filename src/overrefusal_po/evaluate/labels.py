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

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from overrefusal_po.records import (
    Kind,
    Outcome,
    Record,
    Refusal,
    Verdict,
    content_id,
    first_fault,
    read_objects,
)

HUMAN: dict[str, Refusal] = {
    "full_compliance": "none",
    "partial_refusal": "partial",
    "full_refusal": "full",
}
KINDS: dict[str, Kind] = {"safe": "benign", "unsafe": "harmful"}


class Row(Record):
    """A line of a labels file; other fields of the line are left alone."""

    prompt: str = Field(min_length=1)
    response: str
    human_label: Literal["full_compliance", "partial_refusal", "full_refusal"]
    model: str = Field(min_length=1)
    label: Literal["safe", "unsafe"]


class Labelled(Record):
    """A response and what a person said of it. `weight` is above 1 where the row stands for more
    than itself."""

    prompt: str
    response: str
    human: Refusal
    model: str
    kind: Kind
    weight: float = Field(default=1.0, gt=0)

    @property
    def refused(self) -> bool:
        """Partial counts as refusal."""
        return self.human != "none"


class BlindedSample(NamedTuple):
    """`rows` go to a person, `key` stays at home: they meet again in `read_labels`. Both are JSON
    Lines objects."""

    rows: list[dict[str, str]]
    key: list[dict[str, Any]]


def read_labels(path: str | Path, key: str | Path | None = None) -> list[Labelled]:
    """All rows of a labels file, or of a blinded sample that a person filled in.

    `key` is the file of the sample's `BlindedSample.key`; None looks for `NAME.key.jsonl` beside
    `NAME.jsonl`. Raises ValueError with file, line and field where a row cannot be read or has no
    label yet.
    """
    rows = list(read_objects(path))
    keys: dict[str, dict[str, Any]] = {}
    if any("model" not in row and "id" in row for _, row in rows):
        keys = read_key(path, key)
    return [labelled_row(row, keys, f"{path}, line {number}") for number, row in rows]


def key_path(path: str | Path) -> Path:
    """Where the key of a blinded sample lies when nobody says otherwise: sample.jsonl ->
    sample.key.jsonl."""
    return Path(path).with_suffix(".key.jsonl")


def read_key(path: str | Path, key: str | Path | None) -> dict[str, dict[str, Any]]:
    """The key's rows by id; ValueError where there is no such file or a row lacks what a label
    needs."""
    file = key_path(path) if key is None else Path(key)
    if not file.is_file():
        raise ValueError(
            f"{path}: its rows have an id and no model, as in a blinded sample, but there is no "
            f"key {file}. Give the key "
            "that was written with the sample."
        )
    found = {}
    for number, row in read_objects(file):
        for field in ("id", "model", "label"):
            if not isinstance(row.get(field), str):
                raise ValueError(
                    f"{file}, line {number}: {field} is {row.get(field)!r}; a text is needed."
                )
        found[row["id"]] = row
    return found


def labelled_row(
    row: Mapping[str, Any], keys: Mapping[str, Mapping[str, Any]], where: str
) -> Labelled:
    """One line as a `Labelled`, joined with its key where it has none of its own model."""
    joined = dict(row)
    if "model" not in row and keys:
        if row.get("id") not in keys:
            raise ValueError(
                f"{where}: id is {row.get('id')!r}, which the sample's key does not have."
            )
        joined |= {field: keys[row["id"]][field] for field in ("model", "label")}
        joined["weight"] = keys[row["id"]].get("weight", 1.0)
    if joined.get("human_label") == "":
        raise ValueError(
            f"{where}: human_label is still empty. Write {', '.join(HUMAN)}, or delete the row to "
            "leave it out."
        )
    try:
        given = Row.model_validate(
            {field: joined[field] for field in Row.model_fields if field in joined}
        )
        return Labelled(
            prompt=given.prompt,
            response=given.response,
            human=HUMAN[given.human_label],
            model=given.model,
            kind=KINDS[given.label],
            weight=joined.get("weight", 1.0) if keys else 1.0,
        )
    except ValidationError as error:
        raise ValueError(f"{where}: {first_fault(error)}") from None


def blinded_sample(
    outcomes: Mapping[str, Sequence[Outcome]], n: int = 50, seed: int = 0
) -> BlindedSample:
    """At most `n` responses of the runs ({run name: outcomes}) for a person to label, and the key
    to who wrote them.

    As many of each kind and verdict (refusal, none, degenerate, unscored) as there are, the runs
    taken in turn, in random order; a response that several runs gave to one prompt stands there
    once. Because rare verdicts are sampled more often than common ones, each row of the key carries
    the `weight` by which `certify` counts it: the share of such responses in the runs, over their
    share in the sample. General prompts count as safe ones.
    """
    groups = sampling_groups(outcomes, seed)
    taken: dict[tuple[Kind, str], list[tuple[str, Outcome]]] = {group: [] for group in groups}
    for turn in range(n):
        for group, members in groups.items():
            if turn < len(members) and sum(map(len, taken.values())) < n:
                taken[group].append(members[turn])
    drawn, population = sum(map(len, taken.values())), sum(map(len, groups.values()))
    rows, key = [], []
    for (kind, verdict), members in taken.items():
        weight = (
            1.0 if not members else len(groups[kind, verdict]) / population * drawn / len(members)
        )
        for run, outcome in members:
            blind = content_id("blind", seed, outcome.prompt.asked, outcome.completion.text)
            rows.append(
                {
                    "id": blind,
                    "prompt": outcome.prompt.asked,
                    "response": outcome.completion.text,
                    "human_label": "",
                }
            )
            key.append(key_row(blind, run, outcome, verdict, weight))
    return BlindedSample(
        sorted(rows, key=lambda row: row["id"]), sorted(key, key=lambda row: str(row["id"]))
    )


def key_row(blind: str, run: str, outcome: Outcome, verdict: str, weight: float) -> dict[str, Any]:
    """What a labeller must not see of one row."""
    return {
        "id": blind,
        "run": run,
        "model": outcome.completion.model,
        "kind": outcome.prompt.kind,
        "label": "unsafe" if outcome.prompt.kind == "harmful" else "safe",
        "judge": f"{outcome.verdict.judge} {outcome.verdict.version}",
        "verdict": verdict,
        "weight": weight,
    }


def sampling_groups(
    outcomes: Mapping[str, Sequence[Outcome]], seed: int
) -> dict[tuple[Kind, str], list[tuple[str, Outcome]]]:
    """(kind, verdict) -> its (run, outcome)s, the runs taking turns, each run's in random order;
    equal texts once."""
    ranked: dict[tuple[Kind, str], list[tuple[int, str, str, Outcome]]] = defaultdict(list)
    turns: dict[tuple[str, Kind, str], int] = defaultdict(int)
    seen: set[tuple[str, str]] = set()
    everything = [(run, outcome) for run, rows in outcomes.items() for outcome in rows]
    for run, o in sorted(
        everything, key=lambda item: content_id(seed, item[0], item[1].completion.id)
    ):
        if (o.prompt.asked, o.completion.text) in seen:
            continue
        seen.add((o.prompt.asked, o.completion.text))
        verdict = verdict_name(o.verdict)
        ranked[o.prompt.kind, verdict].append(
            (turns[run, o.prompt.kind, verdict], content_id(seed, run), run, o)
        )
        turns[run, o.prompt.kind, verdict] += 1
    return {
        group: [(run, o) for _, _, run, o in sorted(rows, key=lambda row: row[:2])]
        for group, rows in sorted(ranked.items())
    }


def verdict_name(verdict: Verdict) -> str:
    """What the sample is balanced over."""
    if verdict.unscored is not None or verdict.refusal is None:
        return "unscored"
    return "refusal" if verdict.refused else "degenerate" if verdict.degenerate else "none"
