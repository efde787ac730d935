"""A model and prompts -> several answers to each prompt, judged, and one of them selected.

    curation = make_curation(recipe, run)
    chosen = best_answers(curation, curation.models.teacher, prompts, file="teacher_benign.jsonl")
    # {prompt id: Selected}

Only one answering model has its weights in memory. When the next one is needed, the others are
released. Before a slow judge (guard, reward) scores, all of them are. What a judge has loaded stays
in memory.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

from overrefusal_po.curate.selectors import Candidate, Selected, select_answer, why_not_chosen
from overrefusal_po.engines import Engine
from overrefusal_po.engines._first_token import without_openers
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.judges import Judge, JudgePanel, refusal_verdict
from overrefusal_po.judges.panel import agreement_counts
from overrefusal_po.pairs.make import answer_of
from overrefusal_po.plugins import make_refusal_judge, make_second_judge
from overrefusal_po.recipe.model_names import WHICH_MODEL
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.recipe.sections import Engine as EngineSpec
from overrefusal_po.recipe.sections import Generation
from overrefusal_po.records import Completion, Prompt, Verdict
from overrefusal_po.run.complete import (
    complete,
    engine_for,
    in_process,
    load_template,
    note_left_out,
    recipe_sampling,
)
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import is_slow, resumable_verdicts
from overrefusal_po.run.unscored import check_scored


class CurationJudges(NamedTuple):
    """The judges of refusals, harm and rewards. The last two may be None."""

    refusal: Judge
    guard: Judge | None = None
    reward: Judge | None = None


def make_curation_judges(recipe: CurateRecipe) -> CurationJudges:
    """The judges of a recipe. They load their weights when they score. ValueError if one cannot be
    made."""
    guard = None if recipe.guard is None else make_second_judge(recipe.guard, "guard")
    reward = None if recipe.reward is None else make_second_judge(recipe.reward, "reward")
    return CurationJudges(make_refusal_judge(recipe.judge), guard, reward)


class AnsweringModel:
    """A model that answers prompts. Answers come from files if they are there; the model is loaded
    when it is first needed."""

    def __init__(
        self,
        recipe: CurateRecipe,
        run: Run,
        *,
        name: str | None,
        engine: EngineSpec,
        generation: Generation,
        samples: int = 1,
    ) -> None:
        self.section = model_section(recipe.model, name)
        self.engine_spec, self.generation, self.samples = engine, generation, samples
        self.chat, self.run = recipe.chat, run
        self.others: list[AnsweringModel] = []
        """Models to release before this one is loaded."""
        self.sampling = recipe_sampling(generation, recipe.seed)
        self.template = load_template(self.section, self.chat) if in_process(engine) else None
        note_left_out(run, self.section, engine)

    @cached_property
    def engine(self) -> Engine:
        """The loaded model. Releases the other models first."""
        for other in self.others:
            other.release()
        return engine_for(
            self.section, self.template, self.generation, engine=self.engine_spec, chat=self.chat
        )

    def release(self) -> None:
        """Frees the loaded model. The next prompt that needs it loads it again."""
        if self.__dict__.pop("engine", None) is not None:
            gc.collect()  # a model and its remedy refer to each other

    def answers(
        self, prompts: Sequence[Prompt], file: str, *, suppressed: Sequence[int] = ()
    ) -> list[Completion]:
        """`samples` completions of each prompt, in the prompts' order, kept in `file` of the run
        folder. None begins with a token of `suppressed` (ids), which needs the engine in
        process."""
        who, _, side = file.removesuffix(".jsonl").rpartition("_")
        label = f"{who.replace('_', ' ')}: {side} prompts"
        return complete(
            self.run.path / file,
            prompts,
            self.sampling,
            lambda: self.suppressing(suppressed) if suppressed else self.engine,
            label,
            samples=self.samples,
        )

    def suppressing(self, tokens: Sequence[int]) -> Engine:
        """The loaded model; its answers begin with none of `tokens`."""
        engine = self.engine
        assert isinstance(engine, TransformersEngine), "check_settings has seen to it"
        return without_openers(engine, tokens)


def model_section(section: Mapping[str, object], name: str | None) -> Mapping[str, object]:
    """A `model:` section for the model `name`, without the first model's revision and remedy; None:
    the section unchanged."""
    if name in (None, section["model_name_or_path"]):
        return section
    kept = {key: value for key, value in section.items() if key not in WHICH_MODEL}
    return {**kept, "model_name_or_path": name}


class CurationModels(NamedTuple):
    """The models that answer. `teacher` and `less_safe` are None if the recipe names none."""

    student: AnsweringModel
    teacher: AnsweringModel | None
    less_safe: AnsweringModel | None

    def release(self) -> None:
        """Frees all loaded models."""
        for model in self:
            if model is not None:
                model.release()


def make_models(recipe: CurateRecipe, run: Run) -> CurationModels:
    """The models of a recipe, none of them loaded. Without a teacher, the student itself
    overgenerates an SFT set."""
    chosen, rejects = recipe.chosen, recipe.rejects
    drawn_for_choice = (chosen.generation or recipe.generation, chosen.samples)
    alone = recipe.makes == "sft" and chosen.model is None
    generation, samples = drawn_for_choice if alone else (recipe.generation, 1)
    student = AnsweringModel(
        recipe, run, name=None, engine=recipe.engine, generation=generation, samples=samples
    )
    teacher = less_safe = None
    if chosen.model:
        generation, samples = drawn_for_choice
        teacher = AnsweringModel(
            recipe,
            run,
            name=chosen.model,
            engine=chosen.engine,
            generation=generation,
            samples=samples,
        )
    if recipe.makes == "pairs" and rejects.model:
        less_safe = AnsweringModel(
            recipe, run, name=rejects.model, engine=rejects.engine, generation=recipe.generation
        )
    models = CurationModels(student, teacher, less_safe)
    everybody = [model for model in models if model is not None]
    for model in everybody:
        model.others = [other for other in everybody if other is not model]
    return models


class Curation(NamedTuple):
    """What the steps of curation share."""

    recipe: CurateRecipe
    run: Run
    models: CurationModels
    judges: CurationJudges
    read: dict[tuple[str, str], Verdict]
    """{(prompt id, answer): verdict} of a slow judge of refusals, or of a panel: no side is judged
    twice."""
    suppressed: tuple[int, ...] = ()
    """The openers of refusals that the student may not say (`own_answers.with_own_words`)."""
    usual: str = ""
    """The student's usual refusal, one for both rules; "" if it has none."""

    def verdicts(
        self, judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[Verdict]:
        """A verdict for each completion. The run folder keeps those of slow judges.

        RunFailed if too few completions have one.
        """
        found = self.read_verdicts(judge, prompts, completions)
        self.check_read(judge, found)
        return found

    def check_read(self, judge: Judge, verdicts: Sequence[Verdict]) -> None:
        """Raises RunFailed if too few completions have a verdict."""
        limit, what = self.recipe.unscored_max, f"curation, judge {judge.name}"
        check_scored(verdicts, limit, self.run.path, what=what)

    def read_verdicts(
        self, judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[Verdict]:
        """`verdicts` without a check. The judge of refusals leaves a completion unscored if it does
        not say whether it refuses."""
        slow = is_slow(judge)
        if slow:  # it may load weights
            self.models.release()
        file = self.run.path / "verdicts.jsonl"
        found = resumable_verdicts(file, judge, prompts, completions)
        if judge is self.judges.refusal:
            found = [refusal_verdict(verdict) for verdict in found]
        keeps = slow or isinstance(judge, JudgePanel)
        if keeps and judge is self.judges.refusal:
            texts = [(c.prompt_id, answer_of(c)) for c in completions]
            self.read.update(zip(texts, found, strict=True))
        return found

    def side_verdicts(
        self, prompts: Sequence[Prompt], sides: Sequence[Completion]
    ) -> list[Verdict]:
        """`verdicts` of the judge of refusals on sides of pairs. What it has read is not asked
        again. The check is of all sides: of a few new ones, none may be scored."""
        places = [(side.prompt_id, side.text) for side in sides]
        new = [at for at, place in enumerate(places) if place not in self.read]
        judge = self.judges.refusal
        asked = [prompts[at] for at in new], [sides[at] for at in new]
        fresh = dict(zip(new, self.read_verdicts(judge, *asked), strict=True)) if new else {}
        found = [fresh.get(at) or self.read[place] for at, place in enumerate(places)]
        self.check_read(judge, found)
        return found

    def panel_counts(self) -> dict[str, dict[str, int]]:
        """{"panel": how often its judges agree on the texts that they read}; empty without a
        panel."""
        judge = self.judges.refusal
        if not isinstance(judge, JudgePanel):
            return {}
        return {"panel": agreement_counts(judge, self.read.values())}


def make_curation(recipe: CurateRecipe, run: Run) -> Curation:
    """A recipe's models and judges, none of them loaded."""
    return Curation(recipe, run, make_models(recipe, run), make_curation_judges(recipe), {})


def best_answers(
    curation: Curation, model: AnsweringModel, prompts: Sequence[Prompt], *, file: str
) -> dict[str, Selected]:
    """{prompt id: the answer that `chosen.select` takes of the model's answers in `file`}."""
    recipe, judges = curation.recipe, curation.judges
    by, samples, openings = recipe.chosen.select, model.samples, recipe.data.openings
    asked = [prompt for prompt in prompts for _ in range(samples)]
    answers = model.answers(prompts, file)
    verdicts = curation.verdicts(judges.refusal, asked, answers)
    found = [Candidate(answer, verdict) for answer, verdict in zip(answers, verdicts, strict=True)]
    if judges.guard is not None:
        add_verdicts(curation, found, asked, field="guard", judge=judges.guard)
    if judges.reward is not None and by == "reward":
        add_verdicts(curation, found, asked, field="reward", judge=judges.reward)
    each = (found[at * samples : (at + 1) * samples] for at in range(len(prompts)))
    return {
        prompt.id: select_answer(prompt, drawn, by=by, seed=recipe.seed, openings=openings)
        for prompt, drawn in zip(prompts, each, strict=True)
    }


def add_verdicts(
    curation: Curation,
    candidates: list[Candidate],
    asked: Sequence[Prompt],
    *,
    field: Literal["guard", "reward"],
    judge: Judge,
) -> None:
    """Adds a judge's verdicts, in place, to the candidates that may still be chosen."""
    still = [
        number
        for number, (prompt, candidate) in enumerate(zip(asked, candidates, strict=True))
        if not why_not_chosen(prompt, candidate, "first", openings=curation.recipe.data.openings)
    ]
    if not still:
        return
    verdicts = curation.verdicts(
        judge, [asked[i] for i in still], [candidates[i].completion for i in still]
    )
    for i, verdict in zip(still, verdicts, strict=True):
        old = candidates[i]
        candidates[i] = (
            old._replace(guard=verdict) if field == "guard" else old._replace(reward=verdict)
        )
