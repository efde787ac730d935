"""Real faults of a machine for tests: a library that makes system calls fail, and small or
read-only disks.

    environment = shimmed(tmp_path, FAULT_FLOCK=errno.ENOLCK)      # for a process
    with disk(tmp_path / "small", "size=400k"):                    # needs the right to mount
        ...
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")


def shimmed(folder: Path, **faults: object) -> dict[str, str]:
    """The environment of a process whose system calls fail as `faults.c` says; skips the test on a
    machine without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("a C compiler on Linux makes the library whose system calls fail")
    library = folder / "faults.so"
    if not library.exists():
        made = [compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(made, check=True)
    named = {name: str(value) for name, value in faults.items()}
    return {**os.environ, "LD_PRELOAD": str(library), **named}


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own in memory, mounted at `folder`; skips the test without the right to mount.

    `grow` changes its size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("only root may mount a small disk (in a container: --privileged)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(folder: Path, options: str) -> None:
    """Changes the options of a mounted disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
