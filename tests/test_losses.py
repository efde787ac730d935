"""benchmarks/losses.py: its recipes are valid, its table is what hold.json says, and it runs."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import launches
import pytest
import yaml
from conftest import Style
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.checks import check_stage
from overrefusal_po.pipeline import run_stage
from overrefusal_po.prompts import dev_prompt_sets, measured_prompts
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.records import Outcome, PreferencePair, read_jsonl, write_jsonl

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import losses

OPTIONS = argparse.Namespace(
    model="bundled:smollm2-135m-instruct", out=Path("out"), prompts=9, steps=3, sets=None
)
OPTIONS.measured, OPTIONS.seed, OPTIONS.flip = 5, 1, 0.0
PROMPTS = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)


class Table(NamedTuple):
    """What a run of the benchmark left and printed, and what it was given."""

    out: Path
    given: tuple[str, ...]
    printed: str


def entry(curve: list[Any], held: list[float]) -> dict[str, Any]:
    """hold.json of a training that moved 10 + 10 prompts from .9 / .2 to .7 / .6."""
    part = {"harmful": 10, "benign": 10, "start": [0.9, 0.2], "trained": [0.7, 0.6], "held": held}
    return {"held": True, "sets": [part], "curve": curve}


@pytest.mark.parametrize("loss", losses.LOSSES, ids=[loss.name for loss in losses.LOSSES])
def test_every_row_is_a_valid_recipe_of_equal_steps(loss: losses.Loss) -> None:
    pairs = losses.Pairs(Path("pairs.jsonl"))
    found: Any = check_body(losses.training(loss, 1e-4, pairs, OPTIONS), "test")
    assert found.trainer["max_steps"] == 3
    assert found.trainer["learning_rate"] == 1e-4
    sides = 2 if loss.method == "kto" else 1
    assert found.trainer["per_device_train_batch_size"] == 8 * sides


def right_pairs(folder: Path) -> Path:
    """Sixteen pairs, eight of each rule, that refuse what is harmful and answer the rest; the
    rejected sides have no end."""
    sides = {"benign": (ANSWER, REFUSAL), "harmful": (REFUSAL, ANSWER)}
    rules: dict[str, Any] = {"benign": "overrefusal", "harmful": "containment"}
    pairs = [
        PreferencePair(
            id=p.id,
            prompt=p,
            chosen=sides[p.kind][0],
            rejected=sides[p.kind][1],
            rule=rules[p.kind],
            unfinished=("rejected",),
        )
        for p in PROMPTS
    ]
    return write_jsonl(folder / "pairs.jsonl", pairs)


def noisy_options(folder: Path, flip: float, seed: int = 1) -> argparse.Namespace:
    """The options of a run with label noise."""
    return argparse.Namespace(**{**vars(OPTIONS), "out": folder, "flip": flip, "seed": seed})


def test_a_share_of_the_pairs_drawn_by_seed_has_its_sides_swapped(tmp_path: Path) -> None:
    before = read_jsonl(right_pairs(tmp_path), PreferencePair)
    drawn = []
    for seed in (1, 1, 2):
        made = losses.flipped(tmp_path / "pairs.jsonl", noisy_options(tmp_path, 0.25, seed))
        assert made.file == tmp_path / "pairs-flip0.25.jsonl"
        after = read_jsonl(made.file, PreferencePair)
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a.chosen != b.chosen]
        for a, b in changed:
            assert (b.chosen, b.rejected, b.prompt) == (a.rejected, a.chosen, a.prompt)
            assert (b.id, b.rule, b.unfinished) == (a.id, a.rule, ("chosen",))
        drawn.append({a.id for a, _ in changed})
        assert drawn[-1] == set(made.waive)
    assert [len(ids) for ids in drawn] == [4, 4, 4]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "cpo"])
def test_swapped_pairs_are_trained_on_by_every_method(
    method: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    """The linter stops on them, and only what it says of them is waived."""
    right_pairs(tmp_path)
    noisy = losses.flipped(tmp_path / "pairs.jsonl", noisy_options(tmp_path, 0.5))
    loss = next(loss for loss in losses.LOSSES if loss.method == method)

    def checked(pairs: losses.Pairs) -> str:
        body = losses.training(loss, 1e-4, pairs, OPTIONS)
        body |= {"hold": None, "model": {"model_name_or_path": str(styles["llama"].folder)}}
        found: Any = check_body(body, "test")
        return check_stage(found)

    assert "findings waived" in checked(noisy)
    # eight pairs, two each: with a rule an unfinished side is read, too
    with pytest.raises(ValueError, match=r"faults in the pairs \(16\)\. The first: .*, error"):
        checked(noisy._replace(waive={}))


def test_only_a_share_can_be_swapped() -> None:
    assert losses.share("0.1") == 0.1
    for wrong in ("1", "-.1", "ten", "nan"):
        with pytest.raises(ValueError, match=wrong):
            losses.share(wrong)


def test_the_start_policy_is_measured_on_the_prompts_of_hold() -> None:
    """In a recipe of its own, and every row names what it leaves."""
    alone: Any = check_body(losses.start(OPTIONS), "test")
    measured = {p.id for p in measured_prompts(alone.data)}
    for loss in losses.LOSSES:
        body = losses.training(loss, 1e-4, losses.Pairs(Path("pairs.jsonl")), OPTIONS)
        row: Any = check_body(body, "test")
        assert Path(row.hold.start) == Path("out/start/outcomes.jsonl").resolve()
        assert row.hold.max_new_tokens == alone.generation.max_new_tokens
        assert {p.id for part in dev_prompt_sets(row.hold) for p in part} <= measured


def test_rows_have_names_and_folders_of_their_own() -> None:
    names = {losses.run_folder(Path("out"), loss, 1e-4).name for loss in losses.LOSSES}
    assert len(names) == len(losses.LOSSES)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.") for name in names)
    noisy = {losses.run_folder(Path("out"), loss, 1e-4, 0.1).name for loss in losses.LOSSES}
    assert len(noisy | names) == 2 * len(names)


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
    assert lines[0].startswith("| loss | rate |")
    noisy = losses.table(found, (0.9, 0.2), 0.1).splitlines()
    assert noisy[0].startswith("| loss (0.1 of the pairs swapped) | rate |")
    assert noisy[1:] == lines[1:]


@pytest.fixture(scope="module")
def table(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A table of one row on a tiny model."""
    folder = tmp_path_factory.mktemp("losses")
    start = taught(styles["llama"], PROMPTS, folder / "start", steps=40, batch=16)
    things = ["a picture", "a letter", "the door", "a pack"]
    write_jsonl(folder / "dev.jsonl", asked(things, "benign") + asked(things, "harmful"))
    given = (
        *("--model", str(start), "--pairs", str(right_pairs(folder))),
        *("--sets", f'["{folder / "dev.jsonl"}"]', "--out", str(folder / "out")),
        *("--steps", "2", "--rates", "1e-4"),
    )
    done = run(*given, "--only", "boundary")
    assert done.returncode == 0, done.stderr[-3000:]
    return Table(folder / "out", given, done.stdout)


