"""FSDP2 on CPUs: the one condition of accelerate that asks for GPUs is lifted.

    fsdp_on_cpus(plugin_options("recipes/accelerate/fsdp2.yaml"))     # before anything of accelerate

What then shards, trains, writes checkpoints and gathers is accelerate's, transformers' and torch's
own code. A process calls it once, at its start.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def plugin_options(config: str | Path) -> dict[str, Any]:
    """An accelerate config of FSDP2 as accelerate's plugin takes it."""
    given = yaml.safe_load(Path(config).read_text())["fsdp_config"]
    options = {key.removeprefix("fsdp_"): value for key, value in given.items()}
    options["cpu_offload"] = options.pop("offload_params")
    options["fsdp_version"] = options.pop("version")
    return options


def fsdp_on_cpus(options: Mapping[str, Any]) -> None:
    """Has this process shard with FSDP2 as if its launcher had asked for it, with gloo."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    os.environ |= {  # as `accelerate launch` sets them
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(options["cpu_ram_efficient_loading"]).lower(),
    }
    made = AcceleratorState.__init__

    def with_fsdp(self: Any, *args: Any, **kwargs: Any) -> None:
        known = AcceleratorState._shared_state.get("fsdp_plugin")
        made(self, *args, **kwargs)
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = known or FullyShardedDataParallelPlugin(**options)
        if known is None and self._mixed_precision != "no":
            self.fsdp_plugin.set_mixed_precision(self._mixed_precision)
        AcceleratorState._shared_state.update(self.__dict__)

    AcceleratorState.__init__ = with_fsdp
    PartialState(cpu=True)
