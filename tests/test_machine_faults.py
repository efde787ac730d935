"""Faults of the machine: what a file server, a clock, a disk and a cache may do to a run. Each is
real: a library under a process, a disk that is full."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machine_faults import disk, shimmed

from overrefusal_po.cli import main
from overrefusal_po.model import bundled
from overrefusal_po.model.load import load_tokenizer, save_merged
from overrefusal_po.recipe.trl_fields import cache_folder
from overrefusal_po.records import write_atomic
from overrefusal_po.report.next_steps import next_steps
from overrefusal_po.run.folder import Run
from overrefusal_po.run.log import Log
from overrefusal_po.run.os_faults import fault_words
from overrefusal_po.run.own_folder import drop_leftovers
from overrefusal_po.run.unscored import RunFailed
from overrefusal_po.train.progress import correct_speed
from overrefusal_po.train.resume import drop_oldest

WRITE = """
import sys
from pathlib import Path
from overrefusal_po.json_files import write_atomic
from overrefusal_po.run.ranks import speaking_once
with speaking_once():
    write_atomic(Path(sys.argv[1]), "new")
"""


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


# renames


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EBUSY])
def test_a_rename_that_fails_for_a_moment_is_tried_again(tmp_path: Path, error: int) -> None:
    file = tmp_path / "folder" / "a.json"
    write_atomic(file, "old")
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(file)],
        env=shimmed(tmp_path, FAULT_RENAME=f"{error}:2"),
        check=False,
    )
    assert done.returncode == 0 and file.read_text() == "new"
    assert names(file.parent) == ["a.json"]


def test_a_rename_that_fails_for_good_ends_with_a_sentence_and_keeps_the_old_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "folder" / "a.json"
    write_atomic(file, "old")
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(file)],
        env=shimmed(tmp_path, FAULT_RENAME=f"{errno.ESTALE}:99"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the file system does not answer as it should" in done.stderr
    assert file.read_text() == "old" and names(file.parent) == ["a.json"]


def test_a_file_that_a_reader_holds_open_is_replaced_and_the_reader_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    file = write_atomic(tmp_path / "a.json", "old")
    with file.open() as reader:
        write_atomic(file, "new")
        assert reader.read() == "old" and file.read_text() == "new"


# clocks


def test_the_newest_checkpoint_stays_whatever_the_clock_said(tmp_path: Path) -> None:
    """The clock went back an hour after step 3: its checkpoint has the latest time."""
    for step, time in ((3, 9_000), (6, 5_400), (9, 5_500)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, (time, time))
    drop_oldest(tmp_path, None, None)
    assert len(names(tmp_path)) == 3
    drop_oldest(tmp_path, 2, None)
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-9"]
    drop_oldest(tmp_path, 1, str(tmp_path / "checkpoint-6"))
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-9"]


def test_a_training_that_the_clock_calls_shorter_than_nothing_has_its_true_speed() -> None:
    row = {"train_runtime": -3500.0, "train_samples_per_second": -0.1}
    correct_speed(row, 100.0)
    assert row == {"train_runtime": 100.0, "train_samples_per_second": 3.5}


def test_the_seconds_of_a_run_do_not_follow_the_clock(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from overrefusal_po.run.folder import Run
before = time.time()
with Run.open(Path(sys.argv[1]), {"task": "train"}, {}) as run:
    Path(sys.argv[2]).write_text("-3600")
    run.finish()
assert time.time() < before - 3000, "the clock of this process did not go back"
"""
    clock = tmp_path / "clock"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(clock)],
        env=shimmed(tmp_path, FAULT_CLOCK=clock),
        check=False,
    )
    assert done.returncode == 0
    assert 0 <= json.loads((tmp_path / "run" / "status.json").read_text())["seconds"] < 60


def test_the_last_model_of_a_pipeline_is_that_of_its_last_stage(tmp_path: Path) -> None:
    write_atomic(tmp_path / "recipe.yaml", "task: pipeline\nzero: {}\nfirst: {}\n")
    for name, time in (("zero", 9_000), ("first", 5_000)):
        (tmp_path / name / "model").mkdir(parents=True)
        os.utime(tmp_path / name / "model", (time, time))
    [measure, *_] = next_steps({"folder": str(tmp_path)}, "pipeline", Path("recipes"))
    assert "first/model" in measure[1] and "zero/model" not in measure[1]


# disks


def test_a_model_that_does_not_fit_on_the_disk_is_none(
    tmp_path: Path, styles: dict[str, Any]
) -> None:
    style = styles["llama"]
    with disk(tmp_path / "small", "size=300k") as small:
        with pytest.raises(Exception, match="No space left") as error:
            save_merged(style.make_model(), style.tokenizer, small / "model")
        words = str(fault_words(error.value))
        assert "the disk is full" in words and "the same command again" in words
        assert not (small / "model").exists()
        drop_leftovers(small)
        assert not list(small.iterdir())


