"""Plain supervised fine-tuning on reference responses by TRL's `SFTTrainer`.

    trainer = sft_trainer("my/model", prompts, args={"learning_rate": 2e-5, "output_dir": "out"})

Loss stands on the response alone. The prompts have references, or are the chosen sides of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import SftData, TooLong
from overrefusal_po.records import Prompt
from overrefusal_po.train.data import Prepared, Source, as_column, check_firewall, used_records
from overrefusal_po.train.derta_rows import (
    DertaCollator,
    prompt_turns,
    rows_dataset,
    sft_row,
    turn_length,
)
from overrefusal_po.train.first_rows import check_given_rows
from overrefusal_po.train.given import evaluation_rows, given_prompts
from overrefusal_po.train.lengths import group_by_length, warn_of_left_out
from overrefusal_po.train.policy import checked_model, tokenizer_and_template
from overrefusal_po.train.preference import read_any_pairs
from overrefusal_po.train.rows_trainer import rows_trainer
from overrefusal_po.train.settings import full_settings, trainer_config
from overrefusal_po.train.student import StudentAnswer

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from overrefusal_po.train.given import RowsGiven


def sft_trainer(
    model: PreTrainedModel | str | Path,
    prompts: Sequence[Prompt] | RowsGiven | Prepared,
    *,
    eval_dataset: object = None,
    args: SFTConfig | Mapping[str, Any] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
) -> SFTTrainer:
    """TRL's `SFTTrainer` on prompts with reference responses, loss on the response only.

    `prompts` may be rows with `messages` that end with the assistant, with `prompt` and
    `completion`, or pairs, whose chosen sides are learned (docs/python.md). Other arguments as for
    `dpo_trainer`: `opening` is the number of first tokens of a response that are learned, `args`
    is `trl.SFTConfig` or a mapping of its keys. `ref_model` must be None.

    Raises:
        ValueError: no prompt, one without a reference, a row longer than `max_length`.
    """
    prompts = given_prompts(prompts)
    model = checked_model(model, processing_class or template)
    from trl import SFTConfig

    config = trainer_config(SFTConfig, args)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    make = prompt_preparer(
        template, max_length=config.max_length, opening=opening, too_long=too_long
    )
    prepared, evaluated = make(prompts, "prompts"), evaluation_rows(eval_dataset, make)
    check_given_rows(prepared, template)
    collator = DertaCollator(pad_token_id=tokenizer.pad_token_id, rto_dropout=0)
    trainer = rows_trainer(
        model, prepared, config, tokenizer, collator, ref_model, peft_config, callbacks, evaluated
    )
    group_by_length(trainer)
    return trainer


def prompt_preparer(
    template: ChatTemplate, *, max_length: int | None, opening: int | None, too_long: TooLong
) -> Callable[[object, str], Prepared]:
    """A function (what was given, its name) -> rows; a warning counts what is left out."""

    def make(data: object, name: str) -> Prepared:
        found = given_prompts(data, name)
        if isinstance(found, Prepared):
            return found
        prepared = prepared_prompts(
            found, template, max_length=max_length, opening=opening, too_long=too_long
        )
        warn_of_left_out(prepared.left_out)
        return prepared

    return make


def prepared_prompts(
    prompts: Sequence[Prompt],
    template: ChatTemplate,
    *,
    max_length: int | None,
    opening: int | None = None,
    too_long: TooLong = "error",
    limit: int | None = None,
    seed: int | None = None,
) -> Prepared:
    """Prompts with references as rows; with a seed in drawn order, at most `limit` of them.

    `opening`: learn that many first tokens of each reference, None: all with the end of turn.

    Raises ValueError for no prompt, one without a reference, and what `lengths.fit` raises.
    """
    if not prompts:
        raise ValueError("SFT needs at least one prompt with a reference response; got none.")
    turns = [turn.first(opening) for turn in prompt_turns(prompts, template)]
    lengths = [turn_length(turn) for turn in turns]
    used = used_records(
        prompts, lengths, max_length=max_length, too_long=too_long, limit=limit, seed=seed
    )
    kept = used.taken(prompts)
    return Prepared(
        rows_dataset([sft_row(*both) for both in zip(kept, used.taken(turns), strict=True)]),
        kept,
        lengths=as_column(used.taken(lengths)),
        line=f"{len(kept)} prompts with a reference{used.fitting}",
        left_out=used.fitting.note,
    )


def read(recipe: TrainRecipe) -> Source:
    """Prompts with references, or the chosen sides of pairs as references."""
    data = sft_section(recipe)
    if (data.prompts is None) == (data.pairs is None):
        raise ValueError(
            "data: give either `prompts` (with references) or `pairs` (their chosen sides)."
        )
    if data.pairs is not None:
        return Source([pair.answered for pair in read_any_pairs(data.pairs)])
    assert data.prompts is not None
    prompts = [p for p in read_source(data.prompts, "train") if p.kind in data.kinds]
    prompts = [p for p in prompts if p.reference]
    if not prompts:
        raise ValueError(
            f"data.prompts: {data.prompts!r} has no prompt of kind {' or '.join(data.kinds)} with "
            "a reference."
        )
    return Source(prompts)


def sft_section(recipe: TrainRecipe) -> SftData:
    """The recipe's data section."""
    data = recipe.typed_data
    assert isinstance(data, SftData), "the table of methods names another section"
    return data


def prepare(
    recipe: TrainRecipe,
    source: Source,
    template: ChatTemplate,
    said: Sequence[StudentAnswer] | None = None,
) -> Prepared:
    """The prompts to train on; raises ValueError for rows too long and benchmark prompts."""
    data = sft_section(recipe)
    prepared = prepared_prompts(
        [p for p in source.records if isinstance(p, Prompt)],
        template,
        max_length=full_settings(recipe)["max_length"],
        opening=data.opening,
        too_long=data.too_long,
        limit=data.max_prompts,
        seed=recipe.seed,
    )
    used = [p for p in prepared.records if isinstance(p, Prompt)]
    return prepared._replace(waived=check_firewall(used, data.waive))


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: SFTConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> SFTTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    return sft_trainer(model, prepared, args=args, template=template, peft_config=peft_config)
