"""TRL's `DPOTrainer` with an update that does not depend on how its batch is cut (see `windows`).

    trainer.pass_tokens = 4096    # a batch of more tokens is computed in several passes

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from trl import DPOTrainer

from overrefusal_po.train.passes import cut, pair_tokens
from overrefusal_po.train.trl_private_state import logged_as_one
from overrefusal_po.train.windows import (
    Batch,
    Factors,
    Window,
    chosen_tokens,
    is_shared,
    num_pairs,
    window_of,
)


class WindowedDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer`; each term of its loss is a mean over the whole window of a step."""

    window: Window | None = None
    factors = Factors()
    pass_tokens: int | None = None
    """The most tokens that a training step computes at once; None: its whole batch."""

    def loss_tokens(self, batch: Batch) -> float:
        """The tokens that a token-wise loss of a batch is a mean over."""
        return chosen_tokens(batch)

    def get_batch_samples(  # Any: transformers' own arguments
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of a step, as transformers draws them; their sizes are noted."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = [self.loss_tokens(batch) for batch in batches]
        self.window = window_of(batches, tokens, self.accelerator) if batches else None
        return batches, items

    def compute_loss(  # Any: TRL's own result
        self,
        model: Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss, each term weighed by its share of the window."""
        weights = self.loss_weights
        if model.training and self.window is not None:
            self.factors = self.window.factors(
                pairs=num_pairs(inputs), tokens=self.loss_tokens(inputs)
            )
        shares = {"sft": self.factors.tokens}
        self.loss_weights = [
            weight * shares.get(kind, self.factors.pairs)
            for kind, weight in zip(self.loss_types, weights, strict=True)
        ]
        try:
            found: Any = super().compute_loss(model, inputs, return_outputs)  # type: ignore[no-untyped-call]
            return found
        finally:
            self.loss_weights, self.factors = weights, Factors()

    def training_step(  # Any: transformers' own arguments
        self, model: Module, inputs: Batch, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of a batch after its backward pass, computed in passes of `pass_tokens`."""
        passes = [inputs] if self.pass_tokens is None else self.passes_of(inputs)
        if len(passes) == 1:
            return self.one_pass(model, inputs, num_items_in_batch)
        shares = [num_pairs(part) / num_pairs(inputs) for part in passes]
        whole, losses = self.router_aux_loss_coef, []
        with logged_as_one(self, shares):
            for part, share in zip(passes, shares, strict=True):
                self.router_aux_loss_coef = whole * share  # what the window's factors do not reach
                alone = isinstance(model, DistributedDataParallel) and part is not passes[-1]
                with self.accelerator.no_sync(model) if alone else nullcontext():
                    losses.append(self.one_pass(model, part, num_items_in_batch))
        self.router_aux_loss_coef = whole
        return torch.stack(losses).sum()

    def one_pass(self, model: Module, inputs: Batch, items: Any) -> Tensor:
        """transformers' own step; Any: `num_items_in_batch`."""
        found: Tensor = super().training_step(model, inputs, items)  # type: ignore[no-untyped-call]
        return found

    def passes_of(self, inputs: Batch) -> list[Batch]:
        """The passes of a batch: as many in every process, with as many pairs each, since TRL
        gathers the numbers of the pairs of each pass."""
        assert self.pass_tokens is not None, "only a trainer with a limit cuts its batches"
        shared = is_shared(cast(Module, self.model))
        if self.accelerator.num_processes == 1:
            return cut(inputs, self.pass_tokens, shared=shared)
        own = torch.tensor(
            [sorted(pair_tokens(inputs, shared=shared))], device=self.accelerator.device
        )
        every: Tensor = self.accelerator.gather(own)  # (processes, P)
        return cut(inputs, self.pass_tokens, shared=shared, tokens=every.amax(0).tolist())
