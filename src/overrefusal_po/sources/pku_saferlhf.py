"""PKU-SafeRLHF (Ji et al., 2024, arXiv 2406.15513): two answers to one prompt, each labelled safe
or not; for training.

    {name: pku_saferlhf}                          # triples for DeRTa, or harmful prompts
    {name: pku_saferlhf, answers_of: Alpaca3-8B, per_prompt: 2}
    {name: pku_saferlhf, paths: [train.jsonl]}

A triple has a safe and an unsafe answer to the prompt, not always of one row. As in BeaverTails the
safe answers are mostly no refusals with an opener of their own (DeRTa: `data.safe_lead`). From the
hub: PKU-Alignment/PKU-SafeRLHF, CC-BY-NC-4.0 (research only), not gated. Whether its train and test
rows share prompts was not looked at: what a recipe measures and trains on is compared by prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import Prompt, Split, Triple
from overrefusal_po.sources._answers import (
    Answer,
    Asked,
    answer_triples,
    answered_prompts,
    by_prompt,
    first_harm,
    label_truth,
)
from overrefusal_po.sources._hub import HubSet
from overrefusal_po.sources._rows import Form, hub_parts, set_items

SIDES = (0, 1)
FORMS = (
    Form(
        "prompt",
        None,
        tuple(n.format(i) for i in SIDES for n in ("response_{}", "is_response_{}_safe")),
    ),
)
"""Harm categories beside them (`response_0_harm_category`) are read where they are: the first
release had none."""

REVISION = "c04a25eb44ac0be2a714c16e072122466bc6d416"
"""A commit of the hub's main branch with the data of June 2024 (82 thousand rows with harm
categories)."""


class Settings(BaseModel):
    """`answers_of`: one of the models, None is all. `per_prompt`: triples of one prompt. `paths`:
    local files of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    answers_of: Literal["Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B"] | None = None
    per_prompt: int = Field(default=1, gt=0)
    paths: tuple[str, ...] = ()
    repo: str = "PKU-Alignment/PKU-SafeRLHF"
    revision: str | None = REVISION


def prompts(settings: Settings, split: Split | None) -> list[Prompt]:
    """The prompts to which an answer is unsafe, with a safe answer as reference."""
    return [
        p
        for part in hub_parts(split, settings.paths)
        for p in answered_prompts(asked(settings, part), source="pku_saferlhf", split=part)
    ]


def triples(settings: Settings, split: Split | None) -> list[Triple]:
    """Prompts with a safe and an unsafe answer."""
    return [
        triple
        for part in hub_parts(split, settings.paths)
        for triple in answer_triples(
            asked(settings, part), source="pku_saferlhf", split=part, per_prompt=settings.per_prompt
        )
    ]


def asked(settings: Settings, part: Split) -> dict[str, Asked]:
    """All answers of one split by prompt."""
    return by_prompt(answers(settings, part))


def answers(settings: Settings, part: Split) -> Iterator[Answer]:
    """Both answers of every row."""
    # by file, since the configurations of the data set's card came later than its data
    files = f"data/{settings.answers_of or '*'}/{part}.jsonl"
    wanted = HubSet(settings.repo, None, part, settings.revision, files)
    for item in set_items(settings.paths, wanted, FORMS):
        for side in SIDES:
            label = f"is_response_{side}_safe"
            said, harms = (
                item.row[f"response_{side}"],
                item.row.get(f"response_{side}_harm_category"),
            )
            yield Answer(
                item.text,
                str(said or ""),
                label_truth(item.row[label], label, item.place),
                first_harm(harms),
            )
