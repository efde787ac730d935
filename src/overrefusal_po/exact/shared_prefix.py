"""Rows [prompt, chosen] and [prompt, rejected] in, one row of all [prompt, chosen, rejected]
through the model, rows out.

    trainer = DPOTrainer(...)
    share_prefix(trainer, attention_of)  # True, or False with a log line that says why the plain rows stay

The prompt is computed once, nothing is padded, and the LM head sees only positions with a label.
Loss, gradients and metrics are TRL's: what is patched is the forward that TRL's `add_fused_lm_head`
put on the model, and it gives back the same (2 * batch, seq - 1) fields. The two sides share the
longest common beginning of their tokens. A rejected token sees that beginning and its own side (see
`pair_attention`), and position ids count on from it.

Only attention that is proven (tests/test_shared_prefix.py) is patched. The first batch is run both
ways in eval mode, and a difference above the dtype's tolerance stops the run.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

PROVEN = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `config.model_type` whose attention is tested."""

TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.2}
"""Allowed difference of a log-prob (ours), mean over a sequence's tokens. A logit of 16 to 32 is
rounded to steps of 0.125 in bfloat16: a 135M model differs by 0.05 to 0.07 with the right mask, and
by 1.7 where the rejected side sees the chosen one."""


class Packed(NamedTuple):
    """Pairs in one row, one behind the other, and where the scored tokens of the two-row layout lie
    in it.

    Shapes: input_ids and position_ids (1, tokens), places (num_scored,) of the predicting tokens,
    labels (num_scored,), scored (2 * batch, seq - 1). `attention_mask` is a
    `pair_attention.PairMask`.
    """

    input_ids: Any
    attention_mask: Any
    position_ids: Any
    places: Any
    labels: Any
    scored: Any


def share_prefix(trainer: Trainer, attention: Callable[[PreTrainedModel], str]) -> bool:
    """Patches the policy and the reference of a TRL trainer in place; False (and a log line) where
    not proven.

    Its batches must be pairs of rows, all first sides and then all second ones: `DPOTrainer`'s, or
    `derta_tree`'s.
    """
    trained = trainer.accelerator.unwrap_model(trainer.model)
    policy = trained.get_base_model() if hasattr(trained, "peft_config") else trained
    reference = getattr(trainer, "ref_model", None)
    models = (
        [policy] if reference is None else [policy, trainer.accelerator.unwrap_model(reference)]
    )
    max_length: int | None = getattr(trainer.args, "max_length", None)
    reason = unproven_options(trainer) or unproven_adapter(trained)
    for model in models:
        reason = reason or unproven_model(model, max_length, attention(model))
    if reason:
        logger.warning("shared prefix is off, plain rows are used: %s", reason)
        return False
    for model in models:
        if not hasattr(
            model, "_shares_prefix"
        ):  # a trainer's own precompute pass may have patched it before
            patch_forward(model, tolerance(model, trainer.accelerator.mixed_precision))
    logger.info("shared prefix is on: the prompt of a pair is computed once")
    return True


def unproven_options(trainer: Any) -> str | None:
    """The training option under which a shared prefix is not proven to be exact; None where there
    is none."""
    args = trainer.args
    options = {
        "an auxiliary loss": trainer.aux_loss_enabled,
        "torch_compile": args.torch_compile,
        "use_liger_kernel": args.use_liger_kernel,
        "activation_offloading": args.activation_offloading,
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "a parallelism_config": trainer.accelerator.parallelism_config is not None,
    }
    return next((f"not proven with {name}" for name, on in options.items() if on), None)


def unproven_adapter(model: Any) -> str | None:
    """Why a peft adapter of `model` is not covered: anything but plain LoRA may look at a token's
    place in the row."""
    for config in getattr(model, "peft_config", {}).values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA" or getattr(config, "alora_invocation_tokens", None):
            return (
                f"not proven with adapters of type {kind}{' (activated)' if kind == 'LORA' else ''}"
            )
    return None


def unproven_model(model: PreTrainedModel, max_length: int | None, attention: str) -> str | None:
    """Why a model's attention or dropout is not covered, for rows of at most `max_length`
    tokens."""
    from torch.nn.modules.dropout import _DropoutNd

    config = model.config.get_text_config()
    if config.model_type not in PROVEN:
        return f"models of type {config.model_type} are not proven (proven are {', '.join(PROVEN)})"
    if attention != "sdpa":
        return f"attention is {attention}; only sdpa is proven to take the mask"
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    if window and (max_length is None or max_length > window):
        return f"max_length is {max_length} and the sliding window {window}; rows that fit into it are exact"
    drops = any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules())
    if drops or (getattr(config, "attention_dropout", None) or 0) > 0:
        return "dropout is above 0 and would be drawn differently"
    return None


