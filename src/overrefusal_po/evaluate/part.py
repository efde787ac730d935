"""A shard of an evaluation: its prompts -> completions, and the verdicts of slow judges, in the
shard's folder.

    overrefusal-po recipes/evaluate.yaml --shard 2/4

What needs all prompts is the merged run's: rates, intervals and the gate. So is what asks for no
responses: perplexity, first tokens, capability tasks and the tamper test.
"""

from __future__ import annotations

import json
from collections import Counter

from overrefusal_po.evaluate.measured_model import MeasuredModel
from overrefusal_po.evaluate.searches import run_searches
from overrefusal_po.evaluate.stage import check_evaluation, guard_verdicts
from overrefusal_po.judges import refusal_verdict
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.run.complete import in_process, load_template, note_left_out
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import release_judge, resumable_verdicts
from overrefusal_po.run.shards import shard_prompts
from overrefusal_po.run.unscored import check_scored


def evaluate_part(recipe: EvaluateRecipe, run: Run) -> dict[str, object]:
    """The counts of a shard's prompts, answered and judged in an open run folder, or read if the
    shard is done."""
    if not run.done:
        summary = answer_part(recipe, run)
        write_atomic(run.path / "summary.json", json.dumps(summary, indent=1))
        run.finish(summary)
    return dict(read_state(run.path / "summary.json", ["shard", "prompts"]))


def answer_part(recipe: EvaluateRecipe, run: Run) -> dict[str, object]:
    """The number of a shard's prompts by kind, after engine and judges have seen them.

    Raises RunFailed if no response of the shard has a verdict; the recipe's limit is held by the
    merged run, because a small part may pass it by chance.
    """
    assert recipe.shard is not None, "only a shard comes here"
    every, judges = check_evaluation(recipe)
    prompts = shard_prompts(every, recipe.shard)
    template = load_template(recipe.model, recipe.chat) if in_process(recipe.engine) else None
    note_left_out(run, recipe.model, recipe.engine, name=recipe.run_name)
    model = MeasuredModel(recipe, template)
    completions = model.completions(run, prompts)
    searched = run_searches(recipe, run, model, every)
    model.release()
    prompts, completions = prompts + searched.prompts, completions + searched.completions
    verdicts = resumable_verdicts(run.path / "verdicts.jsonl", judges.refusal, prompts, completions)
    release_judge(judges.refusal)
    name = f"{recipe.run_name}, shard {recipe.shard}"
    check_scored([refusal_verdict(v) for v in verdicts], 1.0, run.path, what=name, key=None)
    if judges.guard is not None:
        said = guard_verdicts(run, judges.guard, prompts, completions)
        check_scored(said, 1.0, run.path, what=f"{name}, the guard", key=None)
    return {"shard": recipe.shard, "prompts": dict(Counter(p.kind for p in prompts))}
