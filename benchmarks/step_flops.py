"""The floating-point operations of a training step: those that are executed, and those that its
tokens need.

    executed, width = count_flops(trainer, batches)
    # by torch's FlopCounterMode, forward and backward
    useful = useful_flops(trainer, work_of(batch), forwards=2)    # by formula

Executed are matrix products alone, no elementwise work: padding, prompts computed twice and what
the LM head computes again count. torch's counter does not know the attention kernel of CPUs, nor
products added in place (the LM head's gradients); both are added here. Attention counts in full, as
if nothing were masked, and its scores once more in the backward pass. Weight gradients of frozen
weights are never computed, so never counted. Useful is: each prompt once, no padding, attention
where a token may look, the LM head at scored tokens, nothing computed again.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple


class Work(NamedTuple):
    """What a batch has for a model that wastes nothing: tokens, scored tokens, and (query, key)
    pairs that may look."""

    tokens: int
    scored: int
    looks: int


def count_flops(trainer: Any, batches: Sequence[Any]) -> tuple[dict[str, int], int]:
    """({op: FLOPs} of all batches, forward and backward; tokens of a policy's forward, padding too,
    on average)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    aten, widths = torch.ops.aten, []
    missing = {
        aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: sdpa_flop_count(
            *args[:3]
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *args, **_: (
            sdpa_backward_flop_count(*args[:4])
        ),
    }
    core = trainer.accelerator.unwrap_model(trainer.model)
    core = core.get_base_model() if hasattr(core, "peft_config") else core

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():  # not the reference's
            widths.append(kwargs["input_ids"].numel())

    handle = core.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with FlopCounterMode(display=False, custom_mapping=missing) as counter:
            for batch in batches:
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch)))
                loss.backward()
    finally:
        handle.remove()
    counts = counter.get_flop_counts()["Global"]
    return {str(op): int(flops) for op, flops in counts.items()}, round(statistics.mean(widths))


def work_of(batch: Any) -> Work:
    """The useful work in a batch of pairs in two-row layout."""
    from overrefusal_po.exact.shared_prefix import shared_length

    common = shared_length(batch["input_ids"], batch["attention_mask"])
    lengths = batch["attention_mask"].sum(1)
    scored = (
        batch["completion_mask"] == 1 if "completion_mask" in batch else batch["labels"] != -100
    )
    looks = (lengths * (lengths + 1) // 2).sum() - (common * (common + 1) // 2).sum()
    return Work(int(lengths.sum() - common.sum()), int(scored[:, 1:].sum()), int(looks))


def useful_flops(trainer: Any, work: Work, forwards: int) -> int:
    """FLOPs of a step by formula, `forwards` being 2 where a reference runs too.

    A product costs the same in the forward pass, for its input's gradient, and for its weight's
    where that is trained.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    full = not hasattr(model, "peft_config")
    base = sum(
        count * rows * columns
        for (rows, columns), count in linear_shapes(model, adapters=False).items()
    )
    adapters = sum(
        count * rows * columns
        for (rows, columns), count in linear_shapes(model, adapters=True).items()
    )
    linear = base * (forwards + 1 + full) + adapters * 3
    scored = head.in_features * head.out_features * (forwards + 1 + full)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or head.in_features // config.num_attention_heads
    )
    attention = (
        2 * width * config.num_hidden_layers * (forwards + 2)
    )  # scores and values; both have two gradients
    return 2 * (linear * work.tokens + scored * work.scored + attention * work.looks)


def linear_shapes(model: Any, *, adapters: bool) -> Counter[tuple[int, int]]:
    """How often the model has linear layers of each (out, in), without the LM head: its own, or its
    adapters'."""
    from torch.nn import Linear

    head = model.get_output_embeddings()
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, Linear) and m is not head]
    return Counter((m.out_features, m.in_features) for n, m in layers if ("lora_" in n) == adapters)
