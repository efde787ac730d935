"""run/lock.py: one process at a time in a run folder, with and without locks, here and elsewhere."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine_faults import shimmed

from overrefusal_po.run.lock import FolderLock, Owner

WORK = """
import sys, time
from pathlib import Path
from overrefusal_po.run.folder import Run
from overrefusal_po.run.interrupts import terminable
from overrefusal_po.run.ranks import speaking_once
with speaking_once(), terminable():
    try:
        with Run.open(Path(sys.argv[1]), {"task": "train"}, {}) as run:
            print("in", flush=True)
            time.sleep(float(sys.argv[2]))
            run.finish()
    except KeyboardInterrupt:
        sys.exit(130)
"""


def started(
    folder: Path, seconds: float, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A process that works in a run folder for a while."""
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def is_in(process: subprocess.Popen[str]) -> bool:
    """Whether the process could open the run; waits for it."""
    assert process.stdout is not None
    return process.stdout.readline() == "in\n"


def elsewhere(beat: int = 0) -> bytes:
    """The file of a process on another machine."""
    return Owner("far", "another boot", "pid:[1]", 77, "theirs", beat).text()


@contextmanager
def working_elsewhere(folder: Path) -> Iterator[None]:
    """Another machine, whose lock does not reach ours, works in a folder: its number grows."""
    end, file = threading.Event(), folder / ".owner.json"
    file.write_bytes(elsewhere())  # it was there first

    def beat() -> None:
        for number in range(10**6):
            with file.open("r+b") as kept:  # as the lock does: it is never torn
                kept.write(elsewhere(number))
            if end.wait(0.02):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("error", [None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_second_process_is_refused_and_told_who_works(tmp_path: Path, error: int | None) -> None:
    environment = None if error is None else shimmed(tmp_path, FAULT_FLOCK=error)
    run = tmp_path / "run"
    first = started(run, 60, environment)
    assert is_in(first)
    second = started(run, 0, environment)
    _, said = second.communicate(timeout=120)
    assert (
        second.returncode == 2 and f"another process works on this run (process {first.pid}" in said
    )
    first.kill()
    first.wait()
    third = started(run, 0, environment)  # a dead owner is no obstacle
    begun = time.monotonic()
    out, said = third.communicate(timeout=120)
    assert third.returncode == 0 and out == "in\n", said
    assert time.monotonic() - begun < 25, "it watched a process that is surely dead"
    assert not (run / ".owner.json").exists() and not Path(run / "status.json").is_symlink()


def test_an_owner_on_another_machine_is_refused_while_it_lives_and_replaced_when_it_does_not(
    tmp_path: Path,
) -> None:
    """The lock could be taken each time: that of another machine does not reach here."""
    with working_elsewhere(tmp_path), pytest.raises(ValueError, match="process 77 on host far"):
        FolderLock(tmp_path, silent_seconds=30).acquire()
    (tmp_path / ".owner.json").write_bytes(elsewhere())
    lock = FolderLock(tmp_path, silent_seconds=0.3)
    lock.acquire()
    assert Owner.of((tmp_path / ".owner.json").read_bytes()) == lock.owner
    lock.release()
    assert not (tmp_path / ".owner.json").exists()


def test_a_torn_owner_file_is_watched_and_replaced(tmp_path: Path) -> None:
    (tmp_path / ".owner.json").write_bytes(elsewhere()[:20])
    lock = FolderLock(tmp_path, silent_seconds=0.3)
    lock.acquire()
    lock.release()


def test_the_number_grows_while_the_run_is_open(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, beat_seconds=0.02)
    lock.acquire()
    begun = time.monotonic()
    while (found := Owner.of((tmp_path / ".owner.json").read_bytes())) and found.beat < 3:
        assert time.monotonic() - begun < 20
        time.sleep(0.01)
    lock.release()


def test_a_process_whose_run_was_taken_over_ends_and_leaves_the_status_to_the_other(
    tmp_path: Path,
) -> None:
    """It stood still for long, as on a machine that was suspended."""
    run = tmp_path / "run"
    process = started(run, 60)
    assert is_in(process)
    (run / ".owner.json").write_bytes(elsewhere())
    (run / "status.json").write_text('{"state": "theirs", "key": "x"}')
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert (run / "status.json").read_text() == '{"state": "theirs", "key": "x"}'
    assert (run / ".owner.json").read_bytes() == elsewhere()


def test_a_run_folder_that_may_not_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ValueError, match=r"cannot be written .*folder in which you may write"):
        FolderLock(tmp_path).acquire()


def test_a_killed_run_leaves_nothing_that_a_later_one_keeps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(run, 60)
    assert is_in(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (run / ".model.123.tmp").mkdir()
    (run / ".model.123.tmp" / "model.safetensors").write_bytes(b"half")
    (run / ".status.json.123.tmp").write_text("{")
    again = started(run, 0)
    assert is_in(again) and again.wait(timeout=60) == 0
    assert not [*run.glob(".*.tmp")]
