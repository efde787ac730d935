"""One process at a time works in a run folder, on this machine or on another.

    lock = FolderLock(folder)
    lock.acquire()      # ValueError that names the process that works there
    lock.release()

`flock` on `.lock` keeps the processes of one machine apart. Over a network it may reach one machine
alone, or be unknown. So the owner also keeps `.owner.json`: its machine, its process, and a number
that grows. Who finds the file of an owner that may live watches if the number still grows. No clock
is compared: those of two machines differ.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""After so long an owner's number grows."""

SILENT_SECONDS = 30.0
"""An owner whose number does not grow for so long is dead."""

CHILDREN_SECONDS = 15.0
"""The children of a killed process hold its lock until they see that it is gone."""

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
"""Errors of `flock` if another process has the lock. Every other one means that there are none."""


class Owner(NamedTuple):
    """A process that works in a folder."""

    host: str
    machine: str
    """The boot of a machine; its name on a system that has no such number."""
    space: str
    """The namespace of process numbers: those of two containers mean different processes."""
    process: int
    token: str
    """Random, one for each lock."""
    beat: int = 0

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        host = socket.gethostname()
        boot, space = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
        with contextlib.suppress(OSError):
            return cls(
                host,
                boot.read_text(encoding="ascii").strip(),
                str(Path(space).readlink()),
                os.getpid(),
                secrets.token_hex(8),
            )
        return cls(host, host, "", os.getpid(), secrets.token_hex(8))

    @classmethod
    def of(cls, text: bytes) -> Owner | None:
        """The owner that a file names; None if the file is torn."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def text(self) -> bytes:
        """The file's content. All beats are of one length, so a full disk stops none."""
        return json.dumps({**self._asdict(), "beat": self.beat}).ljust(512).encode()

    def is_dead(self, here: Owner) -> bool:
        """Whether the process is surely gone; of another machine nobody here can tell. Our own
        number means an earlier process that had it: containers begin at the same one."""
        if not here.space or (self.machine, self.space) != (here.machine, here.space):
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return self.process == here.process


class FolderLock:
    """The lock of one run folder. `lost`: whether another machine took the folder over."""

    def __init__(
        self,
        folder: Path,
        *,
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self.folder = folder
        self.file = folder / ".owner.json"
        self.beat_seconds, self.silent_seconds = beat_seconds, silent_seconds
        self.owner = Owner.here()
        self.lost = False
        self._descriptor: int | None = None
        self._ending = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self) -> None:
        """Raises ValueError if another process works in the folder."""
        try:
            locks = self._flock()
            self._take_over(locks)
        except BaseException:
            self._unlock()
            raise
        self._beating = threading.Thread(target=self._beat, daemon=True, name="run lock")
        self._beating.start()

    def release(self) -> None:
        """Lets another process in."""
        self._ending.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
        if not self.lost:
            with contextlib.suppress(OSError):
                self.file.unlink()
        self._unlock()

    def _flock(self) -> bool:
        """Takes the lock; False if the file system has none."""
        try:
            self._descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ValueError(
                f"run_dir: {self.folder} cannot be written ({error.strerror}). Give the path of a "
                "folder in which you may write."
            ) from None
        end = time.monotonic() + CHILDREN_SECONDS
        while (held := flocked(self._descriptor)) is False:
            other = self._known()
            ours = other is not None and other.process == self.owner.process
            dead = other is not None and not ours and other.is_dead(self.owner)
            if not dead or time.monotonic() > end:
                raise ValueError(self._refusal(other))
            time.sleep(0.2)
        if held is None:
            logger.warning(
                "%s: this file system has no locks; %s alone keeps other processes out",
                self.folder,
                self.file.name,
            )
        return held is not None

    def _take_over(self, locks: bool) -> None:
        """Writes our name; ValueError if the owner that the file names lives."""
        found = self._read()
        if found is not None:
            other = Owner.of(found)
            same = other is not None and other.machine == self.owner.machine
            dead = other is not None and other.is_dead(self.owner)
            if not (locks and same) and not dead and self._grows(found, other):
                raise ValueError(self._refusal(other))
            if self._read() != found:  # a third process was faster
                raise ValueError(self._refusal(self._known()))
            with contextlib.suppress(FileNotFoundError):
                self.file.unlink()
        try:  # of two processes that come here at once, one makes the file
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ValueError(self._refusal(self._known())) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.owner.text())

    def _grows(self, found: bytes, other: Owner | None) -> bool:
        """Whether the file changes while we watch it."""
        logger.warning(
            "%s: %s worked here and did not end well; watching for %.0f s if it still works",
            self.folder,
            named(other),
            self.silent_seconds,
        )
        end = time.monotonic() + self.silent_seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, self.silent_seconds / 10))
            if self._read() != found:
                return True
        return False

    def _beat(self) -> None:
        """Lets the number grow until the lock is released. Ends the run if the file is another's:
        this process stood still for so long that it was taken for dead."""
        owner = self.owner
        while not self._ending.wait(self.beat_seconds):
            other = self._known()
            if other is not None and other.token != owner.token:
                self.lost = True
                logger.error("%s: %s took this run over; it ends here", self.folder, named(other))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            owner = owner._replace(beat=owner.beat + 1)
            with contextlib.suppress(OSError), self.file.open("r+b") as file:
                file.write(owner.text())

    def _read(self) -> bytes | None:
        try:
            return self.file.read_bytes()
        except OSError:
            return None

    def _known(self) -> Owner | None:
        return Owner.of(self._read() or b"")

    def _refusal(self, other: Owner | None) -> str:
        return (
            f"{self.folder}: another process works on this run ({named(other)}). Wait for it or "
            "stop it."
        )

    def _unlock(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def named(owner: Owner | None) -> str:
    """`process 123 on host a`."""
    if owner is None:
        return "it did not say which"
    return f"process {owner.process} on host {owner.host}"


def flocked(descriptor: int) -> bool | None:
    """Whether the lock of an open file could be taken; None if there are no locks here."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in HELD else None
    return True
