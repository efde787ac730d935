"""What a curation says: how many rows it made and kept, why none is left, and what then helps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from overrefusal_po.curate.limits import LENGTH
from overrefusal_po.curate.quotas import CuratedRow, Kept, RuleCounts
from overrefusal_po.pairs.set_checks import uneven_prompts
from overrefusal_po.prompts import row_prompt
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.recipe.sections import CurateData
from overrefusal_po.records import PreferencePair, Prompt

logger = logging.getLogger(__name__)

MATCH_HELP = f"Give prompts of both sides that are as long, or take {LENGTH} out."


def no_overrefusal(recipe: CurateRecipe, prompts: int, left_out: Mapping[str, int]) -> str:
    """What to say of a run without an overrefusal pair: the reasons, and the keys that help."""
    chosen, limit = recipe.chosen, recipe.generation.max_new_tokens
    teacher = "another teacher" if chosen.model else "a teacher that answers"
    begin = chosen.answers == "student" and not recipe.rejects.prefill
    prefill = " first words of the student's answers (rejects.prefill)," if begin else ""
    return (
        f"No overrefusal pair could be made of the {prompts} benign prompts "
        f"({reason_words(left_out)}). Use a model that over-refuses (one that answers harm too is "
        "made safe by recipes/derta.yaml first), other prompts (data.benign), "
        f"{teacher} (chosen.model),{prefill} or a greater generation.max_new_tokens than {limit} "
        "if answers are cut."
    )


def no_yield(recipe: CurateRecipe, found: Mapping[float | None, Mapping[str, RuleCounts]]) -> str:
    """Why a rule that had prompts yields no pair, and what to do; "" if both yield. `found`: {tau:
    counts by rule}, rejects.tau first."""
    counts = next(iter(found.values()))
    if unlike := nothing_matched(counts):
        return f"{unlike}. {MATCH_HELP}"
    if not counts["overrefusal"]["kept"]:
        one = counts["overrefusal"]
        return no_overrefusal(recipe, one["prompts"], one["left_out"])
    if counts["containment"]["prompts"] and not any(
        one["containment"]["kept"] for one in found.values()
    ):
        at = {tau: "" if tau is None else f" at tau {tau}" for tau in found}
        each = "; ".join(
            f"{reason_words(one['containment']['left_out'])}{at[t]}" for t, one in found.items()
        )
        return (
            f"No containment pair is left of the {counts['containment']['prompts']} harmful "
            f"prompts ({each}). Use other refusals (chosen.refusals) or rejects (rejects.model)."
        )
    return ""


def nothing_matched(counts: Mapping[str, RuleCounts]) -> str:
    """That rows were made and none is left, since no two of both sides are alike in length; "" if
    lengths are not why."""
    why = [reason for one in counts.values() for reason in one["left_out"]]
    if any(one["kept"] for one in counts.values()) or not any(LENGTH in one for one in why):
        return ""
    made = sum(one["made"] for one in counts.values())
    return (
        f"data.{LENGTH} leaves none of the {made} rows that were made: the harmful prompts have "
        "other lengths than the harmless ones"
    )


def nothing_left_words(kept: Kept[PreferencePair]) -> str:
    """Why a later round trains nothing, in a sentence."""
    end = "so this round ends here and the model stays as it is"
    if unlike := nothing_matched(kept.rules):
        return f"{unlike}, {end}"
    wrong = sum(kept.corrects.values())
    if not wrong:
        return f"no pair is left that corrects the student, {end}"
    none = next(rule for rule, counts in kept.rules.items() if not counts["kept"])
    return (
        f"{wrong} of the student's mistakes could be corrected, but there is no {none} pair: a "
        f"training on one side alone would tip the model, {end}"
    )


FEW_CORRECTIONS = 20
"""Fewer pairs than this that correct the student are said aloud: a training then moves little."""


def few_corrections(kept: Kept[PreferencePair]) -> str:
    """That hardly a harmless prompt was refused, so that a training has hardly an answer to bring
    back; "" if enough were."""
    wrong, of = kept.corrects["overrefusal"], kept.rules["overrefusal"]["kept"]
    if wrong >= min(FEW_CORRECTIONS, of):
        return ""
    return (
        f"{wrong} of {of} overrefusal pairs are of prompts that the student refuses; the others "
        "hold what it answers already. So a training can bring back little. Give harmless prompts "
        "that your model refuses (data.benign)."
    )


def reason_words(left_out: Mapping[str, int]) -> str:
    """`47 not refused, 1 quota`."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def count_words(counts: RuleCounts) -> str:
    """`13 kept of 13 made, from 60 prompts; left out: 47 not refused`."""
    found = f"{counts['kept']} kept of {counts['made']} made, from {counts['prompts']} prompts"
    why = reason_words(counts["left_out"])
    return f"{found}; left out: {why}" if why else found


def still_uneven(data: CurateData, prompts: Sequence[Prompt]) -> str | None:
    """What to say if length tells harmless prompts from harmful ones after they were matched; None
    if it does not, or if they were not."""
    limit = data.length_ratio_max
    words = None if limit is None else uneven_prompts(prompts)
    lower = ", or give a smaller ratio" if limit != 1 else ""
    return words and f"after data.{LENGTH}: {limit:g}, {words}{lower}"


def log_counts(kept: Kept[CuratedRow], rules: Iterable[str], data: CurateData) -> None:
    """Logs a line for each rule, and one for each quota that was not filled or did not help."""
    for rule in rules:
        logger.info("%s: %s", rule, count_words(kept.rules[rule]))
    for quota in kept.unfilled:
        logger.warning("a quota is not filled: %s", quota)
    if words := still_uneven(data, [row_prompt(row) for row in kept.rows]):
        logger.warning("%s", words)
