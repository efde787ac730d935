"""Stage: model and prompts -> completions -> verdicts -> outcomes.jsonl and metrics.json.

    overrefusal-po recipes/evaluate.yaml --model.model_name_or_path=my-model

The judge reads the whole response. Without a guard model a harmful prompt counts as "refused",
never as "safe".
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import cast

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.breakdowns import grouped, rates_by, refusal_positions
from overrefusal_po.evaluate.capability import lm_eval_scores
from overrefusal_po.evaluate.certificates import (
    Certificate,
    certificate_table,
    check_applies,
    read_certificate,
)
from overrefusal_po.evaluate.corrections import corrected_rates
from overrefusal_po.evaluate.entries import (
    CapabilityEntry,
    MetricsEntry,
    PerplexityEntry,
)
from overrefusal_po.evaluate.first_token import wants_first_token
from overrefusal_po.evaluate.gate import baseline_notes, check_gate, gate_result
from overrefusal_po.evaluate.measured_model import (
    MeasuredModel,
    check_task_model,
    perplexity_notes,
    wants_perplexity,
)
from overrefusal_po.evaluate.measured_words import EvaluationJudges, describe_measurement
from overrefusal_po.evaluate.metrics import run_metrics
from overrefusal_po.evaluate.panel_agreement import panel_entry
from overrefusal_po.evaluate.remedy_checks import check_with_remedy
from overrefusal_po.evaluate.responses import response_notes, truncated_entry
from overrefusal_po.evaluate.robustness import (
    TAMPER_FILE,
    Tampered,
    TamperTest,
    counted,
    robustness_entries,
)
from overrefusal_po.evaluate.searches import check_searches, run_searches
from overrefusal_po.evaluate.stale import MEASURE_AGAIN, is_stale, verdicts_id
from overrefusal_po.evaluate.tamper_reference import check_directions
from overrefusal_po.evaluate.tamper_rows import check_tamper
from overrefusal_po.judges import Judge, JudgePanel, harm_verdict, refusal_verdict
from overrefusal_po.plugins import (
    check_engine,
    make_refusal_judge,
    make_second_judge,
)
from overrefusal_po.prompts import measured_prompts
from overrefusal_po.recipe.bounds import idle_capability
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import (
    Completion,
    Outcome,
    Prompt,
    Verdict,
    read_state,
    write_atomic,
    write_jsonl,
)
from overrefusal_po.run.complete import (
    in_process,
    load_template,
    note_left_out,
)
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import is_slow, paired_outcomes, release_judge, resumable_verdicts
from overrefusal_po.run.remedies import check_remedy, remedy_name
from overrefusal_po.run.shards import check_merged
from overrefusal_po.run.unscored import check_scored

logger = logging.getLogger(__name__)


def make_judges(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> EvaluationJudges:
    """The judges that a recipe names. ValueError for a certificate that does not hold for these
    prompts or this judge."""
    judge = make_refusal_judge(recipe.judge)
    certificate = read_certificate(recipe.certificate) if recipe.certificate else None
    if certificate is not None:
        check_applies(certificate, judge.name, judge.version, prompts)
    guard = make_second_judge(recipe.guard, "guard") if recipe.guard else None
    return EvaluationJudges(judge, guard, certificate)


def check_evaluation(recipe: EvaluateRecipe) -> tuple[list[Prompt], EvaluationJudges]:
    """The prompts to measure and the judges, after every check that needs no weights.

    Raises ValueError for the first fault.
    """
    prompts = measured_prompts(recipe.data)
    judges = make_judges(recipe, prompts)
    check_searches(recipe, prompts)
    check_remedy(recipe.model, recipe.engine)
    check_with_remedy(recipe)
    check_task_model(recipe)
    warn_of_idle_keys(recipe, prompts)
    wants_perplexity(recipe, plain_prompts(prompts))
    wants_first_token(recipe, plain_prompts(prompts))
    if in_process(recipe.engine):
        check_engine(recipe.engine)
    if recipe.gate is not None:
        check_gate(recipe.gate)
    check_tamper(recipe, prompts)
    return prompts, judges


def warn_of_idle_keys(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> None:
    """Logs each key that is given and changes nothing."""
    for key, user in idle_capability(recipe.capability).items():
        logger.warning("capability.%s changes nothing: only %s would use it", key, user)
    if recipe.guard is not None and not any(p.kind == "harmful" for p in prompts):
        logger.warning(
            "guard changes nothing: it judges the responses to harmful prompts, and none of the "
            "%d prompts is harmful",
            len(prompts),
        )


def evaluate(recipe: EvaluateRecipe, run: Run, tamper: TamperTest | None = None) -> MetricsEntry:
    """The run's metrics, measured in an open run folder or read if the run is done.

    `tamper` makes the copies of a recipe with a tamper test (`train.tamper.tamper_test`). A
    recipe's gate is judged here and stands in the metrics. If it failed, the command line ends
    with exit code 3.
    """
    file = run.path / "metrics.json"
    # a finished run is read without its prompts, its judges and their keys
    if not (run.done and file.exists()):
        metrics = measure(recipe, run, tamper)
        write_atomic(file, json.dumps(metrics, indent=1))
        run.finish({key: metrics[key] for key in ("harmful_refused", "benign_answered", "f1")})
    elif is_stale(run.path):
        logger.warning(
            "%s: these rates are of other verdicts than outcomes.jsonl holds now. The report and "
            "`overrefusal-po compare` compute them again",
            run.path,
        )
    needed = ("name", "n", "intervals", "unscored", "harmful_refused", "benign_answered", "f1")
    return cast(MetricsEntry, read_state(file, needed, remedy=MEASURE_AGAIN))


def measure(recipe: EvaluateRecipe, run: Run, tamper: TamperTest | None = None) -> MetricsEntry:
    """Writes outcomes.jsonl; returns metrics.json. RunFailed if too few outcomes are scored."""
    check_merged(run.path)
    prompts, judges = check_evaluation(recipe)
    template = load_template(recipe.model, recipe.chat) if in_process(recipe.engine) else None
    left_out = note_left_out(run, recipe.model, recipe.engine, name=recipe.run_name)
    check_defence_weights(recipe, run)
    model = MeasuredModel(recipe, template)
    model.will_ask_first_tokens(prompts)
    completions = model.completions(run, prompts)
    perplexity = model.perplexity(run, plain_prompts(prompts))
    searched = run_searches(recipe, run, model, prompts)
    prompts, completions = prompts + searched.prompts, completions + searched.completions
    if is_slow(judges.refusal):
        model.release()
    verdicts = resumable_verdicts(run.path / "verdicts.jsonl", judges.refusal, prompts, completions)
    release_judge(judges.refusal)  # the model is loaded again, and then the guard
    outcomes = paired_outcomes(prompts, completions, verdicts)
    plain = [o for o in outcomes if o.prompt.attack is None]
    first_token, missing = model.first_token(run, plain, judges.refusal)
    model.release()
    outcomes, guarded = guarded_outcomes(run, judges, outcomes)
    write_jsonl(run.path / "outcomes.jsonl", outcomes)
    check_outcomes_scored(recipe, run, outcomes, guarded)
    metrics = all_rates(recipe, outcomes, judges)
    metrics["verdicts"] = verdicts_id(outcomes)
    metrics["capability"] = measure_capability(model, perplexity)
    if first_token is not None:
        metrics["first_token"] = first_token
    metrics["truncated"] = truncated = truncated_entry(outcomes)
    metrics["measured"] = describe_measurement(recipe, judges, prompts)
    metrics["measured"]["notes"] += response_notes(recipe, truncated, left_out)
    metrics["measured"]["notes"] += [*perplexity_notes(recipe), *searched.notes, *missing]
    tampered = tampered_copies(recipe, run, outcomes, tamper)
    if tampered is not None:
        metrics["robustness"] = robustness_entries(tampered.attempts)
        metrics["measured"]["notes"] += tampered.notes
    if recipe.gate is not None:
        metrics["gate"] = gate_result(
            recipe.gate,
            metrics,
            outcomes,
            tiers=recipe.tamper.tiers if recipe.tamper else (),
            attempts=counted(tampered.attempts if tampered else (), recipe.tamper),
        )
        metrics["measured"]["notes"] += baseline_notes(recipe.gate, run.path, outcomes)
    return metrics


def check_defence_weights(recipe: EvaluateRecipe, run: Run) -> None:
    """Raises ValueError if the defence safelora cannot use the weights of `tamper.reference`,
    before the model answers anything. A run that has made copies has passed this."""
    tamper = recipe.tamper
    if tamper is None or "safelora" not in tamper.defences or (run.path / TAMPER_FILE).is_file():
        return
    began = time.monotonic()
    check_directions(recipe)
    run.facts["tamper_seconds"] = time.monotonic() - began


def tampered_copies(
    recipe: EvaluateRecipe, run: Run, outcomes: Sequence[Outcome], tamper: TamperTest | None
) -> Tampered | None:
    """The recipe's tamper test, made; None if it has none."""
    if recipe.tamper is None:
        return None
    assert tamper is not None, "whoever runs a recipe with a tamper test hands in what trains"
    began = time.monotonic()
    found = tamper(recipe, run, [o for o in outcomes if o.prompt.attack is None])
    before = cast("float", run.facts.get("tamper_seconds", 0.0))
    run.facts["tamper_seconds"] = round(before + time.monotonic() - began, 3)
    return found


