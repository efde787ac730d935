"""Stage: data and a model -> a TRL trainer -> adapter/ and model/ (adapter merged) in the run
folder.

    accelerate launch recipes/dpo.yaml

The first process reads, checks and tokenises the data, writes and locks; the others wait and read.
A run that was killed or interrupted goes on from its last checkpoint (see `run.interrupts`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from overrefusal_po.identity import check_kinds
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.parts import load_start
from overrefusal_po.model.sharding import check_sharding, check_whole, wants_fsdp
from overrefusal_po.model.zero import check_deepspeed, joining, loading_whole
from overrefusal_po.pairs.apart import check_apart, check_not_measured
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.prompts import looked_at
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import PreferencePair, Prompt, read_state, write_atomic
from overrefusal_po.run.complete import load_template
from overrefusal_po.run.folder import Run
from overrefusal_po.run.interrupts import drop_unusable, last_checkpoint
from overrefusal_po.run.packages import import_large
from overrefusal_po.train.data import Prepared, Source, is_saved, load_rows
from overrefusal_po.train.finite import finite_callback
from overrefusal_po.train.first_rows import check_first_rows
from overrefusal_po.train.hash_team import HashTeam
from overrefusal_po.train.hold import Holder
from overrefusal_po.train.hold_start import check_start
from overrefusal_po.train.lengths import warn_of_left_out
from overrefusal_po.train.lost_ranks import lost_ranks_named
from overrefusal_po.train.memory import config_of
from overrefusal_po.train.method import method_module
from overrefusal_po.train.model_checks import check_model, check_vocabulary, warn_of_missing_bos
from overrefusal_po.train.output import save
from overrefusal_po.train.policy import adapter_config
from overrefusal_po.train.progress import speak_in_words
from overrefusal_po.train.push import check_push, push_of, push_run, without_push
from overrefusal_po.train.resume import resumable
from overrefusal_po.train.selection import check_not_sharded, two_sided_callback
from overrefusal_po.train.settings import hardware_settings, method_config
from overrefusal_po.train.sharded import check_adapter_rows
from overrefusal_po.train.student import student_answers
from overrefusal_po.train.trackers import check_trackers, tracker_callback
from overrefusal_po.train.windows import check_passes

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import (
        PretrainedConfig,
        PreTrainedTokenizerBase,
        Trainer,
        TrainingArguments,
    )

T = TypeVar("T")
logger = logging.getLogger(__name__)


def train(recipe: TrainRecipe, open_run: Callable[[bool], Run]) -> dict[str, Any]:
    """Runs the stage. `open_run(writer)` opens the run folder; returns {loss, steps, model,
    ...}."""
    run = open_run(False)  # which only reads
    known = run.status()
    push = push_of(recipe)
    if known.get("state") == "done" and known["key"] == run.key:
        if os.environ.get("RANK", "0") == "0":
            push_run(push, run.path)
        stored: dict[str, Any] = known["summary"]
        return stored
    fresh = "torch" not in sys.modules  # so no model is there, which must not be set apart
    settings = checked_settings(recipe)
    seconds = settings.get("ddp_timeout", 1800)
    with joining(settings):
        state = models.check_world(
            use_cpu=bool(settings.get("use_cpu")),
            fsdp=wants_fsdp(settings),
            timeout_seconds=seconds,
        )
    if fresh:
        import_large("overrefusal_po.train.trl_private")  # which imports the trainers of TRL
    with lost_ranks_named(processes=state.num_processes, seconds=seconds):
        return train_in(state, recipe, open_run, settings)


def train_in(
    state: PartialState,
    recipe: TrainRecipe,
    open_run: Callable[[bool], Run],
    settings: dict[str, Any],  # a value has the type of its key
) -> dict[str, Any]:
    """`train` in a process that is joined to the others; `settings` are checked."""
    run, push = open_run(False), push_of(recipe)
    config = method_config(recipe, {**settings, "output_dir": str(run.path / "checkpoints")})
    template = load_template(recipe.model, recipe.chat)
    check_trackers(recipe.trainer.get("report_to"))
    if push is not None:
        in_first_process(state, lambda: check_push(push))
    made = in_first_process(state, lambda: first_data(recipe, run, template))
    seconds = settings.get("ddp_timeout", 1800)
    named = lost_ranks_named(processes=state.num_processes, seconds=seconds)
    with open_run(state.is_main_process) as run, named:  # the run notes the sentence
        if not run.done:
            checkpoints = run.path / "checkpoints"
            HashTeam(state, seconds).work(lambda hashing: drop_unusable(checkpoints, hashing))
            in_first_process(state, lambda: write_data(recipe, run, template, made))
            trainer = make_trainer(recipe, load_rows(run.path), config, template)
            check_joined(trainer)
            template = trained_template(trainer, template)
            run_training(recipe, trainer, run, template)
            save(trainer, recipe, template, run)
            state.wait_for_everyone()
        summary: dict[str, Any] = read_state(run.path / "training.json", ["summary"])["summary"]
    if push is not None:
        in_first_process(state, lambda: push_run(push, run.path))
        state.wait_for_everyone()  # a rank that ends closes the others' connections
    return summary


def checked_settings(recipe: TrainRecipe) -> dict[str, Any]:
    """The trainer's settings; ValueError for sharding that would end in empty weights."""
    # `resumable` does what enable_jit_checkpoint would, for SIGINT too and at the end of a step
    hardware = hardware_settings(recipe.trainer)
    settings = {**hardware, **without_push(recipe.trainer), "enable_jit_checkpoint": False}
    check_shardable(recipe, settings)
    check_deepspeed(settings, recipe.model)
    method = find_method(recipe.method)
    check_sharding(
        settings,
        frozen_reference=method.needs_reference and not recipe.model.get("use_peft"),
    )
    if method.shares_prefix:
        check_passes(settings, recipe.speed.pass_tokens)
    check_adapter_rows(recipe.model, settings)
    if recipe.hold is not None and settings.get("save_strategy") == "no":
        raise ValueError(
            "hold measures the trained model before it is saved. Without a checkpoint a fault in "
            "it would lose the training: leave trainer.save_strategy: no out."
        )
    return settings


