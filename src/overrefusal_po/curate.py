"""Stage: prompts -> the student's answers -> verdicts -> pairs.jsonl, each pair with its reason and verdicts.

    overrefusal-po recipes/curate.yaml --model.model_name_or_path=my-over-refusing-model

The benign prompts that the student refuses become overrefusal pairs (chosen: the teacher's answer, or the prompt's
reference). The harmful prompts become containment pairs: chosen is the prompt's reference refusal, or the student's own
where it refuses; rejected is a completion that complies, from the first of these sources that yields: given
completions, a less safe model, the student itself, the student made to begin with a compliant prefix. No yield at all is
an error.

Where refusals and answers of one rule are worded unlike those of the other, DPO wins its margins by wording and learns
nothing of prompts. A teacher that also gives the rejects, and the student's own refusals as chosen ones, leave only the
prompt to tell the rules apart (benchmarks/RESULTS.md has the difference).
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from overrefusal_po import models
from overrefusal_po.chat import ChatTemplate
from overrefusal_po.generate import complete, engine_for, in_process, load_template, sampling_of, scored
from overrefusal_po.pairs import Made, containment_pair, overrefusal_pair, teacher_answer, whole_sentences
from overrefusal_po.plugins import make_judge, read_source
from overrefusal_po.recipe import Chosen, CurateRecipe, Rejects
from overrefusal_po.records import (
    Completion,
    PreferencePair,
    Prompt,
    Sampling,
    content_id,
    read_jsonl,
    write_atomic,
    write_jsonl,
)
from overrefusal_po.runs import Run

logger = logging.getLogger(__name__)


def curate(recipe: CurateRecipe, run: Run) -> dict[str, Any]:
    """Runs the stage in an open run folder; returns its summary ({rule: {made, kept, why not}})."""
    benign, harmful = read_prompts(recipe)
    check_rejects(recipe)
    judge = make_judge(recipe.judge)
    template = load_template(recipe.model, recipe.chat) if in_process(recipe.engine) else None
    if not run.done:
        student = Student(recipe, run, template)
        made = overrefusal(recipe, run, benign, student, judge)
        contained = list(containment(recipe, run, harmful, student, judge)) if harmful else []
        pairs, summary = select({"overrefusal": made, "containment": contained}, recipe.data.max_pairs, recipe.seed)
        write_jsonl(run.path / "pairs.jsonl", pairs)
        write_atomic(run.path / "summary.json", json.dumps(summary, indent=1))
        run.finish(summary)
    found: dict[str, Any] = json.loads((run.path / "summary.json").read_text())
    return found


class Student:
    """The model that is curated for: it answers from files where it can, and is loaded once, when it is first needed."""

    def __init__(self, recipe: CurateRecipe, run: Run, template: ChatTemplate | None) -> None:
        self.recipe, self.run, self.template = recipe, run, template
        self.sampling = sampling_of(recipe.generation, recipe.seed)

    def release(self) -> None:
        """Frees the weights, so that another model fits; they are loaded again when they are needed again."""
        self.__dict__.pop("engine", None)

    @cached_property
    def engine(self) -> Any:
        """The loaded model."""
        recipe = self.recipe
        return engine_for(recipe.model, self.template, recipe.generation, engine=recipe.engine, chat=recipe.chat)

    def answers(self, prompts: Sequence[Prompt], kind: str) -> list[Completion]:
        """Its completions of `prompts`, kept in student_<kind>.jsonl."""
        path = self.run.path / f"student_{kind}.jsonl"
        return complete(path, prompts, self.sampling, lambda: self.engine, f"student: {kind} prompts")


def other_answers(
    recipe: CurateRecipe, run: Run, student: Student, source: Chosen | Rejects, prompts: Sequence[Prompt], file: str
) -> list[Completion]:
    """What another model (a teacher, a less safe one) says to `prompts`, kept in `file`."""
    student.release()
    section = {**recipe.model, "model_name_or_path": str(source.model)}
    template = load_template(section, recipe.chat) if in_process(source.engine) else None
    return complete(
        run.path / file,
        prompts,
        sampling_of(recipe.generation, recipe.seed),
        lambda: engine_for(section, template, recipe.generation, engine=source.engine, chat=recipe.chat),
        f"{source.model}: {len(prompts)} prompts",
    )


def read_prompts(recipe: CurateRecipe) -> tuple[list[Prompt], list[Prompt]]:
    """(benign, harmful) prompts that carry what is chosen, or that a teacher answers. ValueError without a benign one."""
    taught = recipe.chosen.model is not None
    benign = [
        p
        for p in read_source(recipe.data.benign, recipe.data.split)
        if p.kind in recipe.data.kinds and (p.reference or taught)
    ]
    harmful = [p for p in read_source(recipe.data.harmful, recipe.data.split) if p.kind == "harmful" and p.reference]
    if not benign:
        raise ValueError(
            f"data.benign: {recipe.data.benign!r} has no harmless prompt with a reference answer. Give prompts with "
            "references, or name a teacher that answers them (chosen.model)."
        )
    return benign, harmful


def overrefusal(recipe: CurateRecipe, run: Run, prompts: Sequence[Prompt], student: Student, judge: Any) -> list[Made]:
    """Overrefusal pairs of the benign prompts that the student refuses; chosen is the teacher's answer or the reference."""
    answers = student.answers(prompts, "benign")
    verdicts = scored(judge, prompts, answers)
    refused = [p for p, v in zip(prompts, verdicts, strict=True) if v.refused]
    chosen = (
        teacher_answers(recipe, run, refused, student, judge)
        if recipe.chosen.model
        else reference_answers(refused, judge)
    )
    made = []
    for prompt, answer, verdict in zip(prompts, answers, verdicts, strict=True):
        text, why_not = chosen.get(prompt.id, ("not needed", ""))
        made.append(Made(None, why_not) if why_not else overrefusal_pair(prompt, text, answer, verdict))
    return made


