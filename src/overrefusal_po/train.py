"""Stage: data and a model -> a TRL trainer (see `trainers`) -> adapter/ and model/ (adapter merged) in the run folder.

    accelerate launch recipes/dpo.yaml

Rank 0 makes the data (harmful responses come from the student itself at run time), writes and locks; the other ranks
wait and read. A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from overrefusal_po import models
from overrefusal_po.chat import ChatTemplate
from overrefusal_po.derta import refusal_token
from overrefusal_po.fields import cache_folder, field_table
from overrefusal_po.generate import complete, engine_for, load_template, sampling_of
from overrefusal_po.hygiene import contamination
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.lint import lint
from overrefusal_po.pairs import containment_pair, written_pairs
from overrefusal_po.plugins import make_judge, read_source
from overrefusal_po.recipe import METHOD_CONFIGS, DertaData, PairsData, SftData, TrainRecipe
from overrefusal_po.records import PreferencePair, Prompt, Triple, content_id, read_jsonl, write_atomic, write_jsonl
from overrefusal_po.runs import Run
from overrefusal_po.selection import check_apart, check_not_sharded, dev_prompts, selected_step, two_sided_callback
from overrefusal_po.trainers import METHODS, check_openers, check_pair, hardware_settings, trainer_config

logger = logging.getLogger(__name__)
R = TypeVar("R", PreferencePair, Prompt, Triple)


def train(recipe: TrainRecipe, open_run: Callable[[bool], Run]) -> dict[str, Any]:
    """Runs the stage. `open_run(writer)` opens the run folder; returns {loss, steps, model, adapter}."""
    settings = {**hardware_settings(recipe.trainer), **recipe.trainer}
    state = models.check_world(use_cpu=bool(settings.get("use_cpu")))
    method_config(recipe, {**settings, "output_dir": "unused"})
    if recipe.select is not None:
        check_not_sharded(settings)
    template = load_template(recipe.model, recipe.chat)
    check_sources(recipe, template)
    with open_run(state.is_main_process) as run:
        if not run.done:
            if state.is_main_process:
                make_data(recipe, run, template)
            state.wait_for_everyone()
            trainer = make_trainer(recipe, run, template, settings)
            check_joined(trainer)
            if recipe.select is not None:
                look = two_sided_callback(trainer, template=template, select=recipe.select, folder=run.path)
                trainer.add_callback(look)
            trainer.train(resume_from_checkpoint=last_checkpoint(run.path / "checkpoints"))
            save(trainer, template, run)
            state.wait_for_everyone()
        found: dict[str, Any] = json.loads((run.path / "training.json").read_text())["summary"]
    return found


def check_sources(recipe: TrainRecipe, template: ChatTemplate) -> str:
    """Reads and checks what the recipe names before any weight is loaded; returns a line of what was found.

    Raises ValueError that names file, line and field, or the row that cannot be trained on.
    """
    found = check_training_data(recipe, template)
    check_selection(recipe)
    return found


def check_training_data(recipe: TrainRecipe, template: ChatTemplate) -> str:
    """The part of `check_sources` that is about what is trained on."""
    data = recipe.typed_data
    if isinstance(data, PairsData):
        pairs = loaded_pairs(data.pairs)
        longest = max(check_pair(pair, template, pair_limit(recipe)) for pair in pairs)
        anchored = data.pairs == "starter" and data.containment == "student"
        warnings = check_pairs(pairs, data, anchored=anchored)
        return f"{len(pairs)} pairs, longest row {longest} tokens" + (f"; linter: {warnings}" if warnings else "")
    if isinstance(data, DertaData):
        refusal_token(template, data.refusal_opener)
        if data.triples == "starter":
            safe = [(p.id, str(p.reference)) for p in read_source("starter", "train") if p.kind == "harmful"]
        else:
            safe = [(t.prompt.id, t.safe_response) for t in read_jsonl(str(data.triples), Triple)]
        check_openers(safe, data.refusal_opener)
        return f"{len(safe)} harmful prompts, refusal opener {data.refusal_opener!r}"
    if (data.prompts is None) == (data.pairs is None):
        raise ValueError("data: give either `prompts` (with references) or `pairs` (their chosen sides).")
    return f"{len(sft_prompts(data, recipe.seed))} prompts with a reference"


def check_pairs(pairs: Sequence[PreferencePair], data: PairsData, *, anchored: bool) -> str:
    """What the linter warns of, as `check: count`. ValueError for its errors, benchmark prompts, and pairs without anchor.

    `anchored`: containment pairs are still to be made. Tokens are checked by `check_pair`.
    """
    if not (anchored or data.allow_no_anchor or any(p.prompt.kind == "harmful" for p in pairs)):
        raise ValueError(
            f"None of the {len(pairs)} pairs is about a harmful prompt, so nothing would hold the model where it is safe. Add "
            "containment pairs (curate makes them; data.containment: student with starter pairs), or set "
            "data.allow_no_anchor: true if you know what you do."
        )
    found = lint(pairs, RefusalJudge(), waive=data.waive)
    hits = contamination([pair.prompt for pair in pairs])
    if found.errors or hits:
        first = found.errors[0] if found.errors else hits[0]
        raise ValueError(
            f"{len(found.errors)} faults in the pairs stop a training, and {len(hits)} of their prompts are a benchmark's. The "
            f"first: {' '.join(map(str, first))}. Mend or delete the rows (`overrefusal-po check PAIRS.jsonl` lists all), or "
            "waive one with a reason: data.waive: {id: reason}. Benchmark prompts cannot be waived."
        )
    return ", ".join(f"{check} {count}" for check, count in found.counts().items())


def check_selection(recipe: TrainRecipe) -> None:
    """Raises ValueError where the judge or the prompts that steps are selected by are not there, or are trained on."""
    if recipe.select is not None:
        make_judge(recipe.select.judge)
        check_apart(dev_prompts(recipe.select), trained_prompts(recipe))


def trained_prompts(recipe: TrainRecipe) -> list[Prompt]:
    """All prompts that the recipe may train on, before limits are drawn."""
    data = recipe.typed_data
    if isinstance(data, SftData):
        return sft_prompts(data.model_copy(update={"max_prompts": None}), recipe.seed)
    starter = read_source("starter", "train")
    harmful = [p for p in starter if p.kind == "harmful"]
    if isinstance(data, PairsData):
        pairs = [p.prompt for p in loaded_pairs(data.pairs)]
        return pairs + (harmful if data.pairs == "starter" and data.containment == "student" else [])
    helpful = [p for p in starter if p.kind in data.helpful and p.reference]
    return helpful + (harmful if data.triples == "starter" else [t.prompt for t in read_jsonl(data.triples, Triple)])


def loaded_pairs(spec: Any) -> list[PreferencePair]:
    """The pairs of a file, or those that the starter set carries."""
    return (
        written_pairs(read_source("starter", "train")) if spec == "starter" else read_jsonl(str(spec), PreferencePair)
    )


def pair_limit(recipe: TrainRecipe) -> int | None:
    """`max_length` of a pair in tokens; None means no limit."""
    default: int | None = field_table(METHOD_CONFIGS[recipe.method])["max_length"]["default"]
    limit: int | None = recipe.trainer.get("max_length", default)
    return limit


def make_data(recipe: TrainRecipe, run: Run, template: ChatTemplate) -> None:
    """Writes data.jsonl (pairs, triples or prompts; helpful.jsonl beside triples) unless it is there."""
    file = run.path / "data.jsonl"
    if file.exists():
        return
    data = recipe.typed_data
    rows: Sequence[PreferencePair | Prompt | Triple]
    if isinstance(data, PairsData):
        rows = pairs_of(recipe, data, run, template)
    elif isinstance(data, DertaData):
        helpful = [p for p in read_source("starter", "train") if p.kind in data.helpful and p.reference]
        kept = [
            p for k in data.helpful for p in drawn([h for h in helpful if h.kind == k], data.max_helpful, recipe.seed)
        ]
        write_jsonl(run.path / "helpful.jsonl", kept)
        rows = triples_of(recipe, data, run, template)
    else:
        rows = sft_prompts(data, recipe.seed)
    write_jsonl(file, rows)


def pairs_of(recipe: TrainRecipe, data: PairsData, run: Run, template: ChatTemplate) -> list[PreferencePair]:
    """The pairs of a recipe, at most `max_pairs` of each rule."""
    if data.pairs != "starter":
        pairs = read_jsonl(str(data.pairs), PreferencePair)
        if not any(p.rule == "containment" for p in pairs):
            logger.warning("%s holds no containment pairs: nothing in it keeps harmful prompts refused", data.pairs)
    else:
        prompts = read_source("starter", "train")
        pairs = written_pairs(prompts)
        if data.containment == "student":
            pairs += own_containment(recipe, prompts, run, template)
    rules = dict.fromkeys(p.rule for p in pairs)
    kept = [p for rule in rules for p in drawn([q for q in pairs if q.rule == rule], data.max_pairs, recipe.seed)]
    if warnings := check_pairs(kept, data, anchored=False):
        logger.info("linter: %s", warnings)
    return drawn(kept, None, recipe.seed)


def own_containment(
    recipe: TrainRecipe, prompts: Sequence[Prompt], run: Run, template: ChatTemplate
) -> list[PreferencePair]:
    """Containment pairs: the reference refusal over what the start policy itself says where it complies."""
    harmful = [p for p in prompts if p.kind == "harmful"]
    answers = student_answers(recipe, harmful, run, template)
    verdicts = RefusalJudge().score(harmful, answers)
    made = [
        containment_pair(p, str(p.reference), c, v).pair for p, c, v in zip(harmful, answers, verdicts, strict=True)
    ]
    return [pair for pair in made if pair is not None]


def student_answers(recipe: TrainRecipe, harmful: Sequence[Prompt], run: Run, template: ChatTemplate) -> Any:
    """What the start policy says to harmful prompts, kept in the run folder only."""
    name = str(recipe.model["model_name_or_path"])
    return complete(
        run.path / "student_harmful.jsonl",
        harmful,
        sampling_of(recipe.generation, recipe.seed),
        lambda: engine_for(recipe.model, template, recipe.generation, name),
        "student: harmful prompts",
    )


def triples_of(recipe: TrainRecipe, data: DertaData, run: Run, template: ChatTemplate) -> list[Triple]:
    """Loaded triples, or starter prompts with the student's own harmful responses. A yield of zero is an error."""
    if data.triples != "starter":
        return drawn(read_jsonl(str(data.triples), Triple), data.max_triples, recipe.seed)
    harmful = [p for p in read_source("starter", "train") if p.kind == "harmful"]
    answers = student_answers(recipe, harmful, run, template)
    verdicts = RefusalJudge().score(harmful, answers)
    triples = [
        Triple(prompt=p, safe_response=str(p.reference), harmful_response=c.text)
        for p, c, v in zip(harmful, answers, verdicts, strict=True)
        if v.refusal == "none" and not v.degenerate
    ]
    if not triples:
        raise ValueError(
            f"The student refuses all {len(harmful)} harmful prompts, so it gives no harmful responses for DeRTa. Load "
            "triples instead (data.triples: FILE.jsonl with prompt, safe_response, harmful_response)."
        )
    logger.info("%d of %d harmful prompts gave a harmful response", len(triples), len(harmful))
    return drawn(triples, data.max_triples, recipe.seed)


