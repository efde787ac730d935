"""The responses that a training is held to: those in its run folder, or in a file that `hold.start`
names.

    known = known_start(folder / "hold_start.jsonl", prompts, judge)    # {prompt id: outcome}
    start = given_start(hold, prompts, judge)      # in the prompts' order

What another judge judged, or an older version of this one, is judged again.

A later round of a pipeline is held to the model before the first round. Held to its own start, each
round could lose `refused_drop_max` again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from overrefusal_po.judges import Judge
from overrefusal_po.recipe.two_sided import Hold
from overrefusal_po.records import Outcome, Prompt, read_jsonl
from overrefusal_po.run.judged import fresh_verdicts, paired_outcomes

logger = logging.getLogger(__name__)


def known_start(file: Path, prompts: Sequence[Prompt], judge: Judge) -> dict[str, Outcome]:
    """{prompt id: what a run folder's file says of it}; empty if there is no file."""
    if not file.is_file():
        return {}
    asked = {prompt.id for prompt in prompts}
    rows = [row for row in read_jsonl(file, Outcome) if row.prompt.id in asked]
    return {row.prompt.id: row for row in judged_by(judge, rows)}


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


def given_start(hold: Hold, prompts: Sequence[Prompt], judge: Judge) -> list[Outcome]:
    """What the file that `hold.start` names says of each prompt. Errors as `check_start`."""
    return judged_by(judge, check_start(hold, prompts))


def check_start(hold: Hold, prompts: Sequence[Prompt]) -> list[Outcome]:
    """What the file says of each prompt, as it was judged. ValueError if it is missing, lacks a
    prompt, or was made with another number of tokens."""
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
    here = hold.max_new_tokens
    for one in found:
        there = one.completion.sampling.max_new_tokens
        if there != here:
            raise ValueError(
                f"hold.start: {hold.start} was made with {there} new tokens, and this training "
                f"uses {here}. Rates would not compare: set hold.max_new_tokens to {there}."
            )
    return found


def judged_by(judge: Judge, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes with the verdicts of this judge: those of another one, or of another version of it,
    are judged again. Rates of two judges do not compare."""
    here = (judge.name, judge.version)

    def is_others(outcome: Outcome) -> bool:
        return (outcome.verdict.judge, outcome.verdict.version) != here

    others = list(filter(is_others, outcomes))
    if not others:
        return list(outcomes)
    logger.info(
        "hold: %d responses of the start were judged by %s %s; %s %s judges them again",
        *(len(others), others[0].verdict.judge, others[0].verdict.version, *here),
    )
    asked, said = [o.prompt for o in others], [o.completion for o in others]
    again = iter(paired_outcomes(asked, said, fresh_verdicts(judge, asked, said)))
    return [next(again) if is_others(o) else o for o in outcomes]
