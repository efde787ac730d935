"""DeepSpeed's ZeRO: processes that share the weights, read and written by hand.

    check_deepspeed(settings, recipe.model)         # ValueError before weights load
    with loading_whole(): load_model(...)           # one process alone, under ZeRO-3 too
    shared_weights(model)                           # all of them, whole, in the first process

Under ZeRO-3 a weight is an empty tensor. Each process holds a part of it (`ds_tensor`), and all of
them together give it out whole (`GatheredParameters`). ZeRO-1 and 2 share out optimiser states and
gradients only.

deepspeed is imported inside of functions: it is an extra.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from overrefusal_po.model.hardware import has_cuda
from overrefusal_po.model.sharding import is_on, wants_deepspeed, zero_3
from overrefusal_po.model.whole import check_tensors
from overrefusal_po.model.zero_parts import keeps_plain_parts, shared_twin, sharer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

M = TypeVar("M", bound="Module")

KEPT: list[object] = []
"""transformers' config of ZeRO-3, which it forgets once nobody holds it."""


def check_deepspeed(settings: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Raises ValueError if DeepSpeed is asked for and cannot train this, before weights load.

    `settings` are a recipe's trainer settings, `section` its `model:`. Any: the keys have every
    type.
    """
    if not wants_deepspeed(settings):
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            "DeepSpeed is asked for (trainer.deepspeed or the accelerate config), and it is not "
            "installed. Run: pip install 'overrefusal-po[deepspeed]'. Or leave it out: "
            "recipes/accelerate/fsdp2.yaml shards without it."
        )
    if settings.get("use_cpu"):
        raise ValueError(
            "With trainer.use_cpu accelerate leaves DeepSpeed out, without a warning. Leave "
            "use_cpu out: on a machine without a GPU the CPU is taken by itself."
        )
    if zero_3(settings) is None:
        return
    check_not_quantised(section)
    if not is_on(os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "true")):
        raise ValueError(
            "The accelerate config says zero3_init_flag: false. Every process would then load the "
            "whole model. Set zero3_init_flag: true (recipes/accelerate/zero3.yaml)."
        )


def check_not_quantised(section: Mapping[str, Any]) -> None:
    """Raises ValueError if a recipe's `model:` asks for 4 or 8 bits. Any: ModelConfig's keys have
    every type."""
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        raise ValueError(
            "ZeRO-3 does not share out weights in 4 or 8 bits. Take zero_stage 2 "
            "(recipes/accelerate/zero2.yaml), or recipes/accelerate/fsdp2.yaml."
        )


def cpu_settings() -> dict[str, Any]:
    """The trainer keys of a DeepSpeed training without a GPU: processes over gloo.

    Any: the keys have several types.
    """
    return {
        "use_cpu": False,  # accelerate would leave DeepSpeed out
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "ddp_backend": "gloo",
        # transformers names no backend if the recipe asks for DeepSpeed, and sees one process
        "accelerator_config": {"use_configured_state": True},
    }


def backend() -> dict[str, Any]:
    """The arguments of `PartialState` that DeepSpeed needs without a GPU. Any: accelerate's own."""
    return {"backend": "gloo"} if wants_deepspeed() and not has_cuda() else {}


@contextlib.contextmanager
def joining(settings: Mapping[str, Any]) -> Iterator[None]:
    """Within, accelerate joins the processes for DeepSpeed if the trainer's settings ask for it.

    Any: TRL's keys have every type. Raises ValueError if no launcher started this process.
    """
    if not wants_deepspeed(settings):
        yield
        return
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "DeepSpeed needs a launcher, for one process too: accelerate launch --config_file "
            "recipes/accelerate/zero3.yaml RECIPE, or torchrun -m overrefusal_po RECIPE."
        )
    before = os.environ.get("ACCELERATE_USE_DEEPSPEED")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # the only way to tell accelerate
    try:
        yield
    finally:
        if before is None:
            del os.environ["ACCELERATE_USE_DEEPSPEED"]
        else:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = before