def sft_prompts(data: SftData, seed: int) -> list[Prompt]:
    """Prompts with references, or the chosen sides of pairs as references."""
    if data.pairs is not None:
        prompts = [p.prompt.model_copy(update={"reference": p.chosen}) for p in loaded_pairs(data.pairs)]
    else:
        assert data.prompts is not None
        prompts = [p for p in read_source(data.prompts, "train") if p.kind in data.kinds and p.reference]
        if not prompts:
            raise ValueError(
                f"data.prompts: {data.prompts!r} has no prompt of kind {' or '.join(data.kinds)} with a reference."
            )
    return drawn(prompts, data.max_prompts, seed)


def drawn(rows: Sequence[R], limit: int | None, seed: int) -> list[R]:
    """At most `limit` rows in an order that follows from seed and content alone."""
    return sorted(rows, key=lambda r: random.Random(content_id(seed, r.model_dump(mode="json"))).random())[:limit]


def make_trainer(recipe: TrainRecipe, run: Run, template: ChatTemplate, settings: dict[str, Any]) -> Any:
    """The method's trainer on data.jsonl, its policy loaded with the recipe's model options."""
    from trl import ModelConfig, get_peft_config

    method = METHODS[recipe.method]
    config = method_config(recipe, {**settings, "output_dir": str(run.path / "checkpoints")})
    section = {k: v for k, v in recipe.model.items() if k != "trust_remote_code"}
    extra: dict[str, Any] = {}
    rows: Sequence[Any]
    if method.eats == "pairs":
        rows = read_jsonl(run.path / "data.jsonl", PreferencePair)
        extra = {"shared_prefix": recipe.speed.shared_prefix}
        if recipe.method == "dpo" and recipe.speed.reference_store and not settings.get("sync_ref_model"):
            extra["reference_store"] = cache_folder() / "reference"
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
    options = models.model_options(recipe.model)
    if not recipe.model.get("use_peft"):
        options["dtype"] = options["dtype"] or "float32"  # full fine-tuning: steps of 1e-6 are lost in bfloat16
    return method.factory(
        models.load_model(**options),
        rows,
        args=config,
        peft_config=get_peft_config(ModelConfig(**section)),
        template=template,
        **extra,
    )


