"""A command in several launched processes: a fault is said once, and the exit code is the house's.

    with ended_at_once(), speaking_once():
        app(arguments)

`accelerate launch` and torchrun start the command once for each rank. A fault that all ranks see
would be said by each. A fault of one rank makes the others fail too, with tracebacks about a
connection that says nothing to a user. The launcher adds a report of its own, with its own exit
code 1.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from overrefusal_po.run.interrupts import ASKED_TO_STOP, STOPPING
from overrefusal_po.run.log import printable
from overrefusal_po.run.os_faults import chain, fault_words
from overrefusal_po.run.thread_starts import thread_starts_watched
from overrefusal_po.run.unscored import RunFailed

SECONDS_TO_BE_ENDED = 20.0
"""How long another rank waits before it speaks. A launcher ends all ranks soon after the first
ended, which may take seconds with torch loaded. So these words come if no other rank failed."""


@contextmanager
def ended_at_once(*, own_process: bool = False) -> Iterator[None]:
    """Around the command of a launched process, or of one that has nothing else to do
    (`own_process`): after Python's other clean-up hooks the process ends with its exit code, and
    nothing more is torn down. A signal that comes after the command ends it at once, with that code
    too. So does a thread that dies while it is started (see `thread_starts`).

    The threads of gloo and of the store may still run then. Torn down under them, Python now and
    then ends with SIGABRT, and the launcher reports that instead of the exit code. And torch takes
    a second or so to tear down: an impatient user's next Ctrl-C falls into it.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1") and not own_process:
        yield
        return
    hear_signals()
    codes: list[int] = []
    atexit.register(end_at_once, codes)  # hooks that are registered later run earlier

    def ends_with(code: int) -> None:
        codes.append(code)
        end_on_signals(code)

    try:
        with thread_starts_watched():
            yield
    except SystemExit as end:
        ends_with(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except KeyboardInterrupt:  # a second signal, while the first one's words were said
        ends_with(130)
        raise SystemExit(130) from None
    except Exception:
        ends_with(1)
        raise


def hear_signals() -> None:
    """From now on SIGTERM and SIGUSR1 act like Ctrl-C wherever a command has no handlers of its
    own: while it says its last words, too. Python's default would end it without its exit code."""
    for number in ASKED_TO_STOP if threading.current_thread() is threading.main_thread() else ():
        signal.signal(number, signal.default_int_handler)


def end_on_signals(code: int) -> None:
    """From now on a signal that asks to stop ends the process with `code`. Outside the main thread
    nothing changes, because only that thread has handlers."""
    for number in STOPPING if threading.current_thread() is threading.main_thread() else ():
        signal.signal(number, lambda *_: os._exit(code))


def end_at_once(codes: list[int]) -> None:
    """Writes what is buffered and ends the process with the first of `codes`, if there is one."""
    if codes:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


@contextmanager
def speaking_once() -> Iterator[None]:
    """Within, a fault ends the process with a sentence: ValueError and a path that is too long with
    exit code 2, RunFailed, FloatingPointError and faults of the machine with 1, an interrupt with
    130. Other ranks than the first wait with theirs.
    """
    try:
        yield
    except ValueError as error:
        wait_for_the_first()
        print(printable(f"overrefusal-po: {rank_words()}{error}"), file=sys.stderr)
        sys.exit(2)
    except (RunFailed, FloatingPointError) as error:
        wait_for_the_first()
        print(printable(f"overrefusal-po: {rank_words()}{error}"), file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        # what typer makes of a KeyboardInterrupt
        if end.code == 130 and (spent := own_end(end)) is not None:
            wait_for_the_first()
            print(printable(f"overrefusal-po: {rank_words()}{spent}"), file=sys.stderr)
            sys.exit(1)
        if end.code == 130 and os.environ.get("RANK", "0") == "0":
            print(
                "overrefusal-po: interrupted; the same command goes on where it stopped",
                file=sys.stderr,
            )
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # that of torch's sharded checkpoints is no Exception
        wait_for_the_first()
        long_name = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        words = f"{error}. Give a shorter path." if long_name else machine_words(error)
        if words is None:
            raise
        print(printable(f"overrefusal-po: {rank_words()}{words}"), file=sys.stderr)
        sys.exit(2 if long_name else 1)


def own_end(end: SystemExit) -> BaseException | None:
    """The interrupt behind an exit that has a code of its own (a spent budget); None for others."""
    interrupts = (error for error in chain(end) if isinstance(error, KeyboardInterrupt))
    return next((error for error in interrupts if hasattr(error, "exit_code")), None)


def machine_words(error: BaseException) -> str | None:
    """A sentence for a fault of the machine, or of servers that are gone; None for a bug, whose
    traceback is shown."""
    if isinstance(error, ConnectionError) and error.errno is None and error.args:
        return str(error)
    return fault_words(error)


def wait_for_the_first() -> None:
    """Returns at once in the first rank. Another one waits, so that the launcher can end it before
    it repeats what the first has said."""
    if os.environ.get("RANK", "0") == "0":
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's signal ends it without a word
    time.sleep(SECONDS_TO_BE_ENDED)


def rank_words() -> str:
    """`rank 1: ` in another rank than the first: only then does the sentence need it."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "
