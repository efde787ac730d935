"""What is saved is what was trained: one batch through the saved model against the live one.

probe = live_probe(trainer)                 # before the adapter is merged
release_training(trainer)                   # optimiser states, gradients, the reference
save_merged(model, tokenizer, folder)
release_weights(model)                      # so that both models never stand in memory at once
check_saved(probe, folder)                  # ValueError if the saved model is another one
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from overrefusal_po.exact.shared_prefix import TOLERANCES
from overrefusal_po.model import load as models

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

ROWS = 2
"""Rows of the probe."""


class Probe(NamedTuple):
    """One batch and what the live model says about it.

    Attributes:
        input_ids: (B, T) token ids.
        attention_mask: (B, T), 1 for tokens.
        log_probs: (B, T - 1) log-probs of the next tokens, 0 at padding.
        dtype: the name of the live weights' number format.
    """

    input_ids: Tensor
    attention_mask: Tensor
    log_probs: Tensor
    dtype: str


def live_probe(trainer: Trainer) -> Probe | None:
    """The first rows of the training through the live model; None if FSDP has sharded it.

    All processes call it together: under ZeRO-3 they need each other's weights.
    """
    from overrefusal_po.train.trl_private import without_autocast

    if trainer.is_fsdp_enabled:
        logger.info("the saved model is not compared with the live one: its weights are sharded")
        return None
    model = cast("PreTrainedModel", trainer.accelerator.unwrap_model(trainer.model))
    rows = cast("Dataset", trainer.train_dataset)
    batch = trainer.data_collator([rows[at] for at in range(min(ROWS, len(rows)))])
    ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    with without_autocast(model):  # the saved copy runs without it
        return Probe(ids, mask, next_log_probs(model, ids, mask), dtype)


def next_log_probs(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T - 1) log-probs of the next tokens in eval mode, 0 at padding."""
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
    model.train(training)
    log_probs = logits[:, :-1].float().log_softmax(-1)
    chosen: Tensor = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (chosen * mask[:, 1:]).cpu()


def release_training(trainer: Trainer) -> None:
    """Frees what only a next step would need: optimiser states, gradients, the reference."""
    if trainer.optimizer is not None:
        trainer.optimizer.state.clear()
    cast("Module", trainer.model).zero_grad(set_to_none=True)
    if (reference := getattr(trainer, "ref_model", None)) is not None:
        release_weights(reference)
    return_freed()


def release_weights(model: Module) -> None:
    """Frees the weights of a model. Trainer, accelerate and callbacks hold it, so it stays, but
    empty."""
    for weight in model.parameters():
        weight.data = weight.data.new_empty(0)
    return_freed()


def return_freed() -> None:
    """Gives freed memory back to the system: glibc keeps what small tensors have left."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def check_saved(probe: Probe, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raises ValueError if the model in `folder` is not the one that the probe was made with.

    Compared are mean log-probs a token, within the rounding of the number format.
    """
    saved = models.load_model(str(folder), dtype=probe.dtype, trust_remote_code=trust_remote_code)
    found = next_log_probs(saved, probe.input_ids.to("cpu"), probe.attention_mask.to("cpu"))
    tokens = probe.attention_mask[:, 1:].cpu().sum(1).clamp(min=1)
    gap = float(((found - probe.log_probs).abs().sum(1) / tokens).max())
    allowed = 10 * TOLERANCES.get(probe.dtype, TOLERANCES["bfloat16"])
    if not gap <= allowed:  # written so that a NaN fails too
        raise ValueError(
            f"{folder} is not the model that was trained: its log-probs differ by {gap:.2g} a "
            f"token, and up to {allowed:.2g} would be rounding. A known cause is an adapter on the "
            "embeddings of a model whose output layer shares them: leave embed_tokens and lm_head "
            "out of model.lora_target_modules."
        )
    logger.info("the saved model agrees with the live one (difference %.1e a token)", gap)
