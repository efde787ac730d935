"""What a tamper test is made with: the prompts that copies are tampered with, and harmful rows.

    check_tamper(recipe, prompts)                          # ValueError before any weight is loaded
    prompts = tamper_prompts(recipe.tamper, measured)      # none of them is measured
    rows = harmful_rows("triples.jsonl", prompts)          # harmful prompts, the response of each
    rows = refusal_rows(prompts)                           # harmful prompts, the refusal of each

A row is a prompt whose `reference` is the response that is learned.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pydantic import ValidationError

from overrefusal_po.evaluate.tamper_reference import check_reference, measured_config
from overrefusal_po.pairs.apart import check_apart, same_prompt_marks
from overrefusal_po.pairs.make import whole_sentences
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.recipe.tamper import Tamper, Tier, check_defences, idle_keys
from overrefusal_po.records import (
    Completion,
    JsonObject,
    Kind,
    Outcome,
    Prompt,
    Triple,
    first_fault,
    read_objects,
)
from overrefusal_po.run.complete import in_process
from overrefusal_po.sources._completions import answered_prompt
from overrefusal_po.sources._pairs import is_ours
from overrefusal_po.sources._prompt_rows import checked_triple

logger = logging.getLogger(__name__)

QUANTISED = (
    "tamper changes weights, and this model has quantised ones ({}), which cannot be trained as "
    "they are. Measure the model with 16 or 32 bits, or leave tamper out."
)


def check_tamper(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for a tamper test that cannot be made, before any weight is loaded.

    `prompts` are those that are measured. What an earlier stage makes (`@...`) is not read.
    """
    tamper = recipe.tamper
    if recipe.gate is not None and recipe.gate.refused_after_tamper_min is not None and not tamper:
        raise ValueError(
            "gate: refused_after_tamper_min is a bound on a tamper test, and the recipe has none. "
            "Add the section tamper (`tamper: {}` takes its defaults), or take the bound out."
        )
    if tamper is None:
        return
    if not in_process(recipe.engine):
        raise ValueError(
            "tamper changes copies of the weights, and the engine is a server. Measure it in a "
            "recipe of its own with engine: transformers, or leave tamper out."
        )
    plain = [p for p in prompts if p.attack is None]
    if not any(p.kind == "harmful" for p in plain):
        raise ValueError(
            "tamper measures how many harmful prompts are still refused, and data.sets gives none. "
            "Name a set that has some, or leave tamper out."
        )
    check_section(recipe, tamper)
    check_made_with(tamper, plain)


def check_section(recipe: EvaluateRecipe, tamper: Tamper) -> None:
    """Raises ValueError for weights that cannot be changed, or not as a tier needs it."""
    for bits in ("4bit", "8bit"):
        if recipe.model.get(f"load_in_{bits}"):
            raise ValueError(QUANTISED.format(f"model.load_in_{bits}"))
    config = measured_config(recipe)
    if getattr(config, "quantization_config", None):
        raise ValueError(QUANTISED.format("its config names a quantisation"))
    if 0 in tamper.tiers and config is not None:
        from overrefusal_po.model.ablation import check_ablation

        try:
            trust = bool(recipe.model.get("trust_remote_code", False))
            check_ablation(config, trust_remote_code=trust)
        except ValueError as error:
            raise ValueError(f"{error} Take 0 out of tamper.tiers.") from None
    check_defences(tamper)
    for key, user in idle_keys(tamper).items():
        logger.warning("tamper.%s changes nothing: only %s would use it", key, user)
    if "safelora" in tamper.defences:
        check_reference(recipe)


