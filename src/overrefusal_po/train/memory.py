"""Model config and recipe -> the memory of a training at its peak, and whether the device has it.

    shape = shape_of(config_of(recipe.model), recipe.model)
    found = estimate(shape, recipe, widest_batch(recipe, prepared.lengths), *device_memory())
    str(found)       # '5.1 of 24.0 GB: fits (weights 0.5, reference 0, gradients 0, ...)'

No weights are loaded. The counts are exact: they come from the model's own classes. The constants
of activations and overhead are measured on a CPU. `benchmarks/memory.py` measures them, and also
how far the estimate is off. No GPU has been measured.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from overrefusal_po.model import load as models
from overrefusal_po.model.blocks import model_of_config
from overrefusal_po.model.hardware import container_bytes
from overrefusal_po.model.load import ModelSection
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.train.policy import adapts, named_modules
from overrefusal_po.train.settings import full_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig

OVERHEAD_BYTES = {"cpu": 0.76e9, "cuda": 1.5e9}
"""Bytes of a process that trains nothing.

On a CPU they are Python and the libraries (measured), on a GPU the CUDA context (ours)."""

KEPT_FACTOR = {"cpu": 1.5, "cuda": 0.93}
"""Memory kept for the backward pass, as a multiple of what `layer_values` counts.

0.93 is what autograd holds (counted by its hooks). On a CPU the gaps of malloc are added
(measured)."""

LOGIT_TILE, LOGIT_COPIES = (4096, 32768), {"cpu": 8.4, "cuda": 1.0}
"""TRL's fused head (1.16): (tokens, vocabulary) of a tile, and its copies in the backward pass.

torch keeps many copies on a CPU (measured). Triton has one buffer (read in TRL's source)."""

MIXED_BYTES = 3.0
"""Bytes of a kept value if the matrices have 16 bits (counted).

Norms, residuals and LoRA's inputs stay in 32 bits."""

OPTIMISER_BYTES = {
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "sgd": 0,
    "adafactor": 0,
}
"""Bytes of optimiser state for each trained weight, if they are not the 8 of AdamW."""

TIGHT_SHARE = 0.8
"""From this share of the device's memory an estimate is tight: it may be off by a quarter."""


class Shape(NamedTuple):
    """The size of a model by its config: counts of weights, and widths of a layer's vectors."""

    weights: int
    quantised: int
    """Weights of the linear layers except the LM head: bitsandbytes quantises those."""
    adapter: int
    """Weights that one rank of the recipe's LoRA adds; 0 without."""
    whole: int
    """Weights of the modules that are trained whole beside it (lora_modules_to_save)."""
    layers: int
    hidden: int
    kept: int
    """Values that one token leaves for the backward pass in one layer."""
    vocabulary: int


class Batch(NamedTuple):
    """The widest batch of a device, padding counted."""

    tokens: int
    """Those that go through the layers."""
    scored: int
    """Those that go through the LM head."""


class Memory(NamedTuple):
    """Bytes at the peak of a training, on each device."""

    weights: float
    reference: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    saved: float
    """The whole model in 16 or 32 bits, as it is saved and then compared. The rest is freed before
    that."""
    overhead: float
    available: float

    @property
    def total(self) -> float:
        """The sum of the parts. What stands in memory at different times counts once.

        Gradients grow while activations shrink. The saved model is loaded after the training is
        freed.
        """
        step = max(self.activations + self.logits, self.gradients)
        training = self.weights + self.reference + self.optimiser + step
        return max(training, self.saved) + self.overhead

    @property
    def verdict(self) -> Literal["fits", "tight", "will not fit"]:
        """Whether the total fits into the memory of the device."""
        share = self.total / self.available
        return "fits" if share < TIGHT_SHARE else "tight" if share <= 1 else "will not fit"

    def __str__(self) -> str:
        """`5.1 of 24.0 GB: fits (weights 0.5, ...)`, in units of 10^9 bytes."""
        parts = ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in self._fields[:-1])
        return f"{self.total / 1e9:.1f} of {self.available / 1e9:.1f} GB: {self.verdict} ({parts})"


