"""Whether weights are to be sharded: the launcher's accelerate config (its environment) or a
recipe's trainer settings say so.

    check_sharding(settings, frozen_reference=True)

Both may name a file in which it stands. What would end in empty weights is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def wants_fsdp(settings: Mapping[str, Any] | None = None) -> bool:
    """Whether the launcher's accelerate config asks for FSDP, or a recipe's trainer settings do."""
    return bool((settings or {}).get("fsdp")) or is_on(os.environ.get("ACCELERATE_USE_FSDP"))


def wants_deepspeed(settings: Mapping[str, Any] | None = None) -> bool:
    """Whether the launcher's accelerate config asks for DeepSpeed, or a recipe's trainer settings
    do."""
    return bool((settings or {}).get("deepspeed")) or is_on(
        os.environ.get("ACCELERATE_USE_DEEPSPEED")
    )


def is_on(switch: Any) -> bool:
    """Whether a switch of a config or of the environment is on, in any word that accelerate's
    `str_to_bool` takes for it."""
    return str(switch).lower() in ("y", "yes", "t", "true", "on", "1")


def check_sharding(settings: Mapping[str, Any], *, frozen_reference: bool) -> None:
    """Raises ValueError where weights are sharded so that the result or the reference of a training
    is empty.

    `frozen_reference`: whether it trains all weights against a copy of them (DPO, KTO without
    adapters).
    """
    if place := zero_3(settings):
        raise ValueError(
            f"{place} asks for DeepSpeed's ZeRO-3, under which the weights would be saved empty. "
            "Take "
            "recipes/accelerate/fsdp2.yaml, or zero_stage 1 or 2."
        )
    # as it loads weights, transformers goes by the environment alone (`is_fsdp_enabled`): its
    # trainer comes later
    once = wants_fsdp() and is_on(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING"))
    if frozen_reference and once:
        raise ValueError(
            "Training all weights against a reference holds a frozen copy, which is empty on all "
            "processes but the first where FSDP loads the weights once. Launch with "
            "--fsdp_cpu_ram_efficient_loading false, or train adapters (model.use_peft: true)."
        )


def fsdp_version(settings: Mapping[str, Any]) -> str:
    """FSDP's version; where it is left open, 2 for transformers and 1 for accelerate.

    With trainer.fsdp transformers takes it from trainer.fsdp_config alone (either name), else
    accelerate from the environment.
    """
    if not settings.get("fsdp"):
        return os.environ.get("FSDP_VERSION") or "1"
    given = read_config(settings.get("fsdp_config") or {}, "trainer.fsdp_config")
    return str(given.get("fsdp_version", given.get("version")) or 2)


def zero_3(settings: Mapping[str, Any]) -> str | None:
    """What asks for DeepSpeed's ZeRO-3: trainer.deepspeed, the launcher's config, or a file of
    either; None where nothing does.

    The recipe's own counts in place of the launcher's (transformers), and a file in place of the
    stage beside it (accelerate).
    """
    config, place = settings.get("deepspeed"), "trainer.deepspeed"
    if not config:
        if not wants_deepspeed():
            return None
        config, place = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"), "The accelerate config"
    stage: Any = "auto"
    if config and config != "none":
        zero = read_config(config, place).get("zero_optimization")
        stage = zero.get("stage", 0) if isinstance(zero, Mapping) else 0
        place = f"{place} ({config})" if isinstance(config, str) else place
    if stage == "auto":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    return place if stage in (3, "3") else None  # 3.0 too


def read_config(config: Any, place: str) -> Mapping[str, Any]:
    """A mapping as it is, the one in a JSON text, or in the JSON file of that name. ValueError
    where there is none."""
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
