"""TRL's `DPOTrainer` with a weight for each pair: the mean of its loss becomes a weighted mean.

TRL takes the mean inside of its loss. So its own code is asked for each pair alone, with the
model's output for that pair, and the losses are weighted here. The model runs once a batch, and
every loss of TRL that looks at one pair at a time works unchanged.

Shapes: P pairs, T tokens. This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Module

from overrefusal_po.train.pair_weights import boundary_weights, refusal_margins
from overrefusal_po.train.passes import part_of
from overrefusal_po.train.rows import HARMFUL
from overrefusal_po.train.trl_private import StoredDPOTrainer
from overrefusal_po.train.windows import Batch, Window, num_pairs

WEIGHT = "pair_weights"
"""The column, and the tensor in a batch."""

NOT_FOR_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
"""Tensors of a batch that are no arguments of the model."""


class WeighingCollator:
    """TRL's collator, with the weights of the rows if they have some."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], Batch]) -> None:
        self.inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:  # Any: a row holds many types
        batch = self.inner(rows)
        if WEIGHT in rows[0]:
            batch[WEIGHT] = torch.tensor([row[WEIGHT] for row in rows])
        return batch


class Answered:
    """A model that has answered already: it gives the output that it was made with."""

    def __init__(self, outputs: Mapping[str, object], *, training: bool) -> None:
        self.outputs, self.training = SimpleNamespace(**outputs), training

    def __call__(self, **inputs: object) -> SimpleNamespace:
        return self.outputs


class WeightedDPOTrainer(StoredDPOTrainer):
    """`StoredDPOTrainer` whose training rows say which prompts are harmful, weighted by the
    boundary of the reference. `remove_unused_columns` has to be false. Evaluation sets are not
    weighted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: DPOTrainer's own arguments
        super().__init__(*args, **kwargs)
        self.train_dataset = weighed(cast(Dataset, self.train_dataset))
        self.data_collator = WeighingCollator(self.data_collator)

    def compute_loss(  # Any: TRL's own result
        self,
        model: Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss, or the weighted mean of what it is for each pair alone."""
        if WEIGHT not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = dict(inputs)
        weights = given.pop(WEIGHT)
        outputs = self.answers(model, given)
        window, aux = self.window, self.aux_loss_enabled
        # a pair is weighed by its share of the window of its step; outside of a step, of its batch
        self.window = window or Window(num_pairs(given), self.loss_tokens(given), 1)
        self.aux_loss_enabled = False  # it is of the whole batch
        try:
            parts = []
            for at, weight in enumerate(weights):
                one = Answered(part_of(outputs, [at], len(weights)), training=model.training)
                pair = part_of(given, [at], len(weights))
                parts.append(weight * super().compute_loss(cast(Module, one), pair))
        finally:
            self.window, self.aux_loss_enabled = window, aux
        loss = torch.stack(parts).sum()
        if aux:
            loss = loss + self.router_aux_loss_coef * outputs["aux_loss"]
        return (loss, outputs) if return_outputs else loss

    def answers(self, model: Module, inputs: Batch) -> Mapping[str, Any]:
        """The model's output for a batch, as TRL asks for it."""
        arguments = {name: value for name, value in inputs.items() if name not in NOT_FOR_MODEL}
        if self.aux_loss_enabled:
            arguments["output_router_logits"] = True
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        found: Mapping[str, Any] = model(
            **arguments, use_cache=False, labels=labels, fused_lm_head=True
        )
        return found


def weighed(rows: Dataset) -> Dataset:
    """Rows with reference log-probs, with the weight of each."""
    harmful = rows[HARMFUL]
    margins = refusal_margins(rows["ref_chosen_logps"], rows["ref_rejected_logps"], harmful)
    found: Dataset = rows.add_column(WEIGHT, boundary_weights(margins, harmful).tolist())
    return found
