"""Every private name of TRL, transformers and accelerate that this package uses, in one place.

A private name may change in any release. Each has a canary in tests/test_trl_private.py that says
what broke. What stands here:

| name | why |
|---|---|
| `DPOTrainer._prepare_dataset`, `KTOTrainer._prepare_dataset` | rows come tokenised |
| `DPOTrainer._precompute_ref_logps`, `_precompute_engine`, `prepare_deepspeed` | reference store |
| `DPOTrainer._compute_loss`, `_metrics`, `_total_train_tokens`, `_tp_size` | ORPO's loss |
| `trl.trainer.utils.add_fused_lm_head`, its `fused_lm_head` argument | log-probs without logits |
| `Trainer._get_train_sampler`, `LengthGroupedSampler` | batches of similar length |
| `config._attn_implementation`, `config._name_or_path` | how a model attends, what it is called |

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from torch import Generator
from torch.nn import Module
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import DPOTrainer, KTOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from overrefusal_po.exact.reference_store import (
    Parts,
    compute_parts,
    policy_key,
    read_parts,
    row_key,
    write_parts,
)
from overrefusal_po.exact.shared_prefix import share_prefix
from overrefusal_po.records import content_id

logger = logging.getLogger(__name__)


def attention_of(model: PreTrainedModel) -> str:
    """The name of a model's attention: "sdpa", "eager", ..."""
    return str(model.config.get_text_config()._attn_implementation)


def shared_prefix_on(trainer: Trainer) -> bool:
    """`exact.shared_prefix.share_prefix` on a trainer's models."""
    return share_prefix(trainer, attention_of)


def add_log_prob_head(model: Module | None) -> None:
    """Makes a model, or the base of a peft model, give log-probs of labels without full logits.

    TRL's head for DPO also computes entropy, mean logits and top-1; this one does not.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    add_fused_lm_head(cast(PreTrainedModel, base))


def is_tokenised(dataset: Any) -> bool:
    """Whether a dataset of any kind holds token ids already."""
    return "prompt_ids" in (getattr(dataset, "column_names", None) or ())


class ReadyDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` that takes rows with token ids unchanged."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            dataset if is_tokenised(dataset) else super()._prepare_dataset(dataset, *args, **kwargs)
        )


class ReadyKTOTrainer(KTOTrainer):
    """TRL's `KTOTrainer` that takes rows with token ids, paired for its KL term, unchanged."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            dataset if is_tokenised(dataset) else super()._prepare_dataset(dataset, *args, **kwargs)
        )


class StoredDPOTrainer(ReadyDPOTrainer):
    """TRL's `DPOTrainer` whose precomputed reference log-probs come from a store if it has them.

    Args:
        store: folder of the store; None computes them for this run alone.
        shared_prefix: compute them from shared-prefix rows if that is proven exact.
    """

    def __init__(
        self, *args: Any, store: Path | None = None, shared_prefix: bool = True, **kwargs: Any
    ) -> None:
        self.store = store
        self.shared_prefix = shared_prefix
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """`dataset` with the columns ref_chosen_logps and ref_rejected_logps. Called by TRL, also
        for evaluation sets."""
        if not isinstance(dataset, Dataset):
            raise ValueError(
                "Reference log-probs cannot be computed ahead for a streamed dataset. Load it as a "
                "whole."
            )
        if self.shared_prefix:
            shared_prefix_on(self)
        policy = ""
        if self.store is not None:
            reference = self.accelerator.unwrap_model(self.ref_model or self.model)
            policy = policy_key(self, attention_of(reference))
        keys = [row_key(self.data_collator([row])) for row in dataset]
        known = self.stored(policy, keys)
        missing = {key: index for index, key in enumerate(keys) if key not in known}
        logger.info(
            "reference log-probs (%s): %d pairs, %d to compute", name, len(keys), len(missing)
        )
        if missing:
            rows = dataset.select(list(missing.values()))
            found = compute_parts(self, reference_engine(self), rows, batch_size)
            made = dict(zip(missing, found, strict=True))
            known |= made
            if self.store is not None and self.accelerator.is_main_process:
                write_parts(self.store / policy, made)
        sums = [known[key].sums(self.ld_alpha) for key in keys]
        dataset = dataset.add_column("ref_chosen_logps", [chosen for chosen, _ in sums])
        return dataset.add_column("ref_rejected_logps", [rejected for _, rejected in sums])

    def stored(self, policy: str, keys: Sequence[str]) -> dict[str, Parts]:
        """What the store of the first process has of `keys`, the same on all processes."""
        known: dict[str, Parts] = {}
        if self.store is not None and self.accelerator.is_main_process:
            known = read_parts(self.store / policy, set(keys))
        shared = [known]
        broadcast_object_list(shared, from_process=0)
        return shared[0]


def reference_engine(trainer: DPOTrainer) -> Module:
    """The model that computes reference log-probs.

    Under DeepSpeed that is an inference engine, which places its weights.
    """
    policy = trainer.model
    assert isinstance(policy, Module), "a trainer that has been built holds its model"
    if trainer.ref_model is None and trainer.is_deepspeed_enabled:
        engine = trainer._precompute_engine or prepare_deepspeed(policy, trainer.accelerator)
        trainer._precompute_engine = engine
        return cast(Module, engine)
    return cast(Module, trainer.ref_model) if trainer.ref_model is not None else policy


class EpochSampler(LengthGroupedSampler):
    """Batches of rows of similar length, in the same order in every process and after a resume.

    transformers' own sampler draws from a random state that a resumed run does not have. This one
    draws from the hash of (seed, epoch).
    """

    def __init__(self, trainer: Trainer, lengths: Sequence[int]) -> None:
        args = trainer.args
        super().__init__(
            args.train_batch_size * args.gradient_accumulation_steps, lengths=list(lengths)
        )
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        args, state = self.trainer.args, self.trainer.state
        seed = args.data_seed if args.data_seed is not None else args.seed
        number = int(content_id(seed, int(state.epoch or 0)), 16)
        self.generator = Generator().manual_seed(number)
        return iter(super().__iter__())  # type: ignore[no-untyped-call]


def use_sampler(trainer: Trainer, lengths: Sequence[int]) -> None:
    """Has a trainer draw its batches with `EpochSampler`."""
    sampler = EpochSampler(trainer, lengths)
    trainer._get_train_sampler = lambda *_: sampler  # type: ignore[method-assign]  # the hook
