"""launches.py: a forked process is like one that Python started, and is a real child of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import launches
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked"),
]

PYTHON = sys.executable
TESTS = str(Path(__file__).parent)


def forked(*words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """What a forked Python process left."""
    process: launches.Popen[str]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with launches.Popen([PYTHON, *words], **pipes, **given) as process:
        assert process.is_forked
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def both(*words: str, **given: Any) -> tuple[int, str, str]:
    """(exit code, printed, last line of the errors), the same of a forked and a started process."""
    found = [
        (done.returncode, done.stdout, done.stderr.strip().rpartition("\n")[2])
        for done in (
            forked(*words, **given),
            subprocess.run([PYTHON, *words], capture_output=True, text=True, check=False, **given),
        )
    ]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("code", "left", "err"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('words')", 1, "words"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("import os; os._exit(5)", 5, ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -2, "KeyboardInterrupt"),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
    ],
)
def test_it_ends_as_a_started_one(code: str, left: int, err: str) -> None:
    assert both("-c", code) == (left, "", err)


LAST = """
import atexit, sys, threading, time
atexit.register(print, "a hook")
threading.Thread(target=lambda: time.sleep(0.2) or print("a thread")).start()
print("to the end", file=sys.stderr)
print(__name__, sys.argv)
"""


def test_it_does_all_that_a_process_does_before_it_ends() -> None:
    code, out, err = both("-c", LAST, "one", "-two")
    assert (code, err) == (0, "to the end")
    assert out == "__main__ ['-c', 'one', '-two']\na thread\na hook\n"


SEEN = """
import json, os, signal, sys
streams = [[s.encoding, s.errors, s.line_buffering, s.isatty()] for s in (sys.stdin, sys.stdout, sys.stderr)]
files = {int(f): os.readlink(f"/proc/self/fd/{f}")[:5] for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{f}")}
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__,
    "environment": dict(os.environ), "streams": streams, "files": files, "parent": os.getppid(),
    "input": sys.stdin.read(), "main": sys.modules["__main__"].__dict__ is globals(),
    "signals": [str(signal.getsignal(n)) for n in (2, 10, 13, 15)],
    "group": os.getpgid(0) == os.getpid(), "session": os.getsid(0) == os.getpid(),
}))
"""


@pytest.mark.parametrize("form", ["-c", "script", "-m", "-u"])
@pytest.mark.parametrize("own", [False, True])
def test_it_has_the_surroundings_of_a_started_one(tmp_path: Path, form: str, own: bool) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "script.py").write_text(SEEN)
    (tmp_path / "input").write_text("given")
    words = {"-c": ["-c", SEEN], "-m": ["-m", "seen.script"], "script": ["seen/script.py"]}
    command = words.get(form, ["-u", "seen/script.py"])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"RANK": "3", "PYTHONPATH": f"{tmp_path / 'mine'}:{TESTS}"}
    given: Any = {"cwd": tmp_path, "env": environment, "start_new_session": own}
    with (tmp_path / "input").open() as file:
        found = json.loads(forked(*command, "a", stdin=file, **given).stdout)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": True}
    with (tmp_path / "input").open() as file:
        done = subprocess.run([PYTHON, *command, "a"], stdin=file, **pipes, **given)
    started = json.loads(done.stdout)
    set_by_imports = {*found["environment"]} - {*started["environment"]}
    assert not set_by_imports & {*os.environ}
    started["environment"] |= {name: found["environment"][name] for name in set_by_imports}
    assert found == started
    assert started["parent"] == os.getpid() and started["session"] == own


def test_bytes_go_out_at_once_or_at_the_end() -> None:
    """As by the interpreter: what goes to a pipe waits, without -u, and what is said does not."""
    code = "import os, sys; print('out'); print('err', file=sys.stderr); os._exit(0)"
    waits = not os.environ.get("PYTHONUNBUFFERED")
    assert both("-c", code) == (0, "" if waits else "out\n", "err")
    assert both("-u", "-c", code) == (0, "out\n", "err")


def test_a_real_signal_reaches_it_and_it_can_be_waited_for() -> None:
    code = "import time; print('here', flush=True); time.sleep(60)"
    process: launches.Popen[str] = launches.Popen(
        [PYTHON, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.is_forked and process.stdout is not None
    assert process.stdout.readline() == "here\n" and process.poll() is None
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert str(process.pid) in children, "it is no child of this process"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_run_is_that_of_subprocess() -> None:
    code = "import time; time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        launches.run([PYTHON, "-c", code], timeout=0.5)
    with pytest.raises(subprocess.CalledProcessError):
        launches.run([PYTHON, "-c", "1 / 0"], check=True, stderr=subprocess.DEVNULL)
    done = launches.run(
        [PYTHON, "-c", "print(1)"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", None)


def test_two_processes_draw_differently() -> None:
    code = "import random, uuid, numpy, tempfile; print(random.random(), numpy.random.random(), uuid.uuid4())"
    code += "; from datasets.fingerprint import generate_random_fingerprint as f; print(f())"
    one, two = (forked("-c", code).stdout.split() for _ in range(2))
    assert len(one) == len({*one} - {*two}) == 4


IMPORTED = "import sys; print('torch' in sys.modules)"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_ENDPOINT", "http://127.0.0.1:1"),
        ("HF_HOME", "/nowhere"),
        ("OMP_NUM_THREADS", "2"),
        ("PYTHONWARNINGS", "error"),
        ("LD_PRELOAD", ""),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("ACCELERATE_LOG_LEVEL", "info"),
        ("OF_A_TEST", "1"),
    ],
)
def test_an_environment_that_imports_may_see_starts_an_ordinary_process(
    name: str, value: str
) -> None:
    done = launches.run(
        [PYTHON, "-c", IMPORTED], env={**os.environ, name: value}, capture_output=True, text=True
    )
    assert done.stdout == "False\n"


def test_what_no_fork_can_give_is_an_ordinary_process(tmp_path: Path) -> None:
    assert forked("-c", IMPORTED).stdout == "True\n"
    given: dict[str, Any] = {"capture_output": True, "text": True}
    with (tmp_path / "file").open("w") as file:
        passed = launches.run([PYTHON, "-c", IMPORTED], pass_fds=[file.fileno()], **given)
    assert passed.stdout == "False\n"
    assert launches.run([PYTHON, "-I", "-c", IMPORTED], **given).stdout == "False\n"
    assert launches.run(["echo", "here"], **given).stdout == "here\n"
    with pytest.raises(FileNotFoundError):
        launches.run([PYTHON, "-c", IMPORTED], cwd=tmp_path / "nowhere", **given)
    assert launches.run([PYTHON], stdin=subprocess.DEVNULL, **given).returncode == 0


def test_no_variable_that_may_differ_was_read_by_an_import() -> None:
    stock = launches.stock()
    assert {"HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME"} < {*stock.read}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        assert stock.could_start({**stock.environment, name: "1"}), name
    # what a training in this process leaves behind
    left = {"TRL_EXPERIMENTAL_SILENCE": "1", "KMP_INIT_AT_FORK": "FALSE"}
    left["TORCHINDUCTOR_CACHE_DIR"] = stock.became["TORCHINDUCTOR_CACHE_DIR"]
    assert stock.could_start({**stock.environment, **left})


ASKS = f"""
import subprocess, sys, time
sys.path.insert(0, {TESTS!r})
import launches
launches.run([sys.executable, "-c", "pass"])
child = launches.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(launches.stock().pid, child.pid, flush=True)
time.sleep(600)
"""


def test_the_stock_ends_when_the_process_that_asked_is_killed() -> None:
    """And a process that it forked lives on, as any child of a killed process does."""
    with subprocess.Popen([PYTHON, "-c", ASKS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stock, child = map(int, process.stdout.readline().split())
        process.kill()
    try:
        deadline = time.monotonic() + 60
        while is_there(stock) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_there(stock) and is_there(child)
    finally:
        os.kill(child, signal.SIGKILL)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


RANK = (
    "import os, sys; print(os.environ['RANK'], os.getppid(), 'torch' in sys.modules, sys.argv[1:])"
)


def test_the_ranks_of_torchrun_are_forked_too(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = forked(*command, "rank.py", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=2) for line in sorted(done.stdout.splitlines())]
    assert [(rank, rest) for rank, _, rest in rows] == [("0", "True ['a']"), ("1", "True ['a']")]
    assert rows[0][1] == rows[1][1], "they are not children of the launcher"


CHILDREN = """
import subprocess, sys
code = "import sys; print('torch' in sys.modules); sys.exit(3)"
done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
print(done.returncode, done.stdout)
"""


def test_a_process_may_fork_its_own_children() -> None:
    assert forked("-c", CHILDREN).stdout == "3 False\n\n"
    assert forked("-c", CHILDREN, forks_children=True).stdout == "3 True\n\n"
