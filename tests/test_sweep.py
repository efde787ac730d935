"""recipes/sweeps: the shipped file, run by the real `wandb sweep` and `wandb agent` against a
server on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb_server import Run, Server, serving

from overrefusal_po.cli import main
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.overrides import dotted
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.train.trackers import METRIC

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted((RECIPES / "sweeps").glob("*.yaml"))
KEY = "0123456789abcdef" * 2 + "deadbeef"
FORMS = [
    "args",
    "args_no_hyphens",
    "args_no_equals",
    "args_no_boolean_flags",
    "args_append_hydra",
    "args_override_hydra",
]


def tiny(folder: Path) -> dict[str, Any]:
    """What makes a trial small. A list, a whole number, a bool: each arrives as Python's str() of
    it."""
    return {
        "model.model_name_or_path": str(folder),
        "data.containment": "none",
        "data.allow_no_anchor": True,
        "data.max_pairs": 4,
        "trainer.loss_type": ["sigmoid", "sft"],
        "trainer.max_length": 2048,
        "trainer.max_steps": 2,
        "trainer.save_steps": 5000,
        "select.every_steps": 1,
        "select.max_prompts_per_kind": 2,
        "select.max_new_tokens": 2,
    }


def environment(folder: Path, server: Server) -> dict[str, str]:
    """That of a user who has logged in to `server`, with nothing of wandb's outside `folder`."""
    own = {f"WANDB_{name}_DIR": str(folder / "home") for name in ("CONFIG", "CACHE", "DATA")}
    known = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own["WANDB__FILE_STREAM_TRANSMIT_INTERVAL"] = (
        "0.5"  # seconds; 15 would be most of this test's time
    )
    return {**known, **own, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


def called(folder: Path, server: Server, *command: str, **more: str) -> str:
    """What a command printed, run in `folder`; it has to end well."""
    env = {**environment(folder, server), **more}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# the real agent, but it looks for work and for ended trials twice a second, not every 5 seconds
AGENT = """
import sys
from wandb import wandb_agent
from wandb.cli.cli import cli
wandb_agent.Agent.POLL_INTERVAL = 0.5
cli(["agent", sys.argv[1]])
"""


def trial(file: Path, **values: Any) -> dict[str, Any]:
    """Values for the parameters of a sweep file: a constant, the first of a list, the middle of a
    range."""
    parameters = yaml.safe_load(file.read_text())["parameters"]
    middle = {
        k: v.get("value", v["values"][0] if "values" in v else v.get("min"))
        for k, v in parameters.items()
    }
    return {**middle, **values}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.parametrize("form", FORMS)
def test_a_shipped_sweep_is_over_recipe_keys_in_every_form_that_wandb_writes(
    file: Path, form: str
) -> None:
    given = trial(file, **{"trainer.bf16": True, "trainer.learning_rate": 1e-05})
    command = {"args": {key: {"value": value} for key, value in given.items()}}
    recipe = load_recipe(RECIPES / file.name, create_sweep_command_args(command)[form])
    assert isinstance(recipe.body, TrainRecipe) and recipe.body.select is not None
    assert recipe.body.trainer["learning_rate"] == 1e-05 and recipe.body.trainer["bf16"] is True
    assert set(given) <= {key for key, origin in recipe.origin.items() if origin == "override"}
    metric = yaml.safe_load(file.read_text())["metric"]
    assert metric == {"name": METRIC, "goal": "maximize"}


def test_a_nested_parameter_is_an_error_that_names_dotted_keys() -> None:
    command = {"args": {"trainer": {"value": {"beta": 0.2, "seed": 1}}}}
    for form in FORMS:
        with pytest.raises(ValueError, match=r"--trainer\.beta=0\.2 --trainer\.seed=1"):
            load_recipe(RECIPES / "dpo.yaml", create_sweep_command_args(command)[form])


@pytest.fixture(scope="module")
def swept(
    styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Server, Path, str]:
    """(server, folder, output) of two trials, the second of which the server stops early. Most of
    this file's time: each trial imports torch."""
    folder, small = tmp_path_factory.mktemp("sweep"), tiny(styles["llama"].folder)
    with pytest.raises(SystemExit):
        main(["init", str(folder)])
    file = folder / "recipes" / "sweeps" / "dpo.yaml"
    trials = [
        trial(file, **small, **{"trainer.beta": 0.05, "trainer.learning_rate": 1e-05}),
        trial(file, **small, **{"trainer.beta": 0.3}) | {"trainer.max_steps": 3000},
    ]

    def enough(run: Run) -> bool:
        return len(run.values(METRIC)) > 3

    with serving(trials, enough) as server:
        printed = called(folder, server, "wandb", "sweep", str(file.relative_to(folder)))
        path = printed.split("wandb agent ")[1].split()[0]
        printed += called(folder, server, sys.executable, "-c", AGENT, path)
        return server, folder, printed


def test_the_server_gets_the_file_as_it_is(swept: tuple[Server, Path, str]) -> None:
    assert yaml.safe_load(swept[0].sweep) == yaml.safe_load(
        (RECIPES / "sweeps" / "dpo.yaml").read_text()
    )
    assert swept[0].unknown == []


def test_each_trial_has_a_run_and_a_run_folder_of_its_own(swept: tuple[Server, Path, str]) -> None:
    server, folder, printed = swept
    assert list(server.runs) == ["trial0", "trial1"] and {
        run.sweep for run in server.runs.values()
    } == {"sweep123"}
    recipes = [yaml.safe_load(file.read_text()) for file in folder.glob("runs/dpo-*/recipe.yaml")]
    recipes.sort(key=lambda recipe: recipe["trainer"]["beta"])
    assert [recipe["trainer"]["beta"] for recipe in recipes] == [0.05, 0.3], printed
    for run, recipe in zip(server.runs.values(), recipes, strict=True):
        leaves = {
            key: value for key, value in dotted(recipe) if value != {}
        }  # wandb leaves empty mappings out
        assert dict(dotted(run.config["recipe"]["value"])) == leaves


def test_the_metric_is_the_score_of_every_look(swept: tuple[Server, Path, str]) -> None:
    run, folder = swept[0].runs["trial0"], swept[1]
    assert run.exit_code == 0
    (file,) = [
        f
        for f in folder.glob("runs/*/selection.jsonl")
        if "beta: 0.05" in (f.parent / "recipe.yaml").read_text()
    ]
    looks = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row for row in run.history if METRIC in row]
    assert [row[METRIC] for row in rows] == [look["score"] for look in looks]
    assert [row["train/global_step"] for row in rows] == [0, 1, 2]
    assert run.summary[METRIC] == next(look["score"] for look in reversed(looks) if look["kept"])


