"""The memory of a training that shards its weights over processes: on each device and on each host.

    layout = Layout(world=16, kind="fsdp2", per_node=8)
    found = sharded_estimate(shape, recipe, batch, layout, "cuda", 80e9)
    str(found)       # '70.1 of 80.0 GB: fits (weights 17.6, gathered 5.6, ...); a host: ...'

No weights are loaded. Weights, gradients and optimiser states of FSDP 2 are what two processes were
measured to hold (benchmarks/sharded.py). Those of ZeRO are counted as in its paper (arXiv
1910.02054) and not measured here. No GPU has been measured. What a DeepSpeed config moves
elsewhere, quantises or holds twice is not counted, and named (`uncounted`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from overrefusal_po.model.sharding import deepspeed_config
from overrefusal_po.model.zero import check_not_quantised
from overrefusal_po.model.zero_parts import has_plain_parts
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.train.memory import (
    OPTIMISER_BYTES,
    OVERHEAD_BYTES,
    TIGHT_SHARE,
    Batch,
    Memory,
    Shape,
    adds_gradients,
    estimate,
    trained_weights,
    weight_bytes,
    weight_width,
)
from overrefusal_po.train.settings import full_settings

Kind = Literal["fsdp2", "zero1", "zero2", "zero3"]

LIVE_WEIGHTS, BUCKET = 1e9, 5e8
"""DeepSpeed's defaults: weights that stage 3 gathers at a time, and gradients that are sent at
once."""


class Layout(NamedTuple):
    """How a training is spread: processes (one a device), what shards, and devices of a host."""

    world: int
    kind: Kind = "fsdp2"
    per_node: int = 8


class Sharded(NamedTuple):
    """Bytes at the peak of a sharded training, on each device; `host_...` on each host."""

    weights: float
    gathered: float
    """What is whole for a moment: layers that compute, and gradients before they are sent."""
    reference: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    overhead: float
    available: float
    host_load: float
    """All processes of a host together, while the weights are read."""
    host_save: float
    """The host of the first process, which gathers the model to write it."""
    uncounted: tuple[str, ...] = ()
    """Settings of the DeepSpeed config that change these numbers and are not counted."""

    @property
    def total(self) -> float:
        """The sum of the parts; gradients grow while activations shrink."""
        step = max(self.activations + self.logits, self.gradients)
        held = self.weights + self.reference + self.optimiser
        return held + self.gathered + step + self.overhead

    @property
    def verdict(self) -> str:
        """Whether the total fits into the memory of the device."""
        share = self.total / self.available
        return "fits" if share < TIGHT_SHARE else "tight" if share <= 1 else "will not fit"

    def __str__(self) -> str:
        """`70.1 of 80.0 GB: fits (weights 17.6, ...); a host: ...`, in units of 10^9 bytes."""
        names = self._fields[: self._fields.index("available")]
        without = f"; not counted: {', '.join(self.uncounted)}" if self.uncounted else ""
        parts = ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in names)
        return (
            f"{self.total / 1e9:.1f} of {self.available / 1e9:.1f} GB: {self.verdict} ({parts}); "
            f"a host: {self.host_load / 1e9:.0f} GB to load, {self.host_save / 1e9:.0f} GB to save"
            f"{without}"
        )


class Held(NamedTuple):
    """Bytes of all processes together, before anything is sharded."""

    frozen: float
    """Weights that are not trained."""
    trained: float
    copies: float
    """32-bit copies of trained weights that the optimiser steps on."""
    gradients: float
    optimiser: float


class Spread(NamedTuple):
    """A layout, and the memory of one of its GPUs in GB; None: what this machine has."""

    layout: Layout
    gpu_gb: float | None = None


def checked_spread(
    world: int | None, kind: str = "fsdp2", per_node: int = 8, gpu_gb: float | None = None
) -> Spread | None:
    """What a command asks for; None without a world. ValueError for values that are none."""
    if world is None:
        return None
    if world < 1 or per_node < 1 or (gpu_gb is not None and gpu_gb <= 0):
        raise ValueError(
            f"--world {world}, --per-node {per_node} and --gpu-gb {gpu_gb}: give numbers above 0."
        )
    if kind not in get_args(Kind):
        raise ValueError(
            f"--sharding {kind} is not known; allowed is one of {', '.join(get_args(Kind))}."
        )
    layout = Layout(world, kind, min(per_node, world))  # type: ignore[arg-type]  # checked above
    return Spread(layout, gpu_gb)


def on_gpu(recipe: TrainRecipe) -> TrainRecipe:
    """A recipe with what a GPU decides (`settings.hardware_settings`), on a machine without one."""
    trainer = {"bf16": True, "gradient_checkpointing": True, **recipe.trainer}
    return recipe.model_copy(update={"trainer": trainer})


def sharded_estimate(
    shape: Shape, recipe: TrainRecipe, batch: Batch, layout: Layout, device: str, available: float
) -> Sharded:
    """The peak of a training that is spread as `layout` says; `device` as in `estimate`.

    FSDP 2 holds no reference: the policy computes its log-probs before the training. ZeRO holds one
    where DDP does: shared out by ZeRO-3, else whole in each process. ValueError for 4 or 8 bits
    under ZeRO-3.
    """
    if layout.kind == "zero3":
        check_not_quantised(recipe.model)
    plain = estimate(shape, recipe, batch, device, available)
    held, world = held_bytes(shape, recipe, layout.kind), layout.world
    stage = {"fsdp2": 3, "zero1": 1, "zero2": 2, "zero3": 3}[layout.kind]
    gradients = held.gradients / (world if stage > 1 else 1)
    accumulates = adds_gradients(recipe)
    # `estimate` counts kept gradients of 32 bits beside the activations
    activations = plain.activations - (plain.gradients if accumulates else 0.0)
    return Sharded(
        weights=(held.frozen + held.trained) / (world if stage > 2 else 1) + held.copies / world,
        gathered=gathered_bytes(shape, recipe, layout.kind),
        reference=reference_bytes(shape, recipe, plain, layout),
        gradients=gradients,
        optimiser=held.optimiser / world,
        activations=activations + (gradients if accumulates else 0.0),
        logits=plain.logits,
        overhead=plain.overhead,
        available=available,
        host_load=load_bytes(shape, recipe, layout),
        host_save=save_bytes(shape, recipe, plain, layout),
        uncounted=uncounted(zero_config(recipe, layout.kind)),
    )


# Any: a value has the type of its key
def zero_config(recipe: TrainRecipe, kind: Kind) -> Mapping[str, Any]:
    """The DeepSpeed config that a recipe or the launcher names; empty if none does."""
    return {} if kind == "fsdp2" else deepspeed_config(recipe.trainer)[0]


def uncounted(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a DeepSpeed config that are not counted, as `offload_param nvme`."""
    zero = config.get("zero_optimization") or {}
    moved = {
        key: str((zero.get(key) or {}).get("device") or "none")
        for key in ("offload_param", "offload_optimizer")
    }
    found = [f"{key} {device}" for key, device in moved.items() if device != "none"]
    if (nodes := int(zero.get("zero_hpz_partition_size") or 1)) > 1:
        found.append(f"zero_hpz_partition_size {nodes}")
    kept = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")
    found += [key for key in kept if zero.get(key)]
    return (*found, *(["weight_quantization"] if config.get("weight_quantization") else []))


