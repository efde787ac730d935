"""What can be wrong with a curate recipe and is found without loading weights.

check_curation(recipe)      # ValueError for what a user can fix
"""

from __future__ import annotations

from math import ceil

from overrefusal_po.curate.overgenerate import make_curation_judges
from overrefusal_po.model import load as models
from overrefusal_po.plugins import check_engine, split_spec
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.recipe.sections import CurateData
from overrefusal_po.records import Completion, read_jsonl
from overrefusal_po.run.complete import continues_prefix, in_process
from overrefusal_po.run.remedies import check_remedy

OPENING_TOKENS_MIN = 12
"""Tokens that a refusal needs to be seen as one ("I'm sorry, but I can't assist with that.")."""


def check_curation(recipe: CurateRecipe) -> None:
    """Raises ValueError if rejects, models or judges are missing, or if settings contradict each
    other. Loads no weights."""
    check_settings(recipe)
    make_curation_judges(recipe)
    check_given_rejects(recipe.rejects.completions)
    check_remedy(recipe.model, recipe.engine)
    if recipe.makes == "pairs" or recipe.chosen.model is None:  # else the student never answers
        check_engine(recipe.engine)
    for source in (recipe.rejects, recipe.chosen):
        if source.model:
            check_engine(source.engine)
        if source.model and not source.model.startswith("@") and in_process(source.engine):
            models.check_available(source.model)


def check_openings(recipe: CurateRecipe) -> None:
    """Raises ValueError if texts for openings are too short for the judge."""
    limit = recipe.generation.max_new_tokens
    if recipe.data.openings and limit < OPENING_TOKENS_MIN:
        raise ValueError(
            f"data.openings: of {limit} new tokens (generation.max_new_tokens) no judge can say if "
            f"they refuse. Give at least {OPENING_TOKENS_MIN}; 24 serve most models."
        )


def check_given_rejects(path: str | None) -> None:
    """Raises ValueError if a file of rejects is missing, or if two different responses in it share
    an id."""
    if not path or path.startswith("@"):
        return
    said: dict[str, tuple[str, str]] = {}
    for given in read_jsonl(path, Completion):
        own = (given.prompt_id, given.text)
        if said.setdefault(given.id, own) != own:
            raise ValueError(
                f"rejects.completions: two different responses in {path} have the same id "
                f"({given.id}), by which verdicts are kept. Give each its own."
            )


def check_settings(recipe: CurateRecipe) -> None:
    """Raises ValueError for settings that need another one, or that would do nothing."""
    check_judges_named(recipe)
    check_openings(recipe)
    check_own_answers(recipe)
    check_keys_of_pairs(recipe)
    check_lengths(recipe.data)
    chosen = recipe.chosen
    if chosen.samples > 1 and (chosen.generation or recipe.generation).temperature == 0:
        raise ValueError(
            f"chosen.samples: {chosen.samples} answers at temperature 0 are {chosen.samples} times "
            "the same one. Set chosen.generation with a temperature above 0."
        )
    alone = recipe.makes == "pairs" and chosen.model is None
    if alone and (chosen.samples > 1 or chosen.refusals == "teacher"):
        raise ValueError(
            "chosen.samples above 1 and chosen.refusals: teacher need a teacher. Name it: "
            "chosen.model."
        )


def check_lengths(data: CurateData) -> None:
    """Raises ValueError if lengths are to be matched, and there is no other side, or the share of
    harmful rows allows no match."""
    ratio, share = data.length_ratio_max, data.harmful_share
    if ratio is not None and data.harmful is None:
        raise ValueError(
            "data.length_ratio_max compares harmful with harmless prompts, and data.harmful is "
            "null. Take length_ratio_max out, or name a source of harmful prompts."
        )
    if ratio is None or share is None:
        return
    needed = max(share / (1 - share), (1 - share) / share)
    if ratio < needed - 1e-9:
        least = ceil(100 * needed - 1e-9) / 100
        low = ceil(100 / (1 + ratio) - 1e-9) / 100
        raise ValueError(
            f"data.harmful_share: {share:g} keeps {needed:.3g} rows of one side for each of the "
            f"other, and data.length_ratio_max: {ratio:g} allows {ratio:g}. Set length_ratio_max "
            f"to {least:g} or more, or harmful_share to a value from {low:g} to {1 - low:g}."
        )


def check_own_answers(recipe: CurateRecipe) -> None:
    """Raises ValueError if the student is to comply, and nothing makes it."""
    rejects = recipe.rejects
    if rejects.suppress_openers and not in_process(recipe.engine):
        raise ValueError(
            f"rejects.suppress_openers: true needs the student in process, and the engine is "
            f"{split_spec(recipe.engine, 'engines')[0]}: a server suppresses no first tokens. Use "
            "engine: transformers, or rejects.prefill instead."
        )
    if recipe.makes == "sft" or recipe.chosen.answers is None:
        return
    if not rejects.prefill and not rejects.suppress_openers:
        raise ValueError(
            "chosen.answers: student needs the words with which the student's answers begin. Set "
            'rejects.prefill, such as "Sure, here", or rejects.suppress_openers: true.'
        )
    if not continues_prefix(recipe.engine):
        raise ValueError(
            "chosen.answers: student needs an engine that continues an answer that is begun. Set "
            "engine.continue_final_message: true if your server knows it (vLLM, SGLang), or use "
            "engine: transformers."
        )


def check_keys_of_pairs(recipe: CurateRecipe) -> None:
    """Raises ValueError if an SFT set is made, and a key asks for something of pairs."""
    asked = {
        "data.openings": recipe.data.openings,
        "rejects.suppress_openers": recipe.rejects.suppress_openers,
    }
    given = [key for key, value in asked.items() if value]
    if recipe.makes == "sft" and given:
        raise ValueError(
            f"{given[0]}: true is about the sides of pairs, and makes: sft makes none. Take the "
            "key out, or set makes: pairs."
        )


def check_judges_named(recipe: CurateRecipe) -> None:
    """Raises ValueError if a setting needs a judge of rewards or of harm and the recipe names
    none."""
    chosen, rejects = recipe.chosen, recipe.rejects
    if chosen.select == "reward" and recipe.reward is None:
        raise ValueError(
            "chosen.select: reward needs a judge of rewards. Add one: reward: {name: reward, ...}."
        )
    if chosen.select == "safety" and recipe.guard is None:
        raise ValueError(
            "chosen.select: safety needs a judge of harm. Add one: guard: {name: guard, ...}."
        )
    if recipe.guard is None and (rejects.tau is not None or rejects.tau_grid):
        raise ValueError(
            "rejects.tau and tau_grid are differences of a guard's probabilities. Add one: guard: "
            "{name: guard, ...}."
        )
