"""The rounds of a pipeline, for summary.json and in words: pairs, and rates on the dev prompts.

    entries = round_entries(Path("runs/porover"), Repeats(("curate", "dpo"), 2))
    round_words(RoundPart.model_validate(entries[1]))
    # round 2 (curate_2, dpo_2): 31 pairs correct, 35 hold what is right; on contrasts ...

The rates are those of `hold:`, so a training without it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from pydantic import BaseModel, Field

from overrefusal_po.recipe.rounds import Repeats, in_round
from overrefusal_po.records import read_state
from overrefusal_po.report.numbers import rate_words
from overrefusal_po.report.panel_part import READ_CONFIG, Count

Share = Annotated[float, Field(ge=0, le=1)]
RatePair = tuple[Share | None, Share | None]
"""harmful_refused and benign_answered."""

RULES = ("overrefusal", "containment")


class RoundSetEntry(TypedDict):
    """A dev set of `hold:` in summary.json, as hold.json has it."""

    set: str
    harmful: int
    benign: int
    harmful_unscored: int
    start: tuple[float | None, float | None]
    trained: tuple[float | None, float | None]
    held: tuple[float | None, float | None]


class RoundEntry(TypedDict):
    """A round in summary.json. `corrects`: the pairs of prompts that the student got wrong; None if
    that was not counted. `ended`: why nothing was trained; "" if it was."""

    round: int
    stages: list[str]
    pairs: int
    corrects: int | None
    ended: str
    sets: list[RoundSetEntry]


class RoundSet(BaseModel):
    """A dev set: its name and prompts, and [harmful refused, benign answered] of the start policy,
    of the trained model, and of the saved one."""

    model_config = READ_CONFIG
    set: str = ""
    harmful: Count
    benign: Count
    start: RatePair
    trained: RatePair
    held: RatePair


class RoundPart(BaseModel):
    """A round of a pipeline."""

    model_config = READ_CONFIG
    round: Count
    stages: tuple[str, ...]
    pairs: Count
    corrects: Count | None = None
    ended: str = ""
    sets: tuple[RoundSet, ...] = ()


def nothing_left(stage: Path) -> str:
    """Why a curation of a later round made no pairs; "" if it made some, or did not run."""
    return str(curated(stage).get("nothing_left", ""))


# Any: a curation's summary.json, whose form follows from its recipe
def curated(stage: Path) -> Mapping[str, Any]:
    """The summary of a curation; empty for another stage, and if it is not done."""
    file, made = stage / "summary.json", stage / "pairs.jsonl"
    return read_state(file) if file.is_file() and made.is_file() else {}


def round_entries(folder: Path, repeats: Repeats) -> list[RoundEntry]:
    """What each round of a finished pipeline did, up to one that had nothing left to correct."""
    found: list[RoundEntry] = []
    for number in range(1, repeats.rounds + 1) if repeats.stages else ():
        found.append(round_entry(folder, repeats, number))
        if found[-1]["ended"]:
            break
    return found


def round_entry(folder: Path, repeats: Repeats, number: int) -> RoundEntry:
    """What one round did."""
    names = [in_round(stage, number) for stage in repeats.stages]
    ran = [name for name in names if (folder / name).is_dir()]
    made = [summary for name in ran if (summary := curated(folder / name))]
    counted = [summary["corrects"] for summary in made if "corrects" in summary]
    kept = [one[rule]["kept"] for one in made for rule in RULES if rule in one]
    holds = [file for name in ran if (file := folder / name / "hold.json").is_file()]
    return {
        "round": number,
        "stages": ran,
        "pairs": sum(kept),
        "corrects": sum(sum(one.values()) for one in counted) if counted else None,
        "ended": next((why for name in ran if (why := nothing_left(folder / name))), ""),
        "sets": read_state(holds[-1], ["sets"])["sets"] if holds else [],
    }


def round_lines(rounds: Iterable[RoundPart]) -> list[str]:
    """A sentence for each round."""
    return [round_words(one) for one in rounds]


def round_words(one: RoundPart) -> str:
    """`round 2 (curate_2, dpo_2): 31 pairs correct, 35 hold what is right; on contrasts ...`."""
    head = f"round {one.round} ({', '.join(one.stages)}): "
    if one.ended:
        return f"{head}{one.ended}"
    if one.corrects is None:
        made = f"{one.pairs} pairs"
    else:
        made = f"{one.corrects} pairs correct, {one.pairs - one.corrects} hold what is right"
    return "; ".join([f"{head}{made}", *map(set_words, one.sets)])


def set_words(part: RoundSet) -> str:
    """The rates of one dev set, in this round and at the first start."""
    name = part.set or "dev prompts"
    return (
        f"on {name} {change(part, 0)} of {part.harmful} harmful prompts refused and "
        f"{change(part, 1)} of {part.benign} benign ones answered"
    )


def change(part: RoundSet, at: int) -> str:
    """`0.83 (start 0.80)`."""
    saved, start = (rate_words(pair[at]) for pair in (part.held, part.start))
    return f"{saved} (start {start})"