def held_bytes(shape: Shape, recipe: TrainRecipe, kind: Kind) -> Held:
    """What a training holds in all processes together.

    FSDP 2 keeps trained weights in 32 bits if it computes in 16. DeepSpeed keeps them in 16, and a
    copy in 32 bits for the optimiser, which it has in a training in 32 bits too.
    """
    section, trainer = recipe.model, full_settings(recipe)
    lora, mixed = bool(section.get("use_peft")), is_mixed(recipe)
    count = trained_weights(shape, section)
    zero = kind != "fsdp2"
    width = 2.0 if zero and mixed else 4.0 if mixed or lora else float(weight_width(recipe))
    return Held(
        frozen=weight_bytes(shape, recipe) if lora else 0.0,
        trained=width * count,
        copies=4.0 * count if zero else 0.0,
        gradients=width * count,
        optimiser=float(OPTIMISER_BYTES.get(str(trainer["optim"]), 8) * count),
    )


def reference_bytes(shape: Shape, recipe: TrainRecipe, plain: Memory, layout: Layout) -> float:
    """A device's part of the reference. DeepSpeed keeps it in 16 bits if it computes in 16."""
    if layout.kind == "fsdp2" or not plain.reference:
        return 0.0
    whole = 2.0 * shape.weights if is_mixed(recipe) else plain.reference
    return whole / (layout.world if layout.kind == "zero3" else 1)


