"""Python processes for tests that start with the heavy packages imported, by fork.

    with launches.Popen([sys.executable, "-m", "overrefusal_po", ...]) as process:
        process.send_signal(signal.SIGTERM)
    done = launches.run([sys.executable, "rank.py"], cwd=folder, capture_output=True, text=True)

Both are those of `subprocess`, and what they start is a real child of the test's process, with its
own pid, signals, files, folder, environment, exit code and clean-up. But torch, transformers, TRL
and PEFT, which take ten seconds of a core to import, are there at once: a process that has imported
them, the stock, waits beside each process that asks, and forks when it is asked. It runs nothing
else, and ends with whoever started it. Processes of one stock share the seed of `hash`.

A fork cannot import anew. So an ordinary process is started in its place
- for another command than this Python's with `-m MODULE`, `-c CODE` or a script (`-u` before it);
- for another argument of Popen than COMMON;
- if the environment differs from this process's own, and from what imports make of it, in another
  variable than MAY_DIFFER, or in one that a package has read while it was imported: the address of
  the hub, paths, threads, devices;
- on another system than Linux.

What looks at the start of a process itself, at its imports, its memory or its time, at packages
that are missing or other ones, or at the words of the packages, uses `subprocess`. Each kind of
launch is tested with `subprocess` too.

Under torchrun, started here, the ranks are forked as well, and so are the Python processes that a
process starts with `forks_children`.
"""

from __future__ import annotations

import atexit
import ctypes
import fnmatch
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, AnyStr, NamedTuple, cast

COMMON = {"cwd", "env", "stdin", "stdout", "stderr", "text", "encoding", "start_new_session"}
MAY_DIFFER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "*WORLD_SIZE", "MASTER_*"),
    *("TORCHELASTIC_*", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "*_proxy", "*_PROXY", "PYTEST_*"),
    *("OPENAI_*", "HF_TOKEN", "OVERREFUSAL_PO_*", "COLUMNS", "PYTHONPATH"),
    *("ACCELERATE_*", "FSDP_*"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),  # scikit-learn sets them for Intel's OpenMP
)
"""Patterns of variables that no package reads when it is imported."""
HARMLESS = {"COLUMNS", "PYTHONPATH"}
"""Those of them that are read all the same, and mean nothing to what is imported by then; folders
of PYTHONPATH are looked in by the process itself."""
LAUNCHER = "torch.distributed.run"
OF_RANKS = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
"""What starts its ranks."""
STOCKED = (
    "overrefusal_po.cli",
    "overrefusal_po.pipeline",
    OF_RANKS,
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
    "peft",
    "datasets",
    "transformers.models.llama.modeling_llama",
)
LONGEST = 1 << 20
"""Bytes of a request: its arguments and its environment."""
SET_CHILD_SUBREAPER = 36
"""Of prctl: a child of a child that has ended is given to this process, not to init."""


class Request(NamedTuple):
    """A process that is wanted: what stands behind `python`, and where it shall run."""

    words: list[str]
    environment: dict[str, str]
    folder: str
    own_session: bool
    forks_children: bool


