"""An update that does not depend on how its batch is cut into micro-batches and processes.

    factors = window.factors(pairs=2, tokens=31)
    loss = factors.pairs * mean_over_pairs + factors.tokens * mean_over_tokens

A window is the micro-batches of one optimiser step, in all processes. transformers averages the
losses of its micro-batches, and DDP those of processes. That is right for a mean over pairs if all
micro-batches are equally large. It is wrong for a mean over tokens: TRL's `sft` loss and ORPO's
likelihood weigh a token by how few others its micro-batch has (measured: the update of 4 x 1 and
1 x 4 differs by 9 % and 20 %). The factors make both the mean over the whole window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from overrefusal_po.exact.shared_prefix import CHECKED
from overrefusal_po.model.sharding import wants_deepspeed
from overrefusal_po.recipe.methods import check_losses

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Batch = dict[str, Any]
"""A collated batch: tensors of 2P rows by name; `Any`, since a collator may add other things."""


class Factors(NamedTuple):
    """What a micro-batch's mean over pairs, and its mean over tokens, is multiplied with."""

    pairs: float = 1.0
    tokens: float = 1.0


class Window(NamedTuple):
    """The sizes of one optimiser step.

    Attributes:
        pairs: pairs of all micro-batches and processes.
        tokens: tokens with a token-wise loss of all of them.
        parts: what transformers and DDP divide by: micro-batches of a process times processes.
    """

    pairs: float
    tokens: float
    parts: int

    def factors(self, *, pairs: float, tokens: float) -> Factors:
        """The factors of a micro-batch of this many pairs and tokens.

        >>> Window(pairs=4, tokens=40, parts=2).factors(pairs=1, tokens=30)
        Factors(pairs=0.5, tokens=1.5)
        """
        return Factors(pairs * self.parts / self.pairs, tokens * self.parts / max(self.tokens, 1.0))


def check_passes(settings: Mapping[str, object], pass_tokens: int | None) -> None:
    """Raises ValueError for a training whose batches cannot be computed in passes.

    `settings` are the trainer's.
    """
    if pass_tokens is None:
        return
    if pass_tokens < 1:
        raise ValueError(f"pass_tokens is {pass_tokens}; allowed is 1 or more, or null.")
    check_losses(cast("str | Sequence[str]", settings.get("loss_type") or ()), "pass_tokens")
    if wants_deepspeed(settings):
        raise ValueError(
            "pass_tokens is given, and DeepSpeed counts each backward pass as a whole batch. Leave "
            "pass_tokens out, or shard by recipes/accelerate/fsdp2.yaml."
        )


def is_shared(model: Module) -> bool:
    """Whether a model, or one inside of it, computes the prompt of a pair once."""
    return any(hasattr(module, CHECKED) for module in model.modules())


def chosen_tokens(batch: Batch) -> float:
    """Scored tokens of the chosen sides: what TRL's `sft` loss is a mean over."""
    mask: Tensor = batch["completion_mask"]  # (2P, T)
    return float(mask[: len(mask) // 2, 1:].sum())


def chosen_row_tokens(batch: Batch) -> float:
    """Tokens of prompt and chosen side but the first: what ORPO's likelihood is a mean over."""
    mask: Tensor = batch["attention_mask"]  # (2P, T)
    return float(mask[: len(mask) // 2, 1:].sum())


def num_pairs(batch: Batch) -> float:
    """Pairs of a batch."""
    return len(batch["input_ids"]) / 2


def window_of(batches: Sequence[Batch], tokens: Sequence[float], accelerator: Any) -> Window:
    """The window of a process's micro-batches, summed over all processes.

    `tokens` are those of each micro-batch. `accelerator` is accelerate's, which is untyped.
    """
    import torch

    own = [sum(map(num_pairs, batches)), sum(tokens)]
    # float32 counts exactly up to 16 million
    sums = torch.tensor(own, dtype=torch.float32, device=accelerator.device)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums, reduction="sum")
    return Window(float(sums[0]), float(sums[1]), len(batches) * accelerator.num_processes)
