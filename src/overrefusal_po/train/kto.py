"""KTO (arXiv 2402.01306, equation 7) by TRL's `KTOTrainer`: sides of pairs as rows of their own.

    trainer = kto_trainer("my/model", pairs, args={"per_device_train_batch_size": 4})

`kto_order` says in which order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.prompts import is_unpaired, read_responses
from overrefusal_po.recipe.methods import check_kto, uses_kl
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.recipe.shard import in_shard
from overrefusal_po.recipe.trl_fields import cache_folder
from overrefusal_po.records import LabelledResponse, PreferencePair
from overrefusal_po.run.judged import shared_judge
from overrefusal_po.train import preference
from overrefusal_po.train.data import (
    Prepared,
    Source,
    as_dataset,
    drawn_places,
)
from overrefusal_po.train.first_rows import check_given_rows
from overrefusal_po.train.given import (
    check_opening,
    evaluation_rows,
    given_pairs,
    given_responses,
)
from overrefusal_po.train.kto_order import (
    Side,
    compared_with,
    different_sides,
    in_training_order,
    warn_of_labels,
)
from overrefusal_po.train.kto_responses import (
    ResponseTokens,
    checked_responses,
    response_tokens,
)
from overrefusal_po.train.lengths import warn_of_left_out
from overrefusal_po.train.policy import (
    check_reference,
    checked_model,
    frozen_copy,
    load_policy,
    tokenizer_and_template,
    trains_all,
)
from overrefusal_po.train.preference import finished
from overrefusal_po.train.rows import COLUMNS, fit_pairs, pair_table, side_lengths
from overrefusal_po.train.settings import Settings, full_settings, trainer_config
from overrefusal_po.train.sharded import no_reference, without_reference
from overrefusal_po.train.student import StudentAnswer

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from peft import PeftConfig
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import KTOConfig, KTOTrainer

    from overrefusal_po.train.given import RowsGiven

logger = logging.getLogger(__name__)


def kto_trainer(
    model: PreTrainedModel | str | Path,
    pairs: Sequence[PreferencePair] | RowsGiven | Prepared,
    *,
    eval_dataset: object = None,
    args: KTOConfig | Settings | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    reference_store: str | Path | None = None,
) -> KTOTrainer:
    """TRL's `KTOTrainer` on the sides of pairs as rows of their own, in the order of `kto_order`.

    Arguments as for `dpo_trainer`; `args` is `trl.KTOConfig` or a mapping of its keys. A batch
    counts sides, not pairs, and holds at least 2. `pairs` may also be rows of TRL's unpaired form
    (prompt, completion, label): each is a side of its own. `reference_store` is used by FSDP 2
    alone, under which the start policy computes the reference's log-probs before the training.

    Raises:
        ValueError: as for `dpo_trainer`, and if the prompts of a batch cannot all be different.
    """
    given = given_sides(pairs, "pairs")
    model = checked_model(model, processing_class or template)
    check_reference(ref_model)
    check_opening(opening)
    from trl import KTOConfig

    from overrefusal_po.train.trl_private import ReadyKTOTrainer

    config = trainer_config(KTOConfig, args)
    check_kto(vars(config))
    tokenizer, template = tokenizer_and_template(model, processing_class, template)

    make = partial(prepared_sides, template=template, opening=opening, too_long=too_long)
    prepared = make(given, settings=vars(config))
    batch = {"per_device_train_batch_size": config.per_device_eval_batch_size}
    evaluated = evaluation_rows(
        eval_dataset,
        lambda data, name: make(given_sides(data, name), settings={**vars(config), **batch}),
    )
    assert prepared.rows is not None, "data without rows are not whole"
    check_given_rows(prepared, template)
    warn_of_cut(prepared.rows, config.max_length)
    policy = load_policy(model, peft_config)
    reference: Module | None = ref_model
    if reference is None and trains_all(policy, peft_config):
        config = without_reference(config)
        reference = no_reference(policy, peft_config, config) or frozen_copy(policy)
    return finished(
        ReadyKTOTrainer(
            store=None if reference_store is None else Path(reference_store),
            model=policy,
            ref_model=reference,
            args=config,
            train_dataset=prepared.rows,
            eval_dataset=evaluated,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=list(callbacks),
        )
    )


def given_sides(
    data: object, name: str
) -> Sequence[PreferencePair] | Sequence[LabelledResponse] | Prepared:
    """Pairs, or labelled responses, from what `kto_trainer` was given."""
    responses = given_responses(data, name)
    return given_pairs(data, name) if responses is None else responses


def prepared_sides(
    given: Sequence[PreferencePair] | Sequence[LabelledResponse] | Prepared,
    *,
    template: ChatTemplate,
    settings: Settings,
    opening: int | None,
    too_long: TooLong,
) -> Prepared:
    """Pairs or labelled responses as rows in training order; a `Prepared` is returned unchanged."""
    if isinstance(given, Prepared):
        return given
    limit: int | None = settings["max_length"]
    responses = [row for row in given if isinstance(row, LabelledResponse)]
    if responses:
        found = response_tokens(responses, template, max_length=limit, too_long=too_long)
        warn_of_left_out(found.fitting.note)
        return response_rows(found, settings, opening)
    pairs = [row for row in given if isinstance(row, PreferencePair)]
    table = pair_table(pairs, template, opening)
    kept = fit_pairs(pairs, table, max_length=limit, too_long=too_long).warned()
    return side_rows([pairs[at] for at in kept], table.take(kept), settings, opening)


def response_rows(found: ResponseTokens, settings: Settings, opening: int | None) -> Prepared:
    """Labelled responses as rows in training order."""
    sides = [Side(*row) for row in found.cut(opening)]
    warn_of_labels(sides)
    rows = side_columns(sides, settings)
    note = found.fitting.note
    return Prepared(rows, found.responses, lengths=found.lengths, left_out=note)


def read(recipe: TrainRecipe) -> Source:
    """Pairs as DPO reads them, or labelled responses if the source has TRL's unpaired form."""
    data = preference.pairs_section(recipe)
    if data.pairs != "starter" and is_unpaired(data.pairs):
        return Source(in_shard(read_responses(data.pairs, "train"), data.shard))
    return preference.read(recipe)


