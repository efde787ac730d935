"""One row of all [prompt, chosen, rejected] through the model, in place of two rows a pair.

    trainer = DPOTrainer(...)
    share_prefix(trainer, attention_of)    # True; False and a log line if plain rows stay

The prompt is computed once, nothing is padded, and the LM head sees scored positions only. Loss,
gradients and metrics are TRL's. TRL's `add_fused_lm_head` puts a forward on the model. This module
replaces that forward with one that returns the same fields, (2P, T - 1). On a CPU `token_scores`
computes them. Both sides share the longest common beginning of their tokens. A token of the second
side sees it and its own side (see `pair_attention`). Its position counts on from that beginning.

Only attention that is proven (tests/test_shared_prefix.py) is replaced. The first batch runs both
ways in eval mode. If a log-prob differs by more than the tolerance, the training stops.

Shapes: B batch rows, P pairs (B = 2P), T tokens of a padded row, S scored tokens, H hidden. N are
the tokens of the packed row.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, Trainer

    from overrefusal_po.exact.pair_attention import PairMask
    from overrefusal_po.exact.token_scores import OwnHead

logger = logging.getLogger(__name__)

Forward = Callable[..., Any]
"""A model's bound forward. Any: its arguments and its output depend on the model."""

PROVEN_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `config.model_type` whose attention is tested."""

TOLERANCES = {"float32": 1e-4, "float16": 0.03, "bfloat16": 0.2}
"""The largest allowed difference in log-probs (ours): the mean over the tokens of a sequence.

bfloat16 rounds a logit of 16 to 32 in steps of 0.125. With the correct mask a 135M model differs
by 0.05 to 0.07. If the rejected side sees the chosen one, it differs by 1.7."""

CHECKED = "_shares_prefix"
"""The attribute of a model with the new forward: True once its first batch is checked."""


class Packed(NamedTuple):
    """Pairs in one row, one after the other, and the scored tokens of the two-row layout."""

    input_ids: Tensor
    """(1, N)."""
    attention_mask: PairMask
    position_ids: Tensor
    """(1, N): the column of each token in its padded row."""
    places: Tensor
    """(S,): the place in the packed row of the token that predicts each label."""
    labels: Tensor
    """(S,)."""
    scored: Tensor
    """(2P, T - 1): True for a scored token of the two-row layout."""


def share_prefix(trainer: Trainer, attention: Callable[[PreTrainedModel], str]) -> bool:
    """Gives the policy and the reference of a TRL trainer the new forward, in place.

    False, and a log line, if that is not proven exact. Its batches must be pairs of rows: all first
    sides, then all second ones. `DPOTrainer` and `derta_tree` make such batches. `attention`
    returns the name of a model's attention.
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
        if not hasattr(model, CHECKED):  # a trainer that precomputes may have done it already
            patch_forward(model, tolerance(model, trainer.accelerator.mixed_precision))
    logger.info("shared prefix is on: the prompt of a pair is computed once")
    return True


def unproven_options(trainer: Any) -> str | None:  # Any: flags that only TRL's trainers have
    """A training option under which a shared prefix is not proven exact; None without one."""
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


def unproven_adapter(model: Module) -> str | None:
    """Why a peft adapter is not covered: all but plain LoRA may read a token's place in the row."""
    for config in getattr(model, "peft_config", {}).values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA" or getattr(config, "alora_invocation_tokens", None):
            return (
                f"not proven with adapters of type {kind}{' (activated)' if kind == 'LORA' else ''}"
            )
    return None


def unproven_model(model: PreTrainedModel, max_length: int | None, attention: str) -> str | None:
    """Why a model's attention or dropout is not covered; rows have at most `max_length` tokens."""
    from torch.nn.modules.dropout import _DropoutNd

    config = model.config.get_text_config()
    if config.model_type not in PROVEN_MODEL_TYPES:
        return (
            f"models of type {config.model_type} are not proven (proven are "
            f"{', '.join(PROVEN_MODEL_TYPES)})"
        )
    if attention != "sdpa":
        return f"attention is {attention}; only sdpa is proven to take the mask"
    slides = getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if slides else None
    if window and (max_length is None or max_length > window):
        return (
            f"max_length is {max_length} and the sliding window {window}; rows that fit into it "
            "are exact"
        )
    drops = any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules())
    if drops or (getattr(config, "attention_dropout", None) or 0) > 0:
        return "dropout is above 0 and would be drawn differently"
    return None


