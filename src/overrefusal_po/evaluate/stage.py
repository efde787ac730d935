"""Stage: model and prompts -> completions -> verdicts -> outcomes.jsonl and metrics.json.

    overrefusal-po recipes/evaluate.yaml --model.model_name_or_path=my-model

The judge reads the whole response. Without a guard model on board a harmful prompt counts as
"refused", never "safe".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from overrefusal_po.evaluate.breakdowns import groups, rates_by, refusal_positions
from overrefusal_po.evaluate.capability import check_lm_eval, lm_eval_scores, perplexity
from overrefusal_po.evaluate.certificates import Certificate, check_applies, read_certificate, table
from overrefusal_po.evaluate.corrections import corrected_rates
from overrefusal_po.evaluate.gate import check_gate, gate_result
from overrefusal_po.evaluate.metrics import run_metrics
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.plugins import engine_note, make_judge, source_note, split_spec
from overrefusal_po.prompts import measured_prompts
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Outcome, Prompt, Verdict, write_atomic, write_jsonl
from overrefusal_po.run.complete import (
    complete,
    engine_for,
    in_process,
    load_template,
    recipe_sampling,
)
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import resumable_verdicts

logger = logging.getLogger(__name__)


class Judges(NamedTuple):
    """The judges of an evaluation and what is known of them."""

    refusal: Any
    guard: Any | None
    certificate: Certificate | None


def judges_of(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> Judges:
    """The judges that a recipe names. ValueError for a certificate that does not hold for these
    prompts or this judge."""
    judge = make_judge(recipe.judge)
    certificate = read_certificate(recipe.certificate) if recipe.certificate else None
    if certificate is not None:
        check_applies(certificate, judge.name, judge.version, prompts)
    return Judges(judge, make_judge(recipe.guard) if recipe.guard else None, certificate)


def check_evaluation(recipe: EvaluateRecipe) -> tuple[list[Prompt], Judges]:
    """The prompts to measure and the judges, after all that can be checked without weights.
    ValueError for what is wrong."""
    prompts = measured_prompts(recipe.data)
    judges = judges_of(recipe, prompts)
    if recipe.capability.tasks:
        check_lm_eval()
    if (recipe.capability.tasks or recipe.capability.perplexity) and not in_process(recipe.engine):
        raise ValueError(
            "capability: perplexity and tasks need the model in process, and the engine is "
            f"{split_spec(recipe.engine, 'engines')[0]!r}. Measure them in a recipe of their own "
            "with engine: transformers."
        )
    if recipe.gate is not None:
        check_gate(recipe.gate)
    return prompts, judges


def evaluate(recipe: EvaluateRecipe, run: Run) -> dict[str, Any]:
    """Runs the stage in an open run folder; returns the run's metrics as report and summary show
    them.

    A recipe's gate is judged here and stands in the metrics; the command line turns a no into exit
    code 3.
    """
    if not run.done:  # a finished run is read without its prompts, its judges and their keys
        prompts, judges = check_evaluation(recipe)
        template = load_template(recipe.model, recipe.chat) if in_process(recipe.engine) else None
        outcomes = outcomes_of(recipe, run, prompts, judges, template)
        write_jsonl(run.path / "outcomes.jsonl", outcomes)
        metrics = all_metrics(recipe, outcomes, judges)
        metrics["capability"] = capability_of(recipe, prompts, template)
        metrics["measured"] = measured(recipe, judges, prompts)
        if recipe.gate is not None:
            metrics["gate"] = gate_result(recipe.gate, metrics, outcomes)
        write_atomic(run.path / "metrics.json", json.dumps(metrics, indent=1))
        run.finish({key: metrics[key] for key in ("harmful_refused", "benign_answered", "f1")})
    found: dict[str, Any] = json.loads((run.path / "metrics.json").read_text())
    return found


def outcomes_of(
    recipe: EvaluateRecipe,
    run: Run,
    prompts: Sequence[Prompt],
    judges: Judges,
    template: ChatTemplate | None,
) -> list[Outcome]:
    """What the model says to each prompt, and what the judges say of that."""
    name = str(recipe.model["model_name_or_path"])
    completions = complete(
        run.path / "completions.jsonl",
        prompts,
        recipe_sampling(recipe.generation, recipe.seed),
        lambda: engine_for(
            recipe.model, template, recipe.generation, name, engine=recipe.engine, chat=recipe.chat
        ),
        f"{recipe.name}: answering {len(prompts)} prompts",
    )
    kept = run.path / "verdicts.jsonl"
    verdicts = resumable_verdicts(kept, judges.refusal, prompts, completions)
    if judges.guard is not None:
        harmful = [(p, c) for p, c in zip(prompts, completions, strict=True) if p.kind == "harmful"]
        verdicts = with_guard(
            verdicts,
            resumable_verdicts(
                kept, judges.guard, [p for p, _ in harmful], [c for _, c in harmful]
            ),
        )
    return [
        Outcome(prompt=p, completion=c, verdict=v)
        for p, c, v in zip(prompts, completions, verdicts, strict=True)
    ]


def with_guard(verdicts: Sequence[Verdict], said: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with the unsafe probability of the guard's verdicts `said`; None where it scored
    none."""
    unsafe = {v.completion_id: v.unsafe_probability for v in said if v.unscored is None}
    return [
        v.model_copy(update={"unsafe_probability": unsafe.get(v.completion_id)}) for v in verdicts
    ]


