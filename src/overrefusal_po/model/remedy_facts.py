"""remedy.json: read, in words, and what it says of the model that the remedy was fitted on.

    save_remedy(remedy, folder, {"base": base_facts(model)})
    remedy_words(folder)                  # "steering-1a2b3c4d (strength 0.5, gated)"
    warn_other_base(folder, model)        # logs it if the model is another one

Imports no torch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overrefusal_po.recipe.model_names import own_name
from overrefusal_po.records import content_id, read_state

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

FILE, TENSORS = "remedy.json", "remedy.safetensors"
"""The files of a remedy's folder."""

NO_SHAPE = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config"),
    *("use_cache", "return_dict", "chunk_size_feed_forward", "problem_type"),
    *("id2label", "label2id"),
)
"""Keys of a config that say nothing about what a model computes, or how it is loaded here."""

SAMPLED = 64
"""Numbers of a weight that `weights_mark` reads."""


def config_hash(config: PretrainedConfig) -> str:
    """16 hex digits for what a config says of a model's computation.

    The number format, token ids and the model's place do not count.
    """
    known = {
        key: value
        for key, value in config.to_dict().items()
        if key not in NO_SHAPE
        and not key.startswith(("_", "output_"))
        and not key.endswith("_token_id")
    }
    return content_id(known)


def weights_mark(model: PreTrainedModel) -> str | None:
    """16 hex digits for samples of every weight, rounded to bfloat16.

    A training changes it; loading in float32 or bfloat16 does not. None for quantised weights and
    float16, whose samples are others.
    """
    import torch

    formats = (torch.float32, torch.float64, torch.bfloat16)
    weights = dict(model.named_parameters())
    if getattr(model, "is_quantized", False) or any(
        w.dtype not in formats for w in weights.values()
    ):
        return None
    found = hashlib.sha256()
    for name in sorted(weights):
        flat = weights[name].detach().flatten()
        step = max(1, flat.numel() // SAMPLED)
        some = flat[: SAMPLED * step : step].to(torch.bfloat16).cpu().contiguous()
        found.update(some.view(torch.int16).numpy().tobytes())
    return found.hexdigest()[:16]


def base_facts(model: PreTrainedModel) -> dict[str, object]:
    """The facts `base` of remedy.json: the model's own name, its shape, and marks of its config and
    weights."""
    config = model.config.get_text_config()
    return {
        "name": own_name(str(model.config.name_or_path)) or type(model).__name__,
        "blocks": config.num_hidden_layers,
        "width": config.hidden_size,
        "config_hash": config_hash(model.config),
        "weights": weights_mark(model),
    }


def other_base(base: Mapping[str, object], model: PreTrainedModel) -> str:
    """In what a model is not the one that `base` describes, in words; "" if nothing is known to be
    different."""
    if base.get("config_hash") not in (None, config_hash(model.config)):
        return "another config"
    mark = weights_mark(model)
    if mark is not None and base.get("weights") not in (None, mark):
        return "other weights"
    return ""


# Any: remedy.json holds numbers, texts, lists and mappings
def remedy_head(folder: Path) -> dict[str, Any]:
    """remedy.json of a folder. ValueError if the folder holds no remedy. Reads no tensors."""
    if not (folder / FILE).is_file() or not (folder / TENSORS).is_file():
        raise ValueError(
            f"model.remedy is {str(folder)!r}, which holds no {FILE} and {TENSORS}. Give the "
            "folder remedy/ of a fit run, or @stage.remedy in a pipeline."
        )
    return read_state(
        folder / FILE,
        ("name", "strength", "change", "gate"),
        remedy="Fit the remedy again, or copy its folder again.",
    )


def remedy_words(folder: Path) -> str:
    """A remedy in words, for reports: `steering-1a2b3c4d (strength 0.5, gated)`."""
    known = remedy_head(folder)
    gated = "gated" if known["gate"] is not None else "on every prompt"
    return f"{known.get('id', known['name'])} (strength {known['strength']:g}, {gated})"


def warn_other_base(folder: Path, model: PreTrainedModel) -> None:
    """Logs a warning if the remedy of a folder was fitted on another model than this one."""
    base = remedy_head(folder).get("base")
    if isinstance(base, Mapping) and (what := other_base(base, model)):
        logger.warning(
            "%s was fitted on %s, and this model has %s. What it adds and what its gate reads may "
            "be wrong here. Fit it on this model.",
            folder,
            base.get("name"),
            what,
        )