@contextlib.contextmanager
def loading_whole() -> Iterator[None]:
    """Within, models are loaded whole: by one process alone, which no other would help to share
    them out."""
    if importlib.util.find_spec("deepspeed") is None:
        yield
        return
    from transformers.integrations.deepspeed import (
        HfDeepSpeedConfig,
        deepspeed_config,
        unset_hf_deepspeed_config,
    )

    config = deepspeed_config()
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            KEPT[:] = [HfDeepSpeedConfig(config)]


def check_files(name: str, load: Callable[..., Any]) -> None:
    """Raises what `check_tensors` raises, before processes read a model together (ZeRO-3).

    transformers names no tensors there that are of another shape or not expected. `load` is
    `from_pretrained` with its arguments; here it reads no weights. Any: its tuple.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        with loading_whole():
            check_tensors(name, load(device_map="meta")[1])


def is_shared_out(model: Module) -> bool:
    """Whether the processes share a model's weights (ZeRO-3)."""
    return any(hasattr(weight, "ds_tensor") for weight in model.parameters())


def gathered(*weights: Tensor) -> contextlib.AbstractContextManager[object]:
    """Within, weights that are shared out are whole, in all processes; all have to enter together.

    What is written to them there is lost.
    """
    shared = [weight for weight in weights if hasattr(weight, "ds_tensor")]
    if not shared:
        return contextlib.nullcontext()
    import deepspeed

    return cast(
        "contextlib.AbstractContextManager[object]", deepspeed.zero.GatheredParameters(shared)
    )


def shared_weights(model: Module) -> dict[str, Tensor] | None:
    """{name: whole copy in main memory} of the weights that processes share; None if they do not.

    With an adapter only the trained ones. The others than the first process get {}. All have to
    call it. One weight at a time is whole. Tied weights stay tied.
    """
    if not is_shared_out(model):
        return None
    import torch

    first = torch.distributed.get_rank() == 0
    found: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if hasattr(model, "peft_config") and not weight.requires_grad:
            continue
        if id(weight) not in copies:
            with gathered(weight):
                kept = weight.detach() if first else weight.new_empty(0)
                copies[id(weight)] = kept.to("cpu", copy=True).contiguous()
        if first:
            found[name] = copies[id(weight)]
    return found


def shared_copy(model: M) -> M:
    """A copy of a model whose weights are shared out, frozen, and shared out as well.

    Each process copies its own parts, unless they are kept in a special way: then one layer at a
    time is whole.
    """
    if not keeps_plain_parts():
        return gathered_copy(model)
    init = sharer()
    twins = {id(weight): shared_twin(init, weight) for weight in model.parameters()}
    made: M = copy.deepcopy(model, {**twins})
    return made


def gathered_copy(model: M) -> M:
    """`shared_copy` with one layer whole at a time, for parts that DeepSpeed alone can read."""
    import deepspeed
    import torch
    from transformers.integrations.deepspeed import deepspeed_config

    # the tree of modules with empty weights, tied as they were
    blank = {
        id(weight): torch.nn.Parameter(weight.new_empty(0), requires_grad=False)
        for weight in model.parameters()
    }
    made: M = copy.deepcopy(model, dict(blank))
    done: set[int] = set()
    for source, target in zip(model.modules(), made.modules(), strict=True):
        pairs = zip(source.parameters(False), target.parameters(False), strict=True)
        fresh = [(ours, theirs) for ours, theirs in pairs if id(theirs) not in done]
        if not fresh:
            continue
        with gathered(*(ours for ours, _ in fresh)), torch.no_grad():
            for ours, theirs in fresh:
                theirs.data = ours.detach().clone()
                done.add(id(theirs))
        holder = torch.nn.ParameterList([theirs for _, theirs in fresh])
        deepspeed.zero.Init(module=holder, config_dict_or_path=deepspeed_config())
    return made


def check_not_empty(weights: Mapping[str, Tensor], place: object) -> None:
    """Raises ValueError if weights are empty, as those that processes share look from outside, or
    if there are none."""
    empty = [name for name, weight in weights.items() if weight.is_meta or not weight.numel()]
    if empty or not weights:
        raise ValueError(
            f"{place}: {len(empty) or 'all'} of {len(weights)} weights are empty (the first: "
            f"{empty[0] if empty else 'unknown'}). They are shared out over the processes and were "
            "not gathered. Nothing is saved. A checkpoint holds them, if one was written: launch "
            "the same command again with another sharding."
        )