def teacher_answers(
    recipe: CurateRecipe, run: Run, prompts: Sequence[Prompt], student: Student, judge: Any
) -> dict[str, tuple[str, str]]:
    """{prompt id: (the teacher's answer, why it may not be chosen)}; one of the two is empty."""
    answers = other_answers(recipe, run, student, recipe.chosen, prompts, "teacher_benign.jsonl")
    verdicts = scored(judge, prompts, answers)
    return {p.id: teacher_answer(c, v) for p, c, v in zip(prompts, answers, verdicts, strict=True)}


def reference_answers(prompts: Sequence[Prompt], judge: Any) -> dict[str, tuple[str, str]]:
    """{prompt id: (the reference, why it may not be chosen)}."""
    return {p.id: ("", "the reference refuses") if refuses(judge, p) else (str(p.reference), "") for p in prompts}


def refuses(judge: Any, prompt: Prompt) -> bool:
    """Whether a harmless prompt's reference is itself a refusal, which must not be chosen."""
    text = str(prompt.reference)
    said = Completion(
        id=content_id(prompt.id, text),
        prompt_id=prompt.id,
        text=text,
        model="reference",
        engine="file",
        sampling=Sampling(),
    )
    return bool(judge.score([prompt], [said])[0].refused)


def check_rejects(recipe: CurateRecipe) -> None:
    """Raises ValueError where the sources of rejects cannot be read, before any weight is loaded."""
    rejects = recipe.rejects
    if rejects.completions and not rejects.completions.startswith("@"):
        read_jsonl(rejects.completions, Completion)
    for source in (rejects, recipe.chosen):
        if source.model and not source.model.startswith("@") and in_process(source.engine):
            models.check_available(source.model)


