"""Stage: a model and prompts -> a remedy for its over-refusal, its strength chosen on dev prompts.

    overrefusal-po recipes/fit.yaml --model.model_name_or_path=my/model

| file of the run folder | holds |
|---|---|
| dev.jsonl | each candidate, and what the model does with it on the dev prompts |
| dev/ | what it says there, without a remedy and with each candidate |
| remedy/ | the chosen remedy, for `model.remedy` |
| model/, adapter/ | the same as plain weights and as a LoRA adapter, if the remedy is linear |
| summary.json | how the fit ended, with the rates before and after |

A model that does not over-refuse gets no remedy. Neither does one on which the remedy cannot work,
or no candidate holds its safety. Such a run is done, and says so; a pipeline leaves out what would
read the remedy.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from overrefusal_po.fit.anchors import FitPrompts, all_anchors, anchor_facts, fit_prompts
from overrefusal_po.fit.choice import (
    DevRates,
    Limits,
    Status,
    Tried,
    chosen,
    nothing_to_remedy,
    rate_words,
    rates_of,
    too_few_scored,
    why_none,
)
from overrefusal_po.fit.kept import drop_kept, write_remedy, write_weights
from overrefusal_po.fit.measured import Measuring, dev_entry
from overrefusal_po.fit.model_checks import check_models
from overrefusal_po.fit.reference import check_reference, reference_loader, warn_unused
from overrefusal_po.fit.subject import ModelSubject
from overrefusal_po.fit.untreated import UNTREATED, Untreated, untreated_key
from overrefusal_po.model import load as models
from overrefusal_po.model.blocks import UnfitModel
from overrefusal_po.model.remedy_facts import base_facts
from overrefusal_po.named_plugs import check_fit
from overrefusal_po.pairs.set_checks import uneven_prompts
from overrefusal_po.plugins import find_plug, make_refusal_judge, split_spec
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.remedies import Candidate, NoRemedy, RemedyPlug, check_settings, form_of
from overrefusal_po.report.card import card_text, put_card
from overrefusal_po.run.complete import load_template, recipe_sampling
from overrefusal_po.run.environment import environment
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import release_judge
from overrefusal_po.run.unscored import RunFailed

if TYPE_CHECKING:
    from overrefusal_po.judges import Judge

logger = logging.getLogger(__name__)

NOT_FITTED = (NoRemedy, UnfitModel)
"""What says that a remedy cannot work on a model. It is a result and ends the fit, not a pipeline;
a fault of the recipe is another ValueError."""


class Found(NamedTuple):
    """What a fit ended with: how, in words, and what was measured. `taken_from`: the stage that
    measured the model without a remedy, if it was another one."""

    status: Status
    words: str
    start: DevRates
    rows: Sequence[Tried] = ()
    kept: Tried | None = None
    candidate: Candidate | None = None
    seconds: float = 0.0
    taken_from: str | None = None


# Any: summary.json, whose form follows from how the fit ends
def fit(recipe: FitRecipe, run: Run, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Runs the stage in an open run folder; returns summary.json. `others`: the folders of other
    fits, which may have measured the model without a remedy."""
    if not run.done:
        prompts = checked_prompts(recipe)
        if not others:  # a pipeline has checked the models that were there when it began
            check_models(recipe)
        judge = make_refusal_judge(recipe.judge)
        key = untreated_key(recipe, run.inputs, all_anchors(prompts.dev), judge)
        shared = Untreated(run.path, key, others)
        subject, dev = prepared(recipe, shared, prompts, judge)
        found = fitted(recipe, subject, dev, prompts)._replace(taken_from=shared.taken_from)
        release_judge(judge)
        places: dict[str, object] = {}
        try:
            if found.candidate is not None:
                places = write_kept(recipe, run, subject, found, prompts)
        except NOT_FITTED as error:
            found = unfitted(error, found)
        if found.candidate is None:
            drop_kept(run.path)  # an earlier try may have had other verdicts
        summary = summary_of(recipe, found) | places
        logger.log(logging.INFO if found.kept else logging.WARNING, "%s", found.words)
        write_atomic(run.path / "summary.json", json.dumps(summary, indent=1))
        run.finish({key: summary[key] for key in ("status", "words")})
    done: dict[str, Any] = read_state(run.path / "summary.json", ["status"])
    return done


def checked_prompts(recipe: FitRecipe) -> FitPrompts:
    """The recipe's prompts. ValueError for what a user can fix. Loads no weights."""
    module, settings = find_plug("remedies", recipe.remedy)
    check_fit(recipe)
    warn_unused(recipe, module)
    form_of(module, settings)
    check_settings(module, settings)
    check_reference(recipe, module)
    prompts = fit_prompts(recipe.data)
    if uneven := uneven_prompts(all_anchors(prompts.train)):
        logger.warning("data: %s", uneven)
    return prompts


def prepared(
    recipe: FitRecipe, shared: Untreated, prompts: FitPrompts, judge: Judge
) -> tuple[ModelSubject, Measuring]:
    """The loaded model, and what measures it on dev."""
    from overrefusal_po.engines.transformers import TransformersEngine

    template = load_template(recipe.model, recipe.chat)
    logger.info("loading %s", recipe.model["model_name_or_path"])
    engine = TransformersEngine(
        models.load_model(**models.model_options(recipe.model)),
        template,
        name=str(recipe.model["model_name_or_path"]),
        batch_size=recipe.generation.batch_size,
    )
    sampling = recipe_sampling(recipe.generation, recipe.seed)
    subject = ModelSubject(
        engine,
        judge,
        dev=prompts.dev,
        sampling=sampling,
        tolerance=recipe.tolerance,
        seed=recipe.seed,
        load_reference=reference_loader(recipe, engine.model),
    )
    return subject, Measuring(shared, engine, judge, all_anchors(prompts.dev), sampling)


