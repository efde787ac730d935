"""`report` of several folders is for seeds of one recipe; anything else is refused, and says what
differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_compare import BASE, TUNED, folder_of
from test_report import run, summary

from overrefusal_po.cli import main
from overrefusal_po.report.page import write_report


def pipeline(folder: Path, *, seed: int = 0, base: str = "my/base", **trainer: Any) -> Path:
    """A pipeline's folder with a model that was trained on another one's, as a run writes it."""
    for stage, start, data in (
        ("sft", base, {"pairs": "starter"}),
        ("dpo", f"{folder}/sft/model", {"pairs": f"{folder}/curate/pairs.jsonl"}),
    ):
        (folder / stage / "model").mkdir(parents=True)
        recipe = {
            "task": "train",
            "method": stage,
            "model": {"model_name_or_path": start},
            "data": data,
            "trainer": {"beta": 0.1, **trainer},
            "seed": seed,
            "run_dir": f"{folder}/{stage}",
        }
        (folder / stage / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    entry = {**run("DPO"), "model": f"{folder}/dpo/model"}
    write_summary(folder, runs=[entry])
    return folder


def write_summary(folder: Path, **changes: Any) -> None:
    text = json.dumps(summary(**{"comparisons": [], "transitions": [], **changes}))
    (folder / "summary.json").write_text(text)


def refusal(*folders: Path) -> str:
    with pytest.raises(ValueError) as error:
        write_report(*folders)
    assert f"overrefusal-po compare {folders[0]} {folders[1]}" in str(error.value)
    return str(error.value)


def test_seeds_of_a_pipeline_stay_one_report(tmp_path: Path) -> None:
    folders = [pipeline(tmp_path / f"seed{n}", seed=n) for n in range(3)]
    assert "3 runs" in " ".join(write_report(*folders).read_text().split())


def test_seeds_of_folders_that_were_moved_stay_one_report(tmp_path: Path) -> None:
    folders = [pipeline(tmp_path / "old" / f"seed{n}", seed=n) for n in range(2)]
    moved = [Path(shutil.move(folder, tmp_path / f"new{n}")) for n, folder in enumerate(folders)]
    assert write_report(*moved).is_file()


@pytest.mark.parametrize("gone", [["dpo/model", "sft/model"], ["dpo/recipe.yaml"]])
def test_seeds_without_their_weights_or_recipes_stay_one_report(
    gone: list[str], tmp_path: Path
) -> None:
    folders = [pipeline(tmp_path / f"seed{n}", seed=n) for n in range(2)]
    for path in (folder / name for folder in folders for name in gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert write_report(*folders).is_file()


@pytest.mark.parametrize("change", [{"base": "my/other"}, {"learning_rate": 1e-3}])
def test_other_base_models_and_settings_of_a_training_are_no_seeds(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folders = [pipeline(tmp_path / "a"), pipeline(tmp_path / "b", seed=1, **change)]
    assert "the model of 'DPO' is" in refusal(*folders)


def test_two_models_are_no_seeds(tmp_path: Path) -> None:
    folders = [
        folder_of(tmp_path / "a", BASE, "model", "my/base"),
        folder_of(tmp_path / "b", TUNED, "model", "my/other"),
    ]
    assert "the model of 'model' is 'my/base' and 'my/other'" in refusal(*folders)
    assert write_report(folders[0]).is_file()


def test_one_model_with_several_seeds_of_sampling_stays_one_report(tmp_path: Path) -> None:
    folders = [folder_of(tmp_path / f"seed{n}", BASE, "model", "my/base") for n in range(2)]
    assert write_report(*folders).is_file()


def test_trainings_in_folders_of_their_own(tmp_path: Path) -> None:
    """Evaluations of two trainings with other seeds are one model; with other settings they are
    not."""
    folders = []
    for n, beta in enumerate((0.1, 0.1, 0.5)):
        trained = pipeline(tmp_path / f"train{n}", seed=n, beta=beta)
        folders.append(
            folder_of(tmp_path / f"eval{n}", BASE, "dpo", str(trained / "sft" / "model"))
        )
    assert write_report(*folders[:2]).is_file()
    assert "the model of 'dpo'" in refusal(folders[0], folders[2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"judge": "llm 2"}, "the judge is"),
        ({"guard": "wildguard 1"}, "the guard is None and 'wildguard 1'"),
        ({"engine": "transformers, greedy, up to 9 new tokens"}, "the engine with its settings is"),
        ({"sets": ["xstest"]}, "the list of prompt sets is"),
        ({"attacks": ["prefill"]}, "the list of attacks is none and prefill"),
    ],
)
def test_another_way_of_measuring_is_named(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folders = [pipeline(tmp_path / "a"), pipeline(tmp_path / "b", seed=1)]
    given = json.loads((folders[1] / "summary.json").read_text())
    given["measured"] |= change
    (folders[1] / "summary.json").write_text(json.dumps(given))
    assert words in refusal(*folders)


def test_other_prompts_are_named(tmp_path: Path) -> None:
    other = [
        o.model_copy(update={"prompt": o.prompt.model_copy(update={"question": f"other {n}"})})
        for n, o in enumerate(BASE)
    ]
    folders = [folder_of(tmp_path / n, rows, "m") for n, rows in (("a", BASE), ("b", other))]
    assert "measured on other prompts" in refusal(*folders)


def test_the_command_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        folder_of(tmp_path / name, BASE, "model", f"my/{name}") for name in ("base", "other")
    ]
    with pytest.raises(SystemExit) as end:
        main(["report", *map(str, folders)])
    assert end.value.code == 2
    assert "overrefusal-po compare" in capsys.readouterr().err
