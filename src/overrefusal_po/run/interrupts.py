"""Signals and kills end a run so that the same command goes on. The exit code is 130; a training
writes a checkpoint first.

    with terminable():  # around a command: SIGTERM acts like Ctrl-C
        with resumable(trainer):
            trainer.train(resume_from_checkpoint=last_checkpoint(run.path / "checkpoints"))

The checkpoint is written at the end of the step. A resumed run takes the next step with the same
random numbers. transformers' own `enable_jit_checkpoint` is not used: it reacts to SIGTERM alone,
three seconds late, and saves in the middle of a step. Then it ends as if training was done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypedDict, cast

if TYPE_CHECKING:
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

logger = logging.getLogger(__name__)

SignalHandler = Callable[[int, FrameType | None], object]

JIT_MARK = "checkpoint-is-incomplete.txt"
"""The file that transformers.trainer_jit_checkpoint keeps in a folder while it writes there."""


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, SignalHandler]) -> Iterator[None]:
    """Sets these signal handlers and later restores the old ones. Outside the main thread nothing
    changes, because only that thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that Python did not set and cannot set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def terminable() -> contextlib.AbstractContextManager[None]:
    """Within, SIGTERM acts like SIGINT, once: a KeyboardInterrupt, or what an event loop makes of
    it.

    SIGINT works even if the shell has set it to be ignored, as it does for a script's `command &`.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        # launchers send SIGTERM twice, and the second one must not disturb the clean-up
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.raise_signal(signal.SIGINT)

    return handling({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate})


@contextlib.contextmanager
def resumable(trainer: Trainer) -> Iterator[None]:
    """Within, SIGTERM and SIGINT let a training end its step and write a checkpoint; then comes a
    KeyboardInterrupt.

    With one process, a second SIGINT stops at once. With several, all stop at the same step, even
    if only one got the signal.
    """
    received: list[str] = []

    def receive(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name in received and name == "SIGINT" and trainer.accelerator.num_processes == 1:
            raise KeyboardInterrupt(name)
        received.append(name)
        if trainer.accelerator.is_main_process:
            # no logging in a handler: the signal may have interrupted a log line
            os.write(2, f"\n{name}: a checkpoint is written at the end of this step\n".encode())

    trainer.add_callback(stop_callback(trainer, received))
    with handling({signal.SIGINT: receive, signal.SIGTERM: receive}):
        yield


def received_anywhere(trainer: Trainer, received: list[str]) -> Callable[[], bool]:
    """A function that returns whether any process has received a signal. All processes have to call
    it together."""
    import torch

    several = trainer.accelerator.num_processes > 1
    # over gloo, so that no GPU has to wait for it
    group = torch.distributed.new_group(backend="gloo") if several else None

    def anywhere() -> bool:
        count = torch.tensor(len(received))
        if several:
            torch.distributed.all_reduce(count, group=group)
        return bool(count.item())

    return anywhere


class InterruptionEvents:
    """What a training does after a signal, and after a resume.

    `received` holds the names of the signals that this process received.
    """

    def __init__(self, trainer: Trainer, received: list[str]) -> None:
        self.trainer = trainer
        self.private: Any = trainer  # private names of transformers' Trainer have no types
        self.received = received
        self.must_stop = received_anywhere(trainer, received)
        self.stopping = False
        self.loss = 0.0

    def state(self) -> dict[str, object]:
        """What trainer_state.json keeps: the sums since the last row of the log."""
        return dict(open_log_row(self.trainer, self.loss))

    # Any in the four events: keyword arguments that transformers passes and nobody reads
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restores the sums, and ends a training that was killed after its last step."""
        # transformers annotates the list that it is before training
        states = cast("dict[str, LogRow]", state.stateful_callbacks)
        kept = states.setdefault(type(self).__name__, {})
        if state.global_step and kept:
            restore_log_row(self.trainer, kept)
        if state.global_step >= state.max_steps:  # transformers would take one more step
            self.private._run_epoch = lambda **_: None
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Asks for a checkpoint after a signal."""
        if self.must_stop():
            self.stopping = control.should_save = True
        self.on_epoch_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes the loss for `state`. All processes come here; only the first calls `state`."""
        if control.should_save:
            loss = self.private._tr_loss.clone()
            self.loss = self.trainer.accelerator.reduce(loss, reduction="mean").item()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stops once the checkpoint is written."""
        if self.stopping:
            self.trainer.accelerator.wait_for_everyone()
            step = state.global_step
            logger.info("interrupted: a checkpoint of step %d is written", step)
            raise KeyboardInterrupt(
                f"{' '.join(self.received)} at step {step}, whose checkpoint is written"
            )


def stop_callback(trainer: Trainer, received: list[str]) -> TrainerCallback:
    """The callback that saves and stops after a signal, and resumes what transformers leaves
    out."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Interruption(InterruptionEvents, TrainerCallback, ExportableState):
        """The events as transformers takes them; trainer_state.json has the class's name."""

    return Interruption(trainer, received)


class LogRow(TypedDict, total=False):
    """The unfinished next row of the log; empty before training."""

    loss: float
    """The sum of the losses over the row's steps."""
    last_logged: int
    """The step of the last row."""
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
        "metrics": dict(private._metrics["train"]),
        "tokens": private._total_train_tokens,
    }


def restore_log_row(trainer: Trainer, kept: LogRow) -> None:
    """Puts `open_log_row` back. The first row after a resume is then that of an undisturbed run."""
    private: Any = trainer  # private names of transformers' and TRL's trainers have no types
    private._tr_loss += kept["loss"]
    # the mean over the whole training includes these steps, too
    private._globalstep_last_logged = private._initial_global_step = kept["last_logged"]
    private._metrics["train"].update(kept["metrics"])
    private._total_train_tokens = kept["tokens"]


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint in `folder`; None if there is none."""
    found = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    if not found:
        return None
    last = max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    logger.info("going on from %s", last)
    return str(last)


def drop_incomplete(folder: Path) -> None:
    """Deletes the checkpoints that a killed run had not finished. No run can go on from them, and
    transformers would count them when it deletes older ones.

    The first process calls this before any process looks for the last checkpoint.
    """
    for path in folder.glob("checkpoint-*"):
        if not is_complete(path):
            logger.warning(
                "%s is incomplete (the run was killed while it was written): skipped and deleted",
                path,
            )
            shutil.rmtree(path)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder is written to its end: trainer_state.json comes last, together
    with other ranks' states."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return not (checkpoint / JIT_MARK).exists() and all(
        is_whole(file) for file in checkpoint.iterdir()
    )


def is_whole(file: Path) -> bool:
    """Whether a file of torch or safetensors is whole. Other files are taken for whole."""
    if file.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(file)
    if file.suffix != ".safetensors":
        return True
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False
