"""Reference log-probs of preference pairs, computed once and kept.

    folder = store / policy_key(trainer, "sdpa")
    known = read_rows(folder, {row_key(collator([row])) for row in dataset}, Parts)
    known[key].sums(ld_alpha=None)           # (chosen, rejected) log-probs

Every run with the same reference and the same rows finds them. A sweep over learning rate, beta,
loss type, `ld_alpha`, LoRA rank or seed runs the reference over its pairs once. TRL's own cache
misses there. It also ignores `ld_alpha` without a max_length, keeps nothing for datasets in memory,
and fails with two processes.

A value is found by what it was computed from, and by nothing else. Its folder is a digest of the
reference: the weights in memory (so their dtype and quantisation too), the config, the adapter and
the autocast format. Its key is a digest of the pair: the token ids and the label mask that the
collator makes.

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader

from overrefusal_po.exact.own_part import own_part
from overrefusal_po.json_files import write_if_possible

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.utils.data import Dataset as TorchDataset
    from transformers import PreTrainedModel
    from trl import DPOTrainer, KTOTrainer

logger = logging.getLogger(__name__)
Found = TypeVar("Found", bound=tuple[float, ...])

STORE_VERSION = 1
"""Grows when the meaning of a stored number changes, so that old numbers are not found."""

LORA_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
"""Names under which peft keeps an adapter's own weights inside a layer."""

IGNORED_CONFIG_KEYS = ("_name_or_path", "transformers_version", "use_cache")
"""Keys of a saved config that say nothing about what a model computes."""


class Parts(NamedTuple):
    """Summed log-probs of both sides of a pair, each in two parts.

    `shared` covers as many tokens as the shorter side has, `tail` the tokens after them. LD-DPO
    (arXiv 2409.06411) weighs the tail.
    """

    chosen_shared: float
    chosen_tail: float
    rejected_shared: float
    rejected_tail: float

    def sums(self, ld_alpha: float | None) -> tuple[float, float]:
        """(chosen, rejected) log-probs, the tails weighed by `ld_alpha` (None: 1)."""
        weight = 1.0 if ld_alpha is None else ld_alpha
        return (
            self.chosen_shared + weight * self.chosen_tail,
            self.rejected_shared + weight * self.rejected_tail,
        )


def compute_parts(
    trainer: DPOTrainer, model: Module, dataset: Dataset, batch_size: int
) -> list[Parts]:
    """The parts of every pair, in the order of `dataset`.

    Each process computes its share and gets all parts. Raises ValueError if a log-prob is not
    finite.
    """
    loader = trainer.accelerator.prepare(
        DataLoader(
            cast("TorchDataset[dict[str, object]]", dataset),
            batch_size=batch_size,
            collate_fn=trainer.data_collator,
            shuffle=False,
        )
    )
    training, ld_alpha = model.training, trainer.ld_alpha
    model.eval()
    # TRL returns shared + ld_alpha * tail. With 1j they stay apart: real part and imaginary part.
    trainer.ld_alpha = 1j  # type: ignore[assignment]  # TRL uses it as a number only
    found: list[Parts] = []
    try:
        for batch in loader:
            sides = trainer.compute_ref_log_probs(model, batch)  # (P,) complex, chosen and rejected
            parts = torch.cat(  # (P, 4)
                [torch.view_as_real(side.to(torch.complex64)) for side in sides], dim=1
            )
            found += [Parts(*row) for row in trainer.accelerator.gather_for_metrics(parts).tolist()]
    finally:
        trainer.ld_alpha = ld_alpha
        model.train(training)
    if not all(math.isfinite(value) for parts in found for value in parts):
        raise ValueError(
            "The reference gives log-probs that are not finite. Load it in bfloat16 or float32."
        )
    return found


def policy_key(trainer: DPOTrainer | KTOTrainer, attention: str) -> str:
    """A digest of all that a reference log-prob depends on, except the row.

    It is the same on all processes. `attention` names the model's attention. Raises ValueError
    under FSDP 1.
    """
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise ValueError(
            "A reference store needs FSDP's version 2 (fsdp_version: 2); version 1 hides which "
            "weights are whose."
        )
    model = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
    configs = getattr(model, "peft_config", {})
    # TRL's rule: the reference is its frozen copy of the adapter, or all adapters are off
    adapter = "ref" if "ref" in configs else None
    base = model.get_base_model() if configs else model
    facts = {
        "layout": STORE_VERSION,
        "class": f"{type(base).__module__}.{type(base).__qualname__}",
        "transformers": transformers.__version__,
        "config": {
            name: value
            for name, value in base.config.to_dict().items()
            if name not in IGNORED_CONFIG_KEYS
        },
        "attention": attention,
        "autocast": trainer.accelerator.mixed_precision,
        "adapter": configs[adapter].to_dict() if adapter else None,
        "weights": weights_digest(base, adapter),
    }
    return digest(facts)


