"""Prompts, the student's answers and verdicts -> what each rule makes of each prompt, with the
reason.

    overrefusal_results(curation, benign)                  # [Result(prompt, pair or None, reason)]
    contrasts = containment_contrasts(curation, harmful)
    containment_results(contrasts, tau=0.1)                # the contrasts serve any tau

`pairs/` says what a pair is; this module says where its sides come from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from overrefusal_po.curate.overgenerate import AnsweringModel, Curation, best_answers
from overrefusal_po.curate.own_answers import Ask, own_sources, plain_answers
from overrefusal_po.curate.quotas import Result
from overrefusal_po.curate.selectors import Selected, usable
from overrefusal_po.pairs.make import (
    TAU,
    Guarded,
    answered_pair,
    containment_pair,
    overrefusal_pair,
    side_text,
)
from overrefusal_po.recipe.sections import Rejects
from overrefusal_po.records import (
    Completion,
    PreferencePair,
    Prompt,
    Sampling,
    Verdict,
    content_id,
    read_jsonl,
)
from overrefusal_po.run.complete import continues_prefix

logger = logging.getLogger(__name__)

NO_PREFILL = "the prefilled student (left out: engine.continue_final_message is false)"


def overrefusal_results(
    curation: Curation, prompts: Sequence[Prompt], harmful: Sequence[Prompt] = ()
) -> list[Result[PreferencePair]]:
    """Overrefusal pairs of the benign prompts that the student refuses, and, with
    `data.keep_answered`, pairs that hold those that it answers. `harmful`: as for
    `refusal_to_answer_over`."""
    data = curation.recipe.data
    answers, verdicts = plain_answers(curation, prompts, "benign")
    refused = [p for p, v in zip(prompts, verdicts, strict=True) if v.refused]
    chosen = chosen_answers(curation, refused)
    usual = refusal_to_answer_over(curation, prompts) if data.keep_answered else ""
    found = []
    for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True):
        text, why_not, of_chosen = chosen.get(prompt.id, Selected("not needed", ""))
        if why_not:
            found.append(Result[PreferencePair](prompt, None, why_not))
        elif usual and prompt.id not in chosen:
            made = answered_pair(prompt, answer, usual, verdict, openings=data.openings)
            found.append(Result(prompt, *made, held=True))
        else:
            made = overrefusal_pair(
                prompt, text, answer, verdict, of_chosen, openings=data.openings
            )
            found.append(Result(prompt, *made))
    return found


def refusal_to_answer_over(curation: Curation, prompts: Sequence[Prompt]) -> str:
    """The student's usual refusal; "" with a warning if it has none."""
    if not curation.usual:
        logger.warning(
            "data.keep_answered has no effect: the student gives none of its prompts, %d of them "
            "harmless, a full refusal, over which its answers could be chosen",
            len(prompts),
        )
    return curation.usual


def chosen_answers(curation: Curation, prompts: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the answer to choose, or why there is none}. A prompt takes the first source with
    an answer that passes: the student that is made to comply (`chosen.answers: student`), then the
    teacher, or the reference if there is no teacher."""
    models = curation.models
    found = {p.id: Selected("", "no answer to choose") for p in prompts}
    rest = prompts
    if curation.recipe.chosen.answers == "student":
        tried = []
        for name, ask in own_sources(curation, "benign"):
            found |= own_answers(curation, rest, name, ask)
            still = [p for p in rest if found[p.id].why_not]
            tried.append(f"{name}: {len(rest) - len(still)} of {len(rest)} prompts")
            rest = still
        tried.append(f"the teacher or the references: what is left ({len(rest)})")
        logger.info("chosen answers come from %s", "; ".join(tried))
    if models.teacher is not None:
        other = best_answers(curation, models.teacher, rest, file="teacher_benign.jsonl")
    else:
        other = reference_answers(curation, [p for p in rest if p.reference])
    return found | other


def own_answers(
    curation: Curation, prompts: Sequence[Prompt], name: str, ask: Ask
) -> dict[str, Selected]:
    """{prompt id: the answer of the source `name`, or why it may not be chosen}."""
    said = ask(prompts)
    asked = [p for p in prompts if p.id in said]
    answers = [said[p.id] for p in asked]
    verdicts = curation.verdicts(curation.judges.refusal, asked, answers)
    found = {}
    for prompt, answer, verdict in zip(asked, answers, verdicts, strict=True):
        text, why_not = usable(prompt, answer, verdict, openings=curation.recipe.data.openings)
        found[prompt.id] = Selected(text, why_not.replace("the teacher", name))
    return found


def reference_answers(curation: Curation, prompts: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the reference; or why it may not be chosen, because it refuses or the judge does
    not say}."""
    references = [text_completion(p, str(p.reference)) for p in prompts]
    verdicts = curation.verdicts(curation.judges.refusal, prompts, references)
    found = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        why_not = "the reference refuses" if verdict.refused else ""
        if verdict.unscored is not None:
            why_not = f"unscored: {verdict.unscored}"
        found[prompt.id] = Selected("" if why_not else str(prompt.reference), why_not)
    return found


