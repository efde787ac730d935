"""Signals and kills end a run so that the same command goes on: exit code 130, and while training a
checkpoint first.

    with terminable():  # around a command: SIGTERM is what Ctrl-C is
        with resumable(trainer):
            trainer.train(resume_from_checkpoint=last_checkpoint(run.path / "checkpoints"))

The checkpoint is written at the end of the step, when a resumed run takes the very next one with
the same random numbers. transformers' own `enable_jit_checkpoint` hears SIGTERM alone, three
seconds late, saves in the middle of a step and then ends as if training was done.
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
from typing import Any

logger = logging.getLogger(__name__)

JIT_MARK = "checkpoint-is-incomplete.txt"
"""What transformers.trainer_jit_checkpoint lays into a folder while it writes there."""


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, Callable[[int, Any], Any]]) -> Iterator[None]:
    """These signal handlers within, the old ones afterwards. Only the main thread has any:
    elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: set by what is not Python, and cannot be set again
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def terminable() -> contextlib.AbstractContextManager[None]:
    """Within, SIGTERM does what SIGINT does (a KeyboardInterrupt, or what an event loop makes of
    it), once.

    SIGINT is heard too where the shell had it ignored, as for what a script starts with `&`.
    """

    def terminate(number: int, frame: Any) -> None:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # launchers send it twice; the way down is not disturbed
        signal.raise_signal(signal.SIGINT)

    return handling({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate})


@contextlib.contextmanager
def resumable(trainer: Any) -> Iterator[None]:
    """Within, SIGTERM and SIGINT let a training end its step and write a checkpoint;
    KeyboardInterrupt comes after that.

    A second SIGINT stops at once where there is one process. With several, all stop at the same
    step, whoever was told.
    """
    told: list[str] = []

    def tell(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name in told and name == "SIGINT" and trainer.accelerator.num_processes == 1:
            raise KeyboardInterrupt(name)
        told.append(name)
        if (
            trainer.accelerator.is_main_process
        ):  # no logging in a handler: it may have interrupted a log line
            os.write(2, f"\n{name}: a checkpoint is written at the end of this step\n".encode())

    trainer.add_callback(interruption(trainer, told))
    with handling({signal.SIGINT: tell, signal.SIGTERM: tell}):
        yield


def interruption(trainer: Any, told: list[str]) -> Any:
    """The callback that saves and stops once a signal's name is in `told`, and resumes what
    transformers leaves out."""
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    several = trainer.accelerator.num_processes > 1
    group = (
        torch.distributed.new_group(backend="gloo") if several else None
    )  # no GPU has to wait for it

    def anybody_told() -> bool:
        heard = torch.tensor(len(told))
        if several:
            torch.distributed.all_reduce(heard, group=group)
        return bool(heard.item())

    class Interruption(TrainerCallback, ExportableState):  # type: ignore[misc]
        """Its state in trainer_state.json is what was summed up since the last row of the log."""

        stopping = False
        loss = 0.0

        def state(self) -> dict[str, Any]:
            return window(trainer, self.loss)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept = state.stateful_callbacks.setdefault(type(self).__name__, {})
            if state.global_step and kept:
                reopen_window(trainer, kept)
            if (
                state.global_step >= state.max_steps
            ):  # killed after its last step: transformers would take one more
                trainer._run_epoch = lambda **_: None
                control.should_training_stop = True

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if anybody_told():
                self.stopping = control.should_save = True
            self.on_epoch_end(args, state, control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_save:  # all processes are here; only the first asks for `state`
                self.loss = trainer.accelerator.reduce(
                    trainer._tr_loss.clone(), reduction="mean"
                ).item()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.stopping:
                trainer.accelerator.wait_for_everyone()
                logger.info("interrupted: a checkpoint of step %d is written", state.global_step)
                raise KeyboardInterrupt(
                    f"{' '.join(told)} at step {state.global_step}, whose checkpoint is written"
                )

    return Interruption()


def window(trainer: Any, loss: float) -> dict[str, Any]:
    """What goes into the next row of the log: the sum of losses over its steps, TRL's metrics and
    count of tokens.

    `loss` is that sum at the end of the step, before a row that was due took it.
    """
    if not hasattr(trainer, "_globalstep_last_logged"):  # before training
        return {}
    return {
        "loss": loss if trainer._globalstep_last_logged < trainer.state.global_step else 0.0,
        "last_logged": trainer._globalstep_last_logged,
        "metrics": dict(trainer._metrics["train"]),
        "tokens": trainer._total_train_tokens,
    }


def reopen_window(trainer: Any, kept: Mapping[str, Any]) -> None:
    """Puts `window` back, so that the first row after a resume is that of a run that nothing
    disturbed."""
    trainer._tr_loss += kept["loss"]
    # these steps are in the mean of the whole training, too
    trainer._globalstep_last_logged = trainer._initial_global_step = kept["last_logged"]
    trainer._metrics["train"].update(kept["metrics"])
    trainer._total_train_tokens = kept["tokens"]


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint of an interrupted run; None where there is none."""
    found = [path for path in folder.glob("checkpoint-*") if complete(path)]
    if not found:
        return None
    last = max(found, key=lambda path: int(path.name.rpartition("-")[2]))
    logger.info("going on from %s", last)
    return str(last)


def drop_incomplete(folder: Path) -> None:
    """Deletes what a killed run had not written to its end: nobody can go on from it, and it counts
    as a checkpoint where transformers deletes the older ones. The first process does this before
    any looks for the last one."""
    for path in folder.glob("checkpoint-*"):
        if not complete(path):
            logger.warning(
                "%s is incomplete (the run was killed while it was written): skipped and deleted",
                path,
            )
            shutil.rmtree(path)


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder has all that it will have: trainer_state.json comes last, with
    other ranks' states."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return not (checkpoint / JIT_MARK).exists() and all(
        has_end(file) for file in checkpoint.iterdir()
    )


def has_end(file: Path) -> bool:
    """Whether a file of torch or of safetensors is whole; other files are taken to be."""
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
