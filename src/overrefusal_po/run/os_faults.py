"""A fault of the machine -> a sentence: what failed, what to do, and that the same command goes on.

    fault_words(OSError(28, "No space left on device", "run/log"))      # "run/log: the disk is ..."

A full disk, no memory or a file server that is away are nobody's mistake in a recipe, so they end a
run with exit code 1. torch and safetensors hide the error of the system behind their own.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from overrefusal_po.run.unscored import RunFailed

GOES_ON = "Then give the same command again: it goes on where it stopped."

FULL = (
    "the disk is full, or your quota is used up. Free space: delete runs that you no longer need, "
    "and lower trainer.save_total_limit"
)
AWAY = "the file system does not answer as it should. Wait until it does, or use a local run_dir"
MEMORY = (
    "memory has run out. Lower the batch size or the length, or end other programs on this machine"
)
ELSEWHERE = (
    "Use another folder: run_dir for a run, HF_HOME for models of the hub, OVERREFUSAL_PO_CACHE "
    "for what is kept between runs"
)
WORDS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: "a file may not grow so large here. Raise the limit (ulimit -f)",
    errno.EROFS: f"it cannot be written: the file system is read-only. {ELSEWHERE}",
    errno.EACCES: f"this user has no right to it. {ELSEWHERE}",
    errno.EPERM: f"this user has no right to it. {ELSEWHERE}",
    errno.EIO: "the disk cannot be read or written. Look into the system's log (dmesg)",
    errno.ESTALE: AWAY,
    errno.ETIMEDOUT: AWAY,
    errno.ENOLCK: "the file system has no locks left. Use a run_dir or a cache on another disk",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine. End other programs",
    errno.ENOMEM: MEMORY,
}
"""Errors of the system that no recipe can cause, and what to do."""

HIDDEN = re.compile(r"os error (\d+)|\[Errno (\d+)\]")
"""How safetensors and others quote an error of the system."""

TORN_WRITE = re.compile(r"iostream error|PytorchStreamWriter failed|unexpected pos \d+ vs \d+")
"""What torch says if it cannot write the whole of a file. It does not say why."""

WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ?([\d, ]+)\)")
"""What torch says if a child process that reads rows has died."""


def fault_words(error: BaseException) -> str | None:
    """What to do about a fault of the machine; None if `error` is something else, or has a sentence
    of its own."""
    if isinstance(error, (ValueError, FloatingPointError, RunFailed, KeyboardInterrupt)):
        return None
    for link in chain(error):
        if (found := link_words(link)) is not None:
            return f"{found}. {GOES_ON}"
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, the last one first."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def link_words(error: BaseException) -> str | None:
    """The words for one error of a chain."""
    text = str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return MEMORY
    if found := WORKER.search(text):
        return (
            f"a process that reads rows ({found[1].strip()}) died. The system ends processes when "
            "memory runs out: lower trainer.dataloader_num_workers, or end other programs"
        )
    if isinstance(error, OSError) and error.errno in WORDS:
        place = f"{error.filename2 or error.filename}: " if error.filename else ""
        return place + WORDS[error.errno]
    if (quoted := HIDDEN.search(text)) and (number := int(quoted[1] or quoted[2])) in WORDS:
        return WORDS[number]
    return f"a file could not be written whole. Often {FULL}" if TORN_WRITE.search(text) else None
