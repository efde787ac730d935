"""The policy sharded by FSDP 2 before its first step, so that it is its own reference.

    trainer = DPOTrainer(model=policy, ref_model=no_reference(policy), ...)
    shard_policy(trainer)          # every process holds its part, filled
    ...                            # reference log-probs of the start policy
    reshard(trainer.model)

accelerate shards a model when the training begins. TRL therefore loads a reference under FSDP, even
to compute log-probs ahead. Here the start policy is sharded first and computes them itself, so no
second model exists. Every process calls these functions at the same places.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from overrefusal_po.model.finite import NotFiniteError, all_finite, readable_weights
from overrefusal_po.model.parts import FILES, fill_parts
from overrefusal_po.model.sharding import check_sharding, fsdp_version, is_on, wants_fsdp
from overrefusal_po.train.policy import exact_adapter, trains_all

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.nn import Module
    from transformers import PreTrainedModel, Trainer
    from trl import DPOConfig, KTOConfig

    Config = TypeVar("Config", DPOConfig, KTOConfig)


def own_reference(settings: Mapping[str, object]) -> bool:
    """Whether the settings, or the launcher, ask for FSDP 2: the policy can be sharded first."""
    return wants_fsdp(settings) and fsdp_version(settings) == "2"


def check_adapter_rows(section: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Raises ValueError if an adapter has fewer rows than processes that FSDP shards it over.

    `section`: a recipe's `model:`. It matters if FSDP loads weights once: see `check_filled`.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(str(section.get("lora_r") or 16))
    once = is_on(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING"))
    if section.get("use_peft") and own_reference(settings) and once and rank < world:
        raise ValueError(
            f"model.lora_r is {rank}, and {world} processes shard the adapter by its rows, so some "
            f"would hold none. Give at least {world}, launch fewer processes, or launch with "
            "--fsdp_cpu_ram_efficient_loading false."
        )


def without_reference(config: Config) -> Config:
    """The settings of a training of all weights, without a reference model under FSDP 2.

    Its log-probs are computed before the first step. ValueError if `sync_ref_model` needs the model
    and FSDP loads weights once.
    """
    if not own_reference(vars(config)) or config.precompute_ref_log_probs:
        return config
    check_sharding(vars(config), frozen_reference=True)
    if config.sync_ref_model:
        return config
    config = copy.copy(config)  # the caller's own object stays unchanged
    config.precompute_ref_log_probs = True
    return config


def no_reference(
    policy: PreTrainedModel, peft_config: PeftConfig | None, config: DPOConfig | KTOConfig
) -> Module | None:
    """A module without weights that keeps TRL from loading a reference under FSDP 2.

    None if TRL loads none, or has to make one of an adapter that comes with the policy.
    """
    if not (own_reference(vars(config)) and config.precompute_ref_log_probs):
        return None
    if peft_config is None and not trains_all(policy, peft_config):
        return None
    from torch.nn import Module

    class NoReference(Module):
        """Stands in for a reference until the policy is sharded."""

        def __init__(self) -> None:
            super().__init__()
            self.config = policy.config
            self.stands_in = True

        def forward(self) -> None:
            """Never called."""

    return NoReference()


def is_sharded(model: object) -> bool:
    """Whether FSDP 2 has sharded a model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def ready_policy(trainer: Trainer) -> None:
    """What a policy needs before training: an exact adapter, and its shard of weights loaded once.

    Weights that every process has loaded are sharded by accelerate when the training begins.
    """
    if is_sharded(trainer.model):
        return
    exact_adapter(trainer.model)
    accelerator = trainer.accelerator
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        shard_policy(trainer)


def start_reference(trainer: Any) -> None:  # Any: a trainer of TRL, with its reference
    """Makes the start policy, sharded, the reference of a trainer under FSDP 2."""
    if not trainer.accelerator.is_fsdp2:
        return
    if getattr(trainer.ref_model, "stands_in", False):
        trainer.ref_model = None
    if trainer.ref_model is None:
        shard_policy(trainer)


def shard_policy(trainer: Trainer) -> None:
    """Shards the policy with FSDP 2 now, as accelerate would at the start of the training.

    Raises ValueError for settings with which that is not exact, and for weights that stay empty;
    NotFiniteError on all processes if one finds weights that are not finite.
    """
    from accelerate.utils import fsdp2_prepare_model

    accelerator, model = trainer.accelerator, cast("Module", trainer.model)
    if is_sharded(model):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing is true, which accelerate puts on a model before it "
            "shards it. Here it is sharded earlier. Set it to false, and "
            "trainer.gradient_checkpointing: true, which saves the same memory."
        )
    exact_adapter(model)
    once, parts = plugin.cpu_ram_efficient_loading, hasattr(model, FILES)
    # accelerate would send the first process's weights, which has none
    plugin.cpu_ram_efficient_loading = once and not parts
    try:
        fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.cpu_ram_efficient_loading = once
    if parts:
        offloads = "CPUOffload" in type(plugin.cpu_offload).__name__
        fill_parts(cast("PreTrainedModel", model), "cpu" if offloads else accelerator.device)
    check_filled(model)


def check_filled(model: Module) -> None:
    """Raises if a sharded model holds weights that are empty, not finite, or cannot be told apart.

    All processes raise the same.
    """
    from accelerate.utils import gather_object

    weights = dict(model.named_parameters())
    local = {name: cast(Any, weight).to_local() for name, weight in sharded(weights).items()}
    empty = [name for name, weight in weights.items() if weight.is_meta]
    rowless = [name for name, part in local.items() if not part.numel()]
    finite = not empty and all_finite(readable_weights(model).values())
    for empties, rowlesses, fine in gather_object([(empty[:1], rowless[:2], finite)]):
        if empties:
            raise ValueError(
                f"The weight {empties[0]} is empty: it was loaded by the first process alone, and "
                "FSDP was not told to send it. Set fsdp_cpu_ram_efficient_loading in the "
                "launcher's config alone, and not in trainer.fsdp_config."
            )
        if len(rowlesses) > 1:  # accelerate finds a parameter by its address, and these have none
            raise ValueError(
                f"{rowlesses[0]} and others have fewer rows than there are processes, so one "
                "process would hold none of them. Launch fewer processes, give adapters a "
                "model.lora_r of at least their number, or set fsdp_cpu_ram_efficient_loading to "
                "false and speed.reference_store: false."
            )
        if not fine:
            raise NotFiniteError(
                "The start policy holds weights that are NaN or infinite. Take another model."
            )


def sharded(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some weights that are sharded. Any: a DTensor, whose type torch loads late."""
    return {name: weight for name, weight in weights.items() if hasattr(weight, "to_local")}


def reshard(model: object) -> None:
    """Frees the layers that a pass without gradients has left whole in each process."""
    from torch.distributed.fsdp import FSDPModule

    for module in cast("Module", model).modules():
        if isinstance(module, FSDPModule):
            module.reshard()
