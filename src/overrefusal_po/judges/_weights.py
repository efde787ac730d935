"""A judge model's weights: where it comes from, and the device it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from overrefusal_po.model import load as models

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


class Origin(TypedDict):
    """Where a model comes from beside its name, as loaders take it."""

    revision: str
    trust_remote_code: bool


def placed(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, on the GPU if there is one; a quantised one stays where it was
    loaded."""
    module: Module = model  # whose methods have types
    module.eval()
    if not getattr(model, "is_quantized", False):
        module.to("cuda" if models.has_cuda() else "cpu")
    return model
