"""A bias on refusal openers -> the weights of a model, or of its LoRA adapter.

undo = fold(model, site, bias, 1.5)       # the openers' logits rise by about 1.5
undo()                                    # the model is what it was
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from overrefusal_po.model.opener_bias import OpenerBias, Site, base_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel


def fold(
    model: PreTrainedModel | PeftModel, site: Site, bias: OpenerBias, strength: float
) -> Callable[[], None]:
    """Adds a bias of `strength` logits to the weights: to the matrix, or to an adapter's. Returns
    what takes it out again.

    Every matrix of an adapter gets one rank more; it is zero except at the site. So its scaling and
    what it computes stay, and a server finds one rank for all.
    """
    import torch

    down = base_model(model).get_submodule(site.down)
    # Granite scales what a layer adds
    gain = getattr(base_model(model).config, "residual_multiplier", 1.0)
    column, row = bias.direction * strength / gain, bias.position
    with torch.no_grad():
        if not hasattr(model, "peft_config"):
            weight = cast("Linear", down).weight
            before = weight.detach().clone()
            change = torch.outer(column, row).to(weight.device)
            weight.copy_((weight.float() + change).to(weight.dtype))
            return lambda: copy_into(weight, before)
        name = check_site(cast("PeftModel", model), site)
        widen(cast("PeftModel", model))
        first, second = (side[name].weight for side in (down.lora_A, down.lora_B))  # type: ignore[index, union-attr]
        first[-1] = row.to(first)
        second[:, -1] = (column / down.scaling[name]).to(second)  # type: ignore[index]
        zero = torch.zeros_like(second[:, -1])
        return lambda: copy_into(second[:, -1], zero)


def copy_into(weight: Tensor, values: Tensor) -> None:
    """Puts values into a weight, or into a part of it."""
    import torch

    with torch.no_grad():
        weight.copy_(values)


def check_site(model: PeftModel, site: Site) -> str:
    """The name of the adapter at the site; ValueError if there is none that a bias fits into."""
    from peft.tuners.lora import LoraLayer

    down = base_model(model).get_submodule(site.down)
    name = model.active_adapter
    fits = isinstance(down, LoraLayer) and name in down.lora_A
    if not fits or getattr(down, "lora_magnitude_vector", None):
        raise ValueError(
            f"hold folds its bias into the LoRA adapter of {site.down}, and this adapter has none "
            "there, or it is DoRA. Set model.lora_target_modules: all-linear, or leave hold out."
        )
    return name


def widen(model: PeftModel) -> None:
    """Gives every LoRA matrix of the active adapter one rank more, of zeros."""
    import torch
    from peft.tuners.lora import LoraLayer

    name = model.active_adapter
    config = model.peft_config[name]
    rank = config.r  # type: ignore[attr-defined]
    root = config.use_rslora  # type: ignore[attr-defined]
    for module in model.modules():
        if not isinstance(module, LoraLayer) or name not in module.lora_A:
            continue
        a, b = (cast("Linear", side[name]) for side in (module.lora_A, module.lora_B))
        a.weight = torch.nn.Parameter(torch.nn.functional.pad(a.weight.data, (0, 0, 0, 1)))
        b.weight = torch.nn.Parameter(torch.nn.functional.pad(b.weight.data, (0, 1)))
        a.out_features = b.in_features = module.r[name] = rank + 1
    grown = ((rank + 1) / rank) ** (0.5 if root else 1)
    alpha = config.lora_alpha * grown  # type: ignore[attr-defined]
    config.r = rank + 1  # type: ignore[attr-defined]
    config.lora_alpha = int(alpha) if alpha == int(alpha) else alpha  # type: ignore[attr-defined]
