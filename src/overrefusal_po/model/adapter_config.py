"""The config of a LoRA adapter -> what it is beside B A added to linear modules.

more_than_plain({"peft_type": "LORA", "r": 8, "use_dora": True})     # ("use_dora", True)
more_than_plain({"peft_type": "LORA", "r": 8})                       # None
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONFIG = "adapter_config.json"

PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}
"""What the config may say of an adapter that adds B A to linear modules, and nothing else."""

MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start an adapter that change the weights below it."""

START = "init_lora_weights"
"""The key that says how an adapter started."""


# Any: a config of peft's
def more_than_plain(config: Mapping[str, Any]) -> tuple[str, object] | None:
    """The first (key, value) that says that an adapter does more; None for plain LoRA."""
    for key, allowed in PLAIN.items():
        if key in config and config[key] not in allowed:
            return key, config[key]
    start = config.get(START)
    moved = isinstance(start, str) and start.lower().startswith(MOVED)
    return (START, start) if moved else None
