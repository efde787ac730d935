"""The run folder: keys, resume, lock, torn files, manifest, and status.json after a fault."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from overrefusal_po.records import Message
from overrefusal_po.run.appender import Appender
from overrefusal_po.run.environment import environment, git_commit
from overrefusal_po.run.folder import Run
from overrefusal_po.run.keys import file_hash, run_folder, run_key, sample_hash

RECIPE: dict[str, Any] = {
    "task": "evaluate",
    "data": {"split": "test", "sets": ["starter"]},
    "seed": 0,
    "run_dir": None,
}


def changed(**values: Any) -> dict[str, Any]:
    """RECIPE with other values."""
    return {**RECIPE, **values}


# keys


def test_a_key_stands_for_recipe_and_inputs_but_not_for_the_place() -> None:
    key = run_key(RECIPE, {"data": "a"})
    assert len(key) == 8 and int(key, 16) >= 0
    assert run_key(changed(run_dir="elsewhere"), {"data": "a"}) == key
    assert run_key(dict(reversed(RECIPE.items())), {"data": "a"}) == key
    assert run_key(changed(seed=1), {"data": "a"}) != key
    assert run_key(RECIPE, {"data": "b"}) != key


def test_a_run_has_a_folder_of_its_own_or_the_one_of_the_recipe() -> None:
    assert run_folder("dpo", RECIPE, {}) == Path("runs") / f"dpo-{run_key(RECIPE, {})}"
    assert run_folder("dpo", changed(run_dir="runs/demo"), {}) == Path("runs/demo")


def test_a_file_or_model_folder_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder in ("one", "two"):
        (tmp_path / folder / "model.safetensors").write_bytes(bytes(1000))
        (tmp_path / folder / "config.json").write_text("{}")
    before = file_hash(tmp_path / "one")
    assert before == file_hash(tmp_path / "two")
    (tmp_path / "one" / "model.safetensors").write_bytes(bytes(999) + b"\x01")
    assert file_hash(tmp_path / "one") != before
    text = tmp_path / "a.jsonl"
    text.write_text("a")
    first = file_hash(text)
    text.write_text("b")
    assert file_hash(text) != first


def test_a_large_file_is_sampled_from_its_first_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    size = 100
    found = set()
    for place in (None, 0, size - 1, 50):
        data = bytearray(size)
        if place is not None:
            data[place] = 1
        path.write_bytes(data)
        found.add(sample_hash(path, blocks=5, width=4))
    assert len(found) == 4  # blocks of 4 at 0, 24, 48, 72, 96
    path.write_bytes(bytes(size + 1))
    assert sample_hash(path, blocks=5, width=4) not in found


# resume


def test_a_run_is_new_then_running_then_done(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", RECIPE, {"data": "a"}) as run:
        assert not run.done and run.status()["state"] == "running"
        run.finish({"rows": 3})
    status = run.status()
    assert (status["state"], status["exit_code"], status["summary"]) == ("done", 0, {"rows": 3})
    assert status["key"] == run_key(RECIPE, {"data": "a"}) and status["inputs"] == {"data": "a"}
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == RECIPE
    with Run.open(tmp_path / "run", RECIPE, {"data": "a"}) as again:
        assert again.done
    assert again.status()["state"] == "done"


def test_a_run_that_stopped_goes_on(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, {}) as run:
        pass
    with Run.open(tmp_path, RECIPE, {}) as run:
        assert not run.done
        run.finish()
    assert run.done


def test_another_recipe_in_a_fixed_folder_stops_and_names_what_differs(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, {}) as run:
        run.finish()
    other = changed(data={"split": "dev", "sets": ["starter"]}, run_dir="x")
    with pytest.raises(ValueError) as caught:
        Run.open(tmp_path, other, {})
    text = str(caught.value)
    assert (
        "data.split ('test' there, 'dev' now)" in text
        and "seed" not in text
        and "run_dir (" not in text
    )
    assert "Choose another run_dir" in text
    with Run.open(
        tmp_path, RECIPE, {}
    ) as run:  # the lock was given back, and nothing was overwritten
        assert run.done


def test_another_input_in_a_fixed_folder_is_named(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, {"data.pairs": "a", "model": "m"}) as run:
        run.finish()
    with pytest.raises(ValueError, match=r"the content of data\.pairs\. Choose"):
        Run.open(tmp_path, RECIPE, {"data.pairs": "b", "model": "m"})


@pytest.mark.parametrize("killed_between", [False, True])
def test_a_run_that_failed_before_its_work_gives_way_to_another_recipe(
    tmp_path: Path, killed_between: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that was not there yet, or a wrong key: the folder holds nothing to lose."""
    with pytest.raises(ValueError), Run.open(tmp_path, RECIPE, {"model": "none"}) as run:
        run.started -= 1000
        raise ValueError("no such model")
    if killed_between:
        (tmp_path / "recipe.yaml").unlink()
    other = changed(seed=7)
    caplog.set_level("INFO", "overrefusal_po")
    with Run.open(tmp_path, other, {"model": "m"}) as again:
        assert again.sittings == 1 and not again.done
        again.finish()
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == other
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["inputs"] == {"model": "m"} and status["seconds"] < 900
    log = (tmp_path / "log").read_text()
    assert "no such model" in log and "began here and made nothing" in log


