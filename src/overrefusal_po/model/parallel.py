"""Whether a launch or a recipe splits layers or rows over devices (tensor, context or sequence
parallelism), which is refused.

    check_parallel(settings, deepspeed=(config, "its place"))     # ValueError names the setting
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

SPLITS = {"tp": "tensor", "cp": "context", "sp": "sequence"}
"""What accelerate's parallelism_config can split, by the beginning of its key `..._size`."""

DEEPSPEED_SPLITS = {
    "tensor_parallel.autotp_size": "tensor",
    "expert_parallel.enabled": "expert",  # of size 1 too: it puts layers of its own into the model
    "sequence_parallel_size": "sequence",
}
"""What a DeepSpeed config can split, by its key: a size, or a switch."""


def check_parallel(
    settings: Mapping[str, object], *, deepspeed: tuple[Mapping[str, object], str]
) -> None:
    """Raises ValueError if layers or rows would be split over devices.

    `settings`: keys of a recipe's `trainer:` section; the launcher's are in the environment.
    `deepspeed`: the DeepSpeed config, empty if there is none, and the place that names it.
    """
    for place, kind in [*splits(settings), *deepspeed_splits(*deepspeed)]:
        raise ValueError(
            f"{place} asks for {kind} parallelism, under which losses and saved weights are not "
            "tested here. Take it out: FSDP2 (recipes/accelerate/fsdp2.yaml) or DeepSpeed shards "
            "a model that does not fit one device, and a shorter trainer.max_length or "
            "gradient_checkpointing fits longer rows."
        )


def splits(settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(the setting, the kind of parallelism) of each that is asked for."""
    given = settings.get("parallelism_config")
    sizes = given if isinstance(given, Mapping) else getattr(given, "__dict__", {})
    launched = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true"
    for short, kind in SPLITS.items():
        if is_split(sizes.get(f"{short}_size")):
            yield f"trainer.parallelism_config.{short}_size", kind
        name = f"PARALLELISM_CONFIG_{short.upper()}_SIZE"
        if launched and is_split(os.environ.get(name)):
            yield f"The accelerate config (parallelism_config_{short}_size)", kind
    if os.environ.get("ACCELERATE_USE_MEGATRON_LM", "").lower() == "true":
        yield "The accelerate config (distributed_type MEGATRON_LM)", "tensor and pipeline"


def deepspeed_splits(config: Mapping[str, object], place: str) -> Iterator[tuple[str, str]]:
    """(the setting, the kind of parallelism) of each that a DeepSpeed config asks for."""
    for key, kind in DEEPSPEED_SPLITS.items():
        found: object = config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        if is_split(found) or found is True:
            yield f"{key} in the DeepSpeed config of {place}", kind


def is_split(size: object) -> bool:
    """Whether a size of a split is above 1."""
    return str(size or 1).isdigit() and int(str(size or 1)) > 1
