"""`check` without `--data`: wrong names are found, and keys are printed whole."""

import re
from pathlib import Path

import pytest

from overrefusal_po.cli import main

FOLDER = Path(__file__).parents[1] / "recipes"
DPO = FOLDER / "dpo.yaml"
HERE = {"dpo": DPO, **{n: FOLDER / f"{n}.yaml" for n in ("derta", "evaluate", "curate", "porover")}}


@pytest.mark.parametrize(
    ("recipe", "override", "key", "meant"),
    [
        ("dpo", "data.pairs=starer", "data.pairs", "starter"),
        ("dpo", "data.pairs=ultrafedback", "data.pairs", "ultrafeedback"),
        ("dpo", "select.sets=[startre]", "select.sets", "starter"),
        (
            "dpo",
            "model.model_name_or_path=bundled:smollm2-135m-instuct",
            "model",
            "bundled:smollm2",
        ),
        ("derta", "data.triples=starer", "data.triples", "starter"),
        ("derta", "data.helpful_from=[starer]", "data.helpful_from", "starter"),
        ("evaluate", "data.sets=[xstst]", "data.sets", "xstest"),
        ("evaluate", "data.attacks=[codeatack]", "data.attacks", "codeattack"),
        ("evaluate", "judge=refusl", "judge", "refusal"),
        ("evaluate", "guard=gaurd", "guard", "guard"),
        ("evaluate", "engine=opnai", "engine", "openai"),
        ("curate", "data.benign=starer", "data.benign", "starter"),
        ("curate", "chosen.engine=opnai", "chosen.engine", "openai"),
        ("curate", "rejects.engine=opnai", "rejects.engine", "openai"),
        ("porover", "stages.curate.judge=refusl", "stage curate: judge", "refusal"),
        ("porover", "stages.after.gate.baseline=befor", "stage after: gate.baseline", "@before"),
        ("porover", "stages.after.gate.baseline=@befor.outcomes", "gate.baseline", "@before"),
        ("porover", "stages.dpo.data.pairs=@curat.pairs", "stage dpo: data.pairs", "@curate.pairs"),
        ("porover", "stages.dpo.data.pairs=@curate.pair", "stage dpo: data.pairs", "@curate.pairs"),
    ],
)
def test_check_finds_a_wrong_name_without_reading_data(
    capsys: pytest.CaptureFixture[str], recipe: str, override: str, key: str, meant: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", str(HERE[recipe]), f"--{override}"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert key in said and re.search(f"Did you mean .*{re.escape(meant)}", said), said


@pytest.mark.parametrize("value", ["@curate.pairs", "@before.outcomes"])
def test_a_recipe_by_itself_has_no_earlier_stage_to_name(
    capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit):
        main(["check", str(DPO), f"--data.pairs={value}"])
    assert "no earlier stage makes anything" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["mine.jsonl", "folder/mine", "organisation/set"])
def test_a_path_is_no_wrong_name(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", str(DPO), f"--data.pairs={value}"])
    assert end.value.code == 0 and "is valid" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["20", "80", "1000"])
def test_keys_and_values_are_printed_whole_however_narrow_the_terminal_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    long = "organisation/" + "a-model-with-a-long-name-" * 5
    name = "--stages.before.model.model_name_or_path=" + long
    with pytest.raises(SystemExit):
        main(["check", str(HERE["porover"]), name])
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split("  ")[0] for line in lines]
    assert "stages.before.data.max_prompts_per_kind" in cells
    assert any(line.split()[:2] == [name[2:].split("=")[0], long] for line in lines)
    assert "…" not in "".join(lines)