def text_completion(prompt: Prompt, text: str) -> Completion:
    """A completion for a text that no engine made, so that a judge can read it."""
    return Completion(
        id=content_id(prompt.id, text),
        prompt_id=prompt.id,
        text=text,
        model="reference",
        engine="file",
        sampling=Sampling(),
    )


class Contrast(NamedTuple):
    """A harmful prompt, the chosen refusal, and the completion that may be rejected, with verdicts.

    None means that the source of rejects has no completion. `held`: as for a `Result`.
    """

    prompt: Prompt
    refusal: Selected
    completion: Completion | None = None
    verdict: Verdict | None = None
    guarded: Guarded | None = None
    held: bool = False


def containment_contrasts(curation: Curation, harmful: Sequence[Prompt]) -> list[Contrast]:
    """A contrast for each prompt, in order. Each prompt takes the first source of rejects that
    yields a pair at the recipe's least tau; only prompts without one ask the next source.

    ValueError if no prompt gets a pair. A shard then has none, because another shard may yield; a
    later round has contrasts without pairs.
    """
    refusals = chosen_refusals(curation, harmful)
    openings, least = curation.recipe.data.openings, least_tau(curation.recipe.rejects)
    found = {p.id: Contrast(p, refusals[p.id]) for p in harmful}
    open_prompts = [p for p in harmful if refusals[p.id].text]
    tried = []
    for name, ask in reject_sources(curation, harmful):
        if not open_prompts and curation.recipe.shard is None:
            break  # a shard asks all: a merge wants the same files of every shard
        completions = ask(open_prompts)
        made = make_contrasts(curation, open_prompts, refusals, completions=completions)
        results = containment_results(made, least, openings=openings)
        for contrast, result in zip(made, results, strict=True):
            if result.row is not None or contrast.completion is not None:
                found[result.prompt.id] = contrast
        still = [result.prompt for result in results if result.row is None]
        yielded = len(open_prompts) - len(still)
        if open_prompts:
            tried.append(f"{name}: {yielded} of {len(open_prompts)} prompts")
        open_prompts = still
    logger.info("containment rejects come from %s", "; ".join(tried) or "no source")
    if any(r.row is not None for r in containment_results(found.values(), least)):
        held = refused_prompts(curation, harmful)
        return [contrast._replace(held=id_ in held) for id_, contrast in found.items()]
    if curation.recipe.shard is not None:
        return []
    if curation.recipe.later_round is not None:
        return list(found.values())
    raise ValueError(
        "No containment pair could be built, so nothing would hold the model where it is safe "
        f"({'; '.join(tried) or 'no prompt has a refusal to choose'}). Give completions of a less "
        "safe model (rejects.completions), name one (rejects.model), let the student answer "
        "without the first tokens of its refusals (rejects.suppress_openers), or let its answer "
        "begin with a few compliant words (rejects.prefill)."
    )


def least_tau(rejects: Rejects) -> float:
    """The least margin at which a recipe makes pairs."""
    return min([TAU if rejects.tau is None else rejects.tau, *rejects.tau_grid])


def refused_prompts(curation: Curation, harmful: Sequence[Prompt]) -> set[str]:
    """The ids of the harmful prompts that the student refuses as it is; none if the recipe does not
    have it answer all of them anyway."""
    recipe, rejects = curation.recipe, curation.recipe.rejects
    own = recipe.chosen.refusals == "student" or rejects.suppress_openers or recipe.later_round
    asked_for_rejects = not rejects.completions and rejects.model is None
    if not own and not (recipe.data.keep_answered and asked_for_rejects):
        return set()
    verdicts = plain_answers(curation, harmful, "harmful").verdicts
    return {p.id for p, verdict in zip(harmful, verdicts, strict=True) if verdict.refused}