@pytest.mark.parametrize("made", ["completions.jsonl", "shard-0-of-2/log", "checkpoints/x"])
def test_what_a_run_made_is_kept_from_another_recipe(tmp_path: Path, made: str) -> None:
    with Run.open(tmp_path, RECIPE, {}):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another recipe: seed"):
        Run.open(tmp_path, changed(seed=7), {})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_rank_that_is_no_writer_touches_nothing(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", RECIPE, {}, writer=False) as run:
        run.finish()
        run.fail(1, "x")
    assert not (tmp_path / "run").exists()


# the lock


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom overrefusal_po.run.folder import Run\n"
        "with Run.open(Path(sys.argv[1]), {'task': 'x'}, {}):\n    print('open', flush=True)\n    "
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="another process works on this run"):
            Run.open(tmp_path, {"task": "x"}, {})
        other.communicate("")
    assert other.returncode == 0
    with Run.open(tmp_path, {"task": "x"}, {}) as run:
        assert not run.done


# what is left after a fault


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (ValueError("bad row"), "failed", 2),
        (OSError("disk"), "failed", 1),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_status_holds_exit_code_and_message(
    tmp_path: Path, error: BaseException, state: str, code: int
) -> None:
    with pytest.raises(type(error)), Run.open(tmp_path, RECIPE, {}) as run:
        raise error
    status = run.status()
    assert (status["state"], status["exit_code"]) == (state, code)
    assert status["message"] == f"{type(error).__name__}: {error}"
    with Run.open(tmp_path, RECIPE, {}) as run:  # and the folder can be used again
        assert run.status()["state"] == "running" and "message" not in run.status()


def test_a_fault_after_the_end_leaves_the_run_done(tmp_path: Path) -> None:
    with pytest.raises(OSError), Run.open(tmp_path, RECIPE, {}) as run:
        run.finish()
        raise OSError("pipe")
    assert run.done


def test_seconds_add_up_over_all_attempts(tmp_path: Path) -> None:
    with Run.open(tmp_path, RECIPE, {}) as run:
        status = {**run.status(), "seconds": 100.0}
        (tmp_path / "status.json").write_text(json.dumps(status))
    with Run.open(tmp_path, RECIPE, {}) as run:
        run.finish()
    assert run.status()["seconds"] >= 100.0


# the manifest


def test_the_manifest_has_versions_hardware_and_commit_but_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_very_secret")
    with Run.open(tmp_path, RECIPE, {"data": "a"}) as run:
        run.finish()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["versions"].keys() >= {
        "overrefusal-po",
        "torch",
        "transformers",
        "trl",
        "peft",
        "python",
    }
    assert (
        "CPU cores" in manifest["hardware"]
        and "git_commit" in manifest
        and manifest["inputs"] == {"data": "a"}
    )
    for path in tmp_path.iterdir():
        assert "very_secret" not in path.read_text(), path


def test_the_commit_is_marked_if_the_checkout_has_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = git_commit()
    assert commit and not commit.endswith("+")
    (tmp_path / "new").write_text("x")
    assert git_commit() == f"{commit}+"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment()["git_commit"] is None


# files that grow


def message(text: str) -> Message:
    """A small record."""
    return Message(role="user", content=text)


def test_an_appender_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for text in ("a", "b\u2028\r\nc"):
        with Appender(path, Message) as file:
            file.add(message(text))
    with Appender(path, Message) as file:
        assert file.rows == [message("a"), message("b\u2028\r\nc")]


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_cut_off_and_made_again(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "rows.jsonl"
    with Appender(path, Message) as file:
        file.add(message("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + '{"role":"user","content":"ä"}\n'.encode()[:kept])
    with Appender(path, Message) as file:
        assert file.rows == [message("a")] and path.read_bytes() == whole
        file.add(message("b"))
    with Appender(path, Message) as file:
        assert file.rows == [message("a"), message("b")]


def test_what_was_added_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom overrefusal_po.records import Message\n"
        "from overrefusal_po.run.appender import Appender\nfile = Appender(Path(sys.argv[1]), "
        "Message)\nfile.add(Message(role='user', content='a'))\nos.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "rows.jsonl"
    assert (
        subprocess.run(
            [sys.executable, "-c", code, str(path)], check=False, env=os.environ
        ).returncode
        == -9
    )
    with Appender(path, Message) as file:
        assert file.rows == [message("a")]


def test_a_foreign_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"role": "user", "content": "a"}\n{"role": "bot", "content": "b"}\n')
    with pytest.raises(ValueError, match="line 2: not a Message"):
        Appender(path, Message)


def test_a_folder_of_an_older_version_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with Run.open(tmp_path, {"task": "evaluate"}, {}) as run:
        run.finish()
    status = json.loads((tmp_path / "status.json").read_text())
    del status["layout"]
    (tmp_path / "status.json").write_text(json.dumps(status))
    with pytest.raises(ValueError, match=r"older version \(layout 1, .*delete that folder"):
        Run.open(tmp_path, {"task": "evaluate"}, {})


@pytest.mark.parametrize("name", ["model/precious.bin", "notes.txt", "prompts.jsonl"])
def test_a_folder_of_somebody_else_is_refused_and_keeps_its_files(
    tmp_path: Path, name: str
) -> None:
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("precious")
    with pytest.raises(ValueError, match=f"it is no run folder .it holds {name.split('/')[0]}"):
        Run.open(tmp_path, {"task": "train"}, {})
    assert own.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {name.split("/")[0]}


def test_a_file_as_run_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"is a file\. Give the path of a new"):
        Run.open(tmp_path / "run", {"task": "train"}, {})


def test_an_empty_folder_and_one_with_shards_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "sharded" / "shard-1-of-2").mkdir(parents=True)
    (tmp_path / "sharded" / "completions.jsonl").write_text("")
    for name in ("empty", "sharded"):
        with Run.open(tmp_path / name, {"task": "curate"}, {}) as run:
            run.finish()
        assert Run.open(tmp_path / name, {"task": "curate"}, {}, writer=False).done


def test_a_tilde_in_run_dir_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert run_folder("r", {"run_dir": "~/runs/a"}, {}) == Path("/somewhere/runs/a")
