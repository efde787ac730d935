"""Stage: prompts -> the student's answers -> verdicts -> pairs.jsonl, each pair with its reason and
verdicts.

    overrefusal-po recipes/curate.yaml --model.model_name_or_path=my-over-refusing-model

The benign prompts that the student refuses become overrefusal pairs (chosen: the best of the
teacher's answers, or the prompt's reference). The harmful prompts become containment pairs: chosen
is the prompt's reference refusal, or the student's or the teacher's own; rejected is a completion
that complies (with a guard: one more unsafe by tau), from the first of these sources that yields:
given completions, a less safe model, the student itself, the student made to begin with a compliant
prefix. No yield at all is an error.

`makes: sft` overgenerates and selects alone: every prompt with one answer, in sft.jsonl, which
`method: sft` reads as `data.prompts` (POROver's studies (a) and (b)).

Where refusals and answers of one rule are worded unlike those of the other, DPO wins its margins by
wording and learns nothing of prompts. A teacher that also gives the rejects, and the student's own
refusals as chosen ones, leave only the prompt to tell the rules apart (benchmarks/RESULTS.md has
the difference).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.curate.overgenerate import Speaker, Stage, best_answers, judges_of, stage_of
from overrefusal_po.curate.quotas import Kept, Quotas, Result, keep, sieve
from overrefusal_po.curate.rules import contained, containment, overrefusal
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model import load as models
from overrefusal_po.pairs.duplicates import duplicates
from overrefusal_po.pairs.firewall import contamination
from overrefusal_po.pairs.lint import lint
from overrefusal_po.pairs.row_checks import row_findings, side_verdicts
from overrefusal_po.pairs.signatures import split_words
from overrefusal_po.pairs.token_checks import control_tokens
from overrefusal_po.plugins import check_engine
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.recipe.sections import CurateData
from overrefusal_po.records import (
    Completion,
    PreferencePair,
    Prompt,
    read_jsonl,
    write_atomic,
    write_jsonl,
)
from overrefusal_po.run.complete import in_process, unique
from overrefusal_po.run.folder import Run
from overrefusal_po.run.shards import own

logger = logging.getLogger(__name__)


def curate(recipe: CurateRecipe, run: Run) -> dict[str, Any]:
    """Runs the stage in an open run folder; returns summary.json: for each rule, category and
    filter what came and went."""
    if not run.done:
        check_rejects(recipe)
        benign, harmful, hygiene = cleaned(recipe.data, *read_prompts(recipe))
        stage = stage_of(recipe, run)
        if recipe.shard is not None:
            summary = draw_shard(stage, own(benign, recipe.shard), own(harmful, recipe.shard))
        else:
            rows, found = (sft_set if recipe.makes == "sft" else pair_set)(stage, benign, harmful)
            summary = {
                **found,
                "filters": {**hygiene.pop("filters"), **found["filters"]},
                "hygiene": hygiene,
            }
            write_jsonl(run.path / f"{recipe.makes}.jsonl", rows)
        write_atomic(run.path / "summary.json", json.dumps(summary, indent=1))
        run.finish(summary)
    done: dict[str, Any] = json.loads((run.path / "summary.json").read_text())
    return done


def draw_shard(stage: Stage, benign: Sequence[Prompt], harmful: Sequence[Prompt]) -> dict[str, Any]:
    """How many prompts a shard has, after everything that engines are asked for them. The merged
    run selects and pairs."""
    if stage.recipe.makes == "sft":
        speaker, who = speaker_of(stage)
        for side, prompts in (("benign", benign), ("harmful", harmful)):
            speaker.answers(prompts, f"{who}_{side}.jsonl")
    else:
        overrefusal(stage, benign)
        containment(stage, harmful)
    return {
        "shard": stage.recipe.shard,
        "prompts": {"benign": len(benign), "harmful": len(harmful)},
    }


# --- prompts --------------------------------------------------------------------------------------


def read_prompts(recipe: CurateRecipe) -> tuple[list[Prompt], list[Prompt]]:
    """(benign, harmful) prompts that carry what is chosen, or that somebody answers. ValueError
    without a benign one."""
    data, chosen = recipe.data, recipe.chosen
    taught = chosen.model is not None or recipe.makes == "sft"
    read = read_source(data.benign, data.split)
    benign = [p for p in read if p.kind in data.kinds and (p.reference or taught)]
    taught = chosen.refusals != "reference" or recipe.makes == "sft"
    read = [] if data.harmful is None else read_source(data.harmful, data.split)
    harmful = [p for p in read if p.kind == "harmful" and (p.reference or taught)]
    if not benign:
        raise ValueError(
            f"data.benign: {recipe.data.benign!r} has no harmless prompt with a reference answer. "
            "Give prompts with "
            "references, or name a teacher that answers them (chosen.model)."
        )
    return benign, harmful


def cleaned(
    data: CurateData, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> tuple[list[Prompt], list[Prompt], dict[str, Any]]:
    """(benign, harmful, what was found): no prompt twice or nearly so on its side, a benchmark's as
    the recipe says.

    A harmless prompt in the words of a harmful one is a contrast, and stays; in all the same words
    it is reported.
    """
    hits = contamination([*benign, *harmful])
    if hits and data.contaminated == "error":
        first = hits[0]
        raise ValueError(
            f"{len(hits)} prompts are a benchmark's, the first {first.id} ({first.benchmark}, "
            f"similarity {first.similarity}). "
            "Take them out, or set data.contaminated: drop."
        )
    if hits:
        logger.warning(
            "%d prompts are a benchmark's (data.contaminated: %s)", len(hits), data.contaminated
        )
    tainted = {hit.id: hit.benchmark for hit in hits} if data.contaminated == "drop" else {}
    sides, filters, found = [], {}, Counter[str]()
    for name, prompts in (("harmless prompts", benign), ("harmful prompts", harmful)):
        once = list(unique(prompts))
        again = (
            {d.id: "exact" if d.similarity == 1 else "near" for d in duplicates(once)}
            if once
            else {}
        )
        why = Counter(again.values()) + Counter({"exact": len(prompts) - len(once)})
        different = [p for p in once if p.id not in again]
        clean = [p for p in different if p.id not in tainted]
        benchmarks = Counter(tainted[p.id] for p in different if p.id in tainted)
        filters[name] = [
            sieve("duplicates", len(prompts), len(different), why),
            sieve("contamination", len(different), len(clean), benchmarks),
        ]
        found += why
        sides.append(clean)
    if not sides[0]:
        raise ValueError(
            "All harmless prompts are a benchmark's, and data.contaminated is drop. Give others "
            "(data.benign)."
        )
    both = {tuple(split_words(p.text)) for p in sides[0]} & {
        tuple(split_words(p.text)) for p in sides[1]
    }
    return (
        sides[0],
        sides[1],
        {
            "filters": filters,
            "duplicates": dict(found),
            "contaminated": dict(Counter(hit.benchmark for hit in hits)),
            "harmless_and_harmful": len(both),
        },
    )


def check_rejects(recipe: CurateRecipe) -> None:
    """Raises ValueError where sources of rejects, models or judges are not there, or settings go
    against each other.

    No weight is loaded.
    """
    check_settings(recipe)
    judges_of(recipe)
    rejects = recipe.rejects
    if rejects.completions and not rejects.completions.startswith("@"):
        given = read_jsonl(rejects.completions, Completion)
        if len({c.id for c in given}) < len({(c.prompt_id, c.text) for c in given}):
            raise ValueError(
                f"rejects.completions: two different responses in {rejects.completions} have the "
                "same id, by which verdicts "
                "are kept. Give each its own."
            )
    if recipe.makes == "pairs" or recipe.chosen.model is None:  # else the student never speaks
        check_engine(recipe.engine)
    for source in (rejects, recipe.chosen):
        if source.model:
            check_engine(source.engine)
        if source.model and not source.model.startswith("@") and in_process(source.engine):
            models.check_available(source.model)


def check_settings(recipe: CurateRecipe) -> None:
    """Raises ValueError for settings that need another one, or that would do nothing."""
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
    if chosen.samples > 1 and (chosen.generation or recipe.generation).temperature == 0:
        raise ValueError(
            f"chosen.samples: {chosen.samples} answers at temperature 0 are {chosen.samples} times "
            "the same one. Set "
            "chosen.generation with a temperature above 0."
        )
    alone = recipe.makes == "pairs" and chosen.model is None
    if alone and (chosen.samples > 1 or chosen.refusals == "teacher"):
        raise ValueError(
            "chosen.samples above 1 and chosen.refusals: teacher need a teacher. Name it: "
            "chosen.model."
        )


# --- an SFT set -----------------------------------------------------------------------------------


def speaker_of(stage: Stage) -> tuple[Speaker, str]:
    """Who answers for an SFT set, and how its files are called."""
    return (
        (stage.cast.student, "student")
        if stage.cast.teacher is None
        else (stage.cast.teacher, "teacher")
    )


def sft_set(
    stage: Stage, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> tuple[list[Prompt], dict[str, Any]]:
    """(every prompt with its selected answer as reference, the summary by kind). ValueError where
    there is none."""
    speaker, who = speaker_of(stage)
    results: dict[str, list[Result]] = {}
    for side, prompts in (("benign", benign), ("harmful", harmful)):
        chosen = best_answers(stage, speaker, prompts, f"{who}_{side}.jsonl") if prompts else {}
        for prompt in prompts:
            text, why_not, _ = chosen[prompt.id]
            answered = prompt.model_copy(update={"reference": text}) if text else None
            results.setdefault(prompt.kind, []).append(Result(prompt, answered, why_not))
    kept = kept_of(stage.recipe, results, {})
    log(kept.summary, results)
    if not kept.rows:
        raise ValueError(
            f"None of the {len(benign) + len(harmful)} prompts got an answer that passes "
            f"({ {kind: kept.summary[kind]['left_out'] for kind in results} }). Use another "
            "teacher (chosen.model), more "
            "chosen.samples, or a greater max_new_tokens where answers are cut."
        )
    return kept.rows, kept.summary


# --- pairs ----------------------------------------------------------------------------------------


def pair_set(
    stage: Stage, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """(pairs of both rules, the summary). Writes those of the tau grid. ValueError where a rule
    yields none."""
    refused = overrefusal(stage, benign)
    contrasts = containment(stage, harmful) if harmful else []
    rejects = stage.recipe.rejects
    results = {tau: contained(contrasts, tau) for tau in (rejects.tau, *rejects.tau_grid)}
    pairs = {
        r.row.id: r.row
        for found in (refused, *results.values())
        for r in found
        if r.row is not None
    }
    faults = row_faults(list(pairs.values()))
    kept = {
        tau: kept_of(stage.recipe, {"overrefusal": refused, "containment": found}, faults)
        for tau, found in results.items()
    }
    rows, summary = kept[rejects.tau]
    log(summary, ("overrefusal", "containment"))
    check_yield({tau: of.summary for tau, of in kept.items()})
    if rejects.tau_grid:
        summary["tau_grid"] = [tau_row(stage.run.path, tau, kept[tau]) for tau in rejects.tau_grid]
    found = lint(rows, RefusalJudge())
    for finding in found.errors:
        logger.warning("the linter would stop a training on these pairs: %s", finding.message)
    return rows, {**summary, "lint": found.counts()}


def check_yield(found: Mapping[float | None, Mapping[str, Any]]) -> None:
    """Raises ValueError where a rule that had prompts yields no pair. `found`: {tau: its summary},
    rejects.tau first."""
    summary = next(iter(found.values()))
    if not summary["overrefusal"]["kept"]:
        raise ValueError(
            f"No overrefusal pair could be made of the {summary['overrefusal']['prompts']} benign "
            f"prompts ({summary['overrefusal']['left_out']}). Use a model that over-refuses, other "
            "prompts (data.benign), "
            "another teacher (chosen.model), or a greater generation.max_new_tokens where answers "
            "are cut."
        )
    if summary["containment"]["prompts"] and not any(
        of["containment"]["kept"] for of in found.values()
    ):
        at = {tau: "" if tau is None else f" at tau {tau}" for tau in found}
        each = "; ".join(f"{of['containment']['left_out']}{at[tau]}" for tau, of in found.items())
        raise ValueError(
            f"No containment pair is left of the {summary['containment']['prompts']} harmful "
            f"prompts ({each}). Use "
            "other refusals (chosen.refusals) or rejects (rejects.model)."
        )


def tau_row(folder: Path, tau: float, kept: Kept) -> dict[str, Any]:
    """What one tau of the grid gives; its pairs go into a file of their own."""
    file = write_jsonl(folder / f"pairs_tau_{tau:g}.jsonl", kept.rows).name
    made = kept.summary["containment"]["made"]
    return {
        "tau": tau,
        "containment_made": made,
        **{f"{rule}_kept": kept.summary[rule]["kept"] for rule in ("overrefusal", "containment")},
        "file": file,
    }


def kept_of(
    recipe: CurateRecipe, results: Mapping[str, Sequence[Result]], faults: Mapping[str, str]
) -> Kept:
    """The rows that linter and quotas leave."""
    data = recipe.data
    return keep(
        results,
        faults,
        Quotas(data.max_per_category, data.max_pairs, data.harmful_share),
        recipe.seed,
    )


def log(summary: Mapping[str, Any], rules: Iterable[str]) -> None:
    """A line for each rule, and one for each quota that was not filled."""
    for rule in rules:
        logger.info("%s: %s", rule, summary[rule])
    for quota in summary["unfilled"]:
        logger.warning("a quota is not filled: %s", quota)


def row_faults(pairs: Sequence[PreferencePair]) -> dict[str, str]:
    """{id of a pair in which the linter finds an error: its check}: a training would stop at it."""
    verdicts = side_verdicts(pairs, RefusalJudge())
    both = zip(pairs, verdicts, strict=True)
    found = [f for pair, sides in both for f in row_findings(pair, *sides)]
    found += [f for pair in pairs for f in control_tokens(pair, None)]
    return {f.id: f.check for f in found if f.severity == "error"}
