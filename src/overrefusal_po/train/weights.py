"""The trainable weights of a model in training: copied, put back, and the model lent for a look.

with generating(model):             # modes, cache, device and random states come back after
    engine.complete(prompts, sampling)
restore(model, file, world=2)       # the first process reads, the others receive
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel


def trainable(model: PreTrainedModel) -> dict[str, Parameter]:
    """{name: parameter} of what training changes: an adapter's weights, or all."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of the trainable weights in main memory."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous()
        for name, weight in trainable(model).items()
    }


def restore(model: PreTrainedModel, file: Path | None, *, world: int = 1) -> None:
    """Puts the weights of `file` into `model`.

    With several processes the first one reads the file and sends; the others give None.
    """
    import torch

    weights: dict[str, Tensor] = {}
    if file is not None:
        from safetensors.torch import load_file

        weights = load_file(file)
    for name, weight in trainable(model).items():
        if file is not None:
            weight.data.copy_(weights[name])
        if world > 1:
            torch.distributed.broadcast(weight.data, src=0)


@contextlib.contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """A model in training, ready to generate; afterwards as training left it.

    That covers modes, the cache switch, the device and all random states.
    """
    modes = [(module, module.training) for module in model.modules()]
    place = model.device
    try:
        with kept_random_states(), cache_on(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        if model.device != place:
            # the engine moves a model to the GPU, even if training is told to use the CPU
            cast("Module", model).to(place)


@contextlib.contextmanager
def kept_random_states() -> Iterator[None]:
    """The random states of Python, numpy and torch are the same afterwards."""
    import random

    import numpy as np
    import torch

    drawn, drawn_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_numpy)


@contextlib.contextmanager
def cache_on(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """The key-value cache is on within; training turns it off, which makes generation quadratic."""
    configs = [c for c in (model.config, model.generation_config) if hasattr(c, "use_cache")]
    before = [config.use_cache for config in configs]
    try:
        for config in configs:
            config.use_cache = True
        yield
    finally:
        for config, used in zip(configs, before, strict=True):
            config.use_cache = used
