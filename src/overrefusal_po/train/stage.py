"""Stage: data and a model -> a TRL trainer (see `trainers`) -> adapter/ and model/ (adapter merged)
in the run folder.

    accelerate launch recipes/dpo.yaml

Rank 0 makes the data (harmful responses come from the student itself at run time), writes and
locks; the other ranks wait and read. A run that was killed or interrupted goes on from its last
checkpoint (see `interrupts`).
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.sharding import check_sharding, fsdp_version, wants_fsdp
from overrefusal_po.pairs.apart import check_apart
from overrefusal_po.plugins import make_judge
from overrefusal_po.prompts import dev_prompts
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import DertaData, PairsData
from overrefusal_po.recipe.trl_fields import cache_folder
from overrefusal_po.records import PreferencePair, Prompt, Triple, read_jsonl, write_atomic
from overrefusal_po.run.complete import load_template
from overrefusal_po.run.folder import Run
from overrefusal_po.run.interrupts import drop_incomplete, last_checkpoint, resumable
from overrefusal_po.train.data import check_training_data, make_data, trained_prompts
from overrefusal_po.train.selection import check_not_sharded, selected_step, two_sided_callback
from overrefusal_po.train.trackers import check_trackers, tracker_callback
from overrefusal_po.train.trainers import METHODS, hardware_settings, trainer_config

logger = logging.getLogger(__name__)


def train(recipe: TrainRecipe, open_run: Callable[[bool], Run]) -> dict[str, Any]:
    """Runs the stage. `open_run(writer)` opens the run folder; returns {loss, steps, model,
    adapter}."""
    run = open_run(False)  # which only reads
    known = run.status()
    if known.get("state") == "done" and known["key"] == run.key:
        stored: dict[str, Any] = known["summary"]
        return stored
    # `resumable` does what enable_jit_checkpoint would, for SIGINT too and at the end of a step
    settings = {
        **hardware_settings(recipe.trainer),
        **recipe.trainer,
        "enable_jit_checkpoint": False,
    }
    check_sharding(
        settings,
        frozen_reference=recipe.method in ("dpo", "kto") and not recipe.model.get("use_peft"),
    )
    if recipe.select is not None:
        check_not_sharded(settings)
    state = models.check_world(
        use_cpu=bool(settings.get("use_cpu")),
        fsdp=wants_fsdp(settings),
        timeout_seconds=settings.get("ddp_timeout", 1800),
    )
    method_config(recipe, {**settings, "output_dir": "unused"})
    template = load_template(recipe.model, recipe.chat)
    found = check_sources(recipe, template)
    with open_run(state.is_main_process) as run:
        if not run.done:
            if state.is_main_process:
                logger.info("data: %s", found)
                make_data(recipe, run, template)
                drop_incomplete(run.path / "checkpoints")
            state.wait_for_everyone()
            trainer = make_trainer(recipe, run, template, settings)
            check_joined(trainer)
            if recipe.select is not None:
                look = two_sided_callback(
                    trainer, template=template, select=recipe.select, folder=run.path
                )
                trainer.add_callback(look)
            trainer.add_callback(tracker_callback(run.resolved, run.path))
            with resumable(trainer):
                trainer.train(resume_from_checkpoint=last_checkpoint(run.path / "checkpoints"))
            save(trainer, recipe, template, run)
            state.wait_for_everyone()
        summary: dict[str, Any] = json.loads((run.path / "training.json").read_text())["summary"]
    return summary


def check_sources(recipe: TrainRecipe, template: ChatTemplate) -> str:
    """Reads and checks what the recipe names before any weight is loaded; returns a line of what
    was found.

    Raises ValueError that names file, line and field, or the row that cannot be trained on.
    """
    check_trackers(recipe.trainer.get("report_to"))
    found = check_training_data(recipe, template)
    check_selection(recipe)
    return found


def check_selection(recipe: TrainRecipe) -> None:
    """Raises ValueError where the judge or the prompts that steps are selected by are not there, or
    are trained on."""
    if recipe.select is not None:
        make_judge(recipe.select.judge)
        check_apart({"select.sets": dev_prompts(recipe.select)}, {"data": trained_prompts(recipe)})


def make_trainer(
    recipe: TrainRecipe, run: Run, template: ChatTemplate, settings: dict[str, Any]
) -> Any:
    """The method's trainer on data.jsonl, its policy loaded with the recipe's model options."""
    from trl import ModelConfig, get_peft_config

    method = METHODS[recipe.method]
    config = method_config(recipe, {**settings, "output_dir": str(run.path / "checkpoints")})
    section = {k: v for k, v in recipe.model.items() if k != "trust_remote_code"}
    extra: dict[str, Any] = {}
    rows: Sequence[Any]
    if method.eats == "pairs":
        rows = read_jsonl(run.path / "data.jsonl", PreferencePair)
        data = recipe.typed_data
        assert isinstance(data, PairsData)
        extra = {"opening": data.opening}
        if recipe.method != "kto":  # whose rows share no prompt
            extra["shared_prefix"] = recipe.speed.shared_prefix
        if recipe.method == "dpo":
            extra["reference_store"] = reference_folder(recipe, settings)
    elif method.eats == "prompts":
        rows = read_jsonl(run.path / "data.jsonl", Prompt)
    else:
        data = recipe.typed_data
        assert isinstance(data, DertaData)
        rows = read_jsonl(run.path / "data.jsonl", Triple)
        helpful = run.path / "helpful.jsonl"
        extra = {
            "helpful": read_jsonl(helpful, Prompt) if helpful.stat().st_size else (),
            "refusal_opener": data.refusal_opener,
            "prefix_unit": data.prefix_unit,
            "rto_dropout": data.rto_dropout,
            "tree": recipe.speed.tree,
        }
    options = models.model_options(recipe.model, fsdp=wants_fsdp(settings))
    if not recipe.model.get("use_peft"):
        options["dtype"] = (
            options["dtype"] or "float32"
        )  # full fine-tuning: steps of 1e-6 are lost in bfloat16
    return method.factory(
        models.load_model(**options),
        rows,
        args=config,
        peft_config=get_peft_config(ModelConfig(**section)),
        template=template,
        **extra,
    )


def reference_folder(recipe: TrainRecipe, settings: Mapping[str, Any]) -> Path | None:
    """Where reference log-probs are kept; None where the recipe wants no store, or where there can
    be none."""
    if not recipe.speed.reference_store or settings.get("sync_ref_model"):
        return None
    if wants_fsdp(settings) and fsdp_version(settings) == "1":
        logger.info(
            "speed.reference_store is left out: FSDP 1 hides which weights are whose "
            "(fsdp_version: 2 does not)"
        )
        return None
    return cache_folder() / "reference"


def method_config(recipe: TrainRecipe, settings: Mapping[str, Any]) -> Any:
    """The method's TRL config object. ValueError for settings that TRL itself finds at odds with
    each other."""
    module, _, name = METHODS[recipe.method].config.rpartition(".")
    return trainer_config(
        getattr(importlib.import_module(module), name), {"seed": recipe.seed, **settings}
    )


def check_joined(trainer: Any) -> None:
    """Asserts that all launched processes are one world for the trainer too."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    assert trainer.accelerator.num_processes == launched, (
        "launched processes that are not one world"
    )


