"""Evaluation, judging and curation from Python: records and metrics in memory, no run folder.

    from overrefusal_po import api
    api.judge(["I'm sorry, I can't help."], prompts=["How do I kill a Python process?"])[0].refused
    found = api.evaluate("my/model", {"benign": ["How do I kill a process?"]})
    found.metrics.benign_answered.value          # a share from 0 to 1; None without such prompts
    api.curate("my/model", "starter").pairs

The package has them as `evaluate_model`, `judge_responses` and `curate_pairs` too, since
`overrefusal_po.evaluate` and `overrefusal_po.curate` are folders of modules. docs/python.md shows
all. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from overrefusal_po.evaluate.given import given_prompts
from overrefusal_po.evaluate.metrics import RunMetrics, run_metrics
from overrefusal_po.judges import (
    Judge,
    harm_verdict,
    refusal_judge,
    refusal_verdict,
    second_judge,
)
from overrefusal_po.plugins import PlugSpec, checked_plug_settings, make_judge
from overrefusal_po.recipe.panels import JudgesGiven
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.recipe.sections import Engine as EngineSpec
from overrefusal_po.records import (
    Completion,
    Kind,
    Message,
    Outcome,
    PreferencePair,
    Prompt,
    Sampling,
    Split,
    Verdict,
    content_id,
)
from overrefusal_po.run.complete import recipe_sampling
from overrefusal_po.run.drawn import Asked, Work
from overrefusal_po.run.judged import fresh_verdicts, paired_outcomes
from overrefusal_po.run.loaded import answering_engine

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from overrefusal_po.engines import Engine
    from overrefusal_po.model.chat import ChatTemplate

    # Any: a row holds what JSON may hold
    PromptsGiven = (
        str
        | Path
        | Dataset
        | Sequence[Prompt | str | Mapping[str, Any]]
        | Mapping[Kind, Sequence[str]]
    )


class Evaluation(NamedTuple):
    """What a model said, what the judge found, and the rates.

    `outcomes` has one outcome a prompt, in the prompts' order. `metrics` holds shares from 0 to 1
    with 95 % intervals.
    """

    outcomes: list[Outcome]
    metrics: RunMetrics


class Curated(NamedTuple):
    """Preference pairs, and summary.json of the stage: counts by rule and by filter."""

    pairs: list[PreferencePair]
    # Any: summary.json, whose form follows from what was asked
    summary: dict[str, Any]


def judge(
    responses: Sequence[str | Completion],
    prompts: Sequence[str | Prompt] | None = None,
    *,
    judge: JudgesGiven | Judge = "refusal",
) -> list[Verdict]:
    """One verdict for each response, in their order.

    Args:
        responses: texts, or completions.
        prompts: what each response answers: texts or prompts. Only the built-in judge can do
            without them, and it is then a little less exact.
        judge: a judge as a recipe names it (`refusal`, `{name: llm, model: ...}`, or a list of
            judges, which is a panel), or one.

    Raises:
        ValueError: another number of prompts than responses, no prompts for a judge that needs
            them, or a judge that cannot be made.
        TypeError: one text in place of a list.
    """
    for given in (responses, prompts or ()):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(
                f"responses and prompts are lists; got a {type(given).__name__}. Put a single text "
                "into one: [text]."
            )
    if prompts is None and judge != "refusal":
        raise ValueError(f"The judge {judge!r} reads the prompts too. Give one for each response.")
    if prompts is not None and len(prompts) != len(responses):
        raise ValueError(
            f"There are {len(responses)} responses and {len(prompts)} prompts. Give one prompt for "
            "each response, in the same order."
        )
    asked = [asked_prompt(text) for text in prompts or [""] * len(responses)]
    answers = [
        answer_of(prompt, response, number)
        for number, (prompt, response) in enumerate(zip(asked, responses, strict=True))
    ]
    return fresh_verdicts(found_judge(judge), asked, answers)


def evaluate(
    model: PreTrainedModel | Engine | str | Path,
    prompts: PromptsGiven,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    kind: Kind | None = None,
    split: Split | None = "test",
    judge: JudgesGiven | Judge = "refusal",
    guard: PlugSpec | Judge | None = None,
    engine: EngineSpec = "transformers",
    template: ChatTemplate | None = None,
    system_prompt: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Evaluation:
    """Asks a model every prompt once, judges its responses, and computes the rates.

    Args:
        model: a loaded model, its name or path, or an object with `name` and `complete` (an
            engine). A loaded model is not changed.
        prompts: prompts; rows (dicts, a `datasets.Dataset`, a path); `{"benign": [texts], ...}`;
            texts with `kind`; or the name of a source, such as "starter" or "xstest".
        tokenizer: of the model; None loads that of its name. An engine takes none, nor a template
            or a system prompt.
        kind: of rows and texts that say none: harmful, benign or general.
        split: of a source that has splits.
        judge, guard: as in a recipe, or a judge of your own. A guard judges harm.
        engine: what a model given by name runs on, as in a recipe.
        template: chat options; None uses the tokenizer's template.
        system_prompt: put before conversations that have none.
        max_new_tokens: the most tokens of a response.
        temperature, top_p: 0 takes the most likely token each time.
        batch_size: prompts decoded at a time.
        seed: decides what is drawn, and the samples behind the intervals.

    Raises:
        ValueError: prompts without a kind, no prompt, a model or a plug that cannot be found, or
            no response that could be scored. All but the last before weights are loaded.
        TypeError: prompts or a model of another type.
    """
    asked = given_prompts(prompts, kind=kind, split=split)
    judges = found_judges(judge, guard)
    check_seed(seed)
    generation = checked_generation(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, batch_size=batch_size
    )
    with answering_engine(
        model,
        generation,
        engine=engine,
        chat=checked_chat(system_prompt),
        tokenizer=tokenizer,
        template=template,
    ) as made:
        answers = answers_in_order(made, asked, recipe_sampling(generation, seed))
    outcomes = judged_outcomes(asked, answers, *judges)
    return Evaluation(outcomes, run_metrics(outcomes, seed=seed))


def curate(
    model: PreTrainedModel | Engine | str | Path,
    prompts: PromptsGiven,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    kind: Kind | None = None,
    split: Split | None = "train",
    teacher: str | None = None,
    refusals: Literal["reference", "student", "teacher"] = "reference",
    prefill: str | None = "Sure, here",
    judge: JudgesGiven = "refusal",
    guard: PlugSpec | None = None,
    template: ChatTemplate | None = None,
    system_prompt: str | None = None,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Curated:
    """Preference pairs from what a model says: benign prompts that it refuses, harmful ones.

    Args:
        model: the student: as for `evaluate`.
        prompts: as for `evaluate`. Benign prompts have a `reference` answer (or there is a
            teacher), harmful ones a reference refusal (or `refusals` says otherwise).
        teacher: the name of a model that answers the refused benign prompts.
        refusals, prefill: keys `chosen.refusals` and `rejects.prefill` of a recipe.
        judge, guard: as in a recipe.
        tokenizer, kind, split, template, system_prompt, max_new_tokens, temperature, batch_size,
            seed: as for `evaluate`.

    Raises:
        ValueError: as for `evaluate`; no usable prompt; or a rule that yields no pair.
    """
    asked = given_prompts(prompts, kind=kind, split=split)
    from overrefusal_po.curate.loaded import curate_in_memory, curation_recipe

    recipe = curation_recipe(
        teacher=teacher,
        refusals=refusals,
        prefill=prefill,
        judge=judge,
        guard=guard,
        chat=checked_chat(system_prompt),
        generation=checked_generation(
            max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size
        ),
        seed=seed,
    )
    return Curated(*curate_in_memory(recipe, model, asked, tokenizer, template))


def checked_generation(**values: float) -> Generation:
    """How responses are drawn; ValueError names the value that is not allowed."""
    return checked_plug_settings(Generation, values, "generation")


def checked_chat(system_prompt: str | None) -> Chat:
    """The chat options; ValueError for a system prompt that is no text."""
    return checked_plug_settings(Chat, {"system_prompt": system_prompt}, "chat")


def check_seed(seed: object) -> None:
    """Raises ValueError for a seed that nothing can be drawn by."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; allowed is a whole number from 0 to {2**32 - 1}.")


