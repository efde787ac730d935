"""Signals end a run so that the same command goes on: exit code 130. And whole checkpoints.

    with terminable():             # around a command: SIGTERM and SIGUSR1 act like Ctrl-C
        ...
    last_checkpoint(run.path / "checkpoints")

`train/resume.py` has what a training does after a signal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from overrefusal_po.model.whole import Hashing, damaged, first_names, hashes_of, write_hashes

logger = logging.getLogger(__name__)

SignalHandler = Callable[[int, FrameType | None], object] | signal.Handlers

ASKED_TO_STOP = (signal.SIGTERM, signal.SIGUSR1)
"""What launchers and clusters send before they kill; Slurm's `--signal=USR1@300`, for example."""

STOPPING = (signal.SIGINT, *ASKED_TO_STOP)
"""Every signal that ends a run so that the same command goes on."""

HASHES = "hashes.json"
"""The file of a checkpoint with the hashes of the others."""

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
    """Within, SIGTERM and SIGUSR1 act like SIGINT, once: a KeyboardInterrupt, or what an event loop
    makes of it.

    SIGINT works even if the shell has set it to be ignored, as it does for a script's `command &`.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        # launchers send SIGTERM twice, and clusters SIGTERM behind SIGUSR1: what comes second must
        # not disturb the clean-up
        for asked in ASKED_TO_STOP:
            signal.signal(asked, signal.SIG_IGN)
        signal.raise_signal(signal.SIGINT)

    asked = dict.fromkeys(ASKED_TO_STOP, terminate)
    return handling({signal.SIGINT: signal.default_int_handler, **asked})


def signals_ignored() -> contextlib.AbstractContextManager[None]:
    """Within, SIGINT, SIGTERM and SIGUSR1 do nothing: for the short moment in which a run that ends
    notes why."""
    return handling(dict.fromkeys(STOPPING, signal.SIG_IGN))


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint in `folder`; None if there is none."""
    found = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    if not found:
        return None
    last = max(found, key=step_of)
    logger.info("going on from %s", last)
    return str(last)


def drop_unusable(folder: Path, hashing: Hashing = hashes_of) -> None:
    """Deletes the checkpoints that a killed run had not finished, and damaged ones that are newer
    than the newest whole one. No run can go on from them, and transformers would count them when it
    deletes older ones.

    The first process calls this before any process looks for the last checkpoint. `hashing` may be
    that of all processes together (`train.hash_team`).
    """
    whole = False
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if not is_complete(path):
            logger.warning(
                "%s is incomplete (the run was killed while it was written): skipped and deleted",
                path,
            )
            shutil.rmtree(path)
        elif not whole and (bad := damaged(path, path / HASHES, hashing)):
            logger.warning(
                "%s is damaged (%s is not as it was saved): skipped and deleted; the next older "
                "checkpoint is taken",
                path,
                first_names(bad),
            )
            shutil.rmtree(path)
        else:
            whole = True


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder; -1 for another folder's name."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def write_checkpoint_hashes(checkpoint: Path, hashing: Hashing = hashes_of) -> None:
    """Notes the hash of each file of a checkpoint that is written to its end."""
    if checkpoint.is_dir():
        write_hashes(checkpoint, checkpoint / HASHES, hashing)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint's folder is written to its end: trainer_state.json comes last, together
    with other ranks' states.

    If each rank writes a part of the weights, into a folder inside, trainer_state.json may come
    before theirs. Then the hashes say it, since they are made after all ranks have met.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    inside = [*checkpoint.iterdir()]
    all_met = (checkpoint / HASHES).is_file() or not any(path.is_dir() for path in inside)
    return all_met and not (checkpoint / JIT_MARK).exists() and all(map(is_whole, inside))


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
