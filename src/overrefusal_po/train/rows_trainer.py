"""TRL's `SFTTrainer` on rows that carry their labels: what DeRTa and plain SFT share."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.train.data import Prepared
from overrefusal_po.train.derta_rows import DertaCollator
from overrefusal_po.train.policy import load_policy
from overrefusal_po.train.sharded import ready_policy

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import PeftConfig
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import SFTConfig, SFTTrainer

logger = logging.getLogger(__name__)


def rows_trainer(
    model: PreTrainedModel | str,
    prepared: Prepared,
    config: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    collator: DertaCollator,
    ref_model: PreTrainedModel | None,
    peft_config: PeftConfig | None,
    callbacks: Sequence[TrainerCallback],
    eval_rows: Dataset | dict[str, Dataset | IterableDataset] | None = None,
) -> SFTTrainer:
    """An `SFTTrainer` on ready rows: TRL prepares and drops nothing.

    Raises ValueError for a reference model, packing and padding_free.
    """
    from trl import SFTTrainer

    if ref_model is not None:
        raise ValueError("Supervised fine-tuning has no reference model; ref_model must be None.")
    if config.packing or config.padding_free:
        raise ValueError(
            "packing and padding_free cannot be used with these rows (their labels are drawn at "
            "each pass)."
        )
    config = copy.copy(config)  # the caller's own object stays unchanged
    given = cast("dict[str, Any]", config.dataset_kwargs or {})
    config.dataset_kwargs = {**given, "skip_prepare_dataset": True}
    config.remove_unused_columns = False
    if collator.rto_dropout and config.dataloader_persistent_workers:
        logger.warning(
            "trainer.dataloader_persistent_workers is not used: workers are begun anew at each "
            "pass, because RTO dropout is drawn again for it"
        )
        config.dataloader_persistent_workers = False
    trainer = SFTTrainer(
        model=load_policy(model, peft_config),
        args=config,
        data_collator=collator,
        train_dataset=prepared.rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[*callbacks, epoch_callback(collator)],
    )
    ready_policy(trainer)
    return trainer


def epoch_callback(collator: DertaCollator) -> TrainerCallback:
    """A callback that tells the collator which pass over the data has begun."""
    from transformers import TrainerCallback

    class EpochCallback(TrainerCallback):
        """Sets `collator.epoch`, so that RTO dropout is drawn again at each pass."""

        def on_epoch_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **kwargs: Any,  # transformers' own signature
        ) -> None:
            collator.epoch = int(state.epoch or 0)

    return EpochCallback()
