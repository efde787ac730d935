"""A judge model's weights: where it comes from, its device, and whether it gives numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

from overrefusal_po.model import load as models
from overrefusal_po.records import Completion

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


def check_finite(judge: str, completion: Completion, score: float) -> None:
    """Raises ValueError if a judge model's score is nan or infinite."""
    if not math.isfinite(score):
        raise ValueError(
            f"judge {judge}: its score of completion {completion.id} (prompt "
            f"{completion.prompt_id}) is {score}. Its weights are damaged, or its dtype is too "
            "small for them: download it again, or set dtype: float32."
        )
