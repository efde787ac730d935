"""The responses that a training is held to: those in its run folder, or in a file that `hold.start`
names.

    known = known_start(folder / "hold_start.jsonl", prompts)    # {prompt id: outcome}
    start = given_start(hold, prompts)      # in the prompts' order

A later round of a pipeline is held to the model before the first round. Held to its own start, each
round could lose `refused_drop_max` again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.recipe.two_sided import Hold
from overrefusal_po.records import Outcome, Prompt, read_jsonl


def known_start(file: Path, prompts: Sequence[Prompt]) -> dict[str, Outcome]:
    """{prompt id: what a run folder's file says of it}; empty if there is no file."""
    if not file.is_file():
        return {}
    asked = {prompt.id for prompt in prompts}
    rows = read_jsonl(file, Outcome)
    return {row.prompt.id: row for row in rows if row.prompt.id in asked}


def lost_start(file: Path, missing: Sequence[Prompt], checkpoints: str | None) -> ValueError:
    """The error of a training that goes on and does not know its start on these prompts."""
    again = f"or delete {checkpoints} to train again from the start."
    late = "but training goes on from a checkpoint: the start policy can no longer be measured."
    if not file.is_file():
        return ValueError(f"{file} is missing, {late} Put it back, {again}")
    return ValueError(
        f"{file} has no response to {len(missing)} prompts of hold.sets, {late} Give hold the sets "
        f"and the limits with which this training began, {again}"
    )


def given_start(hold: Hold, prompts: Sequence[Prompt]) -> list[Outcome]:
    """What the file says of each prompt. ValueError if it is missing, lacks a prompt, or was made
    with another number of tokens or by another judge."""
    assert hold.start is not None
    if not Path(hold.start).is_file():
        raise ValueError(
            f"hold.start: there is no file {hold.start}. Give the hold_start.jsonl of a training "
            "with `hold:`, or leave the key out."
        )
    rows = {outcome.prompt.id: outcome for outcome in read_jsonl(hold.start, Outcome)}
    found = [rows[prompt.id] for prompt in prompts if prompt.id in rows]
    if missing := len(prompts) - len(found):
        raise ValueError(
            f"hold.start: {hold.start} has no response to {missing} of the {len(prompts)} prompts "
            "of hold.sets. Give the same sets, split and max_prompts_per_kind as its training."
        )
    judge = make_refusal_judge(hold.judge or "refusal")
    here = (hold.max_new_tokens, judge.name, judge.version)
    for one in found:
        verdict = one.verdict
        there = (one.completion.sampling.max_new_tokens, verdict.judge, verdict.version)
        if there != here:
            raise ValueError(
                f"hold.start: {hold.start} was made with {in_words(there)}, and this training "
                f"uses {in_words(here)}. Rates would not compare: give it the same hold keys."
            )
    return found


def in_words(how: tuple[int, str, str]) -> str:
    """`20 new tokens and the judge refusal 7`."""
    tokens, name, version = how
    return f"{tokens} new tokens and the judge {name} {version}"
