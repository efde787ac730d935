"""Whether weights are sharded: by the launcher's accelerate config or a recipe's trainer settings.

    check_sharding(settings, frozen_reference=True)

The launcher's config is in the environment. Both may name a file that holds the settings. Settings
that would end in empty weights are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from overrefusal_po.model.parallel import check_parallel

Settings = Mapping[str, object]
"""Keys of a recipe's `trainer:` section, or of a DeepSpeed or FSDP config."""


def wants_fsdp(settings: Settings | None = None) -> bool:
    """Whether the launcher's accelerate config asks for FSDP, or a recipe's trainer settings do."""
    return bool((settings or {}).get("fsdp")) or is_on(os.environ.get("ACCELERATE_USE_FSDP"))


def wants_deepspeed(settings: Settings | None = None) -> bool:
    """Whether the launcher's accelerate config or a recipe's trainer settings ask for DeepSpeed."""
    launched = is_on(os.environ.get("ACCELERATE_USE_DEEPSPEED"))
    return bool((settings or {}).get("deepspeed")) or launched


def is_on(switch: object) -> bool:
    """Whether a switch is on, in any word that accelerate's `str_to_bool` reads as true."""
    return str(switch).lower() in ("y", "yes", "t", "true", "on", "1")


def check_sharding(settings: Settings, *, frozen_reference: bool) -> None:
    """Raises ValueError if sharding would leave a training's result or its reference empty.

    `frozen_reference`: it trains all weights against a copy of them (DPO and KTO without adapters).
    Raises it for tensor, context and sequence parallelism too (`check_unsplit`).
    """
    check_unsplit(settings)
    # When transformers loads weights, it reads the environment alone (`is_fsdp_enabled`). Its
    # trainer, which reads the recipe's settings, comes later.
    once = wants_fsdp() and is_on(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING"))
    if not (frozen_reference and once):
        return
    if fsdp_version(settings) == "1":
        raise ValueError(
            "Training all weights against a reference holds a frozen copy under FSDP 1. If it "
            "loads the weights once, that copy is empty on all processes but the first. Launch "
            "with --fsdp_version 2, or with --fsdp_cpu_ram_efficient_loading false."
        )
    if settings.get("sync_ref_model"):
        raise ValueError(
            "trainer.sync_ref_model moves the reference with the policy, so it needs a second "
            "model. If FSDP loads the weights once, that one is empty on all processes but the "
            "first. Take sync_ref_model out, or launch with --fsdp_cpu_ram_efficient_loading false."
        )


def check_unsplit(settings: Settings) -> None:
    """Raises ValueError if layers or rows would be split over devices, by the launcher, the
    settings, or a DeepSpeed config that they name."""
    check_parallel(settings, deepspeed=deepspeed_config(settings))


def check_whole(settings: Settings, what: str) -> None:
    """Raises ValueError for FSDP and DeepSpeed, for what needs the whole weights in each
    process. `what` asks for them."""
    wanted = {"FSDP": wants_fsdp(settings), "DeepSpeed (ZeRO)": wants_deepspeed(settings)}
    for name, asked in wanted.items():
        if asked:
            raise ValueError(
                f"{what} trains a few rows of the embedding, and {name} would shard them. Launch "
                "with DDP (an accelerate config of type MULTI_GPU or MULTI_CPU), or one process."
            )


def fsdp_version(settings: Settings) -> str:
    """The version of FSDP; if no setting names it, 2 for transformers and 1 for accelerate.

    With trainer.fsdp transformers reads it from trainer.fsdp_config alone, under either name.
    Without trainer.fsdp accelerate reads it from the environment.
    """
    if not settings.get("fsdp"):
        return os.environ.get("FSDP_VERSION") or "1"
    given = read_config(settings.get("fsdp_config") or {}, "trainer.fsdp_config")
    return str(given.get("fsdp_version", given.get("version")) or 2)


def deepspeed_config(settings: Settings) -> tuple[Settings, str]:
    """The DeepSpeed config that is asked for, and the place that names it; empty if none is.

    It is trainer.deepspeed, or the launcher's config, or a file that one of them names. The
    recipe's setting replaces the launcher's (transformers). A file replaces the stage beside it
    (accelerate).
    """
    config, place = settings.get("deepspeed"), "trainer.deepspeed"
    if not config:
        if not wants_deepspeed():
            return {}, ""
        config, place = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"), "the accelerate config"
    if not config or config == "none":
        return {"zero_optimization": {"stage": "auto"}}, place
    return read_config(config, place), f"{place} ({config})" if isinstance(config, str) else place


def zero_3(settings: Settings) -> str | None:
    """The place that asks for DeepSpeed's ZeRO-3; None if no place does (`deepspeed_config`)."""
    config, place = deepspeed_config(settings)
    zero = config.get("zero_optimization")
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else 0
    if stage == "auto":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    return place if stage in (3, "3") else None  # 3.0 too


def read_config(config: object, place: str) -> Settings:
    """A mapping unchanged, or the mapping in a JSON text or in a JSON file of that name.

    Raises ValueError if there is none; `place` says which setting names it.
    """
    if isinstance(config, Mapping):
        return config
    text = str(config)
    try:
        values = json.loads(
            text if text.startswith("{") else Path(text).read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place} names {config}, which cannot be read as JSON text or a JSON file: {error}"
        ) from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{place} names {config}, which holds no mapping of settings.")
    return values
