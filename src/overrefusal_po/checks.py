"""`check --data`: reads a stage's data, model config, template and tokenizer, estimates memory, and
loads no weights.

    check_stage(recipe.body)      # '132 pairs, longest row 187 of 512 tokens'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from overrefusal_po.curate.checks import check_curation
from overrefusal_po.curate.inputs import (
    clean_prompts,
    dropped_words,
    read_prompts,
    uneven_words,
)
from overrefusal_po.evaluate.searches import search_costs
from overrefusal_po.evaluate.stage import check_evaluation
from overrefusal_po.fit.anchors import DEV, all_anchors, fit_prompts
from overrefusal_po.fit.model_checks import check_models
from overrefusal_po.fit.stage import checked_prompts
from overrefusal_po.judges import SECOND_KEYS
from overrefusal_po.model.quantised import check_quantiser
from overrefusal_po.named_plugs import engine_lines
from overrefusal_po.pairs.apart import (
    check_apart,
    check_not_chosen_by,
    check_not_measured,
    waived_benchmarks,
)
from overrefusal_po.plugins import check_engine, find_plug, make_refusal_judge, make_second_judge
from overrefusal_po.prompts import looked_at, measured_prompts
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.recipe.search import search_words, trained_bodies
from overrefusal_po.recipe.sections import DertaData
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import Anchors, form_of
from overrefusal_po.report.pipeline_summary import StageRecipe
from overrefusal_po.run.complete import check_template_engine, in_process, load_template
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.hold_place import without_hold
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
from overrefusal_po.train.model_checks import check_model
from overrefusal_po.train.push import push_of
from overrefusal_po.train.search import check_search
from overrefusal_po.train.settings import full_settings
from overrefusal_po.train.sharded_memory import Sharded, Spread, on_gpu, sharded_estimate
from overrefusal_po.train.stage import check_fit, check_shardable, check_sources

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from overrefusal_po.model.chat import ChatTemplate

BATCH_SIZE = "per_device_train_batch_size"


def check_together(stages: Mapping[str, StageRecipe]) -> None:
    """Raises ValueError if two stages of a pipeline do not fit each other."""
    check_openings_used(stages)
    check_stages_apart(stages)


def check_stages_apart(stages: Mapping[str, StageRecipe]) -> None:
    """Raises ValueError if a stage of a pipeline measures prompts that another one curates from,
    trains or fits on, or selects or calibrates by.

    What an earlier stage makes (`@...`) comes from prompts that this earlier stage has read.
    """
    measured, trained, benchmarks = {}, {}, {}
    looked: dict[str, list[Prompt]] = {}
    for name, body in stages.items():
        if isinstance(body, EvaluateRecipe):
            measured[f"stage {name}"] = measured_prompts(body.data)
        elif isinstance(body, CurateRecipe):
            benign, harmful, _ = clean_prompts(body.data, *read_prompts(body))
            trained[f"stage {name}"] = benign + harmful
        elif isinstance(body, FitRecipe):
            train, dev = fit_prompts(body.data)
            trained[f"stage {name}"] = all_anchors(train)
            looked[f"stage {name}, {DEV}"] = all_anchors(dev)
        else:
            owner, waive = f"stage {name}", body.data.get("waive") or {}
            if not any(str(value).startswith("@") for value in body.data.values()):
                trained[owner] = method_module(body.method).read(body).prompts
            benchmarks[owner] = waived_benchmarks(waive, trained.get(owner, ()))
            looked |= {f"{owner}, {key}": found for key, found in looked_at(body).items()}
    check_apart(measured | looked, trained)
    check_not_measured(measured | looked, benchmarks)
    check_not_chosen_by(measured, looked)


def check_openings_used(stages: Mapping[str, StageRecipe]) -> None:
    """Raises ValueError if a training takes whole sides of pairs that are made for openings."""
    for name, body in stages.items():
        maker = pairs_maker(body, stages)
        if not isinstance(body, TrainRecipe) or maker is None:
            continue
        source = body.data["pairs"]
        openings = [one.data.get("opening") for one in trained_bodies(body)]
        if maker.data.openings and None in openings:
            raise ValueError(
                f"stage {name}: data.opening is null, and {source} is made with data.openings: "
                "true, so its sides end in the middle of a sentence. Set data.opening (3 to 8 "
                "tokens), or data.openings: false in the curate stage."
            )


def check_stage(body: StageRecipe, spread: Spread | None = None) -> str:
    """A line of what was found. ValueError for what a user can fix. Earlier outputs (`@...`) do
    not exist yet. `spread`: how a training is sharded, for the estimate of its memory."""
    make_refusal_judge(body.judge)
    for other in SECOND_KEYS:
        if (spec := getattr(body, other, None)) is not None:
            make_second_judge(spec, other)
    if isinstance(body, FitRecipe):
        return fit_line(body)
    if not isinstance(body, TrainRecipe) and in_process(body.engine):
        check_engine(body.engine)
    named = not str(body.model["model_name_or_path"]).startswith("@")
    local = isinstance(body, TrainRecipe) or in_process(body.engine)
    if not isinstance(body, TrainRecipe):
        check_template_engine(body.engine, body.chat)
    if local and not named:  # else the template's loader looks
        check_quantiser(body.model)
    template = load_template(body.model, body.chat) if named and local else None
    if isinstance(body, EvaluateRecipe):
        prompts, _ = check_evaluation(body)
        attacked = sum(p.attack is not None for p in prompts)
        return "; ".join(
            (
                f"{len(prompts) - attacked} prompts to measure"
                + (f", and {attacked} attacked ones" if attacked else ""),
                *search_costs(body, prompts),
                *engine_lines(body),
            )
        )
    if isinstance(body, CurateRecipe):
        check_curation(body)
        benign, harmful, cleaning = clean_prompts(body.data, *read_prompts(body))
        found = f"{len(benign)} benign and {len(harmful)} harmful prompts"
        uneven = uneven_words(body.data, [*benign, *harmful])
        cleaned = (*dropped_words(cleaning), *((uneven,) if uneven else ()))
        return "; ".join((found, *cleaned, *engine_lines(body)))
    looked_at(body)
    push_of(body)
    line = training_line(body, template, spread)
    return line if body.search is None else f"{search_words(body.search)}; {line}"


def fit_line(body: FitRecipe) -> str:
    """The line of a fit: its prompts, and what its remedy leaves if that is known."""
    for section in body.models.values():
        if not str(section["model_name_or_path"]).startswith("@"):
            load_template(section, body.chat)
    train, dev = checked_prompts(body)
    check_models(body)
    module, settings = find_plug("remedies", body.remedy)
    leaves = {"weights": "plain weights", None: "known after the fit"}
    return (
        f"fitted on {anchor_words(train)} prompts, chosen by {anchor_words(dev)}; what it leaves: "
        f"{leaves.get(form_of(module, settings), 'a remedy for model.remedy')}"
    )


def anchor_words(anchors: Anchors) -> str:
    """`134 harmful, 132 benign and 80 ordinary`."""
    harmful, benign, ordinary = map(len, anchors)
    return f"{harmful} harmful, {benign} benign and {ordinary} ordinary"


def training_line(
    body: TrainRecipe, template: ChatTemplate | None, spread: Spread | None = None
) -> str:
    """The line of a training. `template` None: its model is made by an earlier stage."""
    if template is None:
        return "takes what an earlier stage makes; checked when that is done"
    config = config_of(body.model)
    why_not = check_model(body, config)
    unheld = f"; {without_hold(why_not)}" if why_not else ""
    if any(str(value).startswith("@") for value in body.data.values()):
        return f"takes what an earlier stage makes; its data are checked when that is done{unheld}"
    if body.search is None:
        prepared = check_sources(body, template)
        check_fit(prepared, template, config)
    else:
        prepared = check_search(body, template)
    # the widest trial takes most memory
    widest = max(trained_bodies(body), key=lambda one: full_settings(one)[BATCH_SIZE])
    if spread is None:
        memory = memory_of(widest, prepared, config)
        return f"{prepared.line}; memory of a device without sharding: {memory}{unheld}"
    sharded = sharded_memory_of(widest, prepared, config, spread)
    place = f"one of {spread.layout.world} devices ({spread.layout.kind})"
    return f"{prepared.line}; memory of {place}: {sharded}{unheld}"


def later_memory(stages: Mapping[str, StageRecipe]) -> Iterator[tuple[str, str]]:
    """(stage, a line on its memory) of every training of a named model on pairs that a `curate`
    stage has yet to make: its prompts are known, and how long a side may get."""
    for name, body in stages.items():
        maker = pairs_maker(body, stages)
        if maker is None or str(body.model["model_name_or_path"]).startswith("@"):
            continue
        assert isinstance(body, TrainRecipe)
        template = load_template(body.model, body.chat)
        benign, harmful, _ = clean_prompts(maker.data, *read_prompts(maker))
        asked = [len(template.prompt_ids(p.messages, p.assistant_prefix)) for p in benign + harmful]
        drawn = (maker.generation, maker.chosen.generation or maker.generation)
        most = max(one.max_new_tokens for one in drawn)
        widest = max(trained_bodies(body), key=lambda one: full_settings(one)[BATCH_SIZE])
        side = min(widest.data.get("opening") or most, most)
        lengths = np.array([[prompt, side, side] for prompt in asked])  # (P, 3)
        memory = estimated(widest, widest_batch(widest, lengths), config_of(body.model))
        yield name, f"memory of a device without sharding, at most: {memory}"


def pairs_maker(body: StageRecipe, stages: Mapping[str, StageRecipe]) -> CurateRecipe | None:
    """The stage that makes the pairs that a training learns from; None for other stages."""
    source = str(body.data.get("pairs", "")) if isinstance(body, TrainRecipe) else ""
    maker = stages.get(source[1:].partition(".")[0]) if source.startswith("@") else None
    return maker if isinstance(maker, CurateRecipe) else None


def memory_of(recipe: TrainRecipe, prepared: Prepared, config: PretrainedConfig) -> Memory:
    """What a training takes at its peak."""
    return estimated(recipe, widest_of(recipe, prepared), config)


def estimated(recipe: TrainRecipe, batch: Batch, config: PretrainedConfig) -> Memory:
    """What a training with this widest batch takes at its peak."""
    device = device_memory(use_cpu=bool(recipe.trainer.get("use_cpu")))
    return estimate(shape_of(config, recipe.model), recipe, batch, *device)


def sharded_memory_of(
    recipe: TrainRecipe, prepared: Prepared, config: PretrainedConfig, spread: Spread
) -> Sharded:
    """What a training takes at its peak that is spread over devices. ValueError if it cannot be."""
    check_shardable(recipe, {"fsdp" if spread.layout.kind == "fsdp2" else "deepspeed": True})
    shape, batch = shape_of(config, recipe.model), widest_of(recipe, prepared)
    device, available = device_memory(use_cpu=bool(recipe.trainer.get("use_cpu")))
    if spread.gpu_gb is not None:
        device, available, recipe = "cuda", spread.gpu_gb * 1e9, on_gpu(recipe)
    return sharded_estimate(shape, recipe, batch, spread.layout, device, available)


def widest_of(recipe: TrainRecipe, prepared: Prepared) -> Batch:
    """The batch that takes most memory.

    DeRTa's rows count as long as they may be, since a model may still write them.
    """
    if isinstance(recipe.typed_data, DertaData):
        settings = full_settings(recipe)
        tokens = settings["per_device_train_batch_size"] * (settings["max_length"] or 1024)
        return Batch(tokens, tokens)
    return widest_batch(recipe, prepared.lengths)
