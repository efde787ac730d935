"""Outcomes of several runs -> the prompts and responses that a report shows.

sample_entries({"base": outcomes, "DeRTa": others})
# [{"kind": "benign", "category": ..., "prompt": ..., "responses": [...]}, ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from pydantic import BaseModel

from overrefusal_po.identity import conversation_text
from overrefusal_po.records import Kind, Outcome, Prompt, Refusal
from overrefusal_po.report.panel_part import READ_CONFIG, Count

SAMPLES_OF_KIND: dict[Kind, int] = {"benign": 24, "harmful": 18, "general": 6}
SAMPLES_OF_ATTACK = 3
"""How many samples of each kind, and of each attack, a report holds: enough to filter, few enough
to load on a phone."""


class ResponseEntry(TypedDict):
    """A `SampleResponse`, as JSON holds it."""

    run: str
    text: str
    refusal: Refusal | None
    refusal_start: int | None
    degenerate: bool


class SampleEntry(TypedDict):
    """A `Sample`, as JSON holds it."""

    kind: Kind
    category: str
    attack: str | None
    prompt: str
    row: str | None
    responses: list[ResponseEntry]


class SampleResponse(BaseModel):
    """What one run said, and the judge's verdict; `refusal` None is unscored."""

    model_config = READ_CONFIG
    run: str
    text: str
    refusal: Refusal | None
    refusal_start: Count | None = None
    degenerate: bool = False

    @property
    def state(self) -> str:
        """One of summary.STATE_WORDS, or "unscored"."""
        if self.refusal is None:
            return "unscored"
        if self.refusal != "none":
            return self.refusal
        return "degenerate" if self.degenerate else "answer"


class Sample(BaseModel):
    """A prompt and what every run said to it."""

    model_config = READ_CONFIG
    kind: Kind
    category: str
    attack: str | None = None
    prompt: str
    """All turns, with the system prompt."""
    row: str | None = None
    """The user's row behind it: its id, file and line."""
    responses: tuple[SampleResponse, ...]


def sample_entries(outcomes: Mapping[str, Sequence[Outcome]]) -> list[SampleEntry]:
    """Some prompts of the last run, with what every run said.

    There are `SAMPLES_OF_KIND` of each kind and `SAMPLES_OF_ATTACK` of each attack. A content hash
    chooses them, whatever was said, so that nobody picks the nice ones.
    """
    if not outcomes:
        return []
    by_id = {run: {o.prompt.id: o for o in rows} for run, rows in outcomes.items()}
    last = list(by_id.values())[-1]
    return [
        sample_entry(
            prompt, {run: rows[prompt.id] for run, rows in by_id.items() if prompt.id in rows}
        )
        for prompt in chosen_prompts([outcome.prompt for outcome in last.values()])
    ]


def sample_entry(prompt: Prompt, said: Mapping[str, Outcome]) -> SampleEntry:
    """A prompt, and what each run said to it."""
    return {
        "kind": prompt.kind,
        "category": prompt.category,
        "attack": prompt.attack,
        "prompt": conversation_text(prompt.conversation),
        "row": row_words(prompt),
        "responses": [response_entry(run, outcome) for run, outcome in said.items()],
    }


def row_words(prompt: Prompt) -> str | None:
    """`q7, prompts.jsonl, line 3`: the user's row, without the file's folder; None if there is
    none."""
    origin = prompt.origin
    if origin is None:
        return None
    place = origin.model_copy(update={"file": Path(origin.file).name}).place
    return f"{origin.id}, {place}" if origin.id else place


def chosen_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompts of each kind and of each attack, by id."""
    ranked = sorted(prompts, key=lambda prompt: prompt.id)
    chosen: list[Prompt] = []
    for kind, n in SAMPLES_OF_KIND.items():
        chosen += [p for p in ranked if p.kind == kind and not p.attack][:n]
    for attack in sorted({p.attack for p in ranked if p.attack}):
        chosen += [p for p in ranked if p.attack == attack][:SAMPLES_OF_ATTACK]
    return chosen


def response_entry(run: str, outcome: Outcome) -> ResponseEntry:
    """What one run said to a prompt, and the verdict on it."""
    verdict, scored = outcome.verdict, outcome.verdict.unscored is None
    return {
        "run": run,
        "text": outcome.completion.text,
        "refusal": verdict.refusal if scored else None,
        "refusal_start": verdict.refusal_start if scored and verdict.refused else None,
        "degenerate": verdict.degenerate,
    }
