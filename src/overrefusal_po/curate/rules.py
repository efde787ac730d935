"""Prompts, the student's answers and verdicts -> what each rule makes of each prompt, with the
reason.

    overrefusal_results(curation, benign)                  # [Result(prompt, pair or None, reason)]
    contrasts = containment_contrasts(curation, harmful)
    containment_results(contrasts, tau=0.1)                # the contrasts serve any tau

`pairs/` says what a pair is; this module says where its sides come from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from overrefusal_po.curate.overgenerate import AnsweringModel, Curation, best_answers
from overrefusal_po.curate.quotas import Result
from overrefusal_po.curate.selectors import Selected, usable
from overrefusal_po.pairs.make import (
    TAU,
    Guarded,
    answered_pair,
    containment_pair,
    overrefusal_pair,
    whole_sentences,
)
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
    curation: Curation, prompts: Sequence[Prompt]
) -> list[Result[PreferencePair]]:
    """Overrefusal pairs of the benign prompts that the student refuses, and, with
    `data.keep_answered`, pairs that hold those that it answers."""
    student = curation.models.student
    answers = student.answers(prompts, "student_benign.jsonl")
    verdicts = curation.verdicts(curation.judges.refusal, prompts, answers)
    refused = [p for p, v in zip(prompts, verdicts, strict=True) if v.refused]
    chosen = chosen_answers(curation, refused)
    usual = usual_refusal(answers, verdicts) if curation.recipe.data.keep_answered else ""
    found = []
    for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True):
        text, why_not, of_chosen = chosen.get(prompt.id, Selected("not needed", ""))
        if why_not:
            found.append(Result[PreferencePair](prompt, None, why_not))
        elif usual and prompt.id not in chosen:
            found.append(Result(prompt, *answered_pair(prompt, answer, usual, verdict)))
        else:
            made = overrefusal_pair(prompt, text, answer, verdict, of_chosen)
            found.append(Result(prompt, *made))
    return found


def usual_refusal(answers: Sequence[Completion], verdicts: Sequence[Verdict]) -> str:
    """The full refusal that a model gives most often, "" if it gives none. Of equal ones, the
    first in the alphabet."""
    said = Counter(
        whole_sentences(answer)
        for answer, verdict in zip(answers, verdicts, strict=True)
        if verdict.refusal == "full" and not verdict.degenerate
    )
    said.pop("", None)
    return min(said, key=lambda text: (-said[text], text), default="")


def chosen_answers(curation: Curation, prompts: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the answer to choose, or why there is none}. A prompt takes the first source with
    an answer that passes: the prefilled student (`chosen.answers: student`), then the teacher, or
    the reference if there is no teacher."""
    models, rejects = curation.models, curation.recipe.rejects
    found: dict[str, Selected] = {}
    if curation.recipe.chosen.answers == "student" and rejects.prefill:
        found = prefilled_answers(curation, prompts, rejects.prefill)
    rest = [p for p in prompts if p.id not in found or found[p.id].why_not]
    if models.teacher is not None:
        other = best_answers(curation, models.teacher, rest, file="teacher_benign.jsonl")
    else:
        other = reference_answers(curation, [p for p in rest if p.reference])
    missing = {p.id: Selected("", "no answer to choose") for p in prompts}
    return missing | found | other


def prefilled_answers(
    curation: Curation, prompts: Sequence[Prompt], prefix: str
) -> dict[str, Selected]:
    """{prompt id: the student's own answer that begins with `prefix`, or why it may not be
    chosen}."""
    said = prefilled(curation, prefix, "prefilled_benign.jsonl")(prompts)
    answers = [said[p.id] for p in prompts]
    verdicts = curation.verdicts(curation.judges.refusal, prompts, answers)
    found = {}
    for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True):
        text, why_not = usable(prompt, answer, verdict)
        found[prompt.id] = Selected(text, why_not.replace("teacher", "prefilled student"))
    return found