def all_metrics(
    recipe: EvaluateRecipe, outcomes: Sequence[Outcome], judges: Judges
) -> dict[str, Any]:
    """metrics.json: the rates of the prompts as they were asked, and beside them by set, by attack,
    corrected.

    Attacked prompts are in `attacks` and `positions` alone, never in harmful_refused,
    benign_answered and F1.
    """
    name = str(recipe.model["model_name_or_path"])
    plain = [o for o in outcomes if o.prompt.attack is None]
    found = run_metrics(plain, seed=recipe.seed).as_dict(recipe.name, name)
    parts = {"sets": rates_by(plain, "source", seed=recipe.seed)}
    if len(plain) < len(outcomes):
        harmful = [o for o in outcomes if o.prompt.kind == "harmful"]
        parts["attacks"] = rates_by(harmful, "attack", seed=recipe.seed)
    for key, rates in parts.items():
        found[key] = {part: rate.as_dict(part, name) for part, rate in rates.items()}
    found["positions"] = {
        key: refusal_positions(rows).as_dict() for key, rows in groups(outcomes, "attack").items()
    }
    if judges.certificate is not None:
        found["corrected"] = corrected_rates(plain, judges.certificate.confusions()).as_dict()
        found["certificate"] = dict(
            zip(*[table(judges.certificate)[row] for row in (0, 1)], strict=True),
            judge=f"{judges.certificate.judge} {judges.certificate.version}",
        )
    return found


def capability_of(
    recipe: EvaluateRecipe, prompts: Sequence[Prompt], template: ChatTemplate | None
) -> dict[str, Any]:
    """{"perplexity": {...}, "tasks": {...}} as far as the recipe asks for them."""
    found: dict[str, Any] = {}
    options = models.model_options(recipe.model)
    if recipe.capability.perplexity:
        assert template is not None, (
            "check_evaluation lets perplexity through for an engine in process only"
        )
        plain = [p for p in prompts if p.attack is None]
        found["perplexity"] = perplexity(
            models.load_model(**options), template, plain, seed=recipe.seed
        )._asdict()
    if recipe.capability.tasks:
        found["tasks"] = lm_eval_scores(
            str(recipe.model["model_name_or_path"]),
            recipe.capability.tasks,
            limit=recipe.capability.limit,
            revision=str(recipe.model.get("model_revision", "main")),
            system_prompt=recipe.chat.system_prompt,
            trust_remote_code=bool(recipe.model.get("trust_remote_code", False)),
            seed=recipe.seed,
        )
    return found


def measured(recipe: EvaluateRecipe, judges: Judges, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What was measured how, in words, for the report."""
    generation = recipe.generation
    how = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    split = f" ({recipe.data.split} split)" if recipe.data.split else ""
    sets = [split_spec(spec, "sources") for spec in recipe.data.sets]
    limit = recipe.data.max_prompts_per_kind
    known = f"{judges.refusal.name} {judges.refusal.version}"
    notes = (
        [f"A fixed subset of at most {limit} prompts of each kind was measured."] if limit else []
    )
    if judges.certificate is None:
        notes.append(
            f"The judge {known} is uncertified here: nobody has compared it with human labels for "
            "this report."
        )
    notes += [
        f"{spec}: {note}" for spec in recipe.data.sets if (note := source_note(spec)) is not None
    ]
    attacks = sorted({p.attack for p in prompts if p.attack})
    if attacks and judges.guard is None:
        notes.append(
            "Without a judge of harm, what an attack gets is a non-refusal rate, not an attack "
            "success rate."
        )
    return {
        "judge": f"{known} (built in, offline; reads the whole response)"
        if recipe.judge == "refusal"
        else known,
        "sets": [
            (settings.get("path") or name) + (split if name == "starter" else "")
            for name, settings in sets
        ],
        "engine": f"{engine_note(recipe.engine)}, {how}, up to {generation.max_new_tokens} new "
        "tokens",
        "guard": None if judges.guard is None else f"{judges.guard.name} {judges.guard.version}",
        "attacks": attacks,
        "model_form": model_form(recipe.model),
        "notes": notes,
    }


def model_form(section: dict[str, Any]) -> str:
    """What is measured: the quantised form and the merged one of the same training are different
    models."""
    bits = [b for b in ("4bit", "8bit") if section.get(f"load_in_{b}")]
    return (
        f"weights in {bits[0]}"
        if bits
        else f"weights in {section.get('dtype') or 'the dtype that fits the hardware'}"
    )