def test_a_trial_that_has_shown_enough_is_stopped(swept: tuple[Server, Path, str]) -> None:
    server, folder, _ = swept
    assert server.stopped and set(server.stopped) == {"trial1"}
    assert 3 < len(server.runs["trial1"].values(METRIC)) < 3000
    states = sorted(
        json.loads(file.read_text())["state"] for file in folder.glob("runs/*/status.json")
    )
    assert len(states) == 2 and states[0] == "done" and states[1] != "done"


def test_the_key_stands_in_no_file_and_in_nothing_that_was_printed(
    swept: tuple[Server, Path, str],
) -> None:
    server, folder, printed = swept
    assert any("Basic" in key for key in server.keys), "it was sent"
    assert KEY not in printed
    assert [f for f in folder.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()] == []
    assert not any(
        KEY.encode() in content for run in server.runs.values() for content in run.files.values()
    )


def test_tables_and_the_picture_are_logged_once(swept: tuple[Server, Path, str]) -> None:
    run = swept[0].runs["trial0"]
    for key in ("pairs", "looks", "plane"):
        assert len(run.values(key)) == 1, key
    tables = {
        Path(name).name.split("_")[0]: json.loads(x)
        for name, x in run.files.items()
        if name.endswith("table.json")
    }
    assert tables["pairs"]["columns"] == ["rule", "category", "prompt", "chosen", "rejected"]
    assert len(tables["pairs"]["data"]) == 4
    assert [row[0] for row in tables["looks"]["data"]] == [0, 1, 2]
    (picture,) = [content for name, content in run.files.items() if name.endswith(".png")]
    assert picture.startswith(b"\x89PNG")