def prepare(
    recipe: TrainRecipe,
    source: Source,
    template: ChatTemplate,
    said: Sequence[StudentAnswer] | None = None,
) -> Prepared:
    """The sides to train on (see `preference.prepare`), in `kto_order`'s order."""
    responses = [row for row in source.records if isinstance(row, LabelledResponse)]
    if responses:
        return prepared_responses(recipe, responses, template)
    return preference.prepare(recipe, source, template, said, make_rows=side_rows)


def prepared_responses(
    recipe: TrainRecipe, responses: Sequence[LabelledResponse], template: ChatTemplate
) -> Prepared:
    """Labelled responses that were checked like pairs, those that fit, drawn.

    Raises ValueError for the linter's errors, benchmark prompts, no harmful prompt, long rows.
    """
    data, settings = preference.pairs_section(recipe), full_settings(recipe)
    found = response_tokens(
        responses, template, max_length=settings["max_length"], too_long=data.too_long
    )
    preference.check_anchor(found.responses, data)
    judge = shared_judge(recipe.judge)
    findings, waived = checked_responses(found.responses, judge, data.waive)
    places = drawn_places(found.responses, data.max_pairs, recipe.seed)
    found = found.taken(preference.in_share(places, found.responses, data.harmful_share))
    prepared = response_rows(found, settings, data.opening)
    good = sum(row.desirable for row in found.responses)
    line = f"{good} good and {len(found.responses) - good} bad responses{found.fitting}"
    by_check = Counter(finding.check for finding in findings).most_common()
    counts = ", ".join(f"{check} {count}" for check, count in by_check)
    line += f"; {len(waived)} findings waived" if waived else ""
    line += f"; linter: {counts}" if counts else ""
    return prepared._replace(line=line, waived=waived)


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: KTOConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> KTOTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    stored = recipe.speed.reference_store
    return kto_trainer(
        model,
        prepared,
        args=args,
        template=template,
        peft_config=peft_config,
        reference_store=cache_folder() / "reference" if stored else None,
    )


def side_rows(
    pairs: Sequence[PreferencePair],
    table: pa.Table,
    settings: Settings,
    opening: int | None,
) -> Prepared:
    """Both sides of pairs as rows in training order; `settings` are trl.KTOConfig's keys."""
    sides = different_sides(sides_of_pairs(table))
    return Prepared(side_columns(sides, settings), pairs, lengths=side_lengths(table))


def side_columns(sides: Sequence[Side], settings: Settings) -> Dataset:
    """Sides as rows in training order.

    With a KL term each row also holds the completion that its prompt is compared with. TRL takes
    that of the row before it in its batch; the first row gets that of the last.
    """
    import pyarrow as pa

    size = int(settings["per_device_train_batch_size"])
    batch_size = size if uses_kl(settings) else 1
    sides = in_training_order(sides, batch_size=batch_size, seed=int(settings["seed"]))
    kind = pa.list_(pa.int32())
    columns = {
        "prompt_ids": pa.array([side.prompt for side in sides], kind),
        "completion_ids": pa.array([side.completion for side in sides], kind),
        "label": pa.array([side.desirable for side in sides]),
    }
    if uses_kl(settings):
        others = [sides[compared_with(at, len(sides), size)].completion for at in range(len(sides))]
        columns["KL_completion_ids"] = pa.array(others, kind)
    return as_dataset(pa.table(columns))


def sides_of_pairs(table: pa.Table) -> list[tuple[Side, Side]]:
    """(chosen, rejected) of every pair of a table of token ids."""
    prompts, chosen, rejected = (table[name].to_pylist() for name in COLUMNS)
    return [
        (Side(tuple(p), tuple(c), True), Side(tuple(p), tuple(r), False))
        for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]


def warn_of_cut(rows: Dataset, max_length: int | None) -> None:
    """Warns if TRL cuts the responses for the KL term at `max_length`: that KL is partial."""
    import pyarrow.compute as pc

    if max_length is None or "KL_completion_ids" not in rows.column_names:
        return
    lengths = [
        pc.list_value_length(rows.data[name]).to_numpy()
        for name in ("prompt_ids", "KL_completion_ids")
    ]
    cut = int((lengths[0] + lengths[1] > max_length).sum())
    if cut:
        logger.warning(
            "%d of %d prompts with another one's response are cut at max_length (KL)",
            cut,
            len(rows),
        )
