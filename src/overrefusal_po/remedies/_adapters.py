"""The folder of a trained LoRA adapter -> what it adds to the weights: W += B A, module by module.

    task = read_adapter("runs/dpo/adapter", model)       # ValueError if it holds more than that
    joined([(0.6, task), (0.4, safety)])                 # the exact sum; ranks add up
    inner(task, safety)                                  # the sum of the products of all entries

A is (rank, inputs), B is (outputs, rank), float32 on the CPU. The adapter's scaling is in B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overrefusal_po.model.adapter_config import CONFIG, START, more_than_plain
from overrefusal_po.model.bases import warn_other_base
from overrefusal_po.model.remedy import Deltas, wrong_module
from overrefusal_po.records import read_state

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

GIVE_ANOTHER = "Give the folder adapter/ of a training with LoRA, or @stage.adapter in a pipeline."


def read_adapter(path: str, model: PreTrainedModel) -> Deltas:
    """What an adapter adds to the linear modules of a model.

    ValueError if the folder holds no LoRA adapter of safetensors, if the adapter changes more than
    products can say (DoRA, whole modules, biases), or if its shapes are another model's. Logs a
    warning if it says that it was trained on another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, folder = plain_config(path), Path(path).expanduser()
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}). {GIVE_ANOTHER}") from None
    deltas = products(tensors, config, path)
    if wrong := wrong_module(deltas, model):
        raise ValueError(
            f"{path}: this adapter belongs to another model: {wrong}. Give an adapter of the model "
            "that the remedy is fitted on."
        )
    warn_other_base(path, config, model.name_or_path or "")
    return deltas


def read_adapters(model: PreTrainedModel, *paths: str | None) -> None:
    """Raises ValueError as `read_adapter` for each folder that is there already. A model without
    weights will do."""
    for path in paths:
        if path is not None and not path.startswith("@"):
            read_adapter(path, model)


def check_adapters(*paths: str | None) -> None:
    """Raises ValueError for a folder that holds no plain LoRA adapter. Reads no weights.

    What an earlier stage makes (`@...`) is not there yet."""
    for path in paths:
        if path is not None and not path.startswith("@"):
            plain_config(path)


# Any: a config of peft's
def plain_config(path: str) -> Mapping[str, Any]:
    """The config of an adapter that adds B A to linear modules. ValueError if the folder holds
    none."""
    folder = Path(path).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{path!r} is no adapter: it holds no {name}. {GIVE_ANOTHER}")
    config = read_state(folder / CONFIG, ("peft_type", "r", "lora_alpha"), remedy=GIVE_ANOTHER)
    check_plain(config, path)
    return config


# Any: a config of peft's
def check_plain(config: Mapping[str, Any], path: str) -> None:
    """Raises ValueError if an adapter does more than add B A to linear modules."""
    if (found := more_than_plain(config)) is None:
        return
    key, value = found
    if key == START:
        raise ValueError(
            f"{path}: {key} is {value!r}, which changes the weights below the adapter. Train one "
            f"with {key}: true."
        )
    raise ValueError(
        f"{path}: {key} is {value!r}, so this adapter is more than a sum of low-rank products, and "
        "a remedy cannot hold it. Train one with plain LoRA on linear layers."
    )


# Any: a config of peft's
def products(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: str) -> Deltas:
    """The A and B of an adapter's file, the scaling in B."""
    down, up = {}, {}
    for key, tensor in tensors.items():
        module = key.removeprefix(PREFIX)
        if key.endswith(DOWN):
            down[module.removesuffix(DOWN)] = tensor.float()
        elif key.endswith(UP):
            up[module.removesuffix(UP)] = tensor.float()
        else:
            raise ValueError(
                f"{path}: it holds {key}, which is no matrix of a plain LoRA adapter. Train one "
                "with plain LoRA on linear layers."
            )
    if not down or down.keys() != up.keys():
        raise ValueError(f"{path}: an A or a B is missing in {WEIGHTS}. {GIVE_ANOTHER}")
    for module, a in down.items():
        rank = a.shape[0]
        root = rank**0.5 if config.get("use_rslora") else rank
        up[module] = up[module] * (config["lora_alpha"] / root)
    return Deltas(down, up)


def joined(parts: Sequence[tuple[float, Deltas]]) -> Deltas:
    """The sum of weight x change over the parts, exactly: ranks add up (peft's "cat").

    The mean of the As times the mean of the Bs would be another matrix.
    """
    import torch

    paths = sorted({path for _, part in parts for path in part.down})
    down, up = {}, {}
    for path in paths:
        have = [(weight, part) for weight, part in parts if path in part.down and weight]
        if have:
            down[path] = torch.cat([part.down[path] for _, part in have])
            up[path] = torch.cat([weight * part.up[path] for weight, part in have], 1)
    return Deltas(down, up)


def inner(one: Deltas, other: Deltas) -> float:
    """The sum of the products of all entries of two changes, without forming them."""
    total = 0.0
    for path in one.down.keys() & other.down.keys():
        ups = one.up[path].double().T @ other.up[path].double()
        total += float((ups * (one.down[path].double() @ other.down[path].double().T)).sum())
    return total


def matrix(change: Deltas, path: str) -> Tensor:
    """(outputs, inputs) B A of one module."""
    return change.up[path] @ change.down[path]
