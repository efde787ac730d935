"""Every private name of TRL, transformers and accelerate that this package uses: here, and those of
an exact resume in `trl_private_state`.

A private name may change in any release. Each has a canary in tests/test_trl_private.py that says
what broke.

| name | why |
|---|---|
| `DPOTrainer._prepare_dataset`, `KTOTrainer._prepare_dataset` | rows come tokenised |
| `_precompute_ref_logps` (both), `_precompute_engine`, `prepare_deepspeed` | reference store |
| `DPOTrainer._compute_loss`, `_metrics`, `_total_train_tokens`, `_tp_size` | ORPO's loss |
| `DPOTrainer._name`, `_tag_names`, `_paper` | the model card of ORPO |
| `SFTTrainer._metrics` | the terms of DRO's loss in the log |
| `trl.trainer.utils.add_fused_lm_head`, its `fused_lm_head` argument | log-probs without logits |
| `Trainer._get_train_sampler`, `LengthGroupedSampler` | batches of similar length |
| `Trainer._prepare_input` | log-probs of a reference under DeepSpeed |
| `config._attn_implementation` | the name of a model's attention |
| accelerate's `model._original_forward` | the forward without autocast |

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import DPOTrainer, KTOTrainer, SFTTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from overrefusal_po.exact.reference_store import (
    Parts,
    check_not_streamed,
    compute_parts,
    kept_or_computed,
    policy_key,
    row_key,
)
from overrefusal_po.exact.shared_prefix import share_prefix
from overrefusal_po.records import content_id
from overrefusal_po.train.sharded import reshard, start_reference
from overrefusal_po.train.side_references import with_side_references
from overrefusal_po.train.windowed import WindowedDPOTrainer

AnyDataset = Dataset | IterableDataset


@contextmanager
def without_autocast(model: Module) -> Iterator[None]:
    """The model's forward without the autocast of `trainer.bf16` and `trainer.fp16`.

    `Accelerator.unwrap_model` would take transformers' own decorators off, too, and for good.
    """
    wrapped = model.__dict__.get("forward")
    if wrapped is None or "_original_forward" not in model.__dict__:
        yield
        return
    model.forward = model.__dict__["_original_forward"]
    try:
        yield
    finally:
        model.forward = wrapped


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


def is_tokenised(dataset: object) -> bool:
    """Whether a dataset of any kind holds token ids already."""
    return "prompt_ids" in (getattr(dataset, "column_names", None) or ())


class ExactInputs(Trainer):
    """A trainer whose floats stay as they are: log-probs of a reference, weights of pairs.

    Under DeepSpeed transformers rounds them to the format of the weights. In bfloat16 a log-prob of
    -200 is then up to 0.5 off.
    """

    def _prepare_input(self, data: Any) -> Any:  # Any: tensors, and what holds them
        if isinstance(data, Tensor) and torch.is_floating_point(data):
            return data.to(self.args.device)
        return super()._prepare_input(data)


class ReadyDPOTrainer(ExactInputs, WindowedDPOTrainer):
    """TRL's `DPOTrainer` that takes rows with token ids unchanged."""

    def _prepare_dataset(self, dataset: AnyDataset, *args: Any, **kwargs: Any) -> AnyDataset:
        if is_tokenised(dataset):
            return dataset
        prepared: AnyDataset = super()._prepare_dataset(dataset, *args, **kwargs)  # Any: TRL's own
        return prepared


class ReadyKTOTrainer(ExactInputs, KTOTrainer):
    """TRL's `KTOTrainer` that takes rows with token ids, paired for its KL term, unchanged.

    `store` is the folder of reference log-probs, if they are computed before the training.
    """

    def __init__(self, *args: Any, store: Path | None = None, **kwargs: Any) -> None:  # Any: TRL's
        self.store = store
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: AnyDataset, name: str, batch_size: int) -> Dataset:
        """`dataset` with the columns ref_logps and ref_KL_logps; TRL calls it."""
        start_reference(self)
        reference = self.accelerator.unwrap_model(self.ref_model or self.model)
        place = None if self.store is None else (self.store, attention_of(reference))
        scored = with_side_references(self, dataset, name, batch_size, place)
        reshard(reference)
        return scored

    def _prepare_dataset(self, dataset: AnyDataset, *args: Any, **kwargs: Any) -> AnyDataset:
        if is_tokenised(dataset):
            return dataset
        prepared: AnyDataset = super()._prepare_dataset(dataset, *args, **kwargs)  # Any: TRL's own
        return prepared


