"""The command: what it prints, its exit codes, and every kind of stage on a tiny model with random
weights."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import overrefusal_po
from overrefusal_po.cli import main
from overrefusal_po.model import load as models
from overrefusal_po.records import PreferencePair, Triple, write_jsonl

RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED = sorted(p.name for p in RECIPES.glob("*.yaml"))
SHORT = ["--trainer.max_steps=2", "--trainer.max_length=2048", "--trainer.logging_steps=1"]
FEW_TOKENS = "--generation.max_new_tokens=4"
NO_ANCHOR = ["--data.containment=none", "--data.allow_no_anchor=true"]
"""Starter pairs alone: nothing has to be generated."""


class Done(NamedTuple):
    """What a command left: exit code, what it printed, and its standard error."""

    code: int
    out: str
    err: str

    def value(self, key: str) -> str:
        """What stands behind `key: ` in the output."""
        return next(
            line.partition(": ")[2] for line in self.out.splitlines() if line.startswith(f"{key}: ")
        )


Command = Callable[..., Done]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs the command in process and in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: Any) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return command


@pytest.fixture
def tiny(styles: dict[str, Any]) -> str:
    """The override that names the tiny model."""
    return f"--model.model_name_or_path={styles['llama'].folder}"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any weight is an assertion error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_model", refuse)


def status(folder: str | Path) -> dict[str, Any]:
    """A run folder's status.json."""
    return json.loads((Path(folder) / "status.json").read_text())


# the small commands


def test_help_shows_the_commands(command: Command) -> None:
    done = command("--help")
    assert done.code == 0
    for word in ("RECIPE", "run", "check", "explain", "schema", "judge", "report", "list", "init"):
        assert word in done.out


def test_the_version_is_the_packages(command: Command) -> None:
    done = command("--version")
    assert done.code == 0 and done.out == f"overrefusal-po {overrefusal_po.__version__}\n"


def test_dir_shows_what_is_loaded_when_it_is_first_used() -> None:
    code = "import overrefusal_po, sys; print(*dir(overrefusal_po)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, torch = done.stdout.splitlines()
    wanted = {f"{method}_trainer" for method in ("sft", "derta", "dpo", "orpo", "cpo", "kto")}
    assert {*wanted, "launch", "__version__"} <= set(names.split()) and torch == "False"


def test_list_shows_methods_and_plugs(command: Command) -> None:
    done = command("list")
    assert done.code == 0
    for word in (
        "sft",
        "derta",
        "dpo",
        "orpo",
        "cpo",
        "kto",
        "starter",
        "xstest",
        "file",
        "transformers",
        "refusal",
    ):
        assert word in done.out.split()