def is_mixed(recipe: TrainRecipe) -> bool:
    """Whether a training computes in 16 bits."""
    trainer = full_settings(recipe)
    return bool(trainer["bf16"] or trainer["fp16"])


def gathered_bytes(shape: Shape, recipe: TrainRecipe, kind: Kind) -> float:
    """What each device holds whole for a moment.

    FSDP 2: a layer and the next one, the LM head, and the gradients of one of them. ZeRO-3: its
    limit of live weights. All of ZeRO: a bucket of gradients.
    """
    width = 2.0 if is_mixed(recipe) else float(weight_width(recipe))
    lora = bool(recipe.model.get("use_peft"))
    trained = trained_weights(shape, recipe.model)
    if kind == "fsdp2":
        head = width * shape.vocabulary * shape.hidden
        layer = layer_bytes(shape, recipe, width)
        return 2 * layer + head + (0.0 if lora else max(layer, head))
    live = width * min(LIVE_WEIGHTS, shape.weights) if kind == "zero3" else 0.0
    return live + width * min(BUCKET, trained)


def layer_bytes(shape: Shape, recipe: TrainRecipe, width: float) -> float:
    """The matrices of one layer, quantised or in numbers of `width` bytes."""
    if recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit"):
        rest = weight_width(recipe) * (shape.weights - shape.quantised)
        return (weight_bytes(shape, recipe) - rest) / shape.layers
    return width * shape.quantised / shape.layers


def load_bytes(shape: Shape, recipe: TrainRecipe, layout: Layout) -> float:
    """Host memory of the processes of one host while they read the weights.

    FSDP 2: full fine-tuning reads one tensor at a time, the LM head at most; for an adapter the
    first process of a host reads all. ZeRO-3: one tensor at a time too, for an adapter as well; the
    first process reads all if its parts are not plain ones (`has_plain_parts`). ZeRO-1 and 2: every
    process reads all.
    """
    section, processes = recipe.model, layout.per_node
    whole = weight_width(recipe) * shape.weights
    quantised = section.get("load_in_4bit") or section.get("load_in_8bit")
    if layout.kind in ("zero1", "zero2") or quantised:
        read = float(processes * whole)
    elif (layout.kind == "fsdp2" and section.get("use_peft")) or not has_plain_parts(
        zero_config(recipe, layout.kind)
    ):
        read = float(whole)
    else:
        read = 4.0 * processes * shape.vocabulary * shape.hidden
    return read + processes * OVERHEAD_BYTES["cpu"]


def save_bytes(shape: Shape, recipe: TrainRecipe, plain: Memory, layout: Layout) -> float:
    """Host memory of the first host at the end: the gathered model, and an adapter's base again."""
    if recipe.model.get("use_peft"):
        whole = weight_bytes(shape, recipe) + weight_width(recipe) * shape.weights
    else:
        whole = (4.0 if is_mixed(recipe) else weight_width(recipe)) * shape.weights
    return whole + layout.per_node * OVERHEAD_BYTES["cpu"]
