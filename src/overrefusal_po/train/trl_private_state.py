"""The private names of transformers and TRL around a trainer's log; `trl_private` has the others.

| name | why |
|---|---|
| `Trainer._tr_loss`, `_total_loss_scalar`, `_globalstep_last_logged` | exact resume |
| `Trainer._initial_global_step` | exact resume |
| `Trainer._run_epoch` | a training that was killed after its last step |
| `DPOTrainer._metrics` | exact resume, and passes of a batch |

Each has a canary in tests/test_trl_private.py that says what broke.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

from torch import Tensor
from transformers import Trainer


class LogRow(TypedDict, total=False):
    """The unfinished next row of the log; empty before training."""

    loss: float
    """The sum of the losses over the row's steps."""
    last_logged: int
    """The step of the last row."""
    total: float
    """The sum of the losses of all rows so far."""
    metrics: dict[str, list[float]]
    """TRL's metrics."""
    tokens: int
    """TRL's count of tokens."""


def open_log_row(trainer: Trainer, loss: float) -> LogRow:
    """The unfinished next row of the log.

    `loss` is the sum of the losses at the end of the step, before a due row reset it.
    """
    private: Any = trainer  # private names of transformers' and TRL's trainers have no types
    if not hasattr(trainer, "_globalstep_last_logged"):  # before training
        return {}
    return {
        "loss": loss if private._globalstep_last_logged < trainer.state.global_step else 0.0,
        "last_logged": private._globalstep_last_logged,
        "total": private._total_loss_scalar,
        "metrics": dict(private._metrics["train"]),
        "tokens": private._total_train_tokens,
    }


def restore_log_row(trainer: Trainer, kept: LogRow) -> None:
    """Puts `open_log_row` back. The first row after a resume is then that of an undisturbed run."""
    private: Any = trainer  # private names of transformers' and TRL's trainers have no types
    private._tr_loss += kept["loss"]
    private._globalstep_last_logged = kept["last_logged"]
    # train_loss is then the mean over the whole training, as if it had not been stopped
    private._total_loss_scalar, private._initial_global_step = kept["total"], 0
    private._metrics["train"].update(kept["metrics"])
    private._total_train_tokens = kept["tokens"]


@contextmanager
def logged_as_one(trainer: Trainer, shares: Sequence[float]) -> Iterator[None]:
    """Around the passes of a batch: TRL's metrics are means over all its pairs then, as of a batch
    that was computed at once. `shares` are the passes' shares of the pairs."""
    private: Any = trainer  # private names of TRL's trainers have no types
    metrics: dict[str, list[float]] = private._metrics["train"]
    before = {name: len(values) for name, values in metrics.items()}
    yield
    for name, values in metrics.items():
        new = values[before.get(name, 0) :]
        if len(new) == len(shares):  # TRL logs the mean of one value a batch
            mean = sum(value * share for value, share in zip(new, shares, strict=True))
            values[before.get(name, 0) :] = [mean]


def loss_sum(trainer: Trainer) -> Tensor:
    """A copy of the sum of the losses since the last row of the log."""
    private: Any = trainer  # private names of transformers' trainer have no types
    total: Tensor = private._tr_loss.clone()
    return total


def skip_epochs(trainer: Trainer) -> None:
    """Has `train()` take no step: transformers would take one more after the last."""
    private: Any = trainer  # private names of transformers' trainer have no types
    private._run_epoch = lambda **_: None
