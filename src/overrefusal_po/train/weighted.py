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
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn import Module

from overrefusal_po.train.pair_weights import boundary_weights, refusal_margins
from overrefusal_po.train.rows import HARMFUL
from overrefusal_po.train.trl_private import StoredDPOTrainer

WEIGHT = "pair_weights"
"""The column, and the tensor in a batch."""

NOT_FOR_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
"""Tensors of a batch that are no arguments of the model."""


class WeighingCollator:
    """TRL's collator, with the weights of the rows if they have some."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:  # Any: TRL's batch
        batch = self.inner(rows)
        if WEIGHT in rows[0]:
            batch[WEIGHT] = torch.tensor([row[WEIGHT] for row in rows])
        return batch


class WeightedDPOTrainer(StoredDPOTrainer):
    """`StoredDPOTrainer` whose rows say which prompts are harmful, weighted by the boundary of the
    reference. Evaluation sets are not weighted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: DPOTrainer's own arguments
        super().__init__(*args, **kwargs)
        self.data_collator = WeighingCollator(self.data_collator)

    def _precompute_ref_logps(
        self, dataset: Dataset | IterableDataset, name: str, batch_size: int
    ) -> Dataset:
        """`dataset` with reference log-probs, and weights if it says which prompts are harmful."""
        scored = super()._precompute_ref_logps(dataset, name, batch_size)
        if HARMFUL not in scored.column_names:
            return scored
        harmful = scored[HARMFUL]
        margins = refusal_margins(scored["ref_chosen_logps"], scored["ref_rejected_logps"], harmful)
        weighted: Dataset = scored.add_column(WEIGHT, boundary_weights(margins, harmful).tolist())
        return weighted

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        known = self._signature_columns or []
        if WEIGHT not in known:
            self._signature_columns = [*known, WEIGHT]

    def _compute_loss(  # Any: the output depends on the model
        self, model: Module, inputs: dict[str, Tensor], return_outputs: bool
    ) -> Tensor | tuple[Tensor, Any]:
        if WEIGHT not in inputs:
            found: Tensor | tuple[Tensor, Any] = super()._compute_loss(  # type: ignore[no-untyped-call]
                model, inputs, return_outputs
            )
            return found
        given = dict(inputs)
        weights = given.pop(WEIGHT)
        arguments: dict[str, Any] = {k: v for k, v in given.items() if k not in NOT_FOR_MODEL}
        if self.aux_loss_enabled:
            arguments["output_router_logits"] = True
        labels = given["input_ids"].masked_fill(given["completion_mask"] == 0, -100)
        outputs = model(**arguments, use_cache=False, labels=labels, fused_lm_head=True)
        loss = self.weighted_loss(given, outputs, weights)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return (loss, outputs) if return_outputs else loss

    def weighted_loss(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, object], weights: Tensor
    ) -> Tensor:
        """The sum of TRL's losses of single pairs, by weight and by share of the batch."""
        terms, aux = self.loss_weights, self.aux_loss_enabled
        shares = self.shares(inputs["completion_mask"])
        parts = []
        self.aux_loss_enabled = False  # it is of the whole batch
        try:
            for at, weight in enumerate(weights):
                self.loss_weights = [
                    term * share for term, share in zip(terms, shares[at], strict=True)
                ]
                one = SimpleNamespace(**part_of(outputs, at, len(weights)))
                loss = super()._compute_loss(  # type: ignore[no-untyped-call]
                    lambda one=one, **_: one, part_of(inputs, at, len(weights)), False
                )
                parts.append(weight * loss)
        finally:
            self.loss_weights, self.aux_loss_enabled = terms, aux
        return cast(Tensor, sum(parts))

    def shares(self, completion: Tensor) -> list[list[float]]:
        """(pairs, terms): which part of a batch's loss a pair is. TRL's sft loss is a mean over
        tokens of the chosen sides, every other one a mean over pairs."""
        half = len(completion) // 2
        tokens = completion[:half, 1:].sum(1).float()
        by_tokens = (tokens / tokens.sum()).tolist()
        return [
            [by_tokens[at] if kind == "sft" else 1 / half for kind in self.loss_types]
            for at in range(half)
        ]


def part_of(batch: Mapping[str, object], at: int, pairs: int) -> dict[str, Any]:
    """What a batch of `pairs` pairs holds of pair `at`: two rows of (2P, ...) tensors, one of those
    of length P, and everything else unchanged. `Any`: a batch and an output hold many types."""

    def part(value: object) -> object:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if len(value) == 2 * pairs:
            return value[[at, pairs + at]]
        return value[at : at + 1] if len(value) == pairs else value

    return {name: part(value) for name, value in batch.items()}