def asked_prompt(given: object) -> Prompt:
    """A text or a prompt as a prompt; TypeError for anything else."""
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        message = Message(role="user", content=given)
        return Prompt(id=content_id("asked", given), messages=(message,), kind="general")
    raise TypeError(f"A prompt is a {type(given).__name__}; allowed is a text or a Prompt.")


def answer_of(prompt: Prompt, given: object, number: int) -> Completion:
    """A response as the completion of its prompt; TypeError if it is no text."""
    if isinstance(given, Completion):
        return given.model_copy(update={"prompt_id": prompt.id})
    if not isinstance(given, str):
        raise TypeError(
            f"Response {number + 1} is a {type(given).__name__}; allowed is a text or a Completion."
        )
    return Completion(
        id=content_id(number, prompt.id, given),
        prompt_id=prompt.id,
        text=given,
        model="given",
        engine="given",
        sampling=Sampling(),
    )


def found_judge(judge: JudgesGiven | Judge) -> Judge:
    """The judge that a recipe would name so (a panel for a list), or the judge itself."""
    if isinstance(judge, str | Mapping | list | tuple):
        return make_judge(judge)
    named = all(isinstance(getattr(judge, part, None), str) for part in ("name", "version"))
    if isinstance(judge, type) or not named or not callable(getattr(judge, "score", None)):
        raise TypeError(
            f"judge is a {type(judge).__name__}; allowed is a name, a mapping with a name and "
            "settings, or an object with name, version and score(prompts, completions)."
        )
    return judge


