"""`check --data`: reads a stage's data, model config, template and tokenizer, estimates memory, and
loads no weights.

    check_stage(recipe.body)      # '132 pairs, longest row 187 of 512 tokens'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.curate.checks import check_curation
from overrefusal_po.curate.inputs import clean_prompts, read_prompts
from overrefusal_po.evaluate.stage import check_evaluation
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.pairs.apart import check_apart
from overrefusal_po.pairs.files import read_pairs
from overrefusal_po.pairs.findings import RESPONSE_SIDES
from overrefusal_po.pairs.firewall import contamination
from overrefusal_po.pairs.lint import lint
from overrefusal_po.plugins import make_judge
from overrefusal_po.prompts import measured_prompts, read_source
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.recipe.sections import DertaData
from overrefusal_po.run.complete import check_template_engine, in_process, load_template
from overrefusal_po.sources._local import local_rows
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.memory import (
    Batch,
    Memory,
    config_of,
    device_memory,
    estimate,
    shape_of,
    widest_batch,
)
from overrefusal_po.train.method import method_module
from overrefusal_po.train.model_checks import check_tied
from overrefusal_po.train.settings import full_settings
from overrefusal_po.train.stage import check_fit, check_sources

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_file(path: Path) -> tuple[list[dict[str, object]], bool]:
    """(every finding about a file of pairs or of prompts, whether one of them stops): linter and
    benchmark firewall."""
    first = next(iter(local_rows(str(path))))[1]
    if not any(side in first for side in RESPONSE_SIDES):
        prompts = read_source({"name": "file", "path": str(path), "kind": "general"}, None)
        hits = [hit._asdict() for hit in contamination(prompts)]
        return hits, bool(hits)
    pairs = read_pairs(path)
    found = lint(pairs, RefusalJudge())
    rows = {pair.prompt.id: pair.id for pair in pairs}
    hits = [
        {**hit._asdict(), "id": rows[hit.id]}
        for hit in contamination([pair.prompt for pair in pairs])
    ]
    return [finding._asdict() for finding in found.findings] + hits, bool(found.errors or hits)


def check_stages_apart(stages: Mapping[str, TrainRecipe | CurateRecipe | EvaluateRecipe]) -> None:
    """Raises ValueError if a stage of a pipeline measures prompts that another one curates or
    trains on.

    What an earlier stage makes (`@...`) comes from prompts that this earlier stage has read.
    """
    measured, trained = {}, {}
    for name, body in stages.items():
        if isinstance(body, EvaluateRecipe):
            measured[f"stage {name}"] = measured_prompts(body.data)
        elif isinstance(body, CurateRecipe):
            benign, harmful, _ = clean_prompts(body.data, *read_prompts(body))
            trained[f"stage {name}"] = benign + harmful
        elif not any(str(value).startswith("@") for value in body.data.values()):
            trained[f"stage {name}"] = method_module(body.method).read(body).prompts
    check_apart(measured, trained)


def check_stage(body: TrainRecipe | CurateRecipe | EvaluateRecipe) -> str:
    """A line of what was found. ValueError for what a user can fix. Earlier outputs (`@...`) do
    not exist yet."""
    named = not str(body.model["model_name_or_path"]).startswith("@")
    local = isinstance(body, TrainRecipe) or in_process(body.engine)
    if not isinstance(body, TrainRecipe):
        check_template_engine(body.engine, body.chat)
    template = load_template(body.model, body.chat) if named and local else None
    if isinstance(body, EvaluateRecipe):
        prompts, _ = check_evaluation(body)
        attacked = sum(p.attack is not None for p in prompts)
        return f"{len(prompts) - attacked} prompts to measure" + (
            f", and {attacked} attacked ones" if attacked else ""
        )
    if isinstance(body, CurateRecipe):
        make_judge(body.judge)
        check_curation(body)
        benign, harmful = read_prompts(body)
        return f"{len(benign)} benign and {len(harmful)} harmful prompts"
    if template is None or any(str(value).startswith("@") for value in body.data.values()):
        return "takes what an earlier stage makes; checked when that is done"
    config = config_of(body.model)
    check_tied(body.model, config)
    prepared = check_sources(body, template)
    check_fit(prepared, template, config)
    memory = memory_of(body, prepared, config)
    return f"{prepared.line}; memory of a device without sharding: {memory}"


def memory_of(recipe: TrainRecipe, prepared: Prepared, config: PretrainedConfig) -> Memory:
    """What a training takes at its peak.

    DeRTa's rows count as long as they may be, since a model may still write them.
    """
    if isinstance(recipe.typed_data, DertaData):
        settings = full_settings(recipe)
        tokens = settings["per_device_train_batch_size"] * (settings["max_length"] or 1024)
        batch = Batch(tokens, tokens)
    else:
        batch = widest_batch(recipe, prepared.lengths)
    shape = shape_of(config, recipe.model)
    return estimate(
        shape, recipe, batch, *device_memory(use_cpu=bool(recipe.trainer.get("use_cpu")))
    )