def make_contrasts(
    curation: Curation,
    harmful: Sequence[Prompt],
    refusals: Mapping[str, Selected],
    *,
    completions: Mapping[str, Completion],
) -> list[Contrast]:
    """A contrast for each prompt. The judges read those that have both sides."""
    both = [p for p in harmful if p.id in completions and refusals[p.id].text]
    rejects = [completions[p.id] for p in both]
    verdicts = curation.verdicts(curation.judges.refusal, both, rejects)
    guarded: Sequence[Guarded | None] = [None] * len(both)
    guard = curation.judges.guard
    if guard is not None:
        chosen = [text_completion(p, refusals[p.id].text) for p in both]
        of_chosen = curation.verdicts(guard, both, chosen)
        of_rejected = curation.verdicts(guard, both, rejects)
        guarded = [Guarded(*two) for two in zip(of_chosen, of_rejected, strict=True)]
    judged = {
        prompt.id: Contrast(prompt, refusals[prompt.id], reject, verdict, two)
        for prompt, reject, verdict, two in zip(both, rejects, verdicts, guarded, strict=True)
    }
    return [judged.get(p.id, Contrast(p, refusals[p.id])) for p in harmful]


def containment_results(
    contrasts: Iterable[Contrast], tau: float | None, *, openings: bool = False
) -> list[Result[PreferencePair]]:
    """The containment pairs at one tau (None: the default). `openings`: as for `side_text`."""
    found = []
    least = TAU if tau is None else tau
    for prompt, refusal, completion, verdict, guarded, held in contrasts:
        if completion is None or verdict is None:
            why_not = refusal.why_not or "the source of rejects has no completion"
            found.append(Result[PreferencePair](prompt, None, why_not))
        else:
            made = containment_pair(
                prompt, refusal.text, completion, verdict, guarded, tau=least, openings=openings
            )
            found.append(Result(prompt, *made, held=held))
    return found


def chosen_refusals(curation: Curation, harmful: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the refusal to choose}: the teacher's, the reference, or the student's own if it
    refuses."""
    recipe, models = curation.recipe, curation.models
    if recipe.chosen.refusals == "teacher" and models.teacher is not None:
        return best_answers(curation, models.teacher, harmful, file="teacher_harmful.jsonl")
    found = {
        p.id: Selected(p.reference or "", "" if p.reference else "no refusal to choose")
        for p in harmful
    }
    return found | (
        student_refusals(curation, harmful) if recipe.chosen.refusals == "student" else {}
    )


def student_refusals(curation: Curation, harmful: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the student's own refusal}: what it says to the prompt if it refuses in full,
    else its usual refusal. Nothing if it never refuses."""
    answers, verdicts = plain_answers(curation, harmful, "harmful")
    openings, usual = curation.recipe.data.openings, curation.usual
    found = {p.id: Selected(usual, "") for p in harmful} if usual else {}
    for completion, verdict in zip(answers, verdicts, strict=True):
        text = side_text(completion, openings=openings)
        if verdict.refusal == "full" and not verdict.degenerate and text:
            found[completion.prompt_id] = Selected(text, "")
    return found


def reject_sources(curation: Curation, harmful: Sequence[Prompt]) -> Iterator[tuple[str, Ask]]:
    """(name, what it says to some of the prompts) of each source of rejects: a file, a less safe
    model, the student, the student that is made to comply. A model answers when it is asked."""
    rejects, models = curation.recipe.rejects, curation.models
    if rejects.completions:
        given = {c.prompt_id: c for c in read_jsonl(rejects.completions, Completion)}
        yield f"the file {rejects.completions}", lambda asked: of_prompts(given, asked)
    if models.less_safe is not None:
        yield f"the model {rejects.model}", answering(models.less_safe, "less_safe_harmful.jsonl")

    def own(asked: Sequence[Prompt]) -> dict[str, Completion]:
        # all of them: the chosen refusals may be the student's too, and share this file
        said = models.student.answers(harmful, "student_harmful.jsonl")
        return of_prompts({c.prompt_id: c for c in said}, asked)

    yield "the student itself", own
    yield from own_sources(curation, "harmful")
    if rejects.prefill and not continues_prefix(curation.recipe.engine):
        logger.info("no rejects from %s; rejects.prefill: null says so in the recipe", NO_PREFILL)
        yield NO_PREFILL, lambda asked: {}


def of_prompts(
    completions: Mapping[str, Completion], asked: Sequence[Prompt]
) -> dict[str, Completion]:
    """The completions of these prompts, as far as there are some."""
    return {p.id: completions[p.id] for p in asked if p.id in completions}


def answering(model: AnsweringModel, file: str) -> Ask:
    """What a model says, kept in `file`."""
    return lambda asked: {c.prompt_id: c for c in model.answers(asked, file)}