def check_shardable(recipe: TrainRecipe, settings: Mapping[str, object]) -> None:
    """Raises ValueError if `settings` shard weights that the recipe's method, `select` or `hold`
    needs whole."""
    method = find_method(recipe.method)
    if method.soft_tokens:
        check_whole(settings, f"method: {method.name}")
    for key in ("select", "hold"):
        if getattr(recipe, key) is not None:
            check_not_sharded(settings, key)


def in_first_process(state: PartialState, make: Callable[[], T]) -> T | None:
    """What `make` returns in the first process, None in the others, which wait for it.

    A ValueError of the first process ends all of them with the same words.
    """
    made, fault = None, None
    if state.is_main_process:
        try:
            with loading_whole():
                made = make()
        except ValueError as error:
            if state.num_processes == 1:
                raise
            fault = str(error)
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        fault = broadcast_object_list([fault], from_process=0)[0]
    if fault is not None:
        raise ValueError(fault)
    return made


class FirstData(NamedTuple):
    """What was read and checked before the run folder was opened."""

    source: Source
    prepared: Prepared


def first_data(recipe: TrainRecipe, run: Run, template: ChatTemplate) -> FirstData | None:
    """What the recipe names, read and checked; None if the run folder holds the data already.

    Raises ValueError that names file, line and field, or the row that cannot be trained on.
    """
    if is_saved(run.path):
        return None
    config = config_of(recipe.model)
    check_model(recipe, config)
    source, prepared = read_and_prepare(recipe, template)
    check_fit(prepared, template, config)
    return FirstData(source, prepared)


def read_and_prepare(recipe: TrainRecipe, template: ChatTemplate) -> tuple[Source, Prepared]:
    """The recipe's records and what is made of them, before any weight is loaded; warns of a
    missing BOS."""
    module = method_module(recipe.method)
    source = module.read(recipe)
    if not any(isinstance(record, PreferencePair) for record in source.records):
        check_kinds(source.prompts)  # of pairs the linter finds it, and a waiver may let it stand
    prepared = module.prepare(recipe, source, template, None)
    check_selection(recipe, source.prompts, prepared)
    warn_of_missing_bos(template)
    return source, prepared


def check_fit(prepared: Prepared, template: ChatTemplate, config: PretrainedConfig) -> None:
    """Raises ValueError if rows, template and model do not fit."""
    check_first_rows(prepared, template)
    check_vocabulary(prepared, template, config)


def check_sources(recipe: TrainRecipe, template: ChatTemplate) -> Prepared:
    """`read_and_prepare`, with trackers and push checked: what `check --data` shows."""
    check_trackers(recipe.trainer.get("report_to"))
    push_of(recipe)
    return read_and_prepare(recipe, template)[1]


