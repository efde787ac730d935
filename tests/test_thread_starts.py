"""A thread that died at its start ends the process, with a sentence; slow threads do not."""

import subprocess
import sys

import pytest

STUCK = """
import sys, threading, time
from overrefusal_po.run import ranks, thread_starts

class WithoutMemory(threading.Thread):
    def _bootstrap(self):
        raise MemoryError   # as the new thread does if Python has no memory for its first frame

thread_starts.LOOK_SECONDS = 0.1
with ranks.ended_at_once(own_process=True):
    {body}
print("came to its end")
"""


@pytest.mark.parametrize("starter", ["the main thread", "another thread"])
def test_a_thread_that_dies_at_its_start_ends_the_process(starter: str) -> None:
    body = "WithoutMemory().start()"
    if starter == "another thread":
        body = "other = threading.Thread(target=WithoutMemory().start); other.start(); other.join()"
    done = subprocess.run(
        [sys.executable, "-c", STUCK.format(body=body)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and "came to its end" not in done.stdout
    assert "overrefusal-po: the memory was full when a thread was started" in done.stderr
    assert "the same command goes on" in done.stderr


def test_threads_that_start_are_left_alone() -> None:
    """Threads that work longer than all looks together, and threads that were never started."""
    body = """
    waiting = [threading.Thread(target=time.sleep, args=(1.5,)) for _ in range(3)]
    never = threading.Thread(target=time.sleep, args=(1,))
    for one in waiting: one.start()
    for one in waiting: one.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", STUCK.format(body=body.strip())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "came to its end\n"), done.stderr
