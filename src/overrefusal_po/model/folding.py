"""A bias on refusal openers -> the weights of a model, or of its LoRA adapter.

undo = fold(model, site, bias, 1.5)       # the openers' logits rise by about 1.5
undo()                                    # the model is what it was
unfolded(change)                          # a saved adapter without the bias
merge(model, folded_inputs(model))        # the adapter in the weights, the bias whole

A bias is a small change of many numbers. In bfloat16 most of them may be rounded to what they were:
of a small bias a third was lost, and more in a wider layer. So each number's rounding error goes
into the next one (`rounded`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from overrefusal_po.model.opener_bias import OpenerBias, Site, base_model
from overrefusal_po.model.remedy import Deltas

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel

FOLDED = "folded_input"
"""The attribute of a LoRA layer that holds a bias: the mean input at first positions."""


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
            weight.copy_(rounded(weight.float() + change, weight.dtype, bias.input))
            return lambda: copy_into(weight, before)
        name = check_site(cast("PeftModel", model), site)
        widen(cast("PeftModel", model))
        first, second = (side[name].weight for side in (down.lora_A, down.lora_B))  # type: ignore[index, union-attr]
        first[-1] = row.to(first)
        second[:, -1] = (column / down.scaling[name]).to(second)  # type: ignore[index]
        setattr(down, FOLDED, bias.input)
        zero = torch.zeros_like(second[:, -1])

        def undo() -> None:
            copy_into(second[:, -1], zero)
            delattr(down, FOLDED)

        return undo


def rounded(wanted: Tensor, dtype: torch.dtype, given: Tensor) -> Tensor:
    """`wanted` (D, F) in a number format, its product with an input `given` (F,) as it was.

    The error of each column goes into the next one, by what the input has there. Columns of small
    inputs come first, so an error never grows on its way.
    """
    import torch

    if dtype == torch.float32:
        return wanted
    given = given.to(wanted)
    columns = wanted.T.contiguous()  # (F, D)
    left = torch.zeros_like(columns[0])  # (D,)
    for at in given.abs().argsort().tolist():
        size = given[at]
        asked = columns[at] + left / size if size else columns[at]
        found = asked.to(dtype).to(wanted)
        left = (asked - found) * size
        columns[at] = found
    return columns.T.to(dtype).contiguous()


def folded_inputs(model: PeftModel) -> dict[str, Tensor]:
    """{path: the mean first input} of the layers whose adapter has a bias."""
    layers = base_model(model).named_modules()
    return {path: getattr(layer, FOLDED) for path, layer in layers if hasattr(layer, FOLDED)}


def merge(model: PeftModel, inputs: Mapping[str, Tensor]) -> PreTrainedModel:
    """The base model with the adapter in its weights. `inputs` are the `folded_inputs`: there the
    bias stays whole. The peft model cannot be used after that."""
    import torch

    name = model.active_adapter
    with torch.no_grad():
        wanted = {}
        for path in inputs:
            layer = base_model(model).get_submodule(path)
            change = layer.get_delta_weight(name)  # type: ignore[operator]  # a LoRA layer has it
            weight = cast("Tensor", layer.weight)  # the base layer's
            wanted[path] = weight.float() + change.float()
        found: PreTrainedModel = model.merge_and_unload()
        for path, values in wanted.items():
            weight = cast("Tensor", found.get_submodule(path).weight)
            weight.copy_(rounded(values, weight.dtype, inputs[path]))
    return found


def unfolded(change: Deltas) -> Deltas:
    """An adapter into which `fold` put a bias, as it was trained.

    The bias is the last rank at one module, and the others' last rank is zero. ValueError if
    another one is in use: then no bias was folded into this adapter, or something after it.
    """
    used = [p for p, up in change.up.items() if up[:, -1].any() and change.down[p][-1].any()]
    if len(used) != 1:
        raise ValueError(
            f"the last rank of {len(used)} modules is in use, and a folded bias uses that of one"
        )
    down = {path: matrix[:-1] for path, matrix in change.down.items()}
    return Deltas(down, {path: matrix[:, :-1] for path, matrix in change.up.items()})


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
