"""The student's own words: what it says to a prompt, and what it says when it is made to comply.

    plain = plain_answers(curation, benign, "benign")       # answers and verdicts
    curation = with_own_words(curation, benign, harmful)    # its usual refusal, its openers
    for name, ask in own_sources(curation, "benign"):
        completions = ask(prompts)

There are two ways to make a student comply that refuses. Its first token may not be one that opens
its refusals (`rejects.suppress_openers`): the text is then its own from the first word on. Or its
answer is begun with a few words (`rejects.prefill`), which it may never choose itself.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from overrefusal_po.curate.overgenerate import Curation
from overrefusal_po.pairs.make import side_text
from overrefusal_po.records import (
    Completion,
    Outcome,
    Prompt,
    Verdict,
    content_id,
    read_state,
    write_atomic,
)
from overrefusal_po.run.complete import continues_prefix
from overrefusal_po.run.judged import is_slow, paired_outcomes
from overrefusal_po.run.openers import Openers, every_opener, thinks

logger = logging.getLogger(__name__)

Side = Literal["benign", "harmful"]
"""The prompts of one rule; files are named by it."""

Ask = Callable[[Sequence[Prompt]], dict[str, Completion]]
"""Prompts in, {prompt id: completion} out."""

OPENERS_FILE = "suppressed_openers.json"
"""The openers of a run, in its folder."""


class PlainAnswers(NamedTuple):
    """What the student says to each prompt as it is asked, with the refusal judge's verdicts."""

    answers: list[Completion]
    verdicts: list[Verdict]


def plain_answers(curation: Curation, prompts: Sequence[Prompt], side: Side) -> PlainAnswers:
    """The student's answers and their verdicts, in the prompts' order."""
    answers = curation.models.student.answers(prompts, f"student_{side}.jsonl")
    return PlainAnswers(answers, curation.verdicts(curation.judges.refusal, prompts, answers))


# --- how it refuses -------------------------------------------------------------------------------