def test_a_run_that_ends_on_a_full_disk_still_lets_the_next_one_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with disk(tmp_path / "small", "size=64k") as small:
        with pytest.raises(OSError, match="No space"), Run.open(small / "run", {}, {}) as run:
            (small / "run" / ".model.1.tmp").write_bytes(bytes(20_000))
            (small / "ballast").write_bytes(bytes(10**6))
        assert run._lock is None and not (small / "run" / ".model.1.tmp").exists()
        found = json.loads((small / "run" / "status.json").read_text())
        assert (found["state"], found["exit_code"]) == ("failed", 1)
        assert "the disk is full" in found["message"]
        (small / "ballast").unlink()
        with Run.open(small / "run", {}, {}) as run:
            run.finish()
        assert run.done and "cannot be noted" not in caplog.text


def test_a_log_is_bounded_and_a_full_disk_costs_lines_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    logger = logging.getLogger("test of a log")
    logger.propagate = False
    log = Log(tmp_path / "log", maxBytes=2_000, backupCount=1)
    logger.addHandler(log)
    for number in range(500):
        logger.warning("line %d", number)
    logger.removeHandler(log)
    log.close()
    assert names(tmp_path) == ["log", "log.1"]
    assert (tmp_path / "log").stat().st_size <= 2_000 and "line 499" in (
        tmp_path / "log"
    ).read_text()
    full = Log("/dev/full", maxBytes=0)
    logger.addHandler(full)
    for number in range(3):
        logger.warning("line %d", number)
    logger.removeHandler(full)
    full.close()
    said = capsys.readouterr().err
    assert said.count("No space left") == 1 and "Traceback" not in said


# caches and homes


def test_a_cache_that_cannot_be_written_is_said_and_no_obstacle(tmp_path: Path) -> None:
    """A file stands in the place of the home, so no folder can be made there; root may not either."""
    (tmp_path / "home").write_text("")
    lost = {"HOME": "home", "XDG_CACHE_HOME": "home/cache", "HF_HOME": "home/hf"}
    kept = {k: v for k, v in os.environ.items() if k != "OVERREFUSAL_PO_CACHE"}
    (tmp_path / "r.yaml").write_text(
        "task: train\nmethod: dpo\nmodel: {model_name_or_path: m}\ndata: {pairs: starter}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "overrefusal_po", "check", "r.yaml"],
        cwd=tmp_path,
        env=kept | {k: str(tmp_path / v) for k, v in lost.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "r.yaml is valid" in done.stdout
    assert "set OVERREFUSAL_PO_CACHE to a folder in which you may write" in " ".join(
        done.stderr.split()
    )


def test_a_bundled_model_says_where_it_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OVERREFUSAL_PO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"cannot be converted into .*set OVERREFUSAL_PO_CACHE"):
        bundled.bundled_folder(next(iter(bundled.BUNDLED)))


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    """A process with a user number that the system does not know, as in some containers."""
    if os.getuid() != 0:
        pytest.skip("only root may become another user")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.environ.pop("HOME", None)
        os.environ.pop("XDG_CACHE_HOME", None)
        os.environ.pop("OVERREFUSAL_PO_CACHE", None)
        os.setuid(54_321)
        try:
            said = str(cache_folder())
        except ValueError as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert "This user has no home folder" in os.read(read, 1000).decode()


# words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/log"), "run/log: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota is used up"),
        (OSError(errno.EROFS, "Read-only file system", "c/x"), "c/x: it cannot be written"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (MemoryError(), "memory has run out"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("unexpected pos 69440 vs 69332"), "could not be written whole"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            "reads rows (12)",
        ),
    ],
)
def test_each_fault_of_the_machine_has_its_words(error: Exception, words: str) -> None:
    try:
        raise KeyError("outer") from error
    except KeyError as outer:
        found = str(fault_words(outer))
    assert words in found and found.endswith("it goes on where it stopped.")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes"), ValueError("[Errno 28] in a sentence"), FileNotFoundError(2, "x")],
)
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    assert fault_words(error) is None


def test_an_error_with_a_sentence_of_its_own_keeps_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for kind in (ValueError, RunFailed, KeyboardInterrupt):
        own = kind("make room in the cache")
        own.__cause__ = full
        assert fault_words(own) is None
    hidden = RuntimeError("a bug")
    hidden.__context__, hidden.__suppress_context__ = full, True
    assert fault_words(hidden) is None


def test_a_tokenizer_that_the_memory_does_not_hold_is_no_damaged_file(tmp_path: Path) -> None:
    """A tokenizer with code of its own, which finds no memory."""
    config = {"tokenizer_class": "Large", "auto_map": {"AutoTokenizer": ["large.Large", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "large.py").write_text(
        "from transformers import PreTrainedTokenizer\n\n\n"
        "class Large(PreTrainedTokenizer):\n"
        "    def __init__(self, **given):\n"
        "        raise MemoryError\n"
    )
    with pytest.raises(MemoryError):
        load_tokenizer(str(tmp_path), trust_remote_code=True)


@pytest.mark.parametrize("where", ["/proc/nowhere/a.html", "{file}/a.html", "{folder}"])
def test_a_path_that_is_no_place_for_a_file_is_named(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    path = where.format(file=tmp_path / "file", folder=tmp_path / "folder")
    with pytest.raises(ValueError, match=f"{path} cannot be written .*Give a path in a folder"):
        write_atomic(path, "text")
    assert (tmp_path / "file").read_text() == "mine" and not [*(tmp_path / "folder").iterdir()]


def test_recipes_go_to_no_place_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["init", str(tmp_path / "file")])
    assert end.value.code == 2 and "recipes cannot be written" in capsys.readouterr().err
