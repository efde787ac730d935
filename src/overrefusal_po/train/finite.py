"""A training that leaves the finite numbers stops at that step: nothing is shipped, exit code 1.

    trainer.add_callback(finite_callback(trainer))

transformers logs a NaN loss as 0.0 and goes on. A loss that is NaN or infinite makes gradients
that are not finite, so gradients are looked at before each optimiser step, and weights after it.
With GradScaler (fp16) infinite gradients are normal, and their step is skipped: weights count then.
DeepSpeed keeps no gradients in the weights, and leaves a step out whose gradients are not finite,
in every number format. So the norm that it computes of them counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from overrefusal_po.model.finite import NotFiniteError, all_finite

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )


def stopped(what: str, step: int) -> NotFiniteError:
    """The error of a training that leaves the finite numbers."""
    return NotFiniteError(
        f"The {what} became NaN or infinite at step {step}, so the training stops and nothing is "
        "saved. Lower trainer.learning_rate, set trainer.max_grad_norm (1.0), train in float32 or "
        "bfloat16, or look at the rows of this step (data.jsonl)."
    )


def finite_callback(trainer: Trainer) -> TrainerCallback:
    """A callback that raises NotFiniteError in all processes at the first step out of range."""
    import torch
    from transformers import TrainerCallback

    accelerator = trainer.accelerator
    scaled = accelerator.mixed_precision == "fp16"

    def fails(tensors: Iterable[Tensor]) -> bool:
        bad = torch.tensor(float(not all_finite(tensors)), device=accelerator.device)
        return bool(accelerator.reduce(bad, reduction="sum") > 0)

    def gradients() -> list[Tensor]:
        engine = getattr(accelerator, "deepspeed_engine_wrapped", None)
        norm = engine and engine.get_global_grad_norm()
        if norm is not None:
            # DeepSpeed writes -1 for a norm of parts that is not finite
            return [torch.tensor(norm if norm >= 0 else torch.nan)]
        return [weight.grad for weight in trained() if weight.grad is not None]

    def trained() -> list[Tensor]:
        policy: Module = accelerator.unwrap_model(trainer.model)
        return [weight for weight in policy.parameters() if weight.requires_grad]

    class FiniteCallback(TrainerCallback):
        """Looks at gradients before each optimiser step and at weights after it."""

        def on_pre_optimizer_step(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            if not scaled and fails(gradients()):
                raise stopped("loss or its gradient", state.global_step + 1)

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            if fails(trained()):
                raise stopped("weights", state.global_step)

    return FiniteCallback()
