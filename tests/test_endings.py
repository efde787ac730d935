"""How a run begins and ends on the terminal: a line at once, no words of other packages, progress
in words, numbers as tables, and the next commands."""

import logging
import os
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from overrefusal_po.cli import main
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.report.next_steps import next_steps
from overrefusal_po.report.quiet import QUIET, quiet_packages
from overrefusal_po.report.terminal import print_next, print_result
from overrefusal_po.run.pace import Pace, in_words, spoken
from overrefusal_po.stages import recipes_folder

RECIPES = Path(__file__).parents[1] / "recipes"
HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
FEW = ["--trainer.max_steps=2", "--trainer.max_length=2048", "--data.max_pairs=4"]
FEW += ["--data.containment=none", "--data.allow_no_anchor=true", "--trainer.use_cpu=true"]
FEW += ["--trainer.logging_steps=1"]
NOISE = ("Warning", "it/s]", "0%|", "Loading weights", "kernels-community", "{'", "Map:")


def ran(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in `folder`; `path` stands before other packages."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_DATASETS", "TQDM"))}
    inherited = [entry for entry in (path, os.environ.get("PYTHONPATH", "")) if entry]
    return subprocess.run(
        [sys.executable, "-m", "overrefusal_po", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**kept, "PYTHONPATH": os.pathsep.join(inherited)},
    )


def test_the_first_line_comes_before_anything_slow_is_imported(tmp_path: Path) -> None:
    for name in HEAVY:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('imports {name}')\n")
    done = ran(tmp_path, str(RECIPES / "dpo.yaml"), path=str(tmp_path))
    said = " ".join(done.stderr.split())
    assert "RuntimeError: imports" in said and done.returncode == 1
    assert said.index("dpo: training by dpo of") < said.index("Traceback")


@pytest.mark.slow
@pytest.mark.parametrize("verbose", [[], ["-v"]], ids=["quiet", "verbose"])
def test_other_packages_say_nothing_unless_they_are_asked(
    styles: dict[str, Any], tmp_path: Path, verbose: list[str]
) -> None:
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    recipe = str(RECIPES / "dpo.yaml")
    done = ran(tmp_path, *verbose, recipe, model, *FEW, "run_dir=here")
    assert done.returncode == 0, done.stderr
    found = [noise for noise in NOISE if noise in done.stdout + done.stderr]
    assert bool(found) == bool(verbose), found
    said = " ".join(done.stderr.split())
    assert "training: step 2 of 2, loss " in said and "saving here/model" in said
    assert "next: measure it" in done.stdout and "vllm serve here/model" in done.stdout


@pytest.mark.slow
def test_checking_data_is_quiet_too(styles: dict[str, Any], tmp_path: Path) -> None:
    model = f"--model.model_name_or_path={styles['llama'].folder}"
    done = ran(tmp_path, "check", "--data", str(RECIPES / "dpo.yaml"), model, *FEW)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "data: " in done.stdout and "is valid." in done.stdout


def test_what_packages_warn_of_is_caught_and_everything_comes_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.delenv("DATASETS_VERBOSITY", raising=False)
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("py.warnings").addHandler(handler)
    with warnings.catch_warnings(), quiet_packages():
        warnings.simplefilter("always")
        warnings.warn("of a package", FutureWarning, stacklevel=1)
        assert os.environ["TQDM_DISABLE"] == "0", "what the user has set stays"
        assert os.environ["DATASETS_VERBOSITY"] == "error"
        logging.getLogger("a.package").warning("of a package")
    logging.getLogger("py.warnings").removeHandler(handler)
    assert len(seen) == 1 and "FutureWarning: of a package" in seen[0]
    assert capsys.readouterr() == ("", "")
    assert "DATASETS_VERBOSITY" not in os.environ and set(QUIET) > {"TQDM_DISABLE"}
    with pytest.warns(FutureWarning, match="again"):
        warnings.warn("again", FutureWarning, stacklevel=1)