def check_selection(recipe: TrainRecipe, trained: Sequence[Prompt], prepared: Prepared) -> None:
    """Raises ValueError if steps are selected by a missing judge or by prompts trained on."""
    for sets in (recipe.looks, recipe.held):
        if sets is not None:
            make_refusal_judge(sets.judge or recipe.judge)
    measured = looked_at(recipe)
    start = None if recipe.held is None else recipe.held.start
    if recipe.held is not None and start is not None and not start.startswith("@"):
        check_start(recipe.held, measured["hold.sets"])  # `@dpo.start` is not made yet
    if not measured:
        return  # the signatures of all that is trained on are compared below
    check_apart(measured, {"data": trained})
    groups = [f.group for f, _ in prepared.waived if f.group and f.check == "contamination"]
    check_not_measured(measured, {"data": [name.partition("/")[2] for name in groups]})


def write_data(
    recipe: TrainRecipe, run: Run, template: ChatTemplate, made: FirstData | None
) -> None:
    """Writes the data of the run unless they are there; the student answers first if it must."""
    if made is None:
        return
    source, prepared = made
    logger.info("data: %s", prepared.line)
    if source.asked:
        said = student_answers(recipe, run, template, source.asked, samples=source.samples)
        prepared = method_module(recipe.method).prepare(recipe, source, template, said)
        check_fit(prepared, template, config_of(recipe.model))
        logger.info("data, with what the student said: %s", prepared.line)
    warn_of_left_out(prepared.left_out)
    prepared.save(run.path)


def make_trainer(
    recipe: TrainRecipe, prepared: Prepared, config: TrainingArguments, template: ChatTemplate
) -> Trainer:
    """The method's trainer on prepared rows, its policy loaded with the recipe's model options."""
    options = models.model_options(recipe.model, fsdp=wants_fsdp(vars(config)))
    if not recipe.model.get("use_peft"):  # full fine-tuning: bfloat16 loses steps of 1e-6
        options["dtype"] = options["dtype"] or "float32"
    logger.info("loading %s", options["name"])
    return method_module(recipe.method).recipe_trainer(
        load_start(options, trains_all=not recipe.model.get("use_peft")),
        prepared,
        recipe=recipe,
        args=config,
        template=template,
        peft_config=adapter_config(recipe.model),
    )


def trained_template(trainer: Trainer, template: ChatTemplate) -> ChatTemplate:
    """The chat template of the trained model; a method may add tokens to the tokenizer."""
    tokenizer = cast("PreTrainedTokenizerBase", trainer.processing_class)
    if tokenizer is template.tokenizer:
        return template
    return ChatTemplate(
        tokenizer, system_prompt=template.system_prompt, template_kwargs=template.template_kwargs
    )


def run_training(recipe: TrainRecipe, trainer: Trainer, run: Run, template: ChatTemplate) -> None:
    """Trains from the last checkpoint, with two-sided looks and trackers as the recipe asks."""
    if (looks := recipe.looks) is not None:
        look = two_sided_callback(trainer, template=template, select=looks, folder=run.path)
        trainer.add_callback(look)
    trainer.add_callback(tracker_callback(run.resolved, run.path))
    trainer.add_callback(finite_callback(trainer))
    speak_in_words(trainer)
    note_processes(run, trainer.accelerator.num_processes)
    checkpoint = last_checkpoint(run.path / "checkpoints")
    holder = None
    if (hold := recipe.held) is not None:
        holder = Holder(trainer, template=template, hold=hold, folder=run.path)
        holder.begin(resumed=checkpoint is not None)
    with resumable(trainer, lambda: run.lost):
        trainer.train(resume_from_checkpoint=checkpoint)
    if holder is not None and run.writer:
        holder.end()


def note_processes(run: Run, number: int) -> None:
    """Notes the number of processes; ValueError if another number began this training.

    Batches would be others, and the epoch would go back: the result is not that of one training.
    """
    file = run.path / "processes.json"
    known = read_state(file, ["processes"])["processes"] if file.is_file() else number
    if known != number and last_checkpoint(run.path / "checkpoints") is not None:
        raise ValueError(
            f"{run.path} holds checkpoints of a training with {known} processes, and {number} were "
            f"launched: the batches would be others. Launch {known} again, or delete "
            f"{run.path / 'checkpoints'} to train from the start."
        )
    if run.writer:
        write_atomic(file, json.dumps({"processes": number}))


def check_joined(trainer: Any) -> None:
    """Asserts that all launched processes are one world for the trainer too."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    assert trainer.accelerator.num_processes == launched, (
        "launched processes that are not one world"
    )
