"""TRL's `DPOTrainer` with an update that does not depend on how its batch is cut (see `windows`).

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import Module
from trl import DPOTrainer

from overrefusal_po.train.windows import (
    Batch,
    Factors,
    Window,
    chosen_tokens,
    num_pairs,
    window_of,
)


class WindowedDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer`; each term of its loss is a mean over the whole window of a step."""

    window: Window | None = None
    factors = Factors()

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