def tolerance(model: PreTrainedModel, mixed_precision: str) -> float:
    """The allowed difference for the coarsest number format in which `model` computes."""
    import torch

    names = {
        str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()
    }
    names.add({"bf16": "bfloat16", "fp16": "float16"}.get(mixed_precision, "float32"))
    if getattr(model, "is_quantized", False) or torch.backends.cuda.matmul.allow_tf32:
        names.add("bfloat16")  # computes in 16 bits, or with the 10-bit mantissa of TF32
    return max(TOLERANCES.get(name, TOLERANCES["bfloat16"]) for name in names)


def patch_forward(model: PreTrainedModel, allowed: float) -> None:
    """Puts the shared-prefix forward over the fused one.

    A call without `fused_lm_head`, labels or a mask of two dimensions runs the fused one unchanged.
    `allowed` is the tolerance of the first batch.
    """
    plain: Forward = model.forward
    head: OwnHead | None = None

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against this signature
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:  # Any: see `Forward`
        nonlocal head
        mask = kwargs.get("attention_mask")
        fused = kwargs.get("fused_lm_head") and kwargs.get("labels") is not None
        if args or not fused or mask is None or mask.ndim != 2:
            return plain(*args, **kwargs)
        if not getattr(self, CHECKED):
            head = check_forward(self, plain, kwargs, allowed)
            setattr(self, CHECKED, True)
        return shared_forward(self, plain, head, **kwargs)

    setattr(model, CHECKED, False)
    model.forward = types.MethodType(forward, model)


def shared_forward(
    model: PreTrainedModel,
    plain: Forward,
    head: OwnHead | None,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    **kwargs: Any,  # Any: further arguments of the model's forward
) -> Any:
    """The fused forward's output for rows (2P, T), from one packed row; `head` None for TRL's."""
    from torch import Tensor

    packed = pack(input_ids, attention_mask, labels)
    row = {**kwargs, "input_ids": packed.input_ids, "attention_mask": packed.attention_mask}
    row["position_ids"] = packed.position_ids  # (1, N), as input_ids
    if head is None:
        output = scored_by_trl(model, plain, packed, row)
    else:
        output = scored_by_head(model, head, packed, row)
    for name, value in list(output.items()):
        if isinstance(value, Tensor) and value.ndim == 2:  # (1, S) -> (2P, T - 1)
            output[name] = value.new_zeros(packed.scored.shape).masked_scatter(packed.scored, value)
    return output


def scored_by_trl(model: PreTrainedModel, plain: Forward, packed: Packed, row: Any) -> Any:
    """TRL's fused output for a packed row, fields (1, S). `Any`: arguments and output."""

    def keep_scored(module: Module, args: tuple[Any, ...], output: Any) -> Any:  # Any: a torch hook
        output["last_hidden_state"] = output.last_hidden_state[:, packed.places]  # (1, S, H)
        return output

    handle = model.base_model.register_forward_hook(keep_scored)
    try:
        return plain(**row, shift_labels=packed.labels[None])  # (1, S)
    finally:
        handle.remove()


def scored_by_head(model: PreTrainedModel, head: OwnHead, packed: Packed, row: Any) -> Any:
    """The same by our own head. `Any`: arguments and output."""
    fused = ("fused_lm_head", "num_items_in_batch")  # arguments of TRL's forward alone
    states = model.base_model(**{name: row[name] for name in row if name not in fused})
    hidden = states.last_hidden_state[0, packed.places]  # (S, H)
    return head(model, hidden, packed.labels, row.get("num_items_in_batch"))


