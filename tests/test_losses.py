"""benchmarks/losses.py: its recipes are valid, its table is what hold.json says, and it runs."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Style
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.records import PreferencePair, write_jsonl

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import losses

OPTIONS = argparse.Namespace(
    model="bundled:smollm2-135m-instruct", out=Path("out"), prompts=9, steps=3, sets=None
)
OPTIONS.measured, OPTIONS.seed = 5, 1


def entry(curve: list[Any], held: list[float]) -> dict[str, Any]:
    """hold.json of a training that moved 10 + 10 prompts from .9 / .2 to .7 / .6."""
    part = {"harmful": 10, "benign": 10, "start": [0.9, 0.2], "trained": [0.7, 0.6], "held": held}
    return {"held": True, "sets": [part], "curve": curve}


@pytest.mark.parametrize("loss", losses.LOSSES, ids=[loss.name for loss in losses.LOSSES])
def test_every_row_is_a_valid_recipe_of_equal_steps(loss: losses.Loss) -> None:
    found: Any = check_body(losses.training(loss, 1e-4, Path("pairs.jsonl"), OPTIONS), "test")
    assert found.trainer["max_steps"] == 3
    assert found.trainer["learning_rate"] == 1e-4
    sides = 2 if loss.method == "kto" else 1
    assert found.trainer["per_device_train_batch_size"] == 8 * sides


def test_rows_have_names_and_folders_of_their_own() -> None:
    names = {losses.run_folder(Path("out"), loss, 1e-4).name for loss in losses.LOSSES}
    assert len(names) == len(losses.LOSSES)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for name in names)


def test_the_pairs_are_made_as_porover_makes_them(tmp_path: Path) -> None:
    file = tmp_path / "curate.yaml"
    file.write_text(yaml.safe_dump(losses.curation(OPTIONS)))
    body: Any = load_recipe(str(file)).body
    assert body.stages["curate"]["data"]["max_prompts"] == 9
    assert body.stages["curate"]["chosen"]["answers"] == "student"


def test_equal_safety_is_read_off_the_curve() -> None:
    """The start refuses .9: `equal` looks at .88 and above, `looser` at .80 and above."""
    curve = [(-1.0, (0.4, 0.9)), (1.0, (0.8, 0.5)), (2.0, (0.9, 0.3)), (3.0, (1.0, 0.1))]
    found = losses.result_of("x", 1e-4, entry(curve, [0.9, 0.3]))
    assert (found.equal, found.looser) == (0.3, 0.5)
    assert (found.refused, found.answered) == (0.7, 0.6)
    # without a curve only what was measured is known
    assert losses.result_of("x", 1e-4, entry([], [0.7, 0.6])).equal == 0.0


def test_the_table_has_the_best_rate_of_each_loss_the_best_loss_first() -> None:
    low, high = ([(1.0, (0.9, answered))] for answered in (0.3, 0.8))
    found = [
        losses.result_of("one", 1e-4, entry(low, [0.9, 0.3])),
        losses.result_of("two", 1e-4, entry(low, [0.9, 0.3])),
        losses.result_of("two", 2e-4, entry(high, [0.9, 0.8])),
    ]
    lines = losses.table(found, (0.9, 0.2)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| start policy |  | 0.20 |")
    assert lines[3].startswith("| two | 2e-04 | 0.80 [")
    assert lines[3].endswith("| yes | 1e-04 0.30, 2e-04 0.80 |")
    assert lines[4].startswith("| one | 1e-04 | 0.30 [")


@pytest.mark.slow
def test_it_trains_measures_and_prints(styles: dict[str, Style], tmp_path: Path) -> None:
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    start = taught(styles["llama"], rows, tmp_path / "start", steps=40, batch=16)
    sides = {"benign": (ANSWER, REFUSAL), "harmful": (REFUSAL, ANSWER)}
    pairs = [
        PreferencePair(
            id=p.id, prompt=p, chosen=sides[p.kind][0], rejected=sides[p.kind][1], rule=rule
        )
        for p in rows
        for rule in ["containment" if p.kind == "harmful" else "overrefusal"]
    ]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    things = ["a picture", "a letter", "the door", "a pack"]
    write_jsonl(tmp_path / "dev.jsonl", asked(things, "benign") + asked(things, "harmful"))
    done = run(
        *("--model", str(start), "--pairs", str(tmp_path / "pairs.jsonl")),
        *("--sets", f'["{tmp_path / "dev.jsonl"}"]', "--out", str(tmp_path / "out")),
        *("--steps", "2", "--rates", "1e-4", "--only", "boundary"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| weights: boundary | 1e-04 |" in done.stdout
    again = run("--out", str(tmp_path / "out"), "--rates", "1e-4", "--print")
    assert again.stdout == done.stdout[done.stdout.index("| loss |") :]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """benchmarks/losses.py in a process of its own."""
    return subprocess.run(
        [sys.executable, losses.__file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
