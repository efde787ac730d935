"""What a run folder protects: who may enter it, where it writes, and what damaged files say."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from overrefusal_po.records import read_state
from overrefusal_po.report.terminal import print_summary, print_table, say, say_json
from overrefusal_po.run.folder import Run, printable
from overrefusal_po.run.keys import path_hash
from overrefusal_po.run.own_folder import make_private
from overrefusal_po.run.shards import check_complete, check_done
from overrefusal_po.train.stage import note_processes

RECIPE = {"task": "evaluate", "seed": 0, "run_dir": None}


def mode(path: Path) -> int:
    """The permission bits of a path."""
    return stat.S_IMODE(path.stat().st_mode)


# who may enter


def test_new_run_folders_are_closed_to_others_and_existing_ones_keep_their_mode(
    tmp_path: Path,
) -> None:
    with Run.open(tmp_path / "runs" / "a", RECIPE, {}):
        pass
    assert mode(tmp_path / "runs") == mode(tmp_path / "runs" / "a") == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    with Run.open(tmp_path / "shared", RECIPE, {}):
        pass
    assert mode(tmp_path / "shared") == 0o770


# where a run writes


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "run", Path("/proc/nowhere/run")):
        with pytest.raises(ValueError, match=f"{folder.parent}.* cannot be made .*may write"):
            make_private(folder)


@pytest.mark.parametrize("name", ["model", "adapter", "log", "status.json", "completions.jsonl"])
def test_a_link_in_a_run_folder_is_refused_and_what_it_leads_to_is_untouched(
    tmp_path: Path, name: str
) -> None:
    with Run.open(tmp_path / "run", RECIPE, {}):
        pass
    foreign = tmp_path / "precious"
    foreign.write_text("mine")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(foreign)
    with pytest.raises(ValueError, match=f"{name} is a link"):
        Run.open(tmp_path / "run", RECIPE, {})
    assert foreign.read_text() == "mine"


def test_a_link_among_checkpoints_is_refused(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", RECIPE, {}):
        pass
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "checkpoint-5").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="checkpoint-5 is a link"):
        Run.open(tmp_path / "run", RECIPE, {})


def test_a_run_dir_that_is_itself_a_link_is_taken(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with Run.open(tmp_path / "run", RECIPE, {}) as run:
        run.finish()
    assert (tmp_path / "disk" / "status.json").is_file()


# damaged and edited files

DAMAGE = {
    "empty": b"",
    "torn": b'{"state": "do',
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[1]",
    "nested": b"[" * 100_000,
    "no keys": b"{}",
}


def processes(folder: Path) -> None:
    """Reads processes.json."""
    note_processes(Run(folder, RECIPE, {}, writer=False), 2)


READERS: dict[str, Callable[[Path], object]] = {
    "status.json": lambda folder: Run(folder, RECIPE, {}, writer=False).status(),
    "shard-1-of-1/status.json": check_done,
    "summary.json": print_summary,
    "processes.json": processes,
    "completions.tally.json": lambda folder: check_complete([folder], "completions"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, damage: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(DAMAGE[damage])
    with pytest.raises(ValueError, match=r"damaged|edited") as caught:
        READERS[name](tmp_path)
    assert str(file) in str(caught.value)
    assert "Restore the file, or delete its folder" in str(caught.value)


def test_a_damaged_status_of_an_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(ValueError, match=r"status\.json is damaged"):
        path_hash(tmp_path / "model")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json cannot be read"):
        read_state(tmp_path / "gone.json")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"n": 1}')
    assert read_state(tmp_path / "a.json", ["n"]) == {"n": 1}


@pytest.mark.parametrize("text", ["{", "\x00", "- 1", "a: [b"])
def test_a_damaged_recipe_in_the_folder_still_says_that_the_inputs_differ(
    tmp_path: Path, text: str
) -> None:
    with Run.open(tmp_path, RECIPE, {"data": "a"}):
        (tmp_path / "completions.jsonl").touch()
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="the content of data"):
        Run.open(tmp_path, RECIPE, {"data": "b"})


# control bytes

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\r\u202ee"


def test_no_control_byte_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, error=True)
    print_table(["text"], [[HOSTILE]], width=80)
    say_json({"text": HOSTILE})
    shown = capsys.readouterr()
    assert not any(ord(sign) < 32 and sign != "\n" for sign in shown.out + shown.err)
    assert not any(127 <= ord(sign) < 160 for sign in shown.out + shown.err)


def test_json_for_a_terminal_reads_back_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"text": HOSTILE, "other": "żółć 中"})
    line = capsys.readouterr().out
    assert json.loads(line) == {"text": HOSTILE, "other": "żółć 中"}
    assert "żółć 中" in line


def test_an_error_that_quotes_a_hostile_name_is_shown_without_control_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"recipe\x1b[2J.yaml")
    command = [sys.executable, "-m", "overrefusal_po", "check", str(tmp_path / name)]
    found = subprocess.run(command, capture_output=True, check=False)
    assert found.returncode == 2
    assert b"\x1b" not in found.stdout + found.stderr


def test_the_log_of_a_run_spells_control_bytes_out(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Run.open(tmp_path, RECIPE, {}):
        raise RuntimeError(HOSTILE)
    log = (tmp_path / "log").read_bytes()
    assert b"\x1b" not in log and rb"\x1b[2J" in log
    assert printable("a\tb\nc\x9b") == "a\tb\nc\\x9b"
