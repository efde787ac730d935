"""Weights that ZeRO-3 shares out, made and filled in each process with its own part alone.

    if zero_3_is_on() and keeps_plain_parts():
        share_out(model, files)         # a model on the meta device, {tensor: file that holds it}
    shared_twin(sharer(), weight)       # a second weight with the same values

transformers lets the first process read all tensors, makes each of them whole in every process, and
sends it. Here no process fills a whole tensor, and none is sent.

DeepSpeed cuts a weight as one row of numbers into equal parts, one a process, and pads the last.
This module alone uses what DeepSpeed does not document: `zero.Init._convert_to_deepspeed_param`,
its `dtype` and `local_device`, and how it cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from overrefusal_po.model.whole import check_tensors, named_faults

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

KNOWN = "0.19.8"
"""The version of DeepSpeed whose undocumented names are used here."""


def zero_3_is_on() -> bool:
    """Whether ZeRO-3 shares out what transformers loads now."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


def keeps_plain_parts() -> bool:
    """Whether each process of this training holds plain parts (`has_plain_parts`)."""
    from transformers.integrations.deepspeed import deepspeed_config

    return has_plain_parts(deepspeed_config() or {})


def has_plain_parts(config: Mapping[str, Any]) -> bool:  # Any: a value has the type of its key
    """Whether by this DeepSpeed config each process holds a slice of each weight in memory, and
    nothing else of it.

    It does not if parts are on a disk (offload to NVMe), quantised, or held a second time in each
    node (hpZ).
    """
    zero = config.get("zero_optimization") or {}
    return not (
        zero.get("zero_quantized_weights")
        or zero.get("zero_quantized_nontrainable_weights")
        or config.get("weight_quantization")
        or int(zero.get("zero_hpz_partition_size") or 1) > 1
        or (zero.get("offload_param") or {}).get("device") == "nvme"
    )


def share_out(model: PreTrainedModel, files: Mapping[str, str]) -> None:
    """Gives a model on the meta device weights that are shared out; tied ones stay tied.

    Each process reads its own part of each tensor. ValueError for a tensor of another shape than
    the model's, and for a DeepSpeed that works otherwise than is known here.
    """
    init, place = sharer(), str(model.config.name_or_path)
    names = [(name, id(empty)) for name, empty in model.named_parameters(remove_duplicate=False)]
    keys = {at: name for name, at in names if name in files}
    made: dict[int, Parameter] = {}
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(empty) not in made:
                key = keys[id(empty)]
                read = partial(read_flat, place, files[key], key, tuple(empty.shape))
                made[id(empty)] = weight = shared_weight(
                    init, empty.shape, init.dtype, trained=empty.requires_grad
                )
                fill(weight, read)
            module.register_parameter(name, made[id(empty)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(init.local_device))  # which DeepSpeed leaves to others


def shared_twin(init: Any, weight: Any) -> Parameter:  # Any: `sharer`; a weight of DeepSpeed's
    """A frozen weight with the values of one that is shared out, shared out as well."""
    twin = shared_weight(init, weight.ds_shape, weight.dtype, trained=False)
    fill(twin, lambda begin, end: weight.ds_tensor[: end - begin])
    return twin


def sharer() -> Any:  # Any: deepspeed's zero.Init, which has no types
    """What makes weights that are shared out, by the DeepSpeed config of the training.

    ValueError for a DeepSpeed that lacks what is used here.
    """
    import deepspeed
    from torch.nn import ParameterList
    from transformers.integrations.deepspeed import deepspeed_config

    init = deepspeed.zero.Init(module=ParameterList(), config_dict_or_path=deepspeed_config())
    used = ("_convert_to_deepspeed_param", "dtype", "local_device")
    if lacking := [name for name in used if not hasattr(init, name)]:
        raise other_deepspeed(f"zero.Init has no {', '.join(lacking)}")
    return init


def shared_weight(
    init: Any, shape: torch.Size, dtype: torch.dtype, *, trained: bool
) -> Parameter:  # Any: `sharer`
    """A weight of any values that is shared out.

    It is whole for a moment: on a CPU in memory that nothing is written to, which takes none.
    ValueError if DeepSpeed cuts it otherwise than is known here.
    """
    import torch

    weight: Any = torch.nn.Parameter(  # Any: DeepSpeed gives it methods
        torch.empty(shape, dtype=dtype, device=init.local_device), requires_grad=trained
    )
    init._convert_to_deepspeed_param(weight)
    weight.partition()
    part, world = weight.ds_tensor, torch.distributed.get_world_size()
    if weight.numel() or tuple(part.shape) != (-(-math.prod(shape) // world),):
        raise other_deepspeed(f"{tuple(shape)} is cut into {world} parts of {tuple(part.shape)}")
    made: Parameter = weight
    return made


def other_deepspeed(what: str) -> ValueError:
    """The error for a DeepSpeed that is not the known one."""
    import deepspeed

    return ValueError(
        f"DeepSpeed {deepspeed.__version__} shares out weights otherwise than {KNOWN} ({what}), so "
        f"no part can be read by itself. Install deepspeed=={KNOWN}, or train with "
        "recipes/accelerate/fsdp2.yaml."
    )


def fill(weight: Any, read: Callable[[int, int], Tensor]) -> None:  # Any: a weight of DeepSpeed's
    """Writes `read(begin, end)`, those numbers of the flat weight, to this process's part.

    The padding behind the last number becomes 0.
    """
    import torch

    part = weight.ds_tensor
    begin = min(torch.distributed.get_rank() * part.numel(), weight.ds_numel)
    end = min(begin + part.numel(), weight.ds_numel)
    with torch.no_grad():
        part[: end - begin].copy_(read(begin, end))
        part[end - begin :].zero_()


def read_flat(
    model: str, file: str, key: str, shape: tuple[int, ...], begin: int, end: int
) -> Tensor:
    """(end - begin,): these numbers of a tensor of `shape` in a file, laid out in one row.

    Only the tensor's rows that hold them are read. ValueError that names the model for a damaged
    file or a tensor of another shape.
    """
    import torch
    from safetensors import safe_open

    with named_faults(model), safe_open(file, "pt") as tensors:
        stored = tensors.get_slice(key)
        found = tuple(stored.get_shape())
        if found != shape:
            check_tensors(model, {"mismatched_keys": [(key, found, shape)]})
        if begin == end:  # a process may hold nothing of a small tensor
            return torch.empty(0)
        if not shape:
            single: Tensor = tensors.get_tensor(key)
            return single.reshape(1)
        width = math.prod(shape[1:])
        first, last = begin // width, -(-end // width)
        rows: Tensor = stored[first:last]
    return rows.reshape(-1)[begin - first * width : end - first * width]