def test_our_own_warnings_are_printed_while_packages_are_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("overrefusal_po"), "handlers", [])
    with quiet_packages():
        logging.getLogger("overrefusal_po.train").warning("missing_bos: %s", "<s>\x1b[2J")
        logging.getLogger("overrefusal_po.train").info("a detail")
        logging.getLogger("overrefusal_post").warning("of a package")
    assert capsys.readouterr() == ("", "missing_bos: <s>\n")


# progress


def test_progress_says_how_far_it_is_and_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace("training: step", 3, every=0)
    for step in (1, 2, 3):
        pace.reached(step, "loss 0.5")
    assert [m.partition(", about")[0] for m in caplog.messages] == [
        f"training: step {step} of 3, loss 0.5" for step in (1, 2, 3)
    ]
    assert caplog.messages[0].endswith("loss 0.5") and caplog.messages[1].endswith(" left")
    assert caplog.messages[2].endswith("loss 0.5")


def test_the_first_part_of_a_batch_does_not_count_as_all_that_was_computed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace("answering:", 64, every=0.1)
    for batch in (0, 32):
        time.sleep(0.2)
        for item in range(1, 33):
            pace.reached(batch + item)
    assert "left" not in caplog.messages[0]  # 1 of 64, after a whole batch
    assert caplog.messages[1].startswith("answering: 33 of 64, about 0 s left")


def test_progress_is_rare_and_the_last_item_is_always_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert list(spoken(range(1000), "answering", total=1000)) == list(range(1000))
    assert caplog.messages == ["answering: 1000 of 1000"]


