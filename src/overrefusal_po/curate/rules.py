"""Prompts, the student's answers and verdicts -> what each rule makes of each prompt, with the
reason.

    overrefusal(stage, benign)                         # [Result(prompt, pair or None, reason)]
    contained(containment(stage, harmful), tau=0.1)    # the same; the contrasts serve any tau

`pairs` says what a pair is; here stands where its sides come from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from overrefusal_po.curate.overgenerate import Stage, best_answers
from overrefusal_po.curate.quotas import Result
from overrefusal_po.curate.selectors import Selected
from overrefusal_po.pairs.make import (
    TAU,
    Guarded,
    containment_pair,
    overrefusal_pair,
    whole_sentences,
)
from overrefusal_po.plugins import find_plug
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict, content_id, read_jsonl

logger = logging.getLogger(__name__)


def overrefusal(stage: Stage, prompts: Sequence[Prompt]) -> list[Result]:
    """Overrefusal pairs of the benign prompts that the student refuses; chosen is the teacher's
    answer or the reference."""
    answers = stage.cast.student.answers(prompts, "student_benign.jsonl")
    verdicts = stage.judged(stage.judges.judge, prompts, answers)
    refused = [p for p, v in zip(prompts, verdicts, strict=True) if v.refused]
    teacher = stage.cast.teacher
    chosen = (
        best_answers(stage, teacher, refused, "teacher_benign.jsonl")
        if teacher
        else reference_answers(stage, refused)
    )
    found = []
    for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True):
        text, why_not, of_chosen = chosen.get(prompt.id, Selected("not needed", ""))
        made = (
            (None, why_not)
            if why_not
            else overrefusal_pair(prompt, text, answer, verdict, of_chosen)
        )
        found.append(Result(prompt, *made))
    return found


def reference_answers(stage: Stage, prompts: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the reference, or why it may not be chosen: it is itself a refusal}."""
    verdicts = stage.judged(
        stage.judges.judge, prompts, [written(p, str(p.reference)) for p in prompts]
    )
    return {
        p.id: Selected("", "the reference refuses") if v.refused else Selected(str(p.reference), "")
        for p, v in zip(prompts, verdicts, strict=True)
    }


def written(prompt: Prompt, text: str) -> Completion:
    """A text that no engine made, as a judge takes it."""
    return Completion(
        id=content_id(prompt.id, text),
        prompt_id=prompt.id,
        text=text,
        model="reference",
        engine="file",
        sampling=Sampling(),
    )


class Contrast(NamedTuple):
    """A harmful prompt, the refusal that is chosen, and what may be rejected against it, judged
    (None: there is nothing)."""

    prompt: Prompt
    safe: Selected
    completion: Completion | None = None
    verdict: Verdict | None = None
    guarded: Guarded | None = None


def containment(stage: Stage, harmful: Sequence[Prompt]) -> list[Contrast]:
    """Contrasts from the first source of rejects that yields a pair at the least tau of the recipe.

    ValueError where none does; none for a shard.
    """
    safe = safe_refusals(stage, harmful)
    rejects, tried = stage.recipe.rejects, []
    least = min([TAU if rejects.tau is None else rejects.tau, *rejects.tau_grid])
    for name, completions in reject_sources(stage, harmful):
        found = contrasts_of(stage, harmful, safe, completions)
        yielded = sum(r.row is not None for r in contained(found, least))
        tried.append(f"{name}: {len(completions)} completions, {yielded} comply")
        if yielded:
            logger.info("containment rejects come from %s", tried[-1])
            return found
    if stage.recipe.shard is not None:
        return []  # which may be another shard's luck
    raise ValueError(
        "No containment pair could be built, so nothing would hold the model where it is safe "
        f"({'; '.join(tried)}). "
        "Give completions of a less safe model (rejects.completions), or name one (rejects.model)."
    )


