"""`check --data`: reads a stage's data, model config, template and tokenizer, and loads no weights.

check_stage(recipe.body)      # '132 pairs, longest row 187 of 512 tokens'
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overrefusal_po.curate import check_rejects, read_prompts
from overrefusal_po.evaluate import check_evaluation
from overrefusal_po.generate import in_process, load_template
from overrefusal_po.hygiene import contamination
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.lint import lint
from overrefusal_po.pair_files import read_pairs
from overrefusal_po.plugins import make_judge, read_source
from overrefusal_po.recipe import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.records import read_objects
from overrefusal_po.train import check_sources


def check_file(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """(every finding about a file of pairs or of prompts, whether one of them stops): linter and benchmark firewall."""
    first = next(iter(read_objects(path)))[1]
    if "chosen" not in first or "rejected" not in first:
        prompts = read_source({"name": "file", "path": str(path), "kind": "general"}, None)
        hits = [hit._asdict() for hit in contamination(prompts)]
        return hits, bool(hits)
    pairs = read_pairs(path)
    found = lint(pairs, RefusalJudge())
    rows = {pair.prompt.id: pair.id for pair in pairs}
    hits = [{**hit._asdict(), "id": rows[hit.id]} for hit in contamination([pair.prompt for pair in pairs])]
    return [finding._asdict() for finding in found.findings] + hits, bool(found.errors or hits)


def check_stage(body: TrainRecipe | CurateRecipe | EvaluateRecipe) -> str:
    """A line of what was found. ValueError for what a user can mend. Earlier outputs (`@...`) are not there yet."""
    named = not str(body.model["model_name_or_path"]).startswith("@")
    local = isinstance(body, TrainRecipe) or in_process(body.engine)
    template = load_template(body.model, body.chat) if named and local else None
    if isinstance(body, EvaluateRecipe):
        prompts = check_evaluation(body)
        attacked = sum(p.attack is not None for p in prompts)
        return f"{len(prompts) - attacked} prompts to measure" + (f", and {attacked} attacked ones" if attacked else "")
    if isinstance(body, CurateRecipe):
        make_judge(body.judge)
        check_rejects(body)
        benign, harmful = read_prompts(body)
        return f"{len(benign)} benign and {len(harmful)} harmful prompts"
    if template is None or any(str(value).startswith("@") for value in body.data.values()):
        return "takes what an earlier stage makes; checked when that is done"
    return check_sources(body, template)
