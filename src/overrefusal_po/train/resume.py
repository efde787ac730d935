"""A training that a signal stops: a checkpoint first, exit code 130, and the same command goes on.

    with resumable(trainer):
        trainer.train(resume_from_checkpoint=last_checkpoint(run.path / "checkpoints"))

The checkpoint is written at the end of the step, when a resumed run takes the very next one with
the same random numbers. transformers has `enable_jit_checkpoint`, but it hears SIGTERM alone, three
seconds late. It saves in the middle of a step and then ends as if the training was done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.model.waits import gloo_group
from overrefusal_po.run.interrupts import STOPPING, handling, write_checkpoint_hashes
from overrefusal_po.train.hash_team import HashTeam

if TYPE_CHECKING:
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from overrefusal_po.model.whole import Hashing
    from overrefusal_po.train.trl_private_state import LogRow

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def resumable(trainer: Trainer, lost: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within, SIGTERM, SIGUSR1 and SIGINT let a training end its step and write a checkpoint; then
    comes a KeyboardInterrupt. No checkpoint is written if the folder is `lost` to another run.

    With one process, a second SIGINT stops at once. With several, all stop at the same step, even
    if only one got the signal.
    """
    received: list[str] = []

    def receive(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name in received and name == "SIGINT" and trainer.accelerator.num_processes == 1:
            raise KeyboardInterrupt(name)
        if name in received:  # clusters repeat theirs
            return
        received.append(name)
        if trainer.accelerator.is_main_process and not lost():
            # no logging in a handler: the signal may have interrupted a log line
            os.write(2, f"\n{name}: a checkpoint is written at the end of this step\n".encode())

    trainer.add_callback(stop_callback(trainer, received, lost))
    # `on_save` deletes old ones: transformers goes by file times, and deletes the newest one after
    # a clock was set back
    trainer.args.save_total_limit = None
    with handling(dict.fromkeys(STOPPING, receive)):
        yield


def received_anywhere(
    trainer: Trainer, received: list[str], lost: Callable[[], bool]
) -> Callable[[], tuple[bool, bool]]:
    """A function that returns (whether any process has received a signal, whether any has `lost`
    the folder). All processes have to call it together."""
    import torch

    group = gloo_group(trainer.accelerator.num_processes, trainer.args.ddp_timeout)

    def anywhere() -> tuple[bool, bool]:
        counts = torch.tensor([len(received), int(lost())])
        if group is not None:
            torch.distributed.all_reduce(counts, group=group)
        return bool(counts[0]), bool(counts[1])

    return anywhere


class InterruptionEvents:
    """What a training does after a signal, and after a resume.

    `received` holds the names of the signals that this process received, and `lost` says whether
    another run has its folder.
    """

    def __init__(self, trainer: Trainer, received: list[str], lost: Callable[[], bool]) -> None:
        self.trainer = trainer
        self.received = received
        self.kept = trainer.args.save_total_limit
        self.must_stop = received_anywhere(trainer, received, lost)
        self.team = HashTeam(trainer.accelerator, trainer.args.ddp_timeout)
        self.stopping = False
        self.loss = 0.0

    def state(self) -> dict[str, object]:
        """What trainer_state.json keeps: the sums since the last row of the log."""
        from overrefusal_po.train.trl_private_state import open_log_row

        return dict(open_log_row(self.trainer, self.loss))

    # Any in the four events: keyword arguments that transformers passes and nobody reads
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restores the sums, and ends a training that was killed after its last step."""
        from overrefusal_po.train.trl_private_state import restore_log_row, skip_epochs

        # transformers annotates the list that it is before training
        states = cast("dict[str, LogRow]", state.stateful_callbacks)
        kept = states.setdefault(type(self).__name__, {})
        if state.global_step and kept:
            restore_log_row(self.trainer, kept)
        if state.global_step >= state.max_steps:  # transformers would take one more step
            skip_epochs(self.trainer)
            control.should_training_stop = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Asks for a checkpoint after a signal. Ends at once if the folder is another run's, whose
        checkpoints stand there."""
        stop, lost = self.must_stop()
        if lost:
            raise KeyboardInterrupt(f"another run has the folder at step {state.global_step}")
        if stop:
            self.stopping = control.should_save = True
        self.on_epoch_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes the loss for `state`. All processes come here; only the first calls `state`."""
        if control.should_save:
            from overrefusal_po.train.trl_private_state import loss_sum

            loss = loss_sum(self.trainer)
            self.loss = self.trainer.accelerator.reduce(loss, reduction="mean").item()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes the hashes of the checkpoint's files, deletes old ones, and stops once it is
        written. Raises RunFailed in all processes for a fault of one of them."""
        self.trainer.accelerator.wait_for_everyone()
        folder = Path(str(args.output_dir))

        def close(hashing: Hashing) -> None:
            write_checkpoint_hashes(folder / f"checkpoint-{state.global_step}", hashing)
            drop_oldest(folder, self.kept, state.best_model_checkpoint)

        self.team.work(close)
        if self.stopping:
            step = state.global_step
            logger.info("interrupted: a checkpoint of step %d is written", step)
            raise KeyboardInterrupt(
                f"{' '.join(self.received)} at step {step}, whose checkpoint is written"
            )


def drop_oldest(folder: Path, kept: int | None, best: str | None) -> None:
    """Deletes the checkpoints of the lowest steps until `kept` are left (None or 0: all stay).

    The newest stays, and so does `best`. It goes by the steps: times depend on the clock.
    """
    from transformers.trainer_utils import rotate_checkpoints

    rotate_checkpoints(str(folder), kept, best, use_mtime=False)


def stop_callback(
    trainer: Trainer, received: list[str], lost: Callable[[], bool]
) -> TrainerCallback:
    """The callback that saves and stops after a signal, and resumes what transformers leaves
    out."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    class Interruption(InterruptionEvents, TrainerCallback, ExportableState):
        """The events as transformers takes them; trainer_state.json has the class's name."""

    return Interruption(trainer, received, lost)