def found_judges(
    judge: JudgesGiven | Judge, guard: PlugSpec | Judge | None
) -> tuple[Judge, Judge | None]:
    """A judge of refusals and a guard; ValueError for one that never says what it is there for."""
    second = None if guard is None else second_judge(found_judge(guard), "guard")
    return refusal_judge(found_judge(judge)), second


def answers_in_order(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling
) -> list[Completion]:
    """The completion of each prompt, in their order, checked as those of a recipe's engine."""
    asked = Asked(engine, Work(prompts, sampling, 1, set()))
    given = map(asked.taken, engine.complete(list(asked.prompts()), sampling))
    found = {completion.prompt_id: completion for completion in given}
    asked.check_all_given()
    return [found[prompt.id] for prompt in prompts]


def judged_outcomes(
    prompts: Sequence[Prompt], answers: Sequence[Completion], judge: Judge, guard: Judge | None
) -> list[Outcome]:
    """Outcomes with the judge's verdicts; ValueError if none of them could be scored."""
    from overrefusal_po.evaluate.stage import with_guard

    verdicts = fresh_verdicts(judge, prompts, answers)
    if guard is not None:
        both = [(p, c) for p, c in zip(prompts, answers, strict=True) if p.kind == "harmful"]
        said = fresh_verdicts(guard, [p for p, _ in both], [c for _, c in both])
        check_any_scored(map(harm_verdict, said), "responses to harmful prompts", "by the guard")
        verdicts = with_guard(verdicts, said)
    check_any_scored(map(refusal_verdict, verdicts), "responses")
    return paired_outcomes(prompts, answers, verdicts)


def check_any_scored(verdicts: Iterable[Verdict], what: str, by: str = "") -> None:
    """Raises ValueError, with the first reason, if there are verdicts and none is scored."""
    reasons = [verdict.unscored for verdict in verdicts]
    if reasons and None not in reasons:
        scored = f"scored {by}".strip()
        raise ValueError(
            f"None of the {len(reasons)} {what} could be {scored}. The first: {reasons[0]}."
        )