def test_the_end_of_a_short_work_may_go_unsaid(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list(spoken(range(3), "answering", total=3, short=False)) == [0, 1, 2]
    assert caplog.messages == []
    pace = Pace("answering:", 3, every=0.05, short=False)
    for done in (1, 2, 3):
        time.sleep(0.04)
        pace.reached(done)
    assert [m.partition(",")[0] for m in caplog.messages] == [
        f"answering: {done} of 3" for done in (2, 3)
    ]


def test_the_time_left_does_not_count_what_an_earlier_run_did(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pace = Pace("step", 1000, every=0)
    pace.started -= 10  # this run has worked for ten seconds
    pace.reached(991)
    pace.reached(992)
    assert caplog.messages == ["step 991 of 1000", "step 992 of 1000, about 80 s left"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (170, "3 min"), (9000, "2.5 h"), (0, "0 s")]
)
def test_times_are_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


# the result


def test_a_result_is_numbers_and_tables_and_never_a_raw_mapping(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_result(
        {
            "name": "m",
            "loss": 1.0599966049194336,
            "harmful_refused": 0.5,
            "f1": None,
            "n": {"harmful_refused": 8, "f1": 8},
            "unscored": {"harmful_refused": 1, "f1": 0},
            "intervals": {"harmful_refused": [0.25, 0.75], "f1": None},
            "overrefusal": {"made": 4, "left_out": {"too_long": 2}},
            "hygiene": {"duplicates": {}},
            "unfilled": [],
            "folder": "runs/a",
            "capability": {"perplexity": {"value": 54.61, "low": 32.92, "high": 90.09, "n": 8}},
        }
    )
    out = capsys.readouterr().out
    assert "perplexity: 54.6 (32.9 to 90.1) on 8 reference answers" in out
    assert "{" not in out and "[" not in out
    rows = [line.split() for line in out.splitlines()]
    assert ["harmful_refused", "0.50", "0.25", "to", "0.75", "8", "1"] in rows
    assert ["f1", "n/a", "8", "0"] in rows and ["loss:", "1.06"] in rows
    assert ["overrefusal", "made", "4"] in rows
    assert ["overrefusal,", "left", "out", "too", "long", "2"] in rows


# the next command


@pytest.mark.parametrize(
    "folder",
    ["runs/a", 'my runs/it\'s "this" $HOME; rm x', "-f", "{a: 1}", "a: b", "1e5", "ä #c", "a\\b"],
)
def test_the_commands_after_a_training_can_be_pasted_into_a_shell(folder: str) -> None:
    model = f"{folder}/model"
    steps = next_steps({"folder": folder, "model": model}, "train", RECIPES)
    measure, serve, convert = [shlex.split(command) for _, command in steps]
    assert measure[0] == "overrefusal-po" and recipes_folder() == RECIPES
    recipe = load_recipe(measure[1], measure[2:])
    assert recipe.resolved()["model"]["model_name_or_path"] == model
    path = f"./{model}" if folder == "-f" else model
    assert serve == ["vllm", "serve", path]
    assert convert[2:] == [path, "--outfile", f"{path}.gguf"]


@pytest.mark.parametrize("folder", ["run", "a run; x"])
def test_the_commands_after_a_curation_check_and_train_on_its_pairs(
    tmp_path: Path, folder: str
) -> None:
    made = tmp_path / folder
    made.mkdir()
    (made / "pairs.jsonl").write_text("{}\n")
    steps = dict(next_steps({"folder": str(made)}, "curate", RECIPES))
    assert shlex.split(steps["check them"]) == ["overrefusal-po", "check", f"{made}/pairs.jsonl"]
    _, recipe, *overrides = shlex.split(steps["train on them"])
    assert load_recipe(recipe, overrides).body.data["pairs"] == f"{made}/pairs.jsonl"


def test_pairs_are_trained_into_the_student_that_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    asked = ("--model=my/model", "--model.model_revision=v2", "--chat.system_prompt=Be # brief: x")
    more = ("--chat.chat_template_kwargs.enable_thinking=false", "--model.dtype=float32")
    curated = load_recipe(RECIPES / "curate.yaml", [*asked, *more])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(curated.resolved()))
    steps = dict(next_steps({"folder": str(tmp_path)}, "curate", RECIPES))
    _, recipe, *overrides = shlex.split(steps["train on them"])
    trained = load_recipe(recipe, overrides).resolved()
    assert trained["chat"] == curated.resolved()["chat"]
    assert trained["model"]["model_name_or_path"] == "my/model"
    assert trained["model"]["model_revision"] == "v2" and "dtype" not in trained["model"]


def test_the_commands_after_an_evaluation_and_a_pipeline(tmp_path: Path) -> None:
    for stage in ("derta", "dpo"):
        (tmp_path / stage / "model").mkdir(parents=True)
        os.utime(tmp_path / stage / "model", (1, 1 if stage == "derta" else 2))
    (tmp_path / "summary.json").write_text("{}")
    found = {"folder": str(tmp_path)}
    assert next_steps(found, "evaluate", RECIPES) == [
        ("make its page", f"overrefusal-po report {tmp_path}"),
        ("compare it", f"overrefusal-po compare RUN_BEFORE {tmp_path}"),
    ]
    (tmp_path / "dpo" / "training.json").write_text("{}")
    measured = {"folder": "eval", "model": str(tmp_path / "dpo" / "model")}
    assert next_steps(measured, "evaluate", RECIPES)[2] == (
        "write its model card",
        f"overrefusal-po card {tmp_path}/dpo eval",
    )
    words = [command for _, command in next_steps(found, "pipeline", RECIPES)]
    assert words[:2] == [f"overrefusal-po card {tmp_path}", f"vllm serve {tmp_path}/dpo/model"]


def test_every_command_of_ours_that_is_named_is_there(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    (tmp_path / "dpo" / "model").mkdir(parents=True)
    found = {"folder": str(tmp_path), "model": "m"}
    for task in ("train", "curate", "evaluate", "pipeline"):
        for _, command in next_steps(found, task, RECIPES):
            program, name, *_ = shlex.split(command)
            if program == "overrefusal-po" and not name.endswith(".yaml"):
                with pytest.raises(SystemExit) as end:
                    main([name, "--help"])
                assert end.value.code == 0, name


def test_a_command_is_printed_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_next([("serve it", "vllm serve " + "a" * 300), ("x", "y")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["next: serve it  vllm serve " + "a" * 300, "      x         y"]