@pytest.mark.slow
def test_it_trains_measures_and_prints(table: Table) -> None:
    assert "| weights: boundary | 1e-04 |" in table.printed
    again = run("--out", str(table.out), "--rates", "1e-4", "--print")
    assert again.stdout == table.printed[table.printed.index("| loss |") :]


@pytest.mark.slow
def test_the_start_measured_apart_is_what_a_training_measures(table: Table, tmp_path: Path) -> None:
    measured = said(table.out / "start" / "outcomes.jsonl")
    assert len(measured) == 8
    assert said(table.out / "weights_boundary-0.0001" / "hold_start.jsonl") == measured
    body: Any = yaml.safe_load((table.out / "weights_boundary-0.0001.yaml").read_text())
    del body["hold"]["start"]
    run_stage(check_body(body, "test"), "own", tmp_path / "own")  # type: ignore[arg-type]
    assert said(tmp_path / "own" / "hold_start.jsonl") == measured


@pytest.mark.slow
def test_another_row_with_label_noise_takes_the_same_start(table: Table) -> None:
    outcomes = table.out / "start" / "outcomes.jsonl"
    before = outcomes.stat().st_mtime_ns
    noisy = run(*table.given, "--only", "robust", "--flip", "0.25")
    assert noisy.returncode == 0, noisy.stderr[-3000:]
    assert "| loss (0.25 of the pairs swapped) | rate |" in noisy.stdout
    assert "| robust, label noise .1 | 1e-04 |" in noisy.stdout
    assert "boundary" not in noisy.stdout[noisy.stdout.index("| loss") :]
    assert outcomes.stat().st_mtime_ns == before
    folder = table.out / "robust_label_noise_1-0.0001-flip0.25"
    assert said(folder / "hold_start.jsonl") == said(outcomes)
    given = read_jsonl(table.out.parent / "pairs.jsonl", PreferencePair)
    right = {pair.id: pair.chosen for pair in given}
    trained = read_jsonl(folder / "data.jsonl", PreferencePair)
    assert sum(right[pair.id] != pair.chosen for pair in trained) == 4 and len(trained) == 16


def said(file: Path) -> dict[str, tuple[str, str | None]]:
    """{prompt id: the response, and whether it refuses}."""
    rows = read_jsonl(file, Outcome)
    return {row.prompt.id: (row.completion.text, row.verdict.refusal) for row in rows}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """benchmarks/losses.py in a process of its own."""
    return launches.run(
        [sys.executable, losses.__file__, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        forks_children=True,
    )