def config_of(section: ModelSection) -> PretrainedConfig:
    """The model config that a recipe's `model:` names; no weights are read."""
    return models.load_config(
        str(section["model_name_or_path"]),
        revision=section.get("model_revision", "main"),
        trust_remote_code=bool(section.get("trust_remote_code", False)),
    )


def shape_of(config: PretrainedConfig, section: ModelSection) -> Shape:
    """The shape of a model from its config, with the adapter of the recipe's `model:` section."""
    import torch

    trust = bool(section.get("trust_remote_code", False))
    model = model_of_config(config, trust_remote_code=trust)
    head = model.get_output_embeddings()
    linear = {
        n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    }
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        weights=sum(p.numel() for p in model.parameters()),
        quantised=sum(m.weight.numel() for m in linear.values()),
        adapter=sum(
            m.in_features + m.out_features for n, m in linear.items() if is_adapted(n, section)
        ),
        whole=sum(
            weight.numel()
            for name, module in model.named_modules()
            if is_whole(name, section)
            for weight in module.parameters()
        ),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        kept=layer_values(
            text.hidden_size,
            getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            heads * width,
            (getattr(text, "num_key_value_heads", None) or heads) * width,
        ),
        vocabulary=text.vocab_size,
    )


def is_adapted(name: str, section: ModelSection) -> bool:
    """Whether the recipe's LoRA adapts the linear layer `name`.

    If a recipe leaves the choice to peft, all linear layers count.
    """
    return is_named(name, named_modules(section, "lora_target_modules") or ["all-linear"], section)


def is_whole(name: str, section: ModelSection) -> bool:
    """Whether the module `name` is trained whole beside the recipe's LoRA."""
    return is_named(name, named_modules(section, "lora_modules_to_save"), section)


def is_named(name: str, targets: list[str], section: ModelSection) -> bool:
    """Whether a recipe with an adapter means the module `name` by one of `targets`."""
    return bool(section.get("use_peft")) and any(adapts(target, name) for target in targets)


def trained_weights(shape: Shape, section: ModelSection) -> int:
    """How many weights are trained: the adapter and the modules beside it, or all."""
    if not section.get("use_peft"):
        return shape.weights
    return shape.adapter * int(section.get("lora_r", 16)) + shape.whole


def layer_values(hidden: int, intermediate: int, queries: int, keys: int) -> int:
    """Values that one token leaves for the backward pass in one layer of a Llama.

    They are two norms, q, k and v (k and v once for each query head), the attention, and the MLP.
    """
    return 6 * hidden + 4 * queries + 2 * keys + 4 * intermediate


def estimate(
    shape: Shape, recipe: TrainRecipe, batch: Batch, device: str, available: float
) -> Memory:
    """The peak of a training: of a step on `batch`, or of the saved model after it.

    `device` is "cpu" or "cuda", and has `available` bytes. Sharding over several devices (FSDP,
    ZeRO) is not counted.
    """
    section, trainer = recipe.model, full_settings(recipe)
    method = find_method(recipe.method)
    lora = bool(section.get("use_peft"))
    weights = weight_bytes(shape, recipe)
    trained = trained_weights(shape, section)
    if method.soft_tokens:  # some rows of the embedding: less than what is not counted elsewhere
        trained = 0
    wide = weight_width(recipe) == 4 and not (trainer["bf16"] or trainer["fp16"])
    width = 4.0 if wide else MIXED_BYTES
    layer = KEPT_FACTOR[device] * width * shape.kept * batch.tokens
    kept = shape.layers * layer
    if trainer["gradient_checkpointing"]:
        kept = layer + shape.layers * width * shape.hidden * batch.tokens
    tile = min(batch.scored, LOGIT_TILE[0]) * min(shape.vocabulary, LOGIT_TILE[1])
    stored = recipe.speed.reference_store or trainer.get("precompute_ref_log_probs")
    return Memory(
        weights=weights + (4.0 * trained if lora else 0.0),
        reference=weights
        if not lora and method.needs_reference and not (method.stores_reference and stored)
        else 0.0,
        gradients=4.0 * trained,
        optimiser=float(OPTIMISER_BYTES.get(str(trainer["optim"]), 8) * trained),
        activations=kept + (4.0 * trained if adds_gradients(recipe) else 0.0),
        logits=LOGIT_COPIES[device] * (4 if wide or device == "cpu" else 2) * tile,
        saved=float(weight_width(recipe) * shape.weights) if device == "cpu" else 0.0,
        overhead=OVERHEAD_BYTES[device],
        available=available,
    )