def fitted(recipe: FitRecipe, subject: ModelSubject, dev: Measuring, prompts: FitPrompts) -> Found:
    """How the fit ends, after every candidate was measured. RunFailed if the judge scores too few
    responses of the model without a remedy."""
    outcomes = dev.untreated()
    start = rates_of(outcomes, dev.perplexity(UNTREATED, None))
    logger.info("without a remedy: %s", rate_words(start))
    if why := too_few_scored(start):
        raise RunFailed(f"the fit: {why}, so no safety can be held. Use another judge.")
    if why := nothing_to_remedy(start):
        return Found("nothing to remedy", why, start)
    subject.knows(outcomes)
    begun = time.monotonic()
    try:
        candidates = candidates_of(recipe, subject, prompts)
        seconds = round(time.monotonic() - begun, 1)
        rows = dev.rows(candidates)
    except NOT_FITTED as error:
        return unfitted(error, Found("cannot be fitted", "", start))
    limits = Limits(recipe.tolerance, recipe.perplexity_ratio_max)
    kept = chosen(rows, start, limits)
    if kept is None:
        status, why = why_none(rows, start, limits)
        return Found(status, why, start, rows, seconds=seconds)
    candidate = candidates[kept.number - 1]
    words = (
        f"Of {len(rows)} candidates number {kept.number} is kept, strength {kept.strength:g}: "
        f"{rate_words(kept.rates)}. Without a remedy: {rate_words(start)}."
    )
    return Found("fitted", words, start, rows, kept, candidate, seconds)


def unfitted(error: Exception, found: Found) -> Found:
    """The end of a fit whose remedy cannot work on the model, or cannot be kept."""
    why = str(error).rstrip(".")
    words = f"{why}. Without a remedy: {rate_words(found.start)}. No remedy is kept."
    return found._replace(status="cannot be fitted", words=words, kept=None, candidate=None)


def candidates_of(
    recipe: FitRecipe, subject: ModelSubject, prompts: FitPrompts
) -> Sequence[Candidate]:
    """What the recipe's remedy may be on this model. ValueError if its plug gives no candidates."""
    module, settings = find_plug("remedies", recipe.remedy)
    logger.info("fitting %s", split_spec(recipe.remedy, "remedies")[0])
    found = cast("RemedyPlug", module).fit(settings, subject, prompts.train, prompts.dev)
    if not isinstance(found, list | tuple) or not all(isinstance(c, Candidate) for c in found):
        raise ValueError(
            f"remedies: fit() of {module.__name__!r} gives no list of Candidates of "
            "overrefusal_po.remedies; docs/extend.md shows one."
        )
    if not found:
        raise NoRemedy("The remedy has no candidate for this model.")
    form = form_of(module, settings)
    if wrong := [c.remedy.form for c in found if form is not None and c.remedy.form != form]:
        raise ValueError(
            f"remedies: {module.__name__!r} says that its remedies are of form {form!r}, and fit() "
            f"gives one of form {wrong[0]!r}."
        )
    return found


def summary_of(recipe: FitRecipe, found: Found) -> dict[str, Any]:
    """summary.json, without the places of what was written."""
    remedy = None if found.candidate is None else found.candidate.remedy
    kept = found.kept
    taken = {} if found.taken_from is None else {"before_measured_by": found.taken_from}
    return {
        "status": found.status,
        "words": found.words,
        "remedy": split_spec(recipe.remedy, "remedies")[0],
        "base": recipe.model["model_name_or_path"],
        "form": None if remedy is None else remedy.form,
        "chosen": None if kept is None else kept.number,
        "strength": None if kept is None else kept.strength,
        "seconds_fit": found.seconds,
        "tolerance": recipe.tolerance,
        "before": dev_entry(found.start),
        **taken,
        "after": None if kept is None else dev_entry(kept.rates),
        "facts": {} if kept is None else kept.facts,
        "candidates": {str(row.number): row.model_dump(mode="json") for row in found.rows},
    }


def write_kept(
    recipe: FitRecipe, run: Run, subject: ModelSubject, found: Found, prompts: FitPrompts
) -> dict[str, object]:
    """Writes what was chosen; {what: its folder or number} for summary.json."""
    assert found.candidate is not None
    remedy = found.candidate.remedy
    base = str(recipe.model["model_name_or_path"])
    facts = remedy_facts(recipe, subject, found, prompts)
    places: dict[str, object] = {"folder_remedy": str(write_remedy(run.path, remedy, facts))}
    if remedy.form == "weights":
        dev = all_anchors(prompts.dev)
        places["weights_agree"] = write_weights(run.path, remedy, subject, dev, base=base)
        places |= {"model": str(run.path / "model"), "adapter": str(run.path / "adapter")}
        put_card(run.path, card_text(None, None, run.path))
    return places


def remedy_facts(
    recipe: FitRecipe, subject: ModelSubject, found: Found, prompts: FitPrompts
) -> dict[str, object]:
    """What remedy.json says beside the remedy: how it was made, and on what."""
    _, settings = find_plug("remedies", recipe.remedy)
    known = environment()
    return {
        **summary_of(recipe, found),
        "settings": settings.model_dump(mode="json"),
        "base": base_facts(subject.model),
        "anchors": {side: anchor_facts(rows) for side, rows in prompts._asdict().items()},
        "judge": f"{subject.judge.name} {subject.judge.version}",
        "max_new_tokens": recipe.generation.max_new_tokens,
        "seed": recipe.seed,
        "versions": known["versions"],
        "hardware": known["hardware"],
    }