def save(trainer: Any, recipe: TrainRecipe, template: ChatTemplate, run: Run) -> None:
    """Writes adapter/ (LoRA), model/ (merged) and training.json; rank 0 writes, all ranks gather
    what is sharded."""
    weights = models.gathered_weights(trainer)
    history = trainer.state.log_history
    losses = [row[key] for key in ("train_loss", "loss") for row in history if key in row]
    if not run.writer:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    summary = {
        "steps": trainer.state.global_step,
        "loss": losses[-1] if losses else None,
        "model": str(run.path / "model"),
    }
    if (run.path / "too_long.json").is_file():
        left_out = json.loads((run.path / "too_long.json").read_text())
        summary["too_long"] = {
            f"{name}s": f"{row['left_out']} of {row['of']}" for name, row in left_out.items()
        }
    if (run.path / "selection.jsonl").is_file():
        summary["selected_step"] = selected_step(run.path)
    if hasattr(model, "peft_config"):
        model.save_pretrained(run.path / "adapter", state_dict=weights)
        summary["adapter"] = str(run.path / "adapter")
        if weights is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(
                models.load_model(**models.model_options(recipe.model)), run.path / "adapter"
            )
            weights = None
    models.save_merged(model, template.tokenizer, run.path / "model", weights)
    write_atomic(
        run.path / "training.json", json.dumps({"summary": summary, "history": history}, indent=1)
    )
    run.finish(summary)