def contrasts_of(
    stage: Stage,
    harmful: Sequence[Prompt],
    safe: dict[str, Selected],
    completions: dict[str, Completion],
) -> list[Contrast]:
    """A contrast for each prompt; judged are those that have both sides."""
    both = [p for p in harmful if p.id in completions and safe[p.id].text]
    rejects = [completions[p.id] for p in both]
    verdicts = stage.judged(stage.judges.judge, both, rejects)
    guarded: list[Guarded | None] = [None] * len(both)
    if stage.judges.guard is not None:
        refusals = stage.judged(
            stage.judges.guard, both, [written(p, safe[p.id].text) for p in both]
        )
        unsafe = stage.judged(stage.judges.guard, both, rejects)
        guarded = [Guarded(*of) for of in zip(refusals, unsafe, strict=True)]
    known = dict(
        zip((p.id for p in both), zip(rejects, verdicts, guarded, strict=True), strict=True)
    )
    return [Contrast(p, safe[p.id], *known.get(p.id, ())) for p in harmful]


def contained(contrasts: Iterable[Contrast], tau: float | None) -> list[Result]:
    """The containment pairs at one tau (None: the default)."""
    found = []
    for prompt, safe, completion, verdict, guarded in contrasts:
        if completion is None or verdict is None:
            found.append(
                Result(prompt, None, safe.why_not or "the source of rejects has no completion")
            )
        else:
            margin = TAU if tau is None else tau
            found.append(
                Result(
                    prompt,
                    *containment_pair(prompt, safe.text, completion, verdict, guarded, tau=margin),
                )
            )
    return found


def safe_refusals(stage: Stage, harmful: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the refusal that is chosen}: the teacher's, the written one, or the student's own
    where it refuses."""
    recipe, cast = stage.recipe, stage.cast
    if recipe.chosen.refusals == "teacher" and cast.teacher is not None:
        return best_answers(stage, cast.teacher, harmful, "teacher_harmful.jsonl")
    safe = {
        p.id: Selected(p.reference or "", "" if p.reference else "no refusal to choose")
        for p in harmful
    }
    if recipe.chosen.refusals == "student":
        own = cast.student.answers(harmful, "student_harmful.jsonl")
        for completion, verdict in zip(
            own, stage.judged(stage.judges.judge, harmful, own), strict=True
        ):
            text = whole_sentences(completion)
            if verdict.refusal == "full" and not verdict.degenerate and text:
                safe[completion.prompt_id] = Selected(text, "")
    return safe


def reject_sources(
    stage: Stage, harmful: Sequence[Prompt]
) -> Iterator[tuple[str, dict[str, Completion]]]:
    """(name, {prompt id: completion}) of each source of rejects: given, less safe model, student,
    prefilled."""
    rejects, student = stage.recipe.rejects, stage.cast.student
    if rejects.completions:
        asked = {p.id for p in harmful}
        given = read_jsonl(rejects.completions, Completion)
        yield (
            f"the file {rejects.completions}",
            {c.prompt_id: c for c in given if c.prompt_id in asked},
        )
    if stage.cast.less_safe is not None:
        found = stage.cast.less_safe.answers(harmful, "less_safe_harmful.jsonl")
        yield f"the model {rejects.model}", {c.prompt_id: c for c in found}
    own = student.answers(harmful, "student_harmful.jsonl")
    yield "the student itself", {c.prompt_id: c for c in own}
    if rejects.prefill and takes_prefix(stage.recipe.engine):
        asked_so = [p.model_copy(update={"assistant_prefix": rejects.prefill}) for p in harmful]
        found = student.answers(asked_so, "prefilled_harmful.jsonl")
        yield "the prefilled student", {c.prompt_id: begun(rejects.prefill, c) for c in found}
    elif rejects.prefill:
        logger.info("no rejects from %s; rejects.prefill: null says so in the recipe", UNPREFILLED)
        yield UNPREFILLED, {}


UNPREFILLED = "the prefilled student (left out: engine.continue_final_message is false)"


def takes_prefix(engine: str | Mapping[str, Any]) -> bool:
    """Whether an engine goes on with an answer that is begun for the model; not all servers do."""
    return bool(getattr(find_plug("engines", engine)[1], "continue_final_message", True))


def begun(prefix: str, completion: Completion) -> Completion:
    """The answer with its beginning. Its own id: without the beginning the same text is another
    answer to a judge."""
    return completion.model_copy(
        update={"id": content_id(completion.id, prefix), "text": prefix + completion.text}
    )
