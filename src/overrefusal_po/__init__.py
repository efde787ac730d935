"""overrefusal-po: teach a chat model to answer what only sounds dangerous, and prove that it still refuses harm.

    from overrefusal_po import dpo_trainer, orpo_trainer, kto_trainer, derta_trainer, sft_trainer
    overrefusal-po recipes/dpo.yaml              or: accelerate launch recipes/dpo.yaml

The way of the data: recipe -> sources -> engine -> judges -> pairs -> TRL trainer -> model -> engine -> judges ->
outcomes -> metrics -> report. Every arrow that crosses a stage is a file in the run folder.

    records    the nouns, and their JSON Lines in and out
    fields     TRL's own settings as a table that is checked without importing TRL
    openai_setup  what engine openai and judge llm share: settings without keys, the key, wrong set-ups
    recipe     file + overrides -> a checked, frozen recipe
    plugins    names in a recipe -> plug files in sources/, attacks/, engines/ and judges/
    runs       run folder: resolved recipe, manifest, resume, lock
    chat       messages -> token ids, the one place
    models     loads, quantises, merges and saves weights, the one place; the bundled model
    generate   prompts + engine -> completions.jsonl that goes on where it stopped; shards: parts of it, and their merge
    pairs      pure: completions + verdicts -> preference pairs, each with its reason
    derta      pure: (prompt, safe, harmful) -> rows with labels; the collator that redraws RTO dropout
    lint       what is wrong with pairs (with shortcuts, pair_files); hygiene: benchmark firewall, near-duplicates
    apart      what is measured is not trained on
    lengths    rows that are too long, batches of like length; pair_rows: pairs -> the rows that TRL tokenises (with kto)
    trainers   the factories; METHODS; with sharding, shared_prefix, reference_store, orpo, derta_tree: the same losses, faster
    memory     model config + recipe -> bytes at the peak of a training
    train      stage: data and a model -> trainer -> adapter/ and model/
    curate     stage: sources -> student -> judge -> pairs (with overgenerate, selectors, rules, quotas)
    selection  two-sided checkpoint selection while training; trackers: what wandb is shown of it
    evaluate   stage: sources x attacks -> engine -> judges -> outcomes -> metrics
    metrics    pure: outcomes -> rates, paired tests; with intervals, breakdowns (by set and attack)
    labels     human labels; certificates: a judge against them; corrections: rates corrected for its errors
    capability perplexity, lm-eval tasks
    gate       bounds that a run must hold
    pipeline   stages in a row
    summary    what metrics.json and summary.json hold; report, pictures, card: pages made of it
    cli        argv -> recipe -> stage
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overrefusal_po.cli import launch as launch
    from overrefusal_po.trainers import derta_trainer as derta_trainer
    from overrefusal_po.trainers import dpo_trainer as dpo_trainer
    from overrefusal_po.trainers import kto_trainer as kto_trainer
    from overrefusal_po.trainers import orpo_trainer as orpo_trainer
    from overrefusal_po.trainers import sft_trainer as sft_trainer

__version__ = "0.1.0"
__all__ = ["derta_trainer", "dpo_trainer", "kto_trainer", "launch", "orpo_trainer", "sft_trainer"]


def __getattr__(name: str) -> Any:
    """Loads the factories and `launch` when they are first used, so that importing the package costs nothing."""
    if name == "launch":
        from overrefusal_po.cli import launch

        return launch
    if name in __all__:
        from overrefusal_po import trainers

        return getattr(trainers, name)
    raise AttributeError(f"module 'overrefusal_po' has no attribute {name!r}")