def method_config(recipe: TrainRecipe, settings: Mapping[str, Any]) -> Any:
    """The method's TRL config object. ValueError for settings that TRL itself finds at odds with each other."""
    module, _, name = METHODS[recipe.method].config.rpartition(".")
    return trainer_config(getattr(importlib.import_module(module), name), {"seed": recipe.seed, **settings})


def check_joined(trainer: Any) -> None:
    """Asserts that all launched processes are one world for the trainer too."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    assert trainer.accelerator.num_processes == launched, "launched processes that are not one world"


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint of an interrupted run; incomplete ones are skipped with a word."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file() and not (path / "checkpoint-is-incomplete.txt").exists():
            found.append((int(path.name.rpartition("-")[2]), str(path)))
        else:
            logger.warning("%s is incomplete and skipped", path)
    if found:
        logger.info("going on from %s", max(found)[1])
    return max(found)[1] if found else None


def save(trainer: Any, template: ChatTemplate, run: Run) -> None:
    """Writes adapter/ (LoRA), model/ (merged) and training.json; rank 0 writes."""
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
    if (run.path / "selection.jsonl").is_file():
        summary["selected_step"] = selected_step(run.path)
    if hasattr(model, "peft_config"):
        model.save_pretrained(run.path / "adapter")
        summary["adapter"] = str(run.path / "adapter")
    models.save_merged(model, template.tokenizer, run.path / "model")
    write_atomic(run.path / "training.json", json.dumps({"summary": summary, "history": history}, indent=1))
    run.finish(summary)