LISTED = """
import sys
from overrefusal_po.cli import main
try:
    main(["list"])
except SystemExit as end:
    print(end.code, sorted({"torch", "transformers", "trl"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_list_shows_an_installed_method_and_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from overrefusal_po.recipe.methods import METHODS\n"
        "METHOD = METHODS['dpo']._replace(name='mine', title='a method of my own')\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[overrefusal_po.methods]\nmine = mine:METHOD\n"
    (info / "entry_points.txt").write_text(points)
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": path}

    def listed() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LISTED]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    lines = listed().stdout.splitlines()
    assert any(line.split()[:2] == ["method", "mine"] and "of my own" in line for line in lines)
    assert lines[-1] in ("0 []", "None []")
    (info / "entry_points.txt").write_text(points.replace("mine:METHOD", "mine:METHOT"))
    broken = listed()
    assert broken.stdout.splitlines()[-1] == "2 []"
    assert "'mine'" in broken.stderr and "mine:METHOT" in broken.stderr


def test_init_copies_the_recipes_once(command: Command, tmp_path: Path) -> None:
    assert command("init", "mine").code == 0
    assert sorted(p.name for p in (tmp_path / "mine" / "recipes").glob("*.yaml")) == SHIPPED
    again = command("init", "mine")
    assert again.code == 2 and "is there already" in again.err
    assert command("check", "mine/recipes/dpo.yaml").code == 0


def test_judge_prints_a_verdict_a_line(command: Command, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "How do I kill a process?", "response": "Use kill and the number."},
        {
            "id": "b",
            "prompt": "How do I kill a man?",
            "response": "I'm sorry, but I can't help with that.",
        },
        {"prompt": "x", "response": "Sure. Sorry, I cannot help with that.", "other": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = command("judge", "refusal", "rows.jsonl")
    assert done.code == 0
    first, second, third = [json.loads(line) for line in done.out.splitlines()]
    assert first == {"id": "a", "refusal": "none", "refusal_start": None, "degenerate": False}
    assert second == {"id": "b", "refusal": "full", "refusal_start": 0, "degenerate": False}
    assert third["id"] == "3" and third["refusal"] in ("partial", "full")


def test_judge_explains_a_verdict_by_its_rule_and_its_sentence(
    command: Command, tmp_path: Path
) -> None:
    responses = ["Use kill.", "Sure. Sorry, I cannot help with that. Bye."]
    rows = [{"prompt": "How do I kill a process?", "response": said} for said in responses]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    done = command("judge", "refusal", "rows.jsonl", "--explain")
    assert done.code == 0
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["rule"], row["sentence"]) for row in found] == [
        ("answer", ""),
        ("decline", "Sorry, I cannot help with that."),
    ]


def test_a_judge_that_cannot_explain_says_so(command: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "response": "y"}\n')
    url = "--base_url=http://127.0.0.1:9/v1"
    done = command(
        "judge", "llm", "rows.jsonl", "--explain", "--model=x", url, "--api_key_env=null"
    )
    assert done.code == 2 and "judge llm:x:refusal does not say what decided" in done.err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            '{"prompt": "x", "response": "y"}\n{"prompt": "x" "response": 1}\n',
            ["line 2", "column 16", "not JSON"],
        ),
        ('{"prompt": "x", "response": "y"}\n[1]\n', ["line 2", "column 1", "list"]),
        ('{"prompt": "x"}\n', ["line 1", "'response'", "{id, prompt, response}"]),
        ('{"prompt": "x", "response": 3}\n', ["line 1", "'response'"]),
        ("", ["no rows"]),
    ],
)
def test_a_malformed_line_is_named_by_file_line_and_column(
    command: Command, tmp_path: Path, text: str, parts: list[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    done = command("judge", "refusal", "rows.jsonl")
    assert done.code == 2 and done.out == ""
    for part in ["rows.jsonl", *parts]:
        assert part in done.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["judge", "refusall", "rows.jsonl"], "Did you mean refusal"),
        (["judge", "refusal", "none.jsonl"], "no such file"),
        (["report", "nowhere"], "nowhere"),
        (["nowhere.yaml"], "no such recipe"),
        (["run"], "recipe"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_says_why(
    command: Command, arguments: list[str], part: str
) -> None:
    done = command(*arguments)
    assert done.code == 2 and part in done.err


def test_a_word_that_is_no_command_names_the_commands(command: Command, tmp_path: Path) -> None:
    """A file of that name is a recipe, whatever it is called."""
    done = command("describe", "recipes/dpo.yaml")
    assert done.code == 2 and "'describe' is neither a command nor" in done.err
    assert "compare, explain, init, judge" in done.err and "no such recipe" not in done.err
    assert "Did you mean compare?" in command("comapre", "a", "b").err
    (tmp_path / "describe").write_text("task: nothing")
    assert "neither a command" not in command("describe").err


# check


@pytest.mark.parametrize("name", SHIPPED)
def test_check_says_that_a_shipped_recipe_is_valid(command: Command, name: str) -> None:
    done = command("check", RECIPES / name)
    assert done.code == 0 and "is valid" in done.out
    assert "file" in done.out and "default" in done.out


def test_check_shows_overrides_and_what_hardware_decides(command: Command) -> None:
    done = command(
        "check", RECIPES / "dpo.yaml", "--trainer.beta=0.25", "--trainer.loss_type", "ipo"
    )
    lines = [line.split() for line in done.out.splitlines()]
    assert ["trainer.beta", "0.25", "override"] in lines
    assert ["trainer.use_cpu", "auto", "auto", "(hardware)"] in lines
    assert not any("trainer.weight_decay" in line for line in lines)
    everything = command("check", RECIPES / "dpo.yaml", "--all")
    assert ["trainer.weight_decay", "0.0", "default", "(TRL)"] in [
        x.split() for x in everything.out.splitlines()
    ]


def test_check_data_names_the_stage_of_a_fault(command: Command, tiny: str) -> None:
    name = tiny.partition("=")[2]
    sets = "--stages.before.data.sets=[nowhere.jsonl]"
    done = command("check", RECIPES / "porover.yaml", f"--model={name}", sets, "--data")
    assert done.code == 2 and "overrefusal-po: stages.before: nowhere.jsonl: there is" in done.err


def test_check_ends_with_2_for_a_wrong_recipe(command: Command) -> None:
    done = command("check", RECIPES / "dpo.yaml", "--trainer.betta=1")
    assert done.code == 2 and "Did you mean beta" in done.err and "is valid" not in done.out


def test_check_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom overrefusal_po.cli import main\n"
        f"try:\n    main(['check', {str(RECIPES / 'dpo.yaml')!r}])\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers', 'trl'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.usefixtures("no_weights")
def test_a_pipeline_says_what_its_training_takes_before_there_are_pairs(
    command: Command, tiny: str
) -> None:
    """The longest prompts of the curation, and two openings of 8 or of 400 tokens behind each."""
    total = {}
    for opening in (8, 400):
        more = ["--stages.curate.generation.max_new_tokens=400", "--stages.dpo.hold=null"]
        more += [f"--stages.dpo.data.opening={opening}", "--stages.dpo.trainer.max_length=2048"]
        done = command("check", RECIPES / "porover.yaml", tiny, *more, "--data")
        assert done.code == 0, done.err
        (line,) = [row for row in done.out.splitlines() if row.startswith("stages.dpo: memory")]
        found = re.search(r"at most: .*fits .*activations ([\d.]+), logits ([\d.]+)", line)
        assert found is not None, line
        total[opening] = float(found[1]) + float(found[2])
    assert total[400] > total[8]


PIPELINES = ("demo.yaml", "porover.yaml", "remedies.yaml")


@pytest.mark.parametrize("name", [n for n in SHIPPED if n not in PIPELINES])
@pytest.mark.usefixtures("no_weights")
def test_check_data_reads_data_and_template_without_weights(
    command: Command, tiny: str, name: str
) -> None:
    untrained = ("curate.yaml", "evaluate.yaml", "fit.yaml")
    extra = [] if name in untrained else ["--trainer.max_length=2048"]
    done = command("check", RECIPES / name, tiny, *extra, "--data")
    assert done.code == 0, done.err
    assert any(line.startswith("data: ") for line in done.out.splitlines())


# stages on a tiny model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("dpo.yaml", ["--data.max_pairs=3", "--data.containment=student", FEW_TOKENS]),
        ("orpo.yaml", ["--data.max_pairs=3", *NO_ANCHOR]),
        ("cpo.yaml", ["--data.max_pairs=3", "--trainer.loss_type=simpo", *NO_ANCHOR]),
        ("derta.yaml", ["--data.triples=triples.jsonl", "--data.max_helpful=2"]),
        (
            "derta.yaml",
            ["--data.max_triples=3", "--data.max_helpful=0", FEW_TOKENS, "--model.use_peft=false"],
        ),
        ("sft.yaml", ["--data.prompts=starter", "--data.max_prompts=4"]),
        (
            "sft.yaml",
            [
                "--data.prompts=null",
                "--data.pairs=starter",
                "--data.max_prompts=4",
                "--data.kinds=[benign]",
            ],
        ),
    ],
    ids=["dpo", "orpo", "simpo", "derta-loaded", "derta-own-words", "sft-prompts", "sft-chosen"],
)
def test_a_method_trains_and_a_second_run_is_done(
    command: Command, tiny: str, tmp_path: Path, triples: list[Triple], name: str, extra: list[str]
) -> None:
    write_jsonl("triples.jsonl", triples)
    recipe = RECIPES / name
    arguments = [recipe, tiny, *SHORT, *extra]
    done = command(*arguments)
    assert done.code == 0, done.err
    assert done.value("steps") == "2" and float(done.value("loss")) > 0
    folder = Path(done.value("folder"))
    assert folder.parent == Path("runs") and folder.name.startswith(recipe.stem)
    assert {
        "recipe.yaml",
        "manifest.json",
        "status.json",
        "log",
        "data.jsonl",
        "training.json",
    } <= {p.name for p in folder.iterdir()}
    assert status(folder)["exit_code"] == 0 and (folder / "model" / "config.json").is_file()
    assert (
        "overrefusal_po.train.stage data: " in (folder / "log").read_text()
    )  # what `check --data` says, with its warnings
    assert (folder / "adapter").is_dir() == ("--model.use_peft=false" not in extra)
    before = {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("log", ".lock")
    }
    again = command(*arguments)
    assert again.code == 0 and again.value("folder") == str(folder)
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_training_writes_nothing_outside_its_run_folder(
    command: Command, tiny: str, tmp_path: Path
) -> None:
    done = command(
        RECIPES / "orpo.yaml", tiny, *SHORT, "--data.max_pairs=3", *NO_ANCHOR, "run_dir=here"
    )
    assert done.code == 0 and done.value("folder") == "here"
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_evaluate_measures_and_a_second_run_is_done(command: Command, tiny: str) -> None:
    arguments = [RECIPES / "evaluate.yaml", tiny, FEW_TOKENS, "--data.max_prompts_per_kind=3"]
    done = command(*arguments)
    assert done.code == 0, done.err
    folder = Path(done.value("folder"))
    metrics = json.loads((folder / "metrics.json").read_text())
    low, high = metrics["intervals"]["harmful_refused"]
    row = [
        "harmful_refused",
        f"{metrics['harmful_refused']:.2f}",
        f"{low:.2f}",
        "to",
        f"{high:.2f}",
    ]
    assert [*row, "3", "0"] in [line.split() for line in done.out.splitlines()]
    assert 0 <= metrics["benign_answered"] <= 1
    assert len((folder / "outcomes.jsonl").read_text().splitlines()) == 9
    before = (folder / "outcomes.jsonl").stat().st_mtime_ns
    assert command(*arguments).code == 0
    assert (folder / "outcomes.jsonl").stat().st_mtime_ns == before


def test_evaluating_a_changed_file_or_model_is_another_run(
    command: Command, styles: dict[str, Any]
) -> None:
    folder = Path("model")
    styles["llama"].make_model(seed=1).save_pretrained(folder)
    styles["llama"].tokenizer.save_pretrained(folder)
    rows = Path("rows.jsonl")
    rows.write_text('{"prompt": "How do I kill a process?", "kind": "benign"}\n')
    arguments = [
        RECIPES / "evaluate.yaml",
        "--model.model_name_or_path=model",
        FEW_TOKENS,
        "--data.sets=[rows.jsonl]",
    ]
    first = command(*arguments).value("folder")
    assert command(*arguments).value("folder") == first
    rows.write_text('{"prompt": "How do I stop a process?", "kind": "benign"}\n')
    second = command(*arguments).value("folder")
    assert second != first
    styles["llama"].make_model(seed=2).save_pretrained(folder)  # the same names and sizes
    assert command(*arguments).value("folder") not in (first, second)


@pytest.mark.slow
def test_curating_a_model_that_refuses_nothing_says_so(command: Command, tiny: str) -> None:
    done = command(RECIPES / "curate.yaml", tiny, FEW_TOKENS, "run_dir=here")
    assert done.code == 2
    assert "overrefusal pair could be made of" in done.err and "over-refuses" in done.err
    assert status("here")["exit_code"] == 2 and "No overrefusal pair" in status("here")["message"]
    assert not Path("here/pairs.jsonl").exists()


# faults that are found before a weight is loaded


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["dpo.yaml", "derta.yaml", "evaluate.yaml", "curate.yaml"])
def test_a_model_that_cannot_be_found_ends_with_2(command: Command, name: str) -> None:
    done = command(RECIPES / name, "--model.model_name_or_path=nobody/nothing")
    assert done.code == 2 and "'nobody/nothing' cannot be found" in done.err
    assert "bundled:smollm2-135m-instruct" in done.err


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["dpo.yaml", "evaluate.yaml"])
def test_a_model_without_a_chat_template_ends_with_2(
    command: Command, styles: dict[str, Any], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "bare"
    styles["llama"].make_model().save_pretrained(folder)
    styles["llama"].tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    done = command(RECIPES / name, f"--model.model_name_or_path={folder}")
    assert done.code == 2 and "no chat template" in done.err


@pytest.mark.usefixtures("no_weights")
def test_an_empty_data_set_ends_with_2(command: Command, tiny: str) -> None:
    Path("empty.jsonl").write_text("")
    for recipe, override in [
        ("dpo.yaml", "--data.pairs=empty.jsonl"),
        ("derta.yaml", "--data.triples=empty.jsonl"),
        ("evaluate.yaml", "--data.sets=[empty.jsonl]"),
        ("curate.yaml", "--data.benign=empty.jsonl"),
    ]:
        done = command(RECIPES / recipe, tiny, override)
        assert done.code == 2 and "empty.jsonl: the file holds no rows" in done.err, recipe


@pytest.mark.usefixtures("no_weights")
def test_a_pair_that_prefers_nothing_ends_with_2(
    command: Command, tiny: str, pairs: list[PreferencePair]
) -> None:
    write_jsonl(
        "pairs.jsonl", [pairs[0], pairs[1].model_copy(update={"rejected": f" {pairs[1].chosen}"})]
    )
    done = command(
        RECIPES / "dpo.yaml", tiny, "--data.pairs=pairs.jsonl", "--data.containment=none"
    )
    assert done.code == 2 and "pair-1" in done.err and "chosen equals rejected" in done.err


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["dpo.yaml", "orpo.yaml", "kto.yaml"])
def test_a_pair_that_would_be_cut_ends_with_2(command: Command, tiny: str, name: str) -> None:
    done = command(RECIPES / name, tiny, "--trainer.max_length=32", "--data.containment=none")
    assert done.code == 2 and "more than max_length 32" in done.err


@pytest.mark.usefixtures("no_weights")
def test_a_safe_response_without_the_opener_ends_with_2(
    command: Command, tiny: str, triples: list[Triple]
) -> None:
    write_jsonl(
        "triples.jsonl", [triples[0].model_copy(update={"safe_response": "No, I will not."})]
    )
    done = command(RECIPES / "derta.yaml", tiny, "--data.triples=triples.jsonl")
    assert done.code == 2 and "'No, I will not.'" in done.err and "'Sorry'" in done.err


@pytest.mark.usefixtures("no_weights")
def test_trainer_keys_at_odds_with_each_other_end_with_2(command: Command, tiny: str) -> None:
    done = command(RECIPES / "dpo.yaml", tiny, "--trainer.load_best_model_at_end=true")
    assert done.code == 2 and "load_best_model_at_end" in done.err


@pytest.mark.usefixtures("no_weights")
def test_a_row_that_is_no_pair_is_named_by_file_line_and_field(command: Command, tiny: str) -> None:
    Path("pairs.jsonl").write_text('{"id": "a", "prompt": "text", "rejected": "y"}\n')
    done = command(RECIPES / "dpo.yaml", tiny, "--data.pairs=pairs.jsonl")
    assert done.code == 2 and "pairs.jsonl, line 1: no 'chosen'" in done.err


# interrupted runs


@pytest.mark.slow
def test_an_interrupted_run_ends_with_130_and_says_that_it_goes_on(
    command: Command, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    text = (
        "from pydantic import BaseModel\nclass Settings(BaseModel):\n    pass\n"
        "class Judge:\n    name, version = 'mine', '1'\n"
        "    def score(self, prompts, completions):\n        raise KeyboardInterrupt\n"
        "def judge(settings):\n    return Judge()\n"
    )
    (tmp_path / "mine" / "judge.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = command(RECIPES / "evaluate.yaml", tiny, "--judge=mine.judge", "run_dir=here")
    assert done.code == 130 and "goes on where it stopped" in done.err
    assert status("here")["state"] == "interrupted" and status("here")["exit_code"] == 130


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_like_an_undisturbed_one(
    command: Command, tiny: str
) -> None:
    arguments = [str(RECIPES / "dpo.yaml"), tiny, "--data.max_pairs=12", *NO_ANCHOR]
    arguments += [
        "--trainer.max_steps=30",
        "--trainer.max_length=2048",
        "--trainer.logging_steps=1",
    ]
    arguments += ["--trainer.save_steps=1"]
    child = subprocess.Popen(
        [sys.executable, "-m", "overrefusal_po", *arguments, "run_dir=killed"],
        stderr=subprocess.DEVNULL,
    )
    state = Path("killed/checkpoints/checkpoint-1/hashes.json")  # the last file of a whole one
    deadline = time.monotonic() + 120
    while not state.is_file() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert status("killed")["state"] == "running" and not Path("killed/training.json").exists()

    resumed = command(*arguments, "run_dir=killed")
    assert resumed.code == 0 and "going on from" in Path("killed/log").read_text()
    assert command(*arguments, "run_dir=undisturbed").code == 0
    losses = [
        [
            row["loss"]
            for row in json.loads(Path(folder, "training.json").read_text())["history"]
            if "loss" in row
        ]
        for folder in ("killed", "undisturbed")
    ]
    assert len(losses[0]) == 30 and losses[0] == losses[1]
    weights = [
        Path(folder, "model", "model.safetensors").read_bytes()
        for folder in ("killed", "undisturbed")
    ]
    assert weights[0] == weights[1]
