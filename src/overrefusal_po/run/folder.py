"""The run folder: resolved recipe, manifest, status, log and lock.

    with Run.open(folder, resolved, inputs) as run:
        if not run.done:
            ...
            run.finish({"pairs": 120})

A run is keyed by its resolved recipe and the content of its inputs (`keys`). The same key goes on
where it stopped, or is done. A folder with another key stays unchanged if anything was made there,
and the error names what differs. Files are written beside their place and renamed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.run.environment import environment
from overrefusal_po.run.interrupts import signals_ignored
from overrefusal_po.run.keys import keyed, run_key
from overrefusal_po.run.lock import FolderLock
from overrefusal_po.run.log import LOG_BYTES, Log, Printable, printable
from overrefusal_po.run.os_faults import fault_words
from overrefusal_po.run.own_folder import check_own, drop_leftovers, made_nothing, make_private

LAYOUT = 2
"""The version of a run folder's files, in status.json. Raise it when you rename a file or a key."""

RESERVE = ".reserve.tmp"
"""A file that is deleted when a run fails, so that a full disk has room for the reason."""

RESERVE_BYTES = 2**14

LOGGED = ("overrefusal_po", "py.warnings")
"""The loggers of a run's log: ours, and the one of Python's warnings if they are captured."""

logger = logging.getLogger(__name__)