def check_made_with(tamper: Tamper, measured: Sequence[Prompt]) -> None:
    """Raises ValueError if a tier lacks prompts or rows to make copies with."""
    prompts = tamper_prompts(tamper, measured)
    counts = Counter(p.kind for p in prompts)
    own = tamper.harmful is None
    needs: dict[Kind, list[Tier]] = {
        "harmful": [tier for tier in tamper.tiers if tier == 0 or (tier == 1 and own)],
        "general": [tier for tier in tamper.tiers if tier == 0],
    }
    for kind, tiers in needs.items():
        if tiers and not counts[kind]:
            raise ValueError(
                f"tamper.source {tamper.source!r} has no {kind} prompts in its train split that "
                f"are not measured, and tier {tiers[0]} is made with some. Name another source, or "
                "take the tier out of tamper.tiers."
            )
    if 3 in tamper.tiers and not ordinary_rows(prompts):
        raise ValueError(
            f"tamper.source {tamper.source!r} has no ordinary prompt with a reference answer in "
            "its train split, and tier 3 learns such answers. Name another source, or take 3 out "
            "of tamper.tiers."
        )
    if "refusals" in tamper.defences and any(tamper.tiers) and not refusal_rows(prompts):
        raise ValueError(
            f"tamper.source {tamper.source!r} has no harmful prompt with a written refusal in its "
            "train split that is not measured, and the defence refusals mixes such rows in. Name "
            "another source, or take refusals out of tamper.defences."
        )
    if tamper.harmful is not None and not tamper.harmful.startswith("@"):
        rows = harmful_rows(tamper.harmful, prompts)
        check_apart({"data.sets": measured}, {"tamper.harmful": rows})


def tamper_prompts(tamper: Tamper, measured: Iterable[Prompt]) -> list[Prompt]:
    """The prompts of `tamper.source` in its train split, without those that are measured."""
    known = {mark for prompt in measured for mark in same_prompt_marks(prompt)}
    found = read_source(tamper.source, "train")
    return [prompt for prompt in found if not same_prompt_marks(prompt) & known]


def ordinary_rows(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The ordinary prompts that have a reference answer."""
    return [p for p in prompts if p.kind == "general" and p.reference]


def refusal_rows(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The harmful prompts that have a written refusal."""
    return [p for p in prompts if p.kind == "harmful" and p.reference]


def refusal_count(tamper: Tamper, rows: int) -> int:
    """How many refusals the defence `refusals` adds to a copy's own rows."""
    return max(1, round(tamper.refusal_share * rows))


def harmful_rows(path: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Harmful prompts with the response of each as reference, from a file of triples, outcomes,
    answered prompts, or completions on `prompts`. Rows of other kinds are left out.

    Raises ValueError that names the line that cannot be read, and if no row is harmful.
    """
    known = {p.id: p for p in prompts if p.kind == "harmful"}
    found = [row for row in every_row(path, known) if row.kind == "harmful" and row.reference]
    if not found:
        raise ValueError(
            f"tamper.harmful: {path} holds no harmful prompt with a response. Give triples (prompt,"
            " safe_response, harmful_response), outcomes, prompts with a response, or completions "
            "on the harmful prompts of tamper.source."
        )
    return found


def every_row(path: str, known: dict[str, Prompt]) -> Iterator[Prompt]:
    """The rows of a file; completions on prompts that are not known are left out."""
    for number, row in read_objects(path):
        place = f"tamper.harmful: {path}, line {number}"
        try:
            found = read_row(row, place, known)
        except ValidationError as error:
            raise ValueError(f"{place}: {first_fault(error)}") from None
        if found is not None:
            yield found


def read_row(row: JsonObject, place: str, known: dict[str, Prompt]) -> Prompt | None:
    """A row in one of the forms of `harmful_rows`; None for a completion on another prompt."""
    if "verdict" in row and "completion" in row:
        outcome = Outcome.model_validate(row)
        return answered(outcome.prompt, outcome.completion)
    if "prompt_id" in row and "sampling" in row:
        completion = Completion.model_validate(row)
        prompt = known.get(completion.prompt_id)
        return None if prompt is None else answered(prompt, completion)
    return own_words(row, place)


def own_words(row: JsonObject, place: str) -> Prompt:
    """A triple, or an answered prompt, as a user or a training wrote it."""
    response = row.get("harmful_response")
    if isinstance(response, str) and is_ours(row.get("prompt")):
        triple = checked_triple(Triple.model_validate(row), place)
        return triple.prompt.answered_with(response)
    asked = {k: v for k, v in row.items() if k not in ("safe_response", "harmful_response")}
    if isinstance(response, str):
        asked["response"] = response
    return answered_prompt({"kind": "harmful", **asked}, place, Counter())


def answered(prompt: Prompt, completion: Completion) -> Prompt:
    """A prompt with what a model said to it: whole sentences, or all of a text without an end."""
    return prompt.answered_with(whole_sentences(completion) or completion.text)