def with_own_words(
    curation: Curation, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> Curation:
    """The curation with the student's usual refusal, and with the tokens that open its refusals if
    the recipe wants them suppressed.

    Both are found in its plain answers to all prompts that it answers anyway, so both rules share
    them. A shard sees its own prompts alone and takes the openers of these. So two shards may
    suppress different tokens; the judge reads every text anyway. A merged run keeps the texts that
    its shards drew. ValueError if the student refuses no harmless prompt, before the harmful ones
    are drawn if the judge is quick.
    """
    recipe = curation.recipe
    suppresses = recipe.rejects.suppress_openers
    sides: list[tuple[Sequence[Prompt], Side]] = [(benign, "benign")]
    if not is_slow(curation.judges.refusal):
        check_over_refuses(curation, benign)
    later = recipe.later_round is not None
    if suppresses or (harmful and (later or recipe.chosen.refusals == "student")):
        sides.append((harmful, "harmful"))
    for prompts, side in sides:  # both before a slow judge takes the student's place
        curation.models.student.answers(prompts, f"student_{side}.jsonl")
    check_over_refuses(curation, benign)
    outcomes = [row for side in sides for row in plain_outcomes(curation, *side)]
    curation = curation._replace(usual=usual_refusal(outcomes, openings=recipe.data.openings))
    return with_openers(curation, outcomes) if suppresses else curation


def check_over_refuses(curation: Curation, benign: Sequence[Prompt]) -> None:
    """Raises ValueError if the student refuses no harmless prompt. A shard may have none, because
    another shard may have some; so may a later round, which then has nothing left to correct."""
    if curation.recipe.shard is not None or curation.recipe.later_round is not None:
        return
    verdicts = plain_answers(curation, benign, "benign").verdicts
    if not any(verdict.refused for verdict in verdicts):
        raise ValueError(
            f"No overrefusal pair could be made of the {len(benign)} benign prompts: the student "
            f"refuses none of them. Use a model that over-refuses (model.model_name_or_path; one "
            "that answers harm too is made safe by recipes/derta.yaml first), or other prompts "
            "(data.benign)."
        )


def usual_refusal(outcomes: Sequence[Outcome], *, openings: bool = False) -> str:
    """The full refusal from the first word on that a model gives most often, "" if it gives none.
    Of equal ones, the first in the alphabet. `openings`: as for `side_text`."""
    said = Counter(
        side_text(outcome.completion, openings=openings)
        for outcome in outcomes
        if outcome.verdict.refusal == "full"
        and not outcome.verdict.degenerate
        and not outcome.verdict.refusal_start
    )
    said.pop("", None)
    return min(said, key=lambda text: (-said[text], text), default="")


def with_openers(curation: Curation, outcomes: Sequence[Outcome]) -> Curation:
    """The curation with the tokens that open the student's refusals; without, if it thinks."""
    template = curation.models.student.template
    assert template is not None, "check_settings has seen that the engine is in process"
    if thinks(outcomes):
        logger.warning("rejects.suppress_openers has no effect: the student thinks first")
        return curation
    openers = every_opener(template, outcomes)
    keep_openers(curation, openers)
    return curation._replace(suppressed=openers.ids)


def plain_outcomes(curation: Curation, prompts: Sequence[Prompt], side: Side) -> list[Outcome]:
    """The student's plain answers as outcomes."""
    return paired_outcomes(prompts, *plain_answers(curation, prompts, side))


def keep_openers(curation: Curation, openers: Openers) -> None:
    """Writes the openers into the run folder, and logs them.

    ValueError if the texts of a run that goes on were drawn without other ones.
    """
    path = curation.run.path / OPENERS_FILE
    drawn = sorted(path.parent.glob("unopened_*.jsonl"))
    if drawn and path.is_file():
        before = read_state(path, ["ids", "tokens"])
        if before["ids"] != list(openers.ids):
            raise ValueError(
                f"The student's refusals now open with {openers.tokens}; the texts in "
                f"{drawn[0].name} were drawn without {before['tokens']}. Delete {path} and "
                f"{', '.join(file.name for file in drawn)} beside it to draw them again."
            )
    write_atomic(path, json.dumps({"ids": openers.ids, **openers.as_dict()}, indent=1) + "\n")
    if not openers.ids:
        logger.warning(
            "rejects.suppress_openers has no effect: no token opens refusals more often than "
            "answers"
        )
        return
    logger.info(
        "the student may not begin with %s, which open %s or common ones",
        ", ".join(map(repr, openers.tokens)),
        openers.source,
    )


# --- made to comply -------------------------------------------------------------------------------


def own_sources(curation: Curation, side: Side) -> Iterator[tuple[str, Ask]]:
    """(name, what it says) of each way in which the recipe makes the student comply, in order."""
    rejects = curation.recipe.rejects
    if rejects.suppress_openers:
        yield "the unopened student", unopened(curation, f"unopened_{side}.jsonl")
    if rejects.prefill and continues_prefix(curation.recipe.engine):
        ask = prefilled(curation, rejects.prefill, f"prefilled_{side}.jsonl")
        yield "the prefilled student", ask


def unopened(curation: Curation, file: str) -> Ask:
    """What the student says when none of its openers may come first, kept in `file`. Nothing if it
    has no openers."""

    def ask(asked: Sequence[Prompt]) -> dict[str, Completion]:
        tokens = curation.suppressed
        # the file is written in any case: a merge wants it of every shard
        found = curation.models.student.answers(asked if tokens else (), file, suppressed=tokens)
        return {c.prompt_id: c for c in found}

    return ask


def prefilled(curation: Curation, prefix: str, file: str) -> Ask:
    """What the student says when its answer begins with `prefix`, kept in `file`."""

    def ask(asked: Sequence[Prompt]) -> dict[str, Completion]:
        begun = [p.model_copy(update={"assistant_prefix": prefix}) for p in asked]
        found = curation.models.student.answers(begun, file)
        return {c.prompt_id: with_prefix(prefix, c) for c in found}

    return ask


def with_prefix(prefix: str, completion: Completion) -> Completion:
    """The answer with its prefix, and an id of its own: to a judge it is another answer than the
    same text without prefix."""
    return completion.model_copy(
        update={"id": content_id(completion.id, prefix), "text": prefix + completion.text}
    )
