"""Reference log-probs of KTO's rows, computed once by the start policy and kept.

    rows = with_side_references(trainer, rows, "train", 8, (store, "sdpa"))

They stand in the folder of `exact.reference_store` that belongs to the policy. A row's key is a
digest of its own tokens and of the response that it is compared with.

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader

from overrefusal_po.exact.reference_store import (
    check_not_streamed,
    digest,
    kept_or_computed,
    policy_key,
)

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.utils.data import Dataset as TorchDataset
    from trl import KTOTrainer


PARTS_OF_BATCH = ("attention_mask", "input_ids", "completion_mask")


class SideParts(NamedTuple):
    """Summed log-probs of a row's response, and of the one that its prompt is compared with."""

    own: float
    other: float = 0.0
    """0 without a KL term."""


def with_side_references(
    trainer: KTOTrainer,
    dataset: Dataset | IterableDataset,
    name: str,
    batch_size: int,
    place: tuple[Path, str] | None,
) -> Dataset:
    """`dataset` with the columns ref_logps, and ref_KL_logps if there is a KL term.

    `place`: the folder of the store and the name of the model's attention; None keeps nothing.
    Every process calls it, and gets all rows. Raises ValueError for streamed data, and for
    log-probs that are not finite.
    """
    rows = check_not_streamed(dataset)
    found = kept_or_computed(
        trainer,
        rows,
        name,
        unit="rows",
        folder=None if place is None else place[0] / policy_key(trainer, place[1]),
        key_of=side_key,
        make=SideParts,
        compute=lambda missing: compute_sides(trainer, missing, batch_size),
    )
    scored: Dataset = rows.add_column("ref_logps", [parts.own for parts in found])
    if trainer.calculate_KL:
        scored = scored.add_column("ref_KL_logps", [parts.other for parts in found])
    return scored


def side_key(batch: Mapping[str, Tensor]) -> str:
    """Hash of one row's unpadded tokens, and of the response that it is compared with.

    `batch` is the collator's batch of that row alone: tensors (1, T).
    """
    names = [start + part for start in ("", "KL_") for part in PARTS_OF_BATCH]
    return digest(["side", *([n, batch[n].tolist()] for n in names if n in batch)])


def compute_sides(trainer: KTOTrainer, dataset: Dataset, batch_size: int) -> list[SideParts]:
    """The parts of every row, in the order of `dataset`; each process computes its share."""
    loader = trainer.accelerator.prepare(
        DataLoader(
            cast("TorchDataset[dict[str, object]]", dataset),
            batch_size=batch_size,
            collate_fn=trainer.data_collator,
            shuffle=False,
        )
    )
    model = cast("Module", trainer.ref_model or trainer.model)
    training = model.training
    model.eval()
    found: list[SideParts] = []
    try:
        for batch in loader:
            own, other = trainer.compute_ref_log_probs(model, batch)  # (B,) each
            parts = torch.stack([own, torch.zeros_like(own) if other is None else other], dim=1)
            rows = trainer.accelerator.gather_for_metrics(parts.float()).tolist()  # (B, 2)
            found += [SideParts(*row) for row in rows]
    finally:
        model.train(training)
    if not all(math.isfinite(value) for parts in found for value in parts):
        raise ValueError(
            "The reference gives log-probs that are not finite. Load it in bfloat16 or float32."
        )
    return found
