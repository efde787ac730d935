"""The run folder: resolved recipe, manifest, atomic files, resume and lock.

    with Run.open(folder, resolved, inputs) as run:
        if not run.done:
            ...
            run.finish({"pairs": 120})

A run is keyed by its resolved recipe and the content of its inputs: the same key goes on where it
stopped or is done; a folder that holds another key is left alone, and the error names what differs.
Files are written beside and renamed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from overrefusal_po.records import content_id, write_atomic

logger = logging.getLogger(__name__)

PACKAGES = ("overrefusal-po", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
NOT_KEYED = ("run_dir", "shard")
"""Recipe keys that do not change what a run makes."""

ENGINE_NOT_KEYED = (
    "base_url",
    "api_key_env",
    "concurrency",
    "timeout_seconds",
    "max_retries",
    "backoff_seconds",
    "token_budget",
)
"""Keys of an engine that say where and how fast, not what: a run goes on with another server or a
greater budget."""

R = TypeVar("R", bound=BaseModel)


def run_key(resolved: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """8 hex digits for a resolved recipe and the hashes of its inputs."""
    return content_id(keyed(resolved), dict(inputs))[:8]


LAYOUT = 2
"""The version of what a run folder holds, in status.json; raised when a file or a key is renamed."""


def keyed(values: Mapping[str, Any], *, left_out: Sequence[str] = NOT_KEYED) -> dict[str, Any]:
    """The part of a resolved recipe that says what a run makes."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found[name] = keyed(value, left_out=ENGINE_NOT_KEYED if name == "engine" else ())
        elif name not in left_out:
            found[name] = value
    return found