def containment(
    recipe: CurateRecipe, run: Run, harmful: Sequence[Prompt], student: Student, judge: Any
) -> Iterator[Made]:
    """Containment pairs from the first source of rejects that yields any. ValueError where none does."""
    safe = safe_refusals(recipe, harmful, student, judge)
    tried = []
    for name, completions in reject_sources(recipe, run, harmful, student):
        answered = [(p, completions[p.id]) for p in harmful if p.id in completions]
        verdicts = scored(judge, [p for p, _ in answered], [c for _, c in answered])
        made = [containment_pair(p, safe[p.id], c, v) for (p, c), v in zip(answered, verdicts, strict=True)]
        tried.append(f"{name}: {len(answered)} completions, {sum(m.pair is not None for m in made)} comply")
        if any(m.pair is not None for m in made):
            logger.info("containment rejects come from %s", tried[-1])
            yield from made
            return
    raise ValueError(
        f"No containment pair could be built, so nothing would hold the model where it is safe ({'; '.join(tried)}). "
        "Give completions of a less safe model (rejects.completions), or name one (rejects.model)."
    )


def safe_refusals(recipe: CurateRecipe, harmful: Sequence[Prompt], student: Student, judge: Any) -> dict[str, str]:
    """{prompt id: the refusal that is chosen}: the written one, or the student's own where it refuses in whole words."""
    safe = {p.id: str(p.reference) for p in harmful}
    if recipe.chosen.refusals == "student":
        own = student.answers(harmful, "harmful")
        for completion, verdict in zip(own, scored(judge, harmful, own), strict=True):
            text = whole_sentences(completion)
            if verdict.refusal == "full" and not verdict.degenerate and text:
                safe[completion.prompt_id] = text
    return safe


def reject_sources(
    recipe: CurateRecipe, run: Run, harmful: Sequence[Prompt], student: Student
) -> Iterator[tuple[str, dict[str, Completion]]]:
    """(name, {prompt id: completion}) of each source of rejects: given, less safe model, student, prefilled."""
    rejects = recipe.rejects
    if rejects.completions:
        yield f"the file {rejects.completions}", {c.prompt_id: c for c in read_jsonl(rejects.completions, Completion)}
    if rejects.model:
        found = other_answers(recipe, run, student, rejects, harmful, "less_safe_harmful.jsonl")
        yield f"the model {rejects.model}", {c.prompt_id: c for c in found}
    yield "the student itself", {c.prompt_id: c for c in student.answers(harmful, "harmful")}
    if rejects.prefill:
        prefix = rejects.prefill
        asked = [p.model_copy(update={"assistant_prefix": prefix}) for p in harmful]
        path, label = run.path / "prefilled_harmful.jsonl", "student, prefilled"
        found = complete(path, asked, student.sampling, lambda: student.engine, label)
        yield "the prefilled student", {c.prompt_id: c.model_copy(update={"text": prefix + c.text}) for c in found}


def select(made: dict[str, list[Made]], limit: int | None, seed: int) -> tuple[list[PreferencePair], dict[str, Any]]:
    """(pairs in an order drawn by seed, {rule: counts}). ValueError where no overrefusal pair was made."""
    pairs: list[PreferencePair] = []
    summary: dict[str, Any] = {}
    for rule, results in made.items():
        good = [m.pair for m in results if m.pair is not None]
        why = Counter(m.reason for m in results if m.pair is None)
        kept = by_seed(good, seed)[:limit]
        summary[rule] = {"prompts": len(results), "made": len(good), "kept": len(kept), "left_out": dict(why)}
        logger.info("%s: %s", rule, summary[rule])
        pairs += kept
    if not summary["overrefusal"]["made"]:
        raise ValueError(
            f"No overrefusal pair could be made of the {summary['overrefusal']['prompts']} benign prompts "
            f"({summary['overrefusal']['left_out']}). Use a model that over-refuses, other prompts (data.benign), another "
            "teacher (chosen.model), or a greater generation.max_new_tokens where answers are cut."
        )
    return by_seed(pairs, seed), summary


def by_seed(pairs: list[PreferencePair], seed: int) -> list[PreferencePair]:
    """Pairs in an order that follows from seed and ids alone."""
    key = {p.id: random.Random(content_id(seed, p.id)).random() for p in pairs}
    return sorted(pairs, key=lambda p: key[p.id])
