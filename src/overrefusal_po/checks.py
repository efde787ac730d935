"""`check --data`: reads a stage's data, model config, template and tokenizer, and loads no weights.

check_stage(recipe.body)      # '132 pairs, longest row 187 of 512 tokens'
"""

from __future__ import annotations

from overrefusal_po.curate import check_rejects, read_prompts
from overrefusal_po.evaluate import check_evaluation
from overrefusal_po.generate import load_template
from overrefusal_po.plugins import make_judge
from overrefusal_po.recipe import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.train import check_sources


def check_stage(body: TrainRecipe | CurateRecipe | EvaluateRecipe) -> str:
    """A line of what was found. ValueError for what a user can mend. Earlier outputs (`@...`) are not there yet."""
    named = not str(body.model["model_name_or_path"]).startswith("@")
    template = load_template(body.model, body.chat) if named else None
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