def pack(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Packed:
    """Right-padded rows of pairs as one row without padding.

    Args:
        input_ids: (2P, T), all first sides, then all second ones.
        attention_mask: (2P, T), 1 for tokens.
        labels: (2P, T), -100 for tokens that are not scored. Column 0 is never scored.

    >>> import torch
    >>> ids = torch.tensor([[1, 2, 3, 4],      # the first side of pair 0
    ...                     [1, 7, 0, 0],      # the first side of pair 1
    ...                     [1, 2, 5, 0],      # the second side of pair 0: 1 2 are in both
    ...                     [1, 8, 0, 0]])     # the second side of pair 1: 1 is in both
    >>> packed = pack(ids, (ids > 0).long(), ids.masked_fill(ids < 3, -100))
    >>> packed.input_ids                       # pair 0 without its second 1 2, then pair 1
    tensor([[1, 2, 3, 4, 5, 1, 7, 8]])
    >>> packed.position_ids                    # 5 stands behind 1 2 too
    tensor([[0, 1, 2, 3, 2, 0, 1, 1]])
    >>> packed.attention_mask.pairs
    [Pair(first=4, tail=1, common=2), Pair(first=2, tail=1, common=1)]
    >>> packed.labels                          # in the order of the two-row layout
    tensor([3, 4, 7, 5, 8])
    >>> packed.places                          # token 2, at place 1, predicts both 3 and 5
    tensor([1, 2, 5, 1, 5])
    >>> packed.scored
    tensor([[False,  True,  True],
            [ True, False, False],
            [False,  True, False],
            [ True, False, False]])
    """
    import torch

    from overrefusal_po.exact.pair_attention import Pair, PairMask

    half, seq = input_ids.shape[0] // 2, input_ids.shape[1]  # P, T
    first, second = attention_mask.sum(1).split(half)  # (P,) each: tokens of a side
    common = shared_length(input_ids, attention_mask)  # (P,)
    tail = second - common  # (P,)
    width = first + tail  # (P,): tokens of a pair
    column = torch.arange(int(width.max()), device=input_ids.device)[None]  # (1, W), W the widest
    behind = column >= first[:, None]  # (P, W): the tail
    source = torch.where(  # (P, W): its column in the two-row layout
        behind, column - first[:, None] + common[:, None], column
    ).clamp(max=seq - 1)
    ids = torch.where(  # (P, W)
        behind, input_ids[half:].gather(1, source), input_ids[:half].gather(1, source)
    )
    inside = column < width[:, None]  # (P, W)
    scored = labels[:, 1:] != -100  # (2P, T - 1)
    pair, place = predicting_places(scored, first, common)  # (S,) each
    pairs = [Pair(*lengths) for lengths in torch.stack([first, tail, common], dim=1).tolist()]
    return Packed(
        input_ids=ids[inside][None],  # (1, N)
        attention_mask=PairMask.of(pairs, input_ids.device),
        position_ids=source[inside][None],  # (1, N)
        places=(width.cumsum(0) - width)[pair] + place,  # (S,)
        labels=labels[:, 1:][scored],  # (S,)
        scored=scored,
    )


def predicting_places(scored: Tensor, first: Tensor, common: Tensor) -> tuple[Tensor, Tensor]:
    """(the pair, the place inside it) of the token that predicts each scored token, (S,) each.

    Args:
        scored: (2P, T - 1), of the two-row layout.
        first: (P,), tokens of the first side.
        common: (P,), tokens with which both sides begin.
    """
    import torch

    rows, columns = scored.nonzero(as_tuple=True)  # (S,) each
    pair = rows % len(first)
    in_tail = (rows >= len(first)) & (columns >= common[pair])
    return pair, torch.where(in_tail, columns - common[pair] + first[pair], columns)


def shared_length(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(P,): the number of tokens with which both sides of each pair begin; arguments (2P, T)."""
    half = input_ids.shape[0] // 2
    both = attention_mask[:half] * attention_mask[half:] == 1  # (P, T): no padding in either
    same = (input_ids[:half] == input_ids[half:]) & both  # (P, T)
    return same.long().cumprod(1).sum(1)


def check_forward(
    model: PreTrainedModel, plain: Forward, kwargs: dict[str, Any], allowed: float
) -> OwnHead | None:
    """The head to score with. Runs a batch both ways in eval mode; `kwargs` are of a forward.

    Raises ValueError if log-probs differ by more than `allowed`.
    """
    import torch

    from overrefusal_po.exact.token_scores import own_head

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        expected = plain(**kwargs)
        head = own_head(model, expected)
        found = shared_forward(model, plain, head, **kwargs)
    for module, training in modes:
        module.training = training
    differences = (expected.log_probs - found.log_probs).abs().float().sum(1)  # (2P,)
    gap = (differences / expected.label_mask.sum(1).clamp(min=1)).max().item()
    if not gap <= allowed:  # written so that a NaN fails too
        raise ValueError(
            f"With a shared prefix the first batch's log-probs differ from those of plain rows by "
            f"{gap:.2g} a token; up to {allowed:.2g} would be rounding. Set shared_prefix to false "
            "to train on plain rows."
        )
    logger.info(
        "shared prefix: the first batch agrees with plain rows (difference %.1e a token)", gap
    )
    return head