class OwnLossTrainer(ReadyDPOTrainer):
    """TRL's `DPOTrainer` with another loss, and without a reference.

    A subclass gives its name and paper (for the model card), and defines `batch_loss`:

        class MyTrainer(OwnLossTrainer, name="Mine", paper={"title": ..., "id": "2401.00001"}):
            ...

    """

    def __init_subclass__(cls, *, name: str, paper: Mapping[str, str]) -> None:
        cls._name, cls._tag_names, cls._paper = name, ["trl", name.lower()], dict(paper)

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: DPOTrainer's own arguments
        super().__init__(*args, **kwargs)
        # TRL's head for DPO also computes entropy, mean logits and top-1; here that is not needed
        add_log_prob_head(self.model)

    def batch_loss(
        self, model: Module, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss of a batch, its metrics by name)."""
        raise NotImplementedError

    def model_arguments(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor | bool]:
        """The arguments of a forward of the batch, without labels."""
        arguments: dict[str, Tensor | bool] = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        if self.aux_loss_enabled:
            arguments["output_router_logits"] = True
        return arguments

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The dataset unchanged: there is no reference."""
        self.ref_model = None  # what stood in for it, so that TRL loads none under FSDP
        return dataset

    def _compute_loss(  # Any: the output depends on the model
        self, model: Module, inputs: dict[str, Tensor], return_outputs: bool
    ) -> Tensor | tuple[Tensor, Any]:
        loss, metrics = self.batch_loss(model, inputs)
        self.add_metrics(inputs, metrics)
        if return_outputs:
            with torch.no_grad():
                return loss, model(**self.model_arguments(inputs))
        return loss

    def add_metrics(self, inputs: Mapping[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
        """Adds the metrics of one batch to TRL's, as means over all processes."""
        mode = "train" if cast(Module, self.model).training else "eval"
        if mode == "train":
            seen = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += seen // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        for name, value in metrics.items():
            self._metrics[mode][name].append(
                self.accelerator.gather_for_metrics(value.detach()).mean().item()
            )


class TermsSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` for a loss of several terms, which stand in its log."""

    def add_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Adds the terms of one batch to TRL's metrics, as means over all processes."""
        metrics = self._metrics["train" if cast(Module, self.model).training else "eval"]
        for name, value in terms.items():
            mean = self.accelerator.gather_for_metrics(value.detach()).mean()
            metrics[name].append(mean.item())


class StoredDPOTrainer(ReadyDPOTrainer):
    """TRL's `DPOTrainer` that takes precomputed reference log-probs from a store.

    It computes those that the store lacks, and writes them to it.

    Args:
        store: folder of the store; None computes them for this run alone.
        shared_prefix: compute them from shared-prefix rows if that is proven exact.
    """

    def __init__(  # Any: DPOTrainer's own arguments
        self, *args: Any, store: Path | None = None, shared_prefix: bool = True, **kwargs: Any
    ) -> None:
        self.store = store
        self.shared_prefix = shared_prefix
        super().__init__(*args, **kwargs)

    def _precompute_ref_logps(self, dataset: AnyDataset, name: str, batch_size: int) -> Dataset:
        """`dataset` with the columns ref_chosen_logps and ref_rejected_logps.

        TRL calls it, for evaluation sets too.
        """
        rows = check_not_streamed(dataset)
        start_reference(self)
        if self.shared_prefix:
            shared_prefix_on(self)

        def compute(missing: Dataset) -> list[Parts]:
            found = compute_parts(self, reference_engine(self), missing, batch_size)
            reshard(reference_engine(self))
            return found

        found = kept_or_computed(
            self,
            rows,
            name,
            unit="pairs",
            folder=self.kept_in(),
            key_of=row_key,
            make=Parts,
            compute=compute,
        )
        sums = [parts.sums(self.ld_alpha) for parts in found]
        scored: Dataset = rows.add_column("ref_chosen_logps", [chosen for chosen, _ in sums])
        scored = scored.add_column("ref_rejected_logps", [rejected for _, rejected in sums])
        return scored

    def kept_in(self) -> Path | None:
        """The reference's folder in the store; None without a store."""
        if self.store is None:
            return None
        reference = self.accelerator.unwrap_model(self.ref_model or self.model)
        return self.store / policy_key(self, attention_of(reference))


def reference_engine(trainer: DPOTrainer) -> Module:
    """The model that computes reference log-probs.

    Under DeepSpeed that is an inference engine, which puts the weights on the device.
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

    transformers' own sampler draws from a random state, which a resumed run does not have. This one
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
        self.generator = torch.Generator().manual_seed(number)
        return iter(super().__iter__())  # type: ignore[no-untyped-call]


def use_sampler(trainer: Trainer, lengths: Sequence[int]) -> None:
    """Makes a trainer draw its batches with `EpochSampler`."""
    sampler = EpochSampler(trainer, lengths)
    trainer._get_train_sampler = lambda *_: sampler  # type: ignore[method-assign]  # the hook