def run_folder(name: str, resolved: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
    """`run_dir` of the recipe, else runs/<recipe>-<key>."""
    fixed = resolved.get("run_dir")
    return Path(fixed) if fixed else Path("runs") / f"{name}-{run_key(resolved, inputs)}"


def file_hash(path: str | Path) -> str:
    """SHA-256 (16 hex digits) of a file, or of the names and samples of the files in a folder (a
    model)."""
    path = Path(path)
    if path.is_dir():
        return content_id(sorted((f.name, sample_hash(f)) for f in path.iterdir() if f.is_file()))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def sample_hash(path: Path, *, blocks: int = 256, width: int = 2**16) -> str:
    """SHA-256 of a file's size and of at most `blocks` blocks of `width` bytes, spread evenly over
    it.

    Files of up to 16 MiB are read whole; weights of many GiB, where training moves every block,
    take no minute.
    """
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(blocks):
            if size > blocks * width:
                file.seek(number * (size - width) // (blocks - 1))
            found.update(file.read(width))
    return found.hexdigest()[:16]


class Run:
    """One stage's folder, locked while open. `path` is the folder, `done` whether it was finished
    before."""

    def __init__(
        self, path: Path, resolved: Mapping[str, Any], inputs: Mapping[str, str], *, writer: bool
    ) -> None:
        self.path = path
        self.resolved = dict(resolved)
        self.inputs = dict(inputs)
        self.writer = writer
        self.started = time.time()
        self._lock: Any = None
        self._log: logging.Handler | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        resolved: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        writer: bool = True,
    ) -> Run:
        """Opens or creates the folder. Rank 0 is the writer; other ranks only read.

        Raises ValueError where the folder holds another recipe, or another process works on it.
        """
        run = cls(path, resolved, inputs, writer=writer)
        if writer:
            run._claim()
        return run

    def _claim(self) -> None:
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"{self.path}: another process works on this run. Wait for it or stop it."
            ) from None
        try:
            self._check_same()
        except ValueError:
            self._lock.release()
            raise
        if not (self.path / "recipe.yaml").exists():
            write_atomic(
                self.path / "recipe.yaml", yaml.safe_dump({**self.resolved}, sort_keys=False)
            )
        if not self.done:
            self._write_status("running")
        handler = logging.FileHandler(self.path / "log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        self._log = handler
        logging.getLogger("overrefusal_po").addHandler(handler)

    def _check_same(self) -> None:
        status = self.status()
        if status and status.get("layout") != LAYOUT:
            raise ValueError(
                f"{self.path} was written by an older version (layout {status.get('layout', 1)}, "
                f"this version writes {LAYOUT}). Choose another run_dir, or delete that folder."
            )
        if not status or status["key"] == self.key:
            return
        from overrefusal_po.recipe.overrides import dotted

        old = dict(dotted(keyed(yaml.safe_load((self.path / "recipe.yaml").read_text()) or {})))
        new = dict(dotted(keyed(self.resolved)))
        differ = [
            f"{k} ({old.get(k)!r} there, {new.get(k)!r} now)"
            for k in {**old, **new}
            if old.get(k) != new.get(k)
        ]
        known = status.get("inputs", {})
        differ += [
            f"the content of {k}"
            for k in {**known, **self.inputs}
            if known.get(k) != self.inputs.get(k)
        ]
        shown = ", ".join(differ[:5])
        raise ValueError(
            f"{self.path} holds a run of another recipe: {shown}. Choose another run_dir, or "
            "delete that folder."
        )

    @property
    def key(self) -> str:
        """The run's key."""
        return run_key(self.resolved, self.inputs)

    @property
    def done(self) -> bool:
        """Whether this very run was finished before."""
        return self.status().get("state") == "done"

    def status(self) -> dict[str, Any]:
        """status.json, or an empty mapping."""
        file = self.path / "status.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def _write_status(self, state: str, **extra: Any) -> None:
        seconds = self.status().get("seconds", 0) + time.time() - self.started
        self.started = time.time()
        status = {
            "state": state,
            "layout": LAYOUT,
            "key": self.key,
            "inputs": self.inputs,
            "seconds": round(seconds, 1),
            **extra,
        }
        write_atomic(self.path / "status.json", json.dumps(status, indent=1))

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Marks the run as done and writes the manifest."""
        if not self.writer:
            return
        self._write_status("done", exit_code=0, summary=dict(summary or {}))
        manifest = {
            "key": self.key,
            "inputs": self.inputs,
            "seconds": self.status()["seconds"],
            **environment(),
        }
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1))

    def fail(self, code: int, message: str) -> None:
        """Notes an exit code and message in status.json (launchers turn every code into 1)."""
        if self.writer:
            self._write_status(
                "interrupted" if code == 130 else "failed", exit_code=code, message=message
            )

    def close(self) -> None:
        """Releases the lock and the log file."""
        if self._log is not None:
            logging.getLogger("overrefusal_po").removeHandler(self._log)
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self.done:
            code = (
                130
                if isinstance(error, KeyboardInterrupt)
                else 2
                if isinstance(error, ValueError)
                else 1
            )
            self.fail(code, f"{type(error).__name__}: {error}")
            if self._log is not None:
                with (self.path / "log").open("a", encoding="utf-8") as log:
                    log.write("".join(traceback.format_exception(error)))
        self.close()


class Appender:
    """A JSON Lines file that grows row by row and survives `kill -9`: a torn last line is cut off
    when it is opened.

    `rows` holds what is in it; with `keep=False` it stays empty, for files that are larger than
    memory. There is no file before the first row.
    """

    def __init__(self, path: Path, record: type[R], *, keep: bool = True) -> None:
        self.path = path
        self.keep = keep
        self.rows: list[Any] = []
        mend(path)
        if keep and path.exists():
            self.rows += _records(path, record)
        self._file: TextIO | None = None

    def add(self, row: BaseModel) -> None:
        """Appends one row and hands it to the operating system."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(row.model_dump_json(exclude_defaults=True) + "\n")
        self._file.flush()
        if self.keep:
            self.rows.append(row)

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def mend(path: Path, *, block: int = 2**16) -> None:
    """Cuts a torn last line (what a killed run was writing) from `path`, however large the file
    is."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - block, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            logger.warning(
                "%s: the last line is torn (a killed run); it is cut off and made again", path
            )
            file.truncate(end)


def _records(path: Path, record: type[R]) -> Iterator[R]:
    """The rows of `path`, all of them whole."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                fault = error.errors()[0]["msg"]
                raise ValueError(
                    f"{path}, line {number}: not a {record.__name__} ({fault})"
                ) from None


def environment() -> dict[str, Any]:
    """Versions, hardware and code state for a manifest. No keys, no environment variables."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": {**versions, "python": platform.python_version()},
        "hardware": hardware(),
        "git_commit": git_commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def hardware() -> str:
    """One line: cores, memory, and GPUs where torch is loaded and sees some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if hasattr(os, "sysconf")
        else 0
    )
    text = f"{cores} CPU cores ({platform.machine()}), {memory:.0f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return text


def git_commit() -> str | None:
    """The commit of the working folder, with + where it has changes; None outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (
        commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
        if commit.returncode == 0
        else None
    )