def plain_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as they were asked."""
    return [p for p in prompts if p.attack is None]


def guarded_outcomes(
    run: Run, judges: EvaluationJudges, outcomes: Sequence[Outcome]
) -> tuple[list[Outcome], list[Verdict]]:
    """The outcomes with what the guard says about them, and the guard's verdicts."""
    if judges.guard is None:
        return list(outcomes), []
    prompts, completions = [o.prompt for o in outcomes], [o.completion for o in outcomes]
    said = guard_verdicts(run, judges.guard, prompts, completions)
    return paired_outcomes(
        prompts, completions, with_guard([o.verdict for o in outcomes], said)
    ), said


def check_outcomes_scored(
    recipe: EvaluateRecipe, run: Run, outcomes: Sequence[Outcome], guarded: Sequence[Verdict]
) -> None:
    """Raises RunFailed if too few outcomes are scored, or none of a kind, or too few by the
    guard."""
    limit, name = recipe.unscored_max, recipe.run_name
    verdicts = [refusal_verdict(outcome.verdict) for outcome in outcomes]
    check_scored(verdicts, limit, run.path, what=name)
    check_scored([*map(harm_verdict, guarded)], limit, run.path, what=f"{name}, the guard")
    for kind, rows in grouped(outcomes, "kind").items():
        of_kind = [refusal_verdict(outcome.verdict) for outcome in rows]
        check_scored(of_kind, 1.0, run.path, what=f"{name}, {kind} prompts", key=None)


