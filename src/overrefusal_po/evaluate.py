"""Stage: model and prompts -> completions -> verdicts -> outcomes.jsonl and metrics.json.

    overrefusal-po recipes/evaluate.yaml --model.model_name_or_path=my-model

The judge reads the whole response. Without a guard model on board a harmful prompt counts as "refused", never "safe".
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from overrefusal_po.generate import complete, engine_for, load_template, sampling_of
from overrefusal_po.metrics import run_metrics
from overrefusal_po.plugins import make_attack, make_judge, read_source, split_spec
from overrefusal_po.recipe import EvaluateData, EvaluateRecipe
from overrefusal_po.records import Outcome, Prompt, content_id, write_atomic, write_jsonl
from overrefusal_po.runs import Run

logger = logging.getLogger(__name__)


def measured_prompts(data: EvaluateData) -> list[Prompt]:
    """The prompts of all sets, each once. A fixed subset of each kind where the recipe limits them."""
    found: dict[str, Prompt] = {}
    for spec in data.sets:
        prompts = read_source(spec, data.split)
        if data.max_prompts_per_kind is not None:
            prompts = fixed_subset(prompts, data.max_prompts_per_kind)
        for prompt in prompts:
            found.setdefault(prompt.id, prompt)
    plain = list(found.values())
    return plain + attacked_prompts(plain, data.attacks)


def attacked_prompts(prompts: Sequence[Prompt], attacks: Sequence[str | dict[str, Any]]) -> list[Prompt]:
    """Every attack on every harmful prompt, each form once. ValueError where an attack makes nothing of all of them."""
    found: dict[str, Prompt] = {}
    harmful = [prompt for prompt in prompts if prompt.kind == "harmful"]
    for spec in attacks:
        attack = make_attack(spec)
        made = [form for prompt in harmful for form in attack(prompt)]
        if not made:
            raise ValueError(
                f"data.attacks: {spec!r} makes no prompt of the {len(harmful)} harmful prompts in data.sets. Give sets with "
                "harmful prompts, or a file of attacks on these prompts."
            )
        found |= {form.id: form for form in made}
    return list(found.values())


def fixed_subset(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` prompts of each kind, chosen by content hash and spread evenly over the categories."""
    ranked: dict[str, list[tuple[int, str, Prompt]]] = defaultdict(list)
    seen: dict[tuple[str, str, bool], int] = defaultdict(int)
    for prompt in sorted(prompts, key=lambda p: content_id("subset", p.id)):
        group = (prompt.kind, prompt.category, prompt.contrast)
        ranked[prompt.kind].append((seen[group], content_id(prompt.id), prompt))
        seen[group] += 1
    return [row[2] for rows in ranked.values() for row in sorted(rows, key=lambda r: r[:2])[:limit]]


def evaluate(recipe: EvaluateRecipe, run: Run) -> dict[str, Any]:
    """Runs the stage in an open run folder; returns the run's metrics as report and summary show them."""
    prompts = measured_prompts(recipe.data)
    judge = make_judge(recipe.judge)
    template = load_template(recipe.model, recipe.chat)
    if not run.done:
        name = str(recipe.model["model_name_or_path"])
        completions = complete(
            run.path / "completions.jsonl",
            prompts,
            sampling_of(recipe.generation, recipe.seed),
            lambda: engine_for(recipe.model, template, recipe.generation, name),
            f"{recipe.name}: answering {len(prompts)} prompts",
        )
        verdicts = judge.score(prompts, completions)
        outcomes = [
            Outcome(prompt=p, completion=c, verdict=v) for p, c, v in zip(prompts, completions, verdicts, strict=True)
        ]
        write_jsonl(run.path / "outcomes.jsonl", outcomes)
        metrics = run_metrics(outcomes, seed=recipe.seed).as_dict(recipe.name, name)
        metrics["measured"] = measured(recipe, judge)
        write_atomic(run.path / "metrics.json", json.dumps(metrics, indent=1))
        run.finish({key: metrics[key] for key in ("nur", "nor", "f1")})
    found: dict[str, Any] = json.loads((run.path / "metrics.json").read_text())
    return found


def measured(recipe: EvaluateRecipe, judge: Any) -> dict[str, Any]:
    """What was measured how, in words, for the report."""
    generation = recipe.generation
    how = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    split = f" ({recipe.data.split} split)" if recipe.data.split else ""
    sets = [split_spec(spec, "sources") for spec in recipe.data.sets]
    limit = recipe.data.max_prompts_per_kind
    return {
        "judge": f"{judge.name} {judge.version} (built in, offline; reads the whole response)"
        if recipe.judge == "refusal"
        else f"{judge.name} {judge.version}",
        "sets": [(settings.get("path") or name) + (split if name == "starter" else "") for name, settings in sets],
        "engine": f"transformers, {how}, up to {generation.max_new_tokens} new tokens",
        "guard": None,
        "notes": [f"A fixed subset of at most {limit} prompts of each kind was measured."] if limit else [],
    }