def weights_digest(model: PreTrainedModel, adapter: str | None) -> str:
    """A digest of the names, dtypes, shapes and bits of a model's weights.

    It covers the weights of the named adapter; None covers no adapter. A base layer has the same
    name with and without an adapter around it. Each process digests its own shards.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(used_weights(model, adapter)):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor_bytes(tensor))
    shards: list[str] = gather_object([found.hexdigest()])
    return shards[0] if len(set(shards)) == 1 else digest(shards)


def used_weights(model: PreTrainedModel, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """(name, this process's part) of each tensor that a forward reads.

    A state dict holds quantisation constants too.
    """
    for name, value in model.state_dict(keep_vars=True).items():
        steps = name.split(".")
        other_adapter = set(steps) & set(LORA_PARTS) and adapter not in steps
        if not isinstance(value, Tensor) or other_adapter:
            continue
        yield ".".join(step for step in steps if step != "base_layer"), own_part(value)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor as bytes that `hashlib` reads."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def row_key(batch: Mapping[str, Tensor]) -> str:
    """Hash of one pair's unpadded token ids and completion mask.

    `batch` is the collator's batch of that pair alone: tensors (2, T).
    """
    sides = zip(
        batch["attention_mask"].bool(), batch["input_ids"], batch["completion_mask"], strict=True
    )
    return digest([[ids[real].tolist(), scored[real].tolist()] for real, ids, scored in sides])


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON.

    Sets are sorted. Other values that JSON does not know count as their text.
    """

    def plain(value: object) -> list[str] | str:
        return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain).encode()).hexdigest()


def check_not_streamed(dataset: Dataset | IterableDataset) -> Dataset:
    """The dataset. ValueError if it is streamed: its rows cannot be read ahead."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "Reference log-probs cannot be computed ahead for a streamed dataset. Load it as a "
            "whole."
        )
    return dataset


def kept_or_computed(
    trainer: DPOTrainer | KTOTrainer,
    dataset: Dataset,
    name: str,
    *,
    unit: str,
    folder: Path | None,
    key_of: Callable[[Mapping[str, Tensor]], str],
    make: Callable[..., Found],
    compute: Callable[[Dataset], list[Found]],
) -> list[Found]:
    """What belongs to each row, in the order of `dataset`. What the folder lacks is computed and
    written there.

    Args:
        name: the dataset's, for the log; unit: what a row is, in the plural.
        folder: the policy's, in the store of the first process; None keeps nothing.
        key_of: the key of a batch of one row, as the collator makes it.
        make: a row's value, of the numbers in a file.
        compute: the values of some rows, in their order. All processes call it.
    """
    keys = [key_of(trainer.data_collator([row])) for row in dataset]
    first = folder is not None and trainer.accelerator.is_main_process
    shared = [read_rows(folder, set(keys), make) if folder is not None and first else {}]
    broadcast_object_list(shared, from_process=0)
    known = shared[0]
    missing = {key: index for index, key in enumerate(keys) if key not in known}
    said = f"reference log-probs (%s): %d {unit}, %d to compute"
    logger.info(said, name, len(keys), len(missing))
    if missing:
        # a pass over a DataLoader draws random numbers, which would move the training's dropout
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            found = compute(dataset.select(list(missing.values())))
        new = dict(zip(missing, found, strict=True))
        known |= new
        if folder is not None and first:
            write_parts(folder, new)
    return [known[key] for key in keys]


def read_rows(folder: Path, keys: set[str], make: Callable[..., Found]) -> dict[str, Found]:
    """What `make` makes of the numbers that a policy's folder holds of those `keys`.

    A file that cannot be read is left out with a warning.
    """
    known: dict[str, Found] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
            known |= {key: make(*rows[key]) for key in keys & rows.keys()}
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("%s holds no reference log-probs and is left out: %s", file, error)
    return known


def write_parts(folder: Path, rows: Mapping[str, Iterable[float]]) -> Path:
    """The file that holds the rows; it is written whole or, with a warning, not at all.

    Runs that compute the same rows write a file of the same name.
    """
    file = folder / f"{digest(sorted(rows))[:32]}.json"
    write_if_possible(file, json.dumps(rows))
    return file