def guard_verdicts(
    run: Run, guard: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[Verdict]:
    """The guard's verdicts on the responses to harmful prompts."""
    pairs = zip(prompts, completions, strict=True)
    harmful = [(p, c) for p, c in pairs if p.kind == "harmful"]
    return resumable_verdicts(
        run.path / "verdicts.jsonl", guard, [p for p, _ in harmful], [c for _, c in harmful]
    )


def with_guard(verdicts: Sequence[Verdict], said: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with the unsafe probability of the guard's verdicts `said`; None if it scored
    none."""
    unsafe = {v.completion_id: v.unsafe_probability for v in said if v.unscored is None}
    return [
        v.model_copy(update={"unsafe_probability": unsafe.get(v.completion_id)}) for v in verdicts
    ]


def all_rates(
    recipe: EvaluateRecipe, outcomes: Sequence[Outcome], judges: EvaluationJudges
) -> MetricsEntry:
    """The rates of metrics.json: of the prompts as they were asked, by set, by attack, corrected.

    Attacked prompts are in `attacks` and `positions` alone, never in harmful_refused,
    benign_answered and F1.
    """
    name = str(recipe.model["model_name_or_path"])
    plain = [o for o in outcomes if o.prompt.attack is None]
    rates = run_metrics(plain, seed=recipe.seed).as_dict(recipe.run_name, name)
    by_set = rates_by(plain, "source", seed=recipe.seed)
    # a TypedDict with all keys of another is one of those
    found = cast("MetricsEntry", rates)
    if (remedy := remedy_name(recipe.model)) is not None:
        found["remedy"] = remedy
    found["sets"] = {part: metrics.as_dict(part, name) for part, metrics in by_set.items()}
    if len(plain) < len(outcomes):
        harmful = [o for o in outcomes if o.prompt.kind == "harmful"]
        by_attack = rates_by(harmful, "attack", seed=recipe.seed)
        found["attacks"] = {
            part: metrics.as_dict(part, name) for part, metrics in by_attack.items()
        }
    found["positions"] = {
        key: refusal_positions(rows).as_dict() for key, rows in grouped(outcomes, "attack").items()
    }
    if judges.certificate is not None:
        found["corrected"] = corrected_rates(plain, judges.certificate.confusions()).as_dict()
        found["certificate"] = certificate_summary(judges.certificate)
    if isinstance(judges.refusal, JudgePanel):
        found["panel"] = panel_entry(judges.refusal, outcomes, seed=recipe.seed)
    return found


def certificate_summary(certificate: Certificate) -> dict[str, str]:
    """The certificate's first row (all models, both kinds) with its heads, and the judge's name."""
    head, everything = certificate_table(certificate)[:2]
    judge = f"{certificate.judge} {certificate.version}"
    return {**dict(zip(head, everything, strict=True)), "judge": judge}


def measure_capability(model: MeasuredModel, perplexity: PerplexityEntry | None) -> CapabilityEntry:
    """{"perplexity": {...}, "tasks": {...}} as far as they are measured. The weights of the tasks
    are those that the recipe's `model:` section gives, loaded as for the responses."""
    found: CapabilityEntry = {} if perplexity is None else {"perplexity": perplexity}
    asked = model.recipe.capability
    if asked.tasks:
        engine, template = model.engine, model.template
        assert isinstance(engine, TransformersEngine) and template is not None
        found["tasks"] = lm_eval_scores(
            engine.model, template, asked.tasks, limit=asked.limit, seed=model.recipe.seed
        )
        del engine
        model.release()
    return found