def adds_gradients(recipe: TrainRecipe) -> bool:
    """Whether a step adds gradients to those of an earlier backward pass."""
    accumulated: int = full_settings(recipe)["gradient_accumulation_steps"]
    return accumulated > 1 or recipe.speed.pass_tokens is not None


def weight_bytes(shape: Shape, recipe: TrainRecipe) -> float:
    """Bytes of the loaded weights, quantised or not, without an adapter."""
    section, width = recipe.model, weight_width(recipe)
    if section.get("load_in_4bit"):
        # 64 weights share a scale of 32 bits. With double quantisation the scale has 8 bits, and
        # 256 scales share 32 bits more.
        scale = 0.0159 if section.get("use_bnb_nested_quant") else 0.0625
        return width * shape.weights + (0.5 + scale - width) * shape.quantised
    return width * shape.weights + (
        (1 - width) * shape.quantised if section.get("load_in_8bit") else 0
    )


def weight_width(recipe: TrainRecipe) -> int:
    """Bytes of one loaded weight: 4 or 2.

    `auto` counts as 16 bits, in which most models are published. Full fine-tuning is in float32. A
    recipe for bfloat16 is for a machine that has it, whatever this one has.
    """
    left_open = "float32"
    if recipe.model.get("use_peft"):
        left_open = "bfloat16" if full_settings(recipe)["bf16"] else models.default_dtype()
    return 4 if (recipe.model.get("dtype") or left_open) == "float32" else 2


def widest_batch(recipe: TrainRecipe, lengths: NDArray[np.int64]) -> Batch:
    """The batch of the rows that take most memory.

    Rows are padded to the widest one, or stand one behind the other with a shared prefix. `lengths`
    are those of `data.Prepared`: (pairs, 3) for pairs, (rows, 1) for whole rows.
    """
    widths = row_widths(recipe, lengths)
    size: int = full_settings(recipe)["per_device_train_batch_size"]
    widest = np.sort(widths, axis=0)[::-1][:size]
    if shares_prefix(recipe):
        whole = Batch(*map(int, widest.sum(axis=0)))
    else:
        whole = Batch(*(size * int(most) for most in widest[0]))
    most = recipe.speed.pass_tokens if find_method(recipe.method).shares_prefix else None
    if most is None or whole.tokens <= most:
        return whole
    tokens = max(most, int(widest[0, 0]))  # a pair is a pass at least
    return Batch(tokens, min(whole.scored, tokens))


def shares_prefix(recipe: TrainRecipe) -> bool:
    """Whether pairs go through the model as one row without padding, if that is proven exact."""
    return find_method(recipe.method).shares_prefix and recipe.speed.shared_prefix


def row_widths(recipe: TrainRecipe, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows, 2): the tokens and the scored tokens of a row, or of both rows of a pair.

    Without a shared prefix the head sees all tokens (on CPUs).
    """
    if lengths.shape[1] == 1:
        return np.repeat(lengths, 2, axis=1)
    method = find_method(recipe.method)
    prompt, sides = lengths[:, 0], lengths[:, 1:]  # (P,), (P, 2)
    padded = prompt + sides.max(axis=1)  # (P,)
    if method.sides_apart:  # passes without gradients (KL, reference) keep nothing
        return np.stack([padded, padded], axis=1)
    if not shares_prefix(recipe):
        return np.stack([2 * padded, 2 * padded], axis=1)
    scored = sides.sum(axis=1) + (prompt if method.scores_prompt else 0)
    return np.stack([prompt + sides.sum(axis=1), scored], axis=1)


def device_memory(*, use_cpu: bool = False) -> tuple[str, float]:
    """("cuda", bytes of one GPU) or ("cpu", bytes of this machine, or of its container if less)."""
    if models.has_cuda() and not use_cpu:
        import torch

        return "cuda", float(torch.cuda.get_device_properties(0).total_memory)
    machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return "cpu", min(machine, container_bytes("max"))
