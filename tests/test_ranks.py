"""Several launched processes say a fault once, in a sentence, and end with the house's exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import launches
import pytest

from overrefusal_po.run.interrupts import STOPPING

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"
ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu"]
ACCELERATE += ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
ACCELERATE += ["--dynamo_backend=no", "--main_process_port=0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start(
    command: list[str],
    folder: Path,
    by: type[subprocess.Popen[str]] = subprocess.Popen,
    **environment: str,
) -> subprocess.Popen[str]:
    """Starts a command in `folder`."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return by(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
    )


KEY = ["--trainer.betta=1"], "trainer.betta is not a known key"
FILE = ["--data.pairs=nowhere.jsonl"], "nowhere.jsonl: there is no such file"
FOLDER = ["run_dir=foreign"], "foreign is not empty, and it is no run folder"


# accelerate launches by torchrun's own agent, so one fault shows its variables and its report
@pytest.mark.parametrize(
    ("launcher", "given", "sentence"),
    [(TORCHRUN, *KEY), (TORCHRUN, *FILE), (TORCHRUN, *FOLDER), (ACCELERATE, *FILE)],
    ids=["seen by both", "told to both", "of the first alone", "told to both by accelerate"],
)
def test_a_fault_is_one_sentence_under_a_launcher(
    styles: dict[str, Any], tmp_path: Path, launcher: list[str], given: list[str], sentence: str
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    fixed = [model, "--trainer.use_cpu=true", "--trainer.max_length=2048", *given]
    by: type[subprocess.Popen[str]] = subprocess.Popen if given in KEY else launches.Popen
    process = start(
        [*launcher, "-m", "overrefusal_po", str(RECIPES / "dpo.yaml"), *fixed], tmp_path, by
    )
    out, err = process.communicate(timeout=300)
    said = " ".join((out + err).split())
    assert said.count(sentence) == 1, err
    # what is left is the launcher's own report: it turns every code into 1, and names ours
    assert process.returncode == 1 and "exitcode : 2" in said
    assert said.count("Traceback (most recent call last)") == said.count("ChildFailedError:") == 1


SPEAK = "from overrefusal_po.cli import main; main(['check', 'nowhere.yaml'])"
WAITS = "import time; rest = time.sleep; "
WAITS += "time.sleep = lambda seconds: print('waits', flush=True) or rest(seconds); "
SOON = "from overrefusal_po.run import ranks; ranks.SECONDS_TO_BE_ENDED = 2.0; "


def test_another_rank_speaks_if_the_launcher_does_not_end_it(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", SOON + SPEAK], tmp_path, RANK="1", WORLD_SIZE="2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("overrefusal-po: rank 1: nowhere.yaml: there is no such recipe")


def test_another_rank_says_nothing_if_the_launcher_ends_it(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", WAITS + SPEAK], tmp_path, RANK="1", WORLD_SIZE="2")
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and err == ""


LATE = """
import atexit, os, sys
class Late:
    def __del__(self, abort=os.abort):
        abort()
sys.late = Late()
from overrefusal_po.cli import main
from overrefusal_po.run.ranks import ended_at_once
"""
HOOK = "with ended_at_once(): atexit.register(print, 'a hook'); sys.exit(3)"


@pytest.mark.parametrize(
    ("code", "left", "said"),
    [
        ("main(['check', 'nowhere.yaml'])", 2, ""),
        ("main(['--version'])", 0, ""),
        (HOOK, 3, "a hook"),
    ],
)
def test_a_launched_process_keeps_its_code_whatever_its_teardown_does(
    tmp_path: Path, code: str, left: int, said: str
) -> None:
    command = [sys.executable, "-c", LATE + code]
    alone = start(command, tmp_path, WORLD_SIZE="1")
    alone.communicate(timeout=60)
    launched = start(command, tmp_path, RANK="0", WORLD_SIZE="2")
    out, err = launched.communicate(timeout=60)
    assert alone.returncode == -signal.SIGABRT  # so this teardown does end a process
    assert launched.returncode == left, err
    assert said in out


LAST_WORDS = """
import os, signal, sys
from overrefusal_po.run.interrupts import terminable
from overrefusal_po.run.ranks import ended_at_once, speaking_once
class Words:
    def write(self, text):
        os.kill(os.getpid(), {number})   # once more, while the words of the first one are said
        return sys.__stderr__.write(text)
    def flush(self):
        pass
sys.stderr = Words()
with ended_at_once(own_process=True), speaking_once(), terminable():
    os.kill(os.getpid(), {number})
"""


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_that_comes_with_the_last_words_keeps_the_code(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The handlers of the command are gone by then, and Python's own would end the process."""
    code = LAST_WORDS.format(number=int(number))
    done = start([sys.executable, "-c", code], tmp_path, WORLD_SIZE="1")
    _, err = done.communicate(timeout=60)
    assert done.returncode == 130, err


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("late", ["atexit.register(signal.raise_signal, number); ", ""])
def test_a_process_that_is_the_command_s_own_keeps_its_code_too(
    tmp_path: Path, late: str, number: signal.Signals
) -> None:
    """Whatever its teardown does, and whatever signal comes meanwhile."""
    code = f"import signal; number = {int(number)}; sys.argv[1:] = ['check', 'nowhere.yaml']; "
    alone = start([sys.executable, "-c", LATE + code + late + "main()"], tmp_path, WORLD_SIZE="1")
    _, err = alone.communicate(timeout=60)
    assert alone.returncode == 2, err
    assert err.count("nowhere.yaml") == 1 and "Traceback" not in err
