"""A model whose weights each process reads in part, so that none of them ever holds them whole.

    model = load_start(options)         # under FSDP 2 its parameters may be on the meta device
    ...                                 # FSDP shards it, still empty (train/sharded.py)
    fill_parts(model, device)           # each process reads its own rows of each tensor

Under ZeRO-3 `load_start` fills the model itself (`zero_parts`), for an adapter's base too.

A model whose files name its tensors otherwise than its class does, or that is quantised, is loaded
as transformers does it: the first process of a machine reads all, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overrefusal_po.model import load as models
from overrefusal_po.model.finite import NotFiniteError, all_finite, readable_weights
from overrefusal_po.model.sharding import is_on, wants_fsdp
from overrefusal_po.model.whole import KNOWN_EXTRA, check_model_files, check_tensors, named_faults
from overrefusal_po.model.zero import loading_whole
from overrefusal_po.model.zero_parts import keeps_plain_parts, share_out, zero_3_is_on

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.load import LoadOptions

FILES = "tensor_files"
"""The attribute of an empty model: {tensor: the file that holds it}."""

ROWS = 1024
"""Rows of two tensors that are compared at a time."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def loads_once() -> bool:
    """Whether the launcher has FSDP 2 load weights once and not in every process."""
    import torch.distributed as dist

    return (
        wants_fsdp()
        and os.environ.get("FSDP_VERSION") == "2"
        and is_on(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING"))
        and dist.is_available()
        and dist.is_initialized()
    )


def load_start(options: LoadOptions, *, trains_all: bool) -> PreTrainedModel:
    """The start policy of a training in eval mode, of which each process reads its part if it can.

    Under FSDP 2 it is then empty, and `trains_all` has to be true: no adapter is put on it. (peft
    gives new adapters their values as they are made, and loses them on an empty model.) Errors as
    in `load_model`.
    """
    zero_3 = zero_3_is_on()
    if not (keeps_plain_parts() if zero_3 else loads_once() and trains_all):
        return models.load_model(**options)
    found = readable_in_parts(options)
    if found is None or (zero_3 and not computes_buffers(found[0])):
        return models.load_model(**options)
    model, files = found
    if zero_3:
        share_out(model, files)
        check_all_finite(model, options["name"])
    else:
        setattr(model, FILES, files)
    return model


def readable_in_parts(options: LoadOptions) -> tuple[PreTrainedModel, dict[str, str]] | None:
    """(a model without weights, {tensor: the file that holds it}); None if transformers has to
    load it, all its tensors at once."""
    if options["quantization_config"] is not None or options["remedy"] is not None:
        return None
    files = tensor_files(options["name"], options["revision"])
    if not files:
        return None
    with loading_whole():  # under ZeRO-3 transformers would share out what is empty
        model = empty_model(options)
    if not fits(model, files):
        return None
    check_tied(model, files)
    return model, files


def computes_buffers(model: PreTrainedModel) -> bool:
    """Whether a model reads parameters alone from its files, and no buffers."""
    return set(model.state_dict()) == dict(model.named_parameters(remove_duplicate=False)).keys()


def check_all_finite(model: PreTrainedModel, name: str) -> None:
    """Raises NotFiniteError in all processes if one finds weights that are NaN or infinite."""
    import torch.distributed as dist

    finite = all_finite(readable_weights(model).values())
    found: list[bool] = [finite] * dist.get_world_size()
    dist.all_gather_object(found, finite)
    if not all(found):
        raise NotFiniteError(
            f"{name}: it holds weights that are NaN or infinite. Train it again, or take another "
            "model."
        )


def empty_model(options: LoadOptions) -> PreTrainedModel:
    """The model of a name without weights: parameters on the meta device, buffers computed."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    trust = options["trust_remote_code"]
    config = models.load_config(
        options["name"], revision=options["revision"], trust_remote_code=trust
    )
    dtype: Any = options["dtype"] or models.default_dtype()  # Any: a dtype or its name
    if dtype == "auto":
        dtype = config.dtype or "float32"
    attention = options["attn_implementation"]
    extra = {"attn_implementation": attention} if attention else {}
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust, **extra
        )
    model.tie_weights()
    use_generation_config(model, options)
    model.eval()
    return model


def use_generation_config(model: PreTrainedModel, options: LoadOptions) -> None:
    """Gives a model the generation settings that stand beside its weights, if some do."""
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):  # without a file the one made from its config stays
        model.generation_config = GenerationConfig.from_pretrained(
            models.resolve(options["name"]), revision=options["revision"]
        )


def tensor_files(name: str, revision: str) -> dict[str, str]:
    """{tensor: file that holds it} of a model in safetensors; {} for a model in another format."""
    from safetensors import safe_open

    place = Path(models.resolve(name))
    if place.is_dir():
        check_model_files(place)
    else:
        from huggingface_hub import snapshot_download

        wanted = [INDEX, "model*.safetensors"]
        place = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    with named_faults(name):
        if (place / INDEX).is_file():
            known = json.loads((place / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {key: str(place / file) for key, file in known.items()}
        if (place / SINGLE).is_file():
            with safe_open(str(place / SINGLE), "pt") as tensors:
                return dict.fromkeys(tensors.keys(), str(place / SINGLE))
    return {}


def fits(model: PreTrainedModel, files: Mapping[str, str]) -> bool:
    """Whether the files hold each tensor of the model under the name that the model has for it."""
    wanted, tied = set(model.state_dict()), tied_names(model)
    extra = {name for name in files.keys() - wanted if not KNOWN_EXTRA.search(name)}
    return not extra and wanted - tied <= files.keys()


def tied_names(model: PreTrainedModel) -> set[str]:
    """The names of tensors that are another one's under a second name."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})


def check_tied(model: PreTrainedModel, files: Mapping[str, str]) -> None:
    """Raises ValueError if files hold other values for a tensor than for the one that it is.

    transformers unties them if it loads a model whole, and warns. Here one of them would be lost.
    """
    place = str(model.config.name_or_path)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, source in tied.items():
        if name not in files:
            continue
        with named_faults(place):
            equal = equal_tensors((files[name], name), (files[source], source))
        if not equal:
            raise ValueError(
                f"{place}: its config.json says that {name} is {source}, and its files hold other "
                "values for it. Set tie_word_embeddings: false there if the values are right, or "
                "take the tensor out of the files."
            )


def equal_tensors(
    one: tuple[str, str],
    other: tuple[str, str],
    equal: Callable[[Tensor, Tensor], bool] | None = None,
) -> bool:
    """Whether two tensors, each (file, name), are equal, by `equal` if it is given; a block of rows
    at a time is read, up to the first that differs."""
    import torch
    from safetensors import safe_open

    same = equal or torch.equal
    with safe_open(one[0], "pt") as first, safe_open(other[0], "pt") as second:
        ours, theirs = first.get_slice(one[1]), second.get_slice(other[1])
        shape = ours.get_shape()
        if shape != theirs.get_shape():
            return False
        return all(
            same(ours[at : at + ROWS], theirs[at : at + ROWS]) for at in range(0, shape[0], ROWS)
        )


def fill_parts(model: PreTrainedModel, device: torch.device | str) -> None:
    """Reads this process's part of each weight of an empty, sharded model to `device`.

    One tensor is open at a time. ValueError for a tensor of another shape than the model's.
    """
    files: dict[str, str] = getattr(model, FILES)
    tied, name = tied_names(model), str(model.config.name_or_path)
    parts = {
        key: read_part(name, files[key], key, empty, device)
        for key, empty in model.state_dict().items()
        if key not in tied
    }
    model.load_state_dict(parts, strict=False, assign=True)
    model.tie_weights()  # assigned weights are no longer tied
    delattr(model, FILES)


def read_part(model: str, file: str, key: str, empty: Tensor, device: torch.device | str) -> Tensor:
    """The rows of one tensor that this process holds; all of them if `empty` is not sharded."""
    from safetensors import safe_open
    from torch.distributed.tensor import DTensor

    with named_faults(model), safe_open(file, "pt") as tensors:
        stored = tensors.get_slice(key)
        shape = tuple(stored.get_shape())
        if shape != tuple(empty.shape):
            check_tensors(model, {"mismatched_keys": [(key, shape, tuple(empty.shape))]})
        if not isinstance(empty, DTensor):
            whole: Tensor = tensors.get_tensor(key).to(device, empty.dtype, copy=True)
            return whole
        begin, end = own_rows(empty)
        low = min(begin, shape[0] - 1)  # a process may hold no row, and safetensors reads no empty
        rows = stored[low : max(end, low + 1)][: end - begin]
        local = rows.to(device, empty.dtype, copy=True)  # the file's pages are not kept
    return DTensor.from_local(
        local,
        empty.device_mesh,
        empty.placements,
        run_check=False,
        shape=empty.shape,
        stride=empty.stride(),
    )


def own_rows(sharded: Any) -> tuple[int, int]:  # Any: a DTensor, whose type torch loads late
    """(first row, row after the last) that this process holds, as FSDP splits a tensor's rows."""
    [at] = [place for place, kind in enumerate(sharded.placements) if kind.is_shard()]
    mesh, rows = sharded.device_mesh, sharded.shape[0]
    chunk = -(-rows // mesh.size(at))
    begin = min(mesh.get_local_rank(at) * chunk, rows)
    return begin, min(begin + chunk, rows)
