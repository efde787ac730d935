"""Stage: prompts -> the student's answers -> verdicts -> pairs.jsonl, each pair with its reason and
verdicts.

    overrefusal-po recipes/curate.yaml --model.model_name_or_path=my-over-refusing-model

Benign prompts that the student refuses become overrefusal pairs. The chosen side is the best of the
teacher's answers, or the prompt's reference.

Harmful prompts become containment pairs. The chosen side is the prompt's reference refusal, or the
student's or the teacher's own. The rejected side complies with the prompt; with a guard, it is more
unsafe by tau. It comes from the first source that yields a pair: given completions, a less safe
model, the student, the student without the openers of its refusals, the student with a compliant
prefix. If no source yields one, that is an error.

`makes: sft` only overgenerates and selects: sft.jsonl holds every prompt with one answer. `method:
sft` reads it as `data.prompts` (POROver's studies (a) and (b)).

If refusals and answers of one rule are worded unlike those of the other, DPO learns the wording
alone, and nothing about prompts. Then let the teacher also give the rejects, and take the student's
own refusals as chosen. Only the prompt then distinguishes the rules (see benchmarks/RESULTS.md).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overrefusal_po.curate.checks import check_curation
from overrefusal_po.curate.clear_openings import clear_openings
from overrefusal_po.curate.inputs import (
    clean_prompts,
    dropped_words,
    read_prompts,
    uneven_words,
    warn_of_other_prompts,
)
from overrefusal_po.curate.overgenerate import (
    AnsweringModel,
    Curation,
    best_answers,
    make_curation,
)
from overrefusal_po.curate.own_answers import with_own_words
from overrefusal_po.curate.quotas import (
    CuratedRow,
    FilterCounts,
    Kept,
    Quotas,
    Result,
    filter_rows,
)
from overrefusal_po.curate.rules import (
    containment_contrasts,
    containment_results,
    overrefusal_results,
)
from overrefusal_po.curate.words import (
    MATCH_HELP,
    few_corrections,
    log_counts,
    no_overrefusal,
    no_yield,
    nothing_left_words,
    nothing_matched,
)
from overrefusal_po.pairs.lint import lint
from overrefusal_po.pairs.row_checks import SideVerdicts, by_pair, row_findings, side_completions
from overrefusal_po.pairs.token_checks import control_tokens
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.records import PreferencePair, Prompt, read_state, write_atomic, write_jsonl
from overrefusal_po.run.folder import Run
from overrefusal_po.run.shards import check_merged, shard_prompts

logger = logging.getLogger(__name__)


class Curated(NamedTuple):
    """What a stage makes: rows, the counts of its filters, and the rest of summary.json."""

    rows: Sequence[PreferencePair] | Sequence[Prompt]
    filters: dict[str, list[FilterCounts]]
    summary: dict[str, object]


# Any: summary.json, whose form follows from the recipe
def curate(recipe: CurateRecipe, run: Run) -> dict[str, Any]:
    """Runs the stage in an open run folder; returns summary.json, with counts for each rule,
    category and filter."""
    if not run.done:
        check_curation(recipe)
        if recipe.shard is None:
            check_merged(run.path)
        benign, harmful, cleaning = clean_prompts(recipe.data, *read_prompts(recipe))
        for words in dropped_words(cleaning):
            logger.info("%s", words)
        if uneven := uneven_words(recipe.data, [*benign, *harmful]):
            logger.warning("%s", uneven)
        if recipe.shard is not None:
            benign, harmful = (shard_prompts(side, recipe.shard) for side in (benign, harmful))
        warn_of_other_prompts(run.path, benign, harmful)
        curation = make_curation(recipe, run)
        if recipe.shard is not None:
            summary = draw_shard(curation, benign, harmful)
        else:
            made = (sft_set if recipe.makes == "sft" else pair_set)(curation, benign, harmful)
            summary = {
                **made.summary,
                "filters": {**cleaning.filters, **made.filters},
                "hygiene": cleaning.hygiene,
            }
            write_jsonl(run.path / f"{recipe.makes}.jsonl", made.rows)
        write_atomic(run.path / "summary.json", json.dumps(summary, indent=1))
        run.finish(summary)
    done: dict[str, Any] = read_state(run.path / "summary.json")
    return done


def draw_shard(
    curation: Curation, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> dict[str, object]:
    """The number of a shard's prompts, after engines have answered them. The merged run selects and
    pairs."""
    if curation.recipe.makes == "sft":
        model, who = sft_model(curation)
        for side, prompts in (("benign", benign), ("harmful", harmful)):
            model.answers(prompts, f"{who}_{side}.jsonl")
    else:
        refused, contained = pair_results(curation, benign, harmful)
        lint_faults(curation, [refused, *contained.values()])  # a slow judge reads the sides here
    return {
        "shard": curation.recipe.shard,
        "prompts": {"benign": len(benign), "harmful": len(harmful)},
    }


# --- an SFT set -----------------------------------------------------------------------------------


def sft_model(curation: Curation) -> tuple[AnsweringModel, str]:
    """The model that answers for an SFT set, and how its files begin."""
    student, teacher, _ = curation.models
    return (student, "student") if teacher is None else (teacher, "teacher")


def sft_set(curation: Curation, benign: Sequence[Prompt], harmful: Sequence[Prompt]) -> Curated:
    """Every prompt with its selected answer as reference, and the counts by kind. ValueError if no
    answer passes."""
    model, who = sft_model(curation)
    results: dict[str, list[Result[Prompt]]] = {}
    for side, prompts in (("benign", benign), ("harmful", harmful)):
        file = f"{who}_{side}.jsonl"
        chosen = best_answers(curation, model, prompts, file=file) if prompts else {}
        for prompt in prompts:
            text, why_not, _ = chosen[prompt.id]
            answered = prompt.answered_with(text) if text else None
            results.setdefault(prompt.kind, []).append(Result(prompt, answered, why_not))
    kept = filtered(curation.recipe, results, {})
    log_counts(kept, results, curation.recipe.data)
    if not kept.rows and (unlike := nothing_matched(kept.rules)):
        raise ValueError(f"{unlike}. {MATCH_HELP}")
    if not kept.rows:
        left_out = {kind: kept.rules[kind]["left_out"] for kind in results}
        raise ValueError(
            f"None of the {len(benign) + len(harmful)} prompts got an answer that passes "
            f"({left_out}). Use another teacher (chosen.model), more chosen.samples, or a greater "
            "max_new_tokens if answers are cut."
        )
    return Curated(kept.rows, kept.filters, {**kept.summary, **curation.panel_counts()})


# --- pairs ----------------------------------------------------------------------------------------


def pair_set(curation: Curation, benign: Sequence[Prompt], harmful: Sequence[Prompt]) -> Curated:
    """Pairs of both rules, and the counts by rule. Writes the pairs of the tau grid.

    ValueError if a rule yields none; in a later round there are then none at all.
    """
    refused, contained = pair_results(curation, benign, harmful)
    rejects = curation.recipe.rejects
    faults = lint_faults(curation, [refused, *contained.values()])
    kept = {
        tau: filtered(curation.recipe, {"overrefusal": refused, "containment": results}, faults)
        for tau, results in contained.items()
    }
    main = kept[rejects.tau]
    log_counts(main, ("overrefusal", "containment"), curation.recipe.data)
    why_none = no_yield(curation.recipe, {tau: one.rules for tau, one in kept.items()})
    later = curation.recipe.later_round is not None
    if why_none and not later:
        raise ValueError(why_none)
    if not later and (few := few_corrections(main)):
        logger.warning("%s", few)
    summary = main.summary | ({"corrects": main.corrects} if later else {})
    if why_none:
        words = nothing_left_words(main)
        logger.info("%s", words)
        return Curated([], main.filters, {**summary, "nothing_left": words})
    if rejects.tau_grid:
        folder = curation.run.path
        summary["tau_grid"] = [tau_row(folder, tau, kept[tau]) for tau in rejects.tau_grid]
    judge = curation.judges.refusal
    found = lint(main.rows, judge, verdicts=pair_verdicts(curation, main.rows))
    for finding in found.errors:
        logger.warning("the linter would stop a training on these pairs: %s", finding.message)
    counts = {"lint": found.counts(), **curation.panel_counts()}
    return Curated(main.rows, main.filters, {**summary, **counts})


PairResults = list[Result[PreferencePair]]
"""What a rule made of each prompt."""


def pair_results(
    curation: Curation, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> tuple[PairResults, dict[float | None, PairResults]]:
    """(overrefusal results, {tau: containment results}), `rejects.tau` first.

    ValueError, before any reject is drawn, if there is no overrefusal pair. A shard may have none.
    """
    curation = with_own_words(curation, benign, harmful)
    refused = clear_openings(curation, overrefusal_results(curation, benign))
    if curation.recipe.shard is None and curation.recipe.later_round is None:
        check_overrefusal(curation.recipe, refused)
    contrasts = containment_contrasts(curation, harmful) if harmful else []
    rejects, openings = curation.recipe.rejects, curation.recipe.data.openings
    taus = (rejects.tau, *rejects.tau_grid)
    held = {tau: containment_results(contrasts, tau, openings=openings) for tau in taus}
    return refused, {tau: clear_openings(curation, results) for tau, results in held.items()}


def check_overrefusal(recipe: CurateRecipe, results: PairResults) -> None:
    """Raises ValueError if no benign prompt has a pair."""
    if all(result.row is None for result in results):
        why = Counter(result.reason for result in results)
        raise ValueError(no_overrefusal(recipe, len(results), why))


def tau_row(folder: Path, tau: float, kept: Kept[PreferencePair]) -> dict[str, object]:
    """The counts at one tau of the grid. Its pairs go into a file of their own."""
    file = write_jsonl(folder / f"pairs_tau_{tau:g}.jsonl", kept.rows).name
    return {
        "tau": tau,
        "containment_made": kept.rules["containment"]["made"],
        **{f"{rule}_kept": kept.rules[rule]["kept"] for rule in ("overrefusal", "containment")},
        "file": file,
    }


def filtered(
    recipe: CurateRecipe,
    results: Mapping[str, Sequence[Result[CuratedRow]]],
    faults: Mapping[str, str],
) -> Kept[CuratedRow]:
    """The rows that the linter and the recipe's quotas leave."""
    data = recipe.data
    per_wrong = None if recipe.later_round is None else recipe.later_round.held_per_wrong
    limits = data.max_per_category, data.max_pairs, data.harmful_share
    quotas = Quotas(*limits, per_wrong, data.length_ratio_max)
    return filter_rows(results, faults, quotas, seed=recipe.seed)


def pair_verdicts(curation: Curation, pairs: Sequence[PreferencePair]) -> list[SideVerdicts]:
    """The verdicts of the recipe's judge on both sides of each pair."""
    return by_pair(curation.side_verdicts(*side_completions(pairs)))


def lint_faults(
    curation: Curation, results: Iterable[Sequence[Result[PreferencePair]]]
) -> dict[str, str]:
    """{id of a pair with an error of the linter: its check}. A training would stop at that pair."""
    found = [result.row for one in results for result in one if result.row is not None]
    pairs = list({pair.id: pair for pair in found}.values())
    verdicts = pair_verdicts(curation, pairs)
    findings = [
        f for pair, both in zip(pairs, verdicts, strict=True) for f in row_findings(pair, *both)
    ]
    findings += [f for pair in pairs for f in control_tokens(pair, None)]
    return {f.id: f.check for f in findings if f.severity == "error"}