class Run:
    """The folder of one stage, locked while it is open. `done`: whether the run was finished
    before."""

    def __init__(
        self,
        path: Path,
        resolved: Mapping[str, object],
        inputs: Mapping[str, str],
        *,
        writer: bool,
    ) -> None:
        self.path = path
        self.resolved = dict(resolved)
        self.inputs = dict(inputs)
        self.writer = writer
        self.started = time.monotonic()  # a clock may be set back
        self.facts: dict[str, object] = {}
        """What else the manifest says."""
        self.sittings = 0
        """How often the work was begun, with this time. Seconds are whole if it was once: a killed
        process counts none."""
        self._lock: FolderLock | None = None
        self._log: logging.Handler | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        resolved: Mapping[str, object],
        inputs: Mapping[str, str],
        *,
        writer: bool = True,
    ) -> Run:
        """Opens or creates the folder. Rank 0 is the writer; other ranks only read.

        A run of another recipe that made nothing there gives way.

        Raises ValueError if the folder holds the work of another recipe, or if another process
        works on it.
        """
        run = cls(path, resolved, inputs, writer=writer)
        if writer:
            run._lock_folder()
            try:
                other = bool(run.status()) and not run._same_status()
                run._write_recipe(anew=other)
                run._open_log()
                if other:
                    logger.info("%s: a run of another recipe began here and made nothing", path)
            except BaseException:  # a full disk: another run in this process may still come
                run.close()
                raise
        return run

    def _lock_folder(self) -> None:
        check_own(self.path)
        make_private(self.path)
        self._lock = FolderLock(self.path)
        self._lock.acquire()
        try:
            self._check_same()
            status = self._same_status()
            self.sittings = status.get("sittings", int(bool(status)))
            drop_leftovers(self.path)
        except BaseException:
            self._lock.release()
            raise

    def _write_recipe(self, *, anew: bool) -> None:
        if anew:  # first, so that a killed run leaves no old recipe beside a new key
            (self.path / "recipe.yaml").unlink(missing_ok=True)
        # a signal may come before `with` holds the run: until then the folder says what it is then.
        # The status comes first, because a folder with other files and no status is no run's.
        if not self.done:
            self.fail(130, "the work has not begun")
            (self.path / RESERVE).write_bytes(os.urandom(RESERVE_BYTES))
        if not (self.path / "recipe.yaml").exists():
            write_atomic(
                self.path / "recipe.yaml", yaml.safe_dump({**self.resolved}, sort_keys=False)
            )

    def _open_log(self) -> None:
        handler = Log(self.path / "log", maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        handler.setFormatter(Printable("%(asctime)s %(levelname)s %(name)s %(message)s"))
        self._log = handler
        for name in LOGGED:
            logging.getLogger(name).addHandler(handler)

    def _check_same(self) -> None:
        status = self.status()
        if status and status.get("layout") != LAYOUT:
            raise ValueError(
                f"{self.path} was written by an older version (layout {status.get('layout', 1)}, "
                f"this version writes {LAYOUT}). Choose another run_dir, or delete that folder."
            )
        gives_way = status.get("state") != "done" and made_nothing(self.path)
        if status and status["key"] != self.key and not gives_way:
            shown = ", ".join(self._differences(status.get("inputs", {}))[:5])
            raise ValueError(
                f"{self.path} holds a run of another recipe: {shown}. Choose another run_dir, or "
                "delete that folder."
            )

    def _differences(self, known_inputs: Mapping[str, str]) -> list[str]:
        """What differs between the folder's recipe and inputs and those of this run."""
        from overrefusal_po.recipe.overrides import dotted

        there = dict(dotted(keyed(written_recipe(self.path))))
        now = dict(dotted(keyed(self.resolved)))
        return [
            f"{key} ({there.get(key)!r} there, {now.get(key)!r} now)"
            for key in {**there, **now}
            if there.get(key) != now.get(key)
        ] + [
            f"the content of {key}"
            for key in {**known_inputs, **self.inputs}
            if known_inputs.get(key) != self.inputs.get(key)
        ]

    @property
    def key(self) -> str:
        """The run's key."""
        return run_key(self.resolved, self.inputs)

    @property
    def lost(self) -> bool:
        """Whether another process took the folder over: nothing may be written there any longer."""
        return self._lock is not None and self._lock.lost

    @property
    def done(self) -> bool:
        """Whether this run was finished before."""
        return self.status().get("state") == "done"

    # Any: JSON that a stage added to
    def status(self) -> dict[str, Any]:
        """status.json, or an empty mapping."""
        file = self.path / "status.json"
        return read_state(file, ["state", "key"]) if file.is_file() else {}

    def _same_status(self) -> dict[str, Any]:
        """status.json if it is this run's: another one may have begun here and made nothing."""
        status = self.status()
        return status if status.get("key") == self.key else {}

    def _write_status(self, state: str, extra: Mapping[str, object] | None = None) -> None:
        seconds = self._same_status().get("seconds", 0) + time.monotonic() - self.started
        self.started = time.monotonic()
        status = {
            "state": state,
            "layout": LAYOUT,
            "key": self.key,
            "inputs": self.inputs,
            "seconds": round(seconds, 1),
            "sittings": self.sittings,
            **(extra or {}),
        }
        write_atomic(self.path / "status.json", json.dumps(status, indent=1))

    def finish(self, summary: Mapping[str, object] | None = None) -> None:
        """Marks the run as done and writes the manifest."""
        if not self.writer:
            return
        self._write_status("done", {"exit_code": 0, "summary": dict(summary or {})})
        manifest = {
            "key": self.key,
            "inputs": self.inputs,
            "seconds": self.status()["seconds"],
            **self.facts,
            **environment(),
        }
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def fail(self, code: int, message: str) -> None:
        """Notes exit code and message in status.json, because launchers turn every code into 1."""
        if self.writer:
            state = "interrupted" if code == 130 else "failed"
            self._write_status(state, {"exit_code": code, "message": message})

    def close(self) -> None:
        """Releases the lock and the log file."""
        if self._log is not None:
            for name in LOGGED:
                logging.getLogger(name).removeHandler(self._log)
            self._log.close()
            self._log = None
        if self._lock is not None:
            if not self.lost:
                with contextlib.suppress(OSError):
                    (self.path / RESERVE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        try:
            if self.writer and not self.done:
                self.sittings += 1
                self._write_status("running")
        except BaseException as error:  # Python calls no __exit__ if __enter__ fails
            self._end(error)
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """Notes an error and closes the folder. A second signal may come at any moment of that, for
        example from a launcher or an impatient user: the note is written all the same."""
        try:
            with signals_ignored():
                self._note(error)
        except KeyboardInterrupt:  # it came just before they were ignored
            with signals_ignored():
                self._note(error)

    def _note(self, error: BaseException) -> None:
        try:
            if self.writer and not self.lost:
                drop_leftovers(self.path)  # a full disk has room then
                self._write_note(error)
        except OSError as fault:
            logger.error("%s: why the run ended cannot be noted there (%s)", self.path, fault)
        finally:
            self.close()

    def _write_note(self, error: BaseException) -> None:
        if self.done:
            return
        self.fail(exit_code(error), fault_words(error) or f"{type(error).__name__}: {error}")
        if self._log is not None:
            with (self.path / "log").open("a", encoding="utf-8") as log:
                log.write(printable("".join(traceback.format_exception(error))))


def exit_code(error: BaseException) -> int:
    """130 for an interrupt (or its own code), 2 for what a user can fix, 1 for anything else."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "exit_code", 130))
    return 2 if isinstance(error, ValueError) else 1


def written_recipe(folder: Path) -> dict[str, object]:
    """The recipe in a run folder; empty if there is none that can be read."""
    try:
        found = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
