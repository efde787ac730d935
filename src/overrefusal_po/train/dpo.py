"""DPO (arXiv 2305.18290, equation 7) by TRL's `DPOTrainer`.

from overrefusal_po import dpo_trainer
trainer = dpo_trainer("my/model", pairs, args={"learning_rate": 5e-6, "output_dir": "out"})
trainer.train()
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.sharding import fsdp_version, wants_fsdp
from overrefusal_po.recipe.methods import check_losses
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.recipe.trl_fields import cache_folder
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.first_rows import check_given_rows
from overrefusal_po.train.given import evaluation_rows, given_pairs, pair_preparer, whole
from overrefusal_po.train.policy import (
    check_reference,
    checked_model,
    frozen_copy,
    load_policy,
    tokenizer_and_template,
    trains_all,
)
from overrefusal_po.train.preference import finished
from overrefusal_po.train.preference import prepare as prepare
from overrefusal_po.train.preference import read as read
from overrefusal_po.train.rows import HARMFUL
from overrefusal_po.train.settings import trainer_config
from overrefusal_po.train.sharded import no_reference, without_reference
from overrefusal_po.train.windows import check_passes

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from overrefusal_po.train.given import RowsGiven
    from overrefusal_po.train.windowed import WindowedDPOTrainer

logger = logging.getLogger(__name__)


def dpo_trainer(
    model: PreTrainedModel | str | Path,
    pairs: Sequence[PreferencePair] | RowsGiven | Prepared,
    *,
    eval_dataset: object = None,
    args: DPOConfig | Mapping[str, Any] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    weights: Literal["boundary"] | None = None,
    shared_prefix: bool = True,
    pass_tokens: int | None = None,
    reference_store: str | Path | None = None,
) -> DPOTrainer:
    """A TRL `DPOTrainer` on preference pairs, with DPO's own loss unless `loss_type` differs.

    Args:
        model: a loaded model, its name or path (`bundled:...` too); its state is the reference.
        pairs: at least one preference pair; or rows of TRL's forms as a list, a `datasets.Dataset`
            or the path of a file (docs/python.md).
        eval_dataset: pairs to evaluate on, in a form of `pairs`; or {name: such pairs}.
        args: `trl.DPOConfig`, or a mapping of its keys, or None for TRL's defaults.
        processing_class: the tokenizer; None loads the model's own.
        ref_model: another reference than the start policy.
        peft_config: a peft config; None trains all weights.
        callbacks: transformers callbacks.
        template: chat options; None uses the tokenizer's template.
        opening: train on this many first tokens of each side; None: on whole sides.
        too_long: "drop" leaves out, and counts, pairs longer than `max_length`; none is ever cut.
        weights: "boundary" has pairs count most if the start policy is undecided about their
            prompt; needs reference_store, or precompute_ref_log_probs.
        shared_prefix: compute the prompt of a pair once, if that is proven exact.
        pass_tokens: the most tokens that a step computes at once; None: all of its batch.
        reference_store: a folder for reference log-probs; then only FSDP 1 holds a reference model.

    Raises ValueError or TypeError before weights are loaded: no pairs, a row in no known form, no
    model, no chat template, a pair longer than `max_length`.
    """
    pairs = given_pairs(pairs)
    model = checked_model(model, processing_class or template)
    check_reference(ref_model)
    from overrefusal_po.train.trl_private import shared_prefix_on

    config = dpo_config(args, stored=reference_store is not None)
    check_passes(vars(config), pass_tokens)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    make = partial(
        pair_preparer, template, max_length=config.max_length, opening=opening, too_long=too_long
    )
    prepared = make(kinds=weights is not None)(pairs, "pairs")
    evaluated = evaluation_rows(eval_dataset, make())
    check_given_rows(prepared, template)
    weighed = HARMFUL in whole(prepared).column_names
    config = weighing_config(config) if weighed else config
    policy = load_policy(model, peft_config)
    if ref_model is None and trains_all(policy, peft_config):
        config = without_reference(config)
    trainer = trainer_class(config, reference_store, shared_prefix, weighed=weighed)(
        model=policy,
        ref_model=ref_model or reference_copy(policy, peft_config, config),
        args=config,
        train_dataset=prepared.rows,
        eval_dataset=evaluated,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    if shared_prefix and not config.precompute_ref_log_probs:
        shared_prefix_on(trainer)  # with a store it is on since the reference pass
    trainer.pass_tokens = pass_tokens
    return finished(trainer)


def dpo_config(args: DPOConfig | Mapping[str, Any] | None, *, stored: bool) -> DPOConfig:
    """TRL's settings; with a store of reference log-probs those are computed ahead."""
    from trl import DPOConfig

    config = trainer_config(DPOConfig, args)
    if stored:
        config = copy.copy(config)  # the caller's own object stays unchanged
        config.precompute_ref_log_probs = True
    return config


def trainer_class(
    config: DPOConfig, store: str | Path | None, shared_prefix: bool, *, weighed: bool
) -> Callable[..., WindowedDPOTrainer]:
    """TRL's trainer for tokenised rows; with reference log-probs computed ahead, one with a
    store; that one may weigh pairs."""
    from overrefusal_po.train.trl_private import ReadyDPOTrainer, StoredDPOTrainer
    from overrefusal_po.train.weighted import WeightedDPOTrainer

    if not config.precompute_ref_log_probs:
        return ReadyDPOTrainer
    folder = Path(store) if store is not None else None
    trainer = WeightedDPOTrainer if weighed else StoredDPOTrainer
    return partial(trainer, store=folder, shared_prefix=shared_prefix)


def weighing_config(config: DPOConfig) -> DPOConfig:
    """The settings of a training that weighs pairs; ValueError if it can have no weights."""
    if not config.precompute_ref_log_probs:
        raise ValueError(
            "weights: boundary reads the reference's log-probs before the training. Give "
            "reference_store, or precompute_ref_log_probs: true."
        )
    check_losses(config.loss_type, "weights")
    config = copy.copy(config)  # the caller's own object stays unchanged
    config.remove_unused_columns = False  # the weights are a column
    return config


def reference_copy(
    policy: PreTrainedModel, peft_config: PeftConfig | None, config: DPOConfig
) -> Module | None:
    """A copy of the start policy if the training needs one: all weights change, nothing is stored.

    Under FSDP 1 TRL wants a model even to compute log-probs ahead; under FSDP 2 one stands in.
    """
    if (stand_in := no_reference(policy, peft_config, config)) is not None:
        return stand_in
    needed = wants_fsdp(vars(config)) or not config.precompute_ref_log_probs
    return frozen_copy(policy) if needed and trains_all(policy, peft_config) else None


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: DPOConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> DPOTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    return dpo_trainer(
        model,
        prepared,
        args=args,
        template=template,
        peft_config=peft_config,
        shared_prefix=recipe.speed.shared_prefix,
        pass_tokens=recipe.speed.pass_tokens,
        reference_store=store_folder(recipe, vars(args)),
    )


def store_folder(recipe: TrainRecipe, settings: Mapping[str, Any]) -> Path | None:
    """Where reference log-probs are kept; None if the recipe wants no store or can have none."""
    if not recipe.speed.reference_store or settings.get("sync_ref_model"):
        return None
    if wants_fsdp(settings) and fsdp_version(settings) == "1":
        logger.info(
            "speed.reference_store is left out: FSDP 1 hides which weights are whose "
            "(fsdp_version: 2 does not)"
        )
        return None
    return cache_folder() / "reference"