def reference_answers(curation: Curation, prompts: Sequence[Prompt]) -> dict[str, Selected]:
    """{prompt id: the reference; or why it may not be chosen, because it refuses}."""
    references = [text_completion(p, str(p.reference)) for p in prompts]
    verdicts = curation.verdicts(curation.judges.refusal, prompts, references)
    return {
        p.id: Selected("", "the reference refuses") if v.refused else Selected(str(p.reference), "")
        for p, v in zip(prompts, verdicts, strict=True)
    }


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

    None means that the source of rejects has no completion.
    """

    prompt: Prompt
    refusal: Selected
    completion: Completion | None = None
    verdict: Verdict | None = None
    guarded: Guarded | None = None


def containment_contrasts(curation: Curation, harmful: Sequence[Prompt]) -> list[Contrast]:
    """A contrast for each prompt, in order. Each prompt takes the first source of rejects that
    yields a pair at the recipe's least tau; only prompts without one ask the next source.

    ValueError if no prompt gets a pair. A shard then has none, because another shard may yield.
    """
    refusals = chosen_refusals(curation, harmful)
    rejects = curation.recipe.rejects
    least = min([TAU if rejects.tau is None else rejects.tau, *rejects.tau_grid])
    found = {p.id: Contrast(p, refusals[p.id]) for p in harmful}
    open_prompts = [p for p in harmful if refusals[p.id].text]
    tried = []
    for name, ask in reject_sources(curation, harmful):
        if not open_prompts:
            break
        completions = ask(open_prompts)
        made = make_contrasts(curation, open_prompts, refusals, completions=completions)
        results = containment_results(made, least)
        for contrast, result in zip(made, results, strict=True):
            if result.row is not None or contrast.completion is not None:
                found[result.prompt.id] = contrast
        still = [result.prompt for result in results if result.row is None]
        yielded = len(open_prompts) - len(still)
        tried.append(f"{name}: {yielded} of {len(open_prompts)} prompts")
        open_prompts = still
    logger.info("containment rejects come from %s", "; ".join(tried) or "no source")
    if any(r.row is not None for r in containment_results(found.values(), least)):
        return list(found.values())
    if curation.recipe.shard is not None:
        return []
    raise ValueError(
        "No containment pair could be built, so nothing would hold the model where it is safe "
        f"({'; '.join(tried) or 'no prompt has a refusal to choose'}). Give completions of a less "
        "safe model (rejects.completions), name one (rejects.model), or let the student's own "
        "answer begin with a few compliant words (rejects.prefill)."
    )


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
    contrasts: Iterable[Contrast], tau: float | None
) -> list[Result[PreferencePair]]:
    """The containment pairs at one tau (None: the default)."""
    found = []
    for prompt, refusal, completion, verdict, guarded in contrasts:
        if completion is None or verdict is None:
            why_not = refusal.why_not or "the source of rejects has no completion"
            found.append(Result[PreferencePair](prompt, None, why_not))
        else:
            least = TAU if tau is None else tau
            made = containment_pair(prompt, refusal.text, completion, verdict, guarded, tau=least)
            found.append(Result(prompt, *made))
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
    answers = curation.models.student.answers(harmful, "student_harmful.jsonl")
    verdicts = curation.verdicts(curation.judges.refusal, harmful, answers)
    usual = usual_refusal(answers, verdicts)
    found = {p.id: Selected(usual, "") for p in harmful} if usual else {}
    for completion, verdict in zip(answers, verdicts, strict=True):
        text = whole_sentences(completion)
        if verdict.refusal == "full" and not verdict.degenerate and text:
            found[completion.prompt_id] = Selected(text, "")
    return found


Ask = Callable[[Sequence[Prompt]], dict[str, Completion]]
"""Prompts in, {prompt id: completion} out."""


def reject_sources(curation: Curation, harmful: Sequence[Prompt]) -> Iterator[tuple[str, Ask]]:
    """(name, what it says to some of the prompts) of each source of rejects: a file, a less safe
    model, the student, the prefilled student. A model answers when it is asked."""
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
    if rejects.prefill and continues_prefix(curation.recipe.engine):
        yield "the prefilled student", prefilled(curation, rejects.prefill)
    elif rejects.prefill:
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


def prefilled(curation: Curation, prefix: str, file: str = "prefilled_harmful.jsonl") -> Ask:
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
