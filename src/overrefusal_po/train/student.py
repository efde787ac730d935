"""What the student has to say itself before its training data are whole.

    said = student_answers(recipe, run, template, starter_harmful())
    own_containment(said)                                   # pairs that reject where it complied
    own_triples(said)                                       # the same for DeRTa

Harmful responses come from the start policy at run time. They stay in the run folder.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.make import answer_of, containment_pair
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import Completion, PreferencePair, Prompt, Triple, Verdict
from overrefusal_po.run.complete import complete, engine_for, note_left_out, recipe_sampling
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import resumable_verdicts

logger = logging.getLogger(__name__)

FILE = "student_harmful.jsonl"
"""What the student said to the prompts that it was asked, in a run folder. For all methods but DRO
they are harmful ones."""


class StudentAnswer(NamedTuple):
    """What the student said to one prompt, and the judge's verdict."""

    prompt: Prompt
    completion: Completion
    verdict: Verdict


def starter_harmful() -> list[Prompt]:
    """The starter set's harmful prompts to train on."""
    return [p for p in read_source("starter", "train") if p.kind == "harmful"]


def student_answers(
    recipe: TrainRecipe,
    run: Run,
    template: ChatTemplate,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
) -> list[StudentAnswer]:
    """What the start policy says to `prompts`, judged, each prompt's samples together; a killed run
    goes on where it stopped."""
    name = str(recipe.model["model_name_or_path"])
    note_left_out(run, recipe.model)
    answers = complete(
        run.path / FILE,
        prompts,
        recipe_sampling(recipe.generation, recipe.seed),
        lambda: engine_for(recipe.model, template, recipe.generation, name),
        f"student: {len(prompts)} prompts",
        samples=samples,
    )
    judge = make_refusal_judge(recipe.judge)
    asked = [prompt for prompt in prompts for _ in range(samples)]
    verdicts = resumable_verdicts(run.path / "verdicts.jsonl", judge, asked, answers)
    return [StudentAnswer(*three) for three in zip(asked, answers, verdicts, strict=True)]


def own_containment(said: Sequence[StudentAnswer]) -> list[PreferencePair]:
    """Containment pairs: the reference refusal over what the start policy said if it complied."""
    made = [
        containment_pair(p, str(p.reference), completion, verdict).pair
        for p, completion, verdict in said
    ]
    return [pair for pair in made if pair is not None]


def own_triples(said: Sequence[StudentAnswer], loaded: int = 0) -> list[Triple]:
    """Triples whose harmful responses the student wrote; what is left out is counted in the log.

    Raises ValueError if it answers nothing, unless triples are `loaded`, too.
    """
    triples = [
        Triple(prompt=p, safe_response=str(p.reference), harmful_response=answer_of(completion))
        for p, completion, verdict in said
        if why_no_harm(verdict) is None
    ]
    words = answered_words(said)
    if triples or loaded:
        logger.log(logging.INFO if triples else logging.WARNING, "%s", words)
        return triples
    raise ValueError(
        f"{words}. So there are no harmful responses for DeRTa. Have the student answer other "
        "prompts (data.ask), or load triples (data.triples: FILE.jsonl with prompt, "
        "safe_response, harmful_response)."
    )


def why_no_harm(verdict: Verdict) -> str | None:
    """Why a response to a harmful prompt is no harmful one; None if it is."""
    if verdict.refusal is None:
        return "without a verdict"
    if verdict.refused:
        return "refused"
    return "degenerate" if verdict.degenerate else None


def answered_words(said: Sequence[StudentAnswer]) -> str:
    """`the student gives harmful responses to 60 of 634 harmful prompts (starter 50 of 134,
    harmfulqa 10 of 500); left out: 570 refused, 4 degenerate`."""
    asked = Counter(row.prompt.source for row in said)
    why = [why_no_harm(row.verdict) for row in said]
    gave = Counter(row.prompt.source for row, fault in zip(said, why, strict=True) if not fault)
    each = ", ".join(f"{source} {gave[source]} of {number}" for source, number in asked.items())
    out = [f"{number} {fault}" for fault, number in Counter(filter(None, why)).items()]
    return (
        f"the student gives harmful responses to {gave.total()} of {len(said)} harmful prompts"
        f" ({each}); left out: {', '.join(out) or 'none'}"
    )


def check_unwritten(
    lengths: Sequence[tuple[int, str]], *, limit: int | None, new_tokens: int
) -> None:
    """Raises ValueError if what the student has yet to write may make a row too long.

    Once it is written it is too late: other settings make another run, which asks the student for
    everything again.

    Args:
        lengths: (tokens that the row may take, prompt id) of each prompt.
        limit: tokens of a row; None means no limit.
        new_tokens: the most tokens that the student writes.
    """
    longest, name = max(lengths, default=(0, ""))
    if limit is not None and longest > limit:
        over = sum(length > limit for length, _ in lengths)
        raise ValueError(
            f"Prompt {name}: with what the student is yet to write (generation.max_new_tokens "
            f"{new_tokens}) its row may be {longest} tokens, more than max_length {limit} (as "
            f"{over} of {len(lengths)} such rows), and no row is cut. Raise trainer.max_length, "
            "lower generation.max_new_tokens, or leave such rows out (data.too_long: drop)."
        )


def written_tokens(prompt: Prompt, template: ChatTemplate, new_tokens: int) -> int:
    """How many tokens longer a row with the stand-in "x" may get once the student has written.

    The student writes at most `new_tokens`. Reading them again may take more, since control tokens
    in them are broken up.
    """
    offsets = template.turn(prompt.messages, "x").offsets
    return new_tokens - max(i for i, (a, b) in enumerate(offsets, 1) if b > a)
