"""What was measured how, in words for the report.

metrics["measured"] = describe_measurement(recipe, judges, prompts)
# {"judge": "refusal 1.4 (built in, ...)", "sets": [...], "notes": [...], ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from overrefusal_po.evaluate.certificates import Certificate
from overrefusal_po.evaluate.entries import MeasuredEntry
from overrefusal_po.evaluate.measured_model import measured_form
from overrefusal_po.judges import Judge, JudgePanel
from overrefusal_po.plugins import engine_note, model_words, source_note, split_spec
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Prompt
from overrefusal_po.sources import SHIPPED_SETS


class EvaluationJudges(NamedTuple):
    """The judges of an evaluation, and the certificate of the first."""

    refusal: Judge
    guard: Judge | None
    certificate: Certificate | None


def describe_measurement(
    recipe: EvaluateRecipe, judges: EvaluationJudges, prompts: Sequence[Prompt]
) -> MeasuredEntry:
    """What was measured how, in words for the report."""
    generation, guard = recipe.generation, judges.guard
    how = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    judge = f"{judges.refusal.name} {judges.refusal.version}"
    attacks = sorted({p.attack for p in prompts if p.attack})
    built_in = " (built in, offline; reads the whole response)"
    return {
        "judge": judge + built_in if recipe.judge == "refusal" else judge,
        "sets": set_names(recipe),
        "engine": f"{engine_note(recipe.engine)}, {how}, up to {generation.max_new_tokens} new "
        "tokens",
        "guard": None if guard is None else f"{guard.name} {guard.version}",
        "attacks": attacks,
        "model_form": measured_form(recipe.model),
        "notes": measurement_notes(recipe, judges, attacks),
    }


def set_names(recipe: EvaluateRecipe) -> list[str]:
    """The sets by name or path; those that this package ships with their split."""
    split = f" ({recipe.data.split} split)" if recipe.data.split else ""
    sets = [split_spec(spec, "sources") for spec in recipe.data.sets]
    return [
        str(settings.get("path") or name) + (split if name in SHIPPED_SETS else "")
        for name, settings in sets
    ]


def measurement_notes(
    recipe: EvaluateRecipe, judges: EvaluationJudges, attacks: Sequence[str]
) -> list[str]:
    """Sentences that a reader of the numbers needs."""
    notes = []
    if (words := model_words(recipe.engine)) is not None:
        notes.append(f"Measured was {recipe.model['model_name_or_path']} with {words}.")
    if limit := recipe.data.max_prompts_per_kind:
        notes.append(
            f"A fixed subset of at most {limit} prompts of each kind in each set was measured."
        )
    if judges.certificate is None:
        notes.append(
            f"The judge {judges.refusal.name} {judges.refusal.version} is uncertified here: nobody "
            "has compared it with human labels for this report."
        )
    if isinstance(judges.refusal, JudgePanel):
        notes.append(judges.refusal.note)
    for spec in recipe.data.sets:
        if (note := source_note(spec)) is not None:
            notes.append(f"{spec}: {note}")
    if attacks and judges.guard is None:
        notes.append(
            "Without a judge of harm, an attack has a non-refusal rate, not an attack success rate."
        )
    return notes