class Stock:
    """A process with the packages, as seen by the one that asks it."""

    def __init__(self, connection: socket.socket, environment: Mapping[str, str]) -> None:
        self.connection = connection
        self.environment = dict(environment)
        hello = connection.recv(LONGEST)
        if not hello:
            raise RuntimeError("the process that imports the packages has ended")
        self.pid, self.read, self.became = json.loads(hello)

    def could_start(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment may be forked."""
        given, had, has = environment.get, self.environment.get, self.became.get
        names = {*environment, *self.environment}
        other = {n for n in names if given(n) != had(n) and given(n) != has(n)}
        return not other & ({*self.read} - HARMLESS) and all(
            any(fnmatch.fnmatchcase(name, pattern) for pattern in MAY_DIFFER) for name in other
        )

    def start(self, request: Request, files: list[int]) -> int:
        """The pid of a new child of this process, which has `files` as its three."""
        with children_of_children():
            socket.send_fds(self.connection, [json.dumps(request).encode()], files)
            answer = self.connection.recv(LONGEST)
        if not answer:
            raise RuntimeError("the process that holds the imported packages has ended")
        return int(answer)


@contextmanager
def children_of_children() -> Iterator[None]:
    """Within, what a child's child starts becomes a child of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


ENVIRONMENT = dict(os.environ)
"""That of this process when its tests were collected."""
LOCK = threading.Lock()
STOCKS: list[Stock] = []
"""The one of this process, once something was started."""
STARTED: list[subprocess.Popen[bytes]] = []
"""Its process, unless it was forked."""


def stock() -> Stock:
    """The stock of this process, started if it is not there."""
    if not STOCKS:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            passed = [theirs.fileno()]
            STARTED.append(
                subprocess.Popen(
                    command, pass_fds=passed, env=ENVIRONMENT, stdin=subprocess.DEVNULL
                )
            )
            atexit.register(end_stock)
        STOCKS.append(Stock(ours, ENVIRONMENT))
    return STOCKS[0]


def end_stock() -> None:
    """Lets the stock end, and waits for it."""
    STOCKS.pop().connection.close()
    STARTED.pop().wait()


def words_of(command: Any) -> list[str] | None:
    """What stands behind this Python in a command; None for another command."""
    if isinstance(command, str | bytes | os.PathLike):
        return None
    first, *words = map(os.fspath, command)
    plain = words[1:] if words[:1] == ["-u"] else words
    script = bool(plain) and not plain[0].startswith("-")
    known = script or (plain[:1] in (["-m"], ["-c"]) and len(plain) > 1)
    return words if first == sys.executable and known else None


class Popen(subprocess.Popen[AnyStr]):
    """`subprocess.Popen`, whose process is forked where the docstring above says so."""

    def __init__(self, args: Any, *, forks_children: bool = False, **given: Any) -> None:
        self.request: Request | None = None
        env = os.environ if given.get("env") is None else given["env"]
        environment = {os.fspath(name): os.fspath(value) for name, value in env.items()}
        folder = Path(given.get("cwd") or ".").absolute()
        words = words_of(args)
        simple = sys.platform == "linux" and given.keys() <= COMMON and folder.is_dir()
        if simple and words is not None:
            with LOCK:
                if stock().could_start(environment):
                    own = bool(given.get("start_new_session"))
                    inner = forks_children or LAUNCHER in words
                    self.request = Request(words, environment, str(folder), own, inner)
        super().__init__(args, **given)

    def _execute_child(self, *given: Any) -> None:
        """The place where a Popen has its pipes and starts its process; not documented."""
        if self.request is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        pipes: tuple[int, ...] = given[10:16]
        files = [own if pipe == -1 else pipe for own, pipe in enumerate((pipes[0], *pipes[3::2]))]
        with LOCK:
            self.pid = stock().start(self.request, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    @property
    def is_forked(self) -> bool:
        """Whether the process came from the stock."""
        return self.request is not None


def run(
    args: Any,
    *,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **given: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with this Popen; without `input`."""
    if capture_output:
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process: Popen[Any]
    with Popen(args, **given) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


# in the stock


def names_read(modules: tuple[str, ...]) -> list[str]:
    """Imports modules, and returns the names of the variables that were read meanwhile. A line that
    looks through all of them, for those that begin in some way, reads none."""
    read: dict[Any, set[str]] = defaultdict(set)
    had = {*os.environ}
    kind = type(os.environ)
    plain = kind.__getitem__

    def noted(self: os._Environ[str], key: str) -> str:
        caller = sys._getframe(1)
        read[caller.f_code, caller.f_lineno].add(key)
        return plain(self, key)

    setattr(kind, "__getitem__", noted)  # noqa: B010
    try:
        for name in modules:
            importlib.import_module(name)
    finally:
        setattr(kind, "__getitem__", plain)  # noqa: B010
    return sorted(set().union(*(names for names in read.values() if not had <= names)))


def serve(connection: socket.socket, read: list[str]) -> Request:
    """Forks as often as it is asked. Returns in each new process, with what that one shall run, and
    ends the stock itself once nobody can ask any more."""
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who work
    connection.sendall(json.dumps([os.getpid(), read, dict(os.environ)]).encode())
    while True:
        text, files, _, _ = socket.recv_fds(connection, LONGEST, 3)
        if not text:
            os._exit(0)
        reading, writing = os.pipe()
        between = forked()
        if between == 0:
            parent, pid = os.getpid(), forked()
            if pid == 0:
                connection.close()
                request = Request(*json.loads(text))
                placed(request, files)
                signal.signal(signal.SIGINT, interrupted)  # ignored, if that is what all inherit
                while os.getppid() == parent:
                    time.sleep(0.001)
                for file in (reading, writing, *files):
                    os.close(file)
                return request
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)  # from here on its child is the asking process's own
        connection.sendall(os.read(reading, 100))
        for file in (reading, writing, *files):
            os.close(file)


def forked() -> int:
    """`os.fork`. The one thread beside the main one is that of jemalloc, which minds forks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def placed(request: Request, files: list[int]) -> None:
    """Gives this new process what is its own: session, files, folder, environment, randomness."""
    if request.own_session:
        os.setsid()
    before, after = (
        [*filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
        for variables in (os.environ, request.environment)
    )
    if before != after:
        sys.path[1:] = [*after, *(path for path in sys.path[1:] if path not in before)]
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(request.folder)
    for name in {*STOCK_HAD} - {*request.environment}:
        del os.environ[name]  # what an import has set stays
    for name, value in request.environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = cast("io.TextIOWrapper", getattr(sys, name))
        if request.words[0] == "-u":
            raw = cast("IO[bytes]", io.FileIO(number, "w", closefd=False))
            new = io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)
        elif number == 1 and not stream.write_through:
            stream.reconfigure(line_buffering=os.isatty(number))
    importlib.import_module("numpy").random.seed()
    importlib.import_module("datasets.fingerprint").fingerprint_rng.seed()


def become(request: Request) -> None:
    """Runs what stands behind `python`, as the interpreter would."""
    if request.forks_children:
        fork_children()
    words = request.words
    first, *rest = words[1:] if words[0] == "-u" else words
    if first == "-m":
        module, *arguments = rest
        sys.path[0], sys.argv = str(Path.cwd()), [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if first == "-c":
        code, *arguments = rest
        sys.path[0], sys.argv = "", ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), main.__dict__)
        return
    main.__file__ = first
    sys.path[0], sys.argv = str(Path(first).resolve().parent), [first, *rest]
    exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)


def fork_children() -> None:
    """Gives this new process a stock of its own, whose processes are its children, and lets it start
    its Python processes from that one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ)
    if forked() == 0:
        ours.close()
        STOCK_HAD[:] = environment
        become(serve(theirs, READ))
        sys.exit()
    theirs.close()
    STOCKS[:] = [Stock(ours, environment)]
    for module in ("subprocess", OF_RANKS):
        setattr(importlib.import_module(module), "Popen", Popen)  # noqa: B010


STOCK_HAD = list(ENVIRONMENT)
"""In the stock: the variables that it was started with."""
READ: list[str] = []
"""In the stock: the variables that were read with the imports."""

if __name__ == "__main__":
    from overrefusal_po.report.quiet import quiet_packages

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # as the command has it
    STOCK_HAD.append("TRL_EXPERIMENTAL_SILENCE")
    gc.disable()
    with quiet_packages():
        READ += names_read(STOCKED)
    gc.freeze()
    gc.enable()
    become(serve(socket.socket(fileno=int(sys.argv[1])), READ))
