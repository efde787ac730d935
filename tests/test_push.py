"""push_to_hub: model/ goes to the user's repository, errors are a sentence, the token is nowhere."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import GRANTED
from hub_uploads import serve_uploads

from overrefusal_po.checks import check_stage
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.stage_recipes import stage_bodies
from overrefusal_po.train.push import Push, push_of, without_push

RECIPES = Path(__file__).parents[1] / "recipes"
ASKED = ["--trainer.push_to_hub=true", "--trainer.hub_model_id=me/my-model"]
WRONG = "hf_notAToken"
CALL = """
import sys
from pathlib import Path
from overrefusal_po.train.push import Push, check_push, push_run
push = Push(sys.argv[1], True, sys.argv[2] or None)
try:
    check_push(push)
    push_run(push, Path(sys.argv[3]))
except ValueError as error:
    print(error)
"""


def in_process(command: list[str], address: str, home: Path, token: str | None) -> Any:
    """A process of its own whose hub is at `address`."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    kept = {k: v for k, v in kept.items() if not k.startswith("HF_")}
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    hub |= {} if token is None else {"HF_TOKEN": token}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**kept, **hub}, check=False
    )


def pushed(
    run: Path,
    address: str,
    *,
    name: str = "me/my-model",
    token: str | None = GRANTED,
    branch: str = "",
) -> str:
    """All that was printed while a run's folder was pushed."""
    command = [sys.executable, "-c", CALL, name, branch, str(run)]
    done = in_process(command, address, run.parent / "home", token)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert GRANTED not in done.stdout + done.stderr and WRONG not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a model and an adapter, and with checkpoints that nobody wants."""
    for name in ("model", "adapter", "checkpoints/checkpoint-2"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "README.md").write_text(f"---\nlicense: mit\n---\n# {name}\n")
        (tmp_path / "run" / name / "weights.safetensors").write_bytes(name.encode() * 1000)
    return tmp_path / "run"


def test_the_model_is_the_repository_and_the_adapter_a_folder_of_it(run: Path) -> None:
    with serve_uploads({"me"}) as hub:
        assert pushed(run, hub.address) == ""
        files = hub.files["me/my-model"]
        assert sorted(files) == [
            "README.md",
            "adapter/README.md",
            "adapter/weights.safetensors",
            "weights.safetensors",
        ]
        assert files["weights.safetensors"] == b"model" * 1000
        assert files["adapter/weights.safetensors"] == b"adapter" * 1000
        assert hub.branches["me/my-model"] == {"main"} and list(hub.files) == ["me/my-model"]
        asked = len(hub.asked)
        assert pushed(run, hub.address) == ""
        assert not any("commit" in line for line in hub.asked[asked:]), "it is pushed once"
    assert json.loads((run / "pushed.json").read_text()) == {"repository": "me/my-model"}


@pytest.mark.slow
def test_a_branch_of_the_users_is_written_to(run: Path) -> None:
    with serve_uploads({"me"}) as hub:
        assert pushed(run, hub.address, branch="trial") == ""
        assert hub.branches["me/my-model"] == {"trial"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "token", "failing", "words"),
    [
        ("somebody/model", GRANTED, "", "status 403: this token may not write there"),
        ("me/my-model", WRONG, "", "status 401: the hub does not know this token"),
        ("me/my-model", None, "", "there is no hub token"),
        ("me/my-model", GRANTED, "/commit/", "status 507: the hub refuses"),
        ("me/my-model", GRANTED, "lfs/objects", "status 507: the hub refuses"),
    ],
)
def test_an_error_is_a_sentence_that_names_the_repository(
    run: Path, name: str, token: str | None, failing: str, words: str
) -> None:
    with serve_uploads({"me"}, failing=failing) as hub:
        said = pushed(run, hub.address, name=name, token=token)
    assert words in said and name in said and len(said.splitlines()) == 1
    assert ("the same command pushes again" in said) == bool(failing)
    assert not (run / "pushed.json").exists()


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_a_sentence(run: Path) -> None:
    with serve_uploads({"me"}) as hub:
        gone = hub.address
    assert "is the hub reachable?" in pushed(run, gone)


def test_the_keys_of_a_push_never_reach_trls_trainer() -> None:
    recipe = load_recipe(RECIPES / "dpo.yaml", [*ASKED, "--trainer.hub_private_repo=true"]).body
    assert push_of(recipe) == Push("me/my-model", True, None)
    assert not [key for key in without_push(recipe.trainer) if "hub" in key]
    assert "learning_rate" in without_push(recipe.trainer)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--trainer.push_to_hub=true"], "hub_model_id is ''.*your user or organisation"),
        ([ASKED[0], "--trainer.hub_model_id=model"], "hub_model_id is 'model'"),
        ([ASKED[0], "--trainer.hub_model_id=../../x"], "hub_model_id is '../../x'"),
        ([*ASKED, "--trainer.hub_strategy=checkpoint"], "hub_strategy says when checkpoints"),
    ],
)
def test_a_push_that_cannot_be_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        push_of(load_recipe(RECIPES / "dpo.yaml", overrides).body)
    assert push_of(load_recipe(RECIPES / "dpo.yaml").body) is None


def pushing(stage: str, *, branch: str = "") -> list[str]:
    """The overrides by which a stage of a pipeline pushes to me/my-model."""
    return [f"--stages.{stage}.trainer.{key.removeprefix('--trainer.')}" for key in ASKED] + (
        [f"--stages.{stage}.trainer.hub_revision={branch}"] if branch else []
    )


def pushed_stages(recipe: str, *overrides: str) -> list[str]:
    """The stages of a shipped pipeline that push."""
    found = stage_bodies(load_recipe(RECIPES / recipe, list(overrides)))
    return [n for n, b in found.items() if isinstance(b, TrainRecipe) and push_of(b) is not None]


def test_rounds_may_not_push_over_each_other() -> None:
    said = r"porover: stages dpo, dpo_2, dpo_3 all push to me/my-model .*\(stages\.dpo_3\.trainer\)"
    with pytest.raises(ValueError, match=said):
        pushed_stages("porover.yaml", "--rounds=3", *pushing("dpo"))
    assert pushed_stages("porover.yaml", *pushing("dpo")) == ["dpo"]
    assert pushed_stages("porover.yaml", "--rounds=3", *pushing("dpo_3")) == ["dpo_3"]
    own = [*pushing("dpo"), *pushing("dpo_2", branch="second")]
    assert pushed_stages("porover.yaml", "--rounds=2", *own) == ["dpo", "dpo_2"]


def test_two_stages_may_not_push_to_one_place() -> None:
    both = [*pushing("derta"), *pushing("dpo", branch="main")]
    with pytest.raises(ValueError, match="demo: stages derta, dpo all push to me/my-model"):
        pushed_stages("demo.yaml", *both)
    own = [*pushing("derta"), *pushing("dpo", branch="dpo")]
    assert pushed_stages("demo.yaml", *own) == ["derta", "dpo"]


def test_a_wrong_name_is_said_before_what_an_earlier_stage_makes_is_there() -> None:
    values = {"task": "train", "method": "dpo", "model": {"model_name_or_path": "@derta.model"}}
    trainer = {"push_to_hub": True, "hub_model_id": "my-model"}
    given = {**values, "data": {"pairs": "@curate.pairs"}, "trainer": trainer}
    body = check_body(given, "test")
    assert isinstance(body, TrainRecipe)
    with pytest.raises(ValueError, match="hub_model_id is 'my-model'"):
        check_stage(body)


@pytest.mark.slow
def test_a_training_pushes_its_model_with_its_card(styles: dict[str, Any], tmp_path: Path) -> None:
    few = ["--trainer.max_steps=1", "--trainer.max_length=2048", "--data.max_pairs=4"]
    few += ["--data.containment=none", "--data.allow_no_anchor=true", "--trainer.use_cpu=true"]
    few += [f"--model.model_name_or_path={styles['llama'].folder}", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "overrefusal_po", str(RECIPES / "dpo.yaml"), *few, *ASKED]
    with serve_uploads(set()) as hub:  # who may not write there trains nothing
        done = in_process(command, hub.address, tmp_path / "home", GRANTED)
        assert done.returncode == 2 and "status 403" in done.stderr
        assert not (tmp_path / "run").exists()
    with serve_uploads({"me"}) as hub:
        done = in_process(command, hub.address, tmp_path / "home", GRANTED)
        assert done.returncode == 0, done.stderr
        files = hub.files["me/my-model"]
    assert "| losses | sigmoid × 1, sft × 0.1 |" in files["README.md"].decode()
    assert files["model.safetensors"] == (tmp_path / "run/model/model.safetensors").read_bytes()
    assert not [path for path in files if "checkpoint" in path or "optimizer" in path]
    said = done.stdout + done.stderr
    for file in (tmp_path / "run").rglob("*"):
        said += file.read_bytes().decode(errors="replace") if file.is_file() else ""
    assert GRANTED not in said