def tolerance(model: Any, mixed_precision: str) -> float:
    """The allowed difference for the coarsest number format in which `model` computes."""
    import torch

    names = {
        str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()
    }
    names.add({"bf16": "bfloat16", "fp16": "float16"}.get(mixed_precision, "float32"))
    if getattr(model, "is_quantized", False) or torch.backends.cuda.matmul.allow_tf32:
        names.add("bfloat16")  # computes in 16 bits, or in TF32's 10 bits of mantissa
    return max(TOLERANCES.get(name, TOLERANCES["bfloat16"]) for name in names)


def patch_forward(model: Any, allowed: float) -> None:
    """Puts the shared-prefix forward on top of the fused one; calls without `fused_lm_head` pass
    through."""
    plain = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against this signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if (
            args
            or not kwargs.get("fused_lm_head")
            or kwargs.get("labels") is None
            or mask is None
            or mask.ndim != 2
        ):
            return plain(*args, **kwargs)
        if not self._shares_prefix:
            check_forward(self, plain, kwargs, allowed)
            self._shares_prefix = True
        return shared_forward(self, plain, **kwargs)

    model._shares_prefix = False  # True once the first batch has been checked
    model.forward = types.MethodType(forward, model)


def shared_forward(
    model: Any, plain: Any, *, input_ids: Any, attention_mask: Any, labels: Any, **kwargs: Any
) -> Any:
    """The fused forward's output for the two-row layout, computed from single rows."""
    from torch import Tensor

    packed = pack(input_ids, attention_mask, labels)

    def keep_scored(module: Any, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state[:, packed.places]
        return output

    handle = model.base_model.register_forward_hook(keep_scored)
    try:
        output = plain(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            **{**kwargs, "position_ids": packed.position_ids},
            shift_labels=packed.labels[None],
        )
    finally:
        handle.remove()
    for name, value in list(output.items()):
        if isinstance(value, Tensor) and value.ndim == 2:
            output[name] = value.new_zeros(packed.scored.shape).masked_scatter(packed.scored, value)
    return output


def pack(input_ids: Any, attention_mask: Any, labels: Any) -> Packed:
    """Right-padded rows, all chosen sides then all rejected ones, as one row without padding.

    Args:
        input_ids: (2 * batch, seq).
        attention_mask: (2 * batch, seq), 1 for tokens.
        labels: (2 * batch, seq), -100 where nothing is scored. Column 0 is never scored.
    """
    import torch

    from overrefusal_po.exact.pair_attention import Pair, PairMask

    half, seq = input_ids.shape[0] // 2, input_ids.shape[1]
    first, second = attention_mask.sum(1).split(half)  # tokens of each side
    common = shared_length(input_ids, attention_mask)
    tail = second - common
    width = first + tail
    column = torch.arange(int(width.max()), device=input_ids.device)[None]
    split, inside = first[:, None], column < width[:, None]
    behind = column >= split
    source = torch.where(behind, column - split + common[:, None], column).clamp(
        max=seq - 1
    )  # its column in two rows
    ids = torch.where(
        behind, input_ids[half:].gather(1, source), input_ids[:half].gather(1, source)
    )
    scored = labels[:, 1:] != -100
    sides, columns = scored.nonzero(as_tuple=True)
    rows = sides % half
    moved = (sides >= half) & (columns >= common[rows])
    within = torch.where(moved, columns - common[rows] + first[rows], columns)
    pairs = [Pair(*lengths) for lengths in torch.stack([first, tail, common], dim=1).tolist()]
    return Packed(
        input_ids=ids[inside][None],
        attention_mask=PairMask.of(pairs, input_ids.device),
        position_ids=source[inside][None],
        places=(width.cumsum(0) - width)[rows] + within,
        labels=labels[:, 1:][scored],
        scored=scored,
    )


def shared_length(input_ids: Any, attention_mask: Any) -> Any:
    """(batch,): how many tokens the two sides of each pair have in common from their beginning."""
    half = input_ids.shape[0] // 2
    same = (input_ids[:half] == input_ids[half:]) & (
        attention_mask[:half] * attention_mask[half:] == 1
    )
    return same.long().cumprod(1).sum(1)


def check_forward(model: Any, plain: Any, kwargs: dict[str, Any], allowed: float) -> None:
    """Runs a batch both ways in eval mode. Raises ValueError where log-probs differ by more than
    `allowed`."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        expected, found = plain(**kwargs), shared_forward(model, plain, **kwargs)
    for module, training in modes:
        module.training = training
    gaps = (expected.log_probs - found.log_probs).abs().float().sum(1) / expected.label_mask.sum(
        1
    ).clamp(min=1)
    gap = gaps.max().item()
    if not gap <= allowed:  # written so that a NaN fails too
        raise ValueError(
            f"With a shared prefix the first batch's log-probs differ from those of plain rows by "
            f"{gap:.2g} a token; up to {allowed:.2g} would be rounding. Set shared_prefix to false "
            "to train on plain rows."
        )
    logger.info(
        "shared prefix: the first batch agrees with plain rows (difference %.1e a token)", gap
    )
