"""The benchmarks run: exactness.py, long_run.py and generation.py in small; and what exactness.py and
soak.py say of a difference."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Style

pytestmark = pytest.mark.slow

FILE = Path(__file__).parents[1] / "benchmarks" / "exactness.py"


def run(folder: Path, out: Path, *only: str) -> subprocess.CompletedProcess[str]:
    """benchmarks/exactness.py on a tiny model."""
    command = [
        sys.executable,
        str(FILE),
        "--model",
        str(folder),
        "--threads",
        "1",
        "--json",
        str(out),
        "--only",
        *only,
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_exactness_compares_a_step_with_trls(styles: dict[str, Style], tmp_path: Path) -> None:
    done = run(styles["llama"].folder, tmp_path / "out.json", "lora/ipo", "derta/lora")
    assert done.returncode == 0, done.stderr[-3000:]
    ipo, derta = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert (ipo["name"], derta["name"]) == ("lora/ipo", "derta/lora") and ipo["bound"] == 1e-4
    assert all(0 <= ipo[way]["gradient"] < 1e-4 for way in ("padded", "shared", "store"))
    assert (
        ipo["plain_loss"] > 0
        and f"| lora/ipo | {ipo['plain_loss']:.4f} | 0e+00 / 0e+00 / 0e+00 |" in done.stdout
    )
    assert "| allowed |" in done.stdout and " | 1e-04 |" in done.stdout


def test_a_difference_above_its_bound_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(FILE.parent))
    import exactness

    case = exactness.Case("full/ipo", "full")
    plain = exactness.Step(2.0, {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])})
    ours = exactness.Step(2.5, {"a": torch.tensor([3.0, 3.0]), "b": torch.tensor([0.0])})
    found = exactness.gap(plain, ours)
    assert found == (0.25, 0.25, 0.2)
    [line] = exactness.failures(case, {"shared": found}, 0.2)
    assert line.startswith("full/ipo, ours, shared prefix: ") and "allowed is 0.2" in line
    assert not list(exactness.failures(case, {"shared": found}, 0.3))
    for gap in (exactness.Gap(0.4, 0, 0), exactness.Gap(0, 0.4, 0), exactness.Gap(0, 0, 0.4)):
        assert list(exactness.failures(case, {"shared": gap}, 0.3))
    nan = exactness.gap(
        plain,
        exactness.Step(2.0, {"a": torch.tensor([3.0, float("nan")]), "b": torch.tensor([0.0])}),
    )
    assert list(exactness.failures(case, {"shared": nan}, 0.3))


def test_a_long_run_is_measured(tmp_path: Path) -> None:
    """So few steps say nothing about its memory."""
    command = [sys.executable, str(FILE.with_name("long_run.py")), "--steps", "6", "--first", "2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "{" in done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["memory_mb"].keys() == {"2", "4", "6"} and min(found["memory_mb"].values()) > 50
    assert found["checkpoints"] == ["checkpoint-4", "checkpoint-6"]


def disturbed(folder: Path) -> Path:
    """A run folder as the soak compares it."""
    files = {
        "log": "an attempt\n",
        "curate/student_benign.jsonl": '{"id": 1}\n{"id": 2}\n',
        "curate/student_benign.ledger.jsonl": '{"requests": 1}\n',
        "curate/pairs.jsonl": '{"pair": 1}\n{"pair": 2}\n',
        "measure/verdicts.jsonl": '{"verdict": 1}\n',
        "train/training.json": '{"history": [{"loss": 0.5}], "summary": {"seconds": 1}}',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "train" / "weights").write_bytes(b"\xff\x00")
    return folder


@pytest.mark.parametrize(
    ("file", "data", "differs"),
    [
        ("log", b"two attempts", False),
        ("curate/student_benign.ledger.jsonl", b'{"requests": 2}\n', False),
        ("curate/student_benign.jsonl", b'{"id": 2}\n{"id": 1}\n', False),
        ("curate/student_benign.jsonl", b'{"id": 2}\n{"id": 2}\n', True),
        ("curate/pairs.jsonl", b'{"pair": 2}\n{"pair": 1}\n', True),
        ("measure/verdicts.jsonl", b'{"verdict": 1}\n{"verdict": 1}\n', True),
        ("train/weights", b"\xff\x01", True),
        ("train/training.json", b'{"history": [{"loss": 0.5}], "summary": {"seconds": 2}}', False),
        ("train/training.json", b'{"history": [{"loss": 0.4}], "summary": {"seconds": 1}}', True),
    ],
)
def test_the_soak_compares_all_files_but_what_attempts_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, data: bytes, differs: bool
) -> None:
    monkeypatch.syspath_prepend(str(FILE.parent))
    import soak

    whole, other = (disturbed(tmp_path / name) for name in ("whole", "other"))
    (other / file).write_bytes(data)
    assert bool(soak.differences(soak.contents(whole), soak.contents(other))) == differs


def test_the_soak_says_the_first_row_that_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FILE.parent))
    import soak

    whole, other = (disturbed(tmp_path / name) for name in ("whole", "other"))
    (other / "curate" / "pairs.jsonl").write_text('{"pair": 1}\n{"pair": 3}\n')
    (other / "measure" / "verdicts.jsonl").unlink()
    assert soak.differences(soak.contents(whole), soak.contents(other)) == {
        "curate/pairs.jsonl": '{"pair": 2} became {"pair": 3}',
        "measure/verdicts.jsonl": "['{\"verdict\": 1}'] became None",
    }


OLDER = """

def opener_log_odds(engine, prompts, openers):
    return ((prompt, value) for prompt, value, _ in _scores(engine, prompts, openers))
"""
"""The first-token measure as it was in 0d53df1: another name, and no margin."""


@pytest.mark.parametrize("samples", [1, 3])
def test_ways_to_generate_are_measured_beside_an_earlier_version(
    styles: dict[str, Style], tmp_path: Path, samples: int
) -> None:
    before = tmp_path / "src"
    shutil.copytree(FILE.parents[1] / "src", before)
    module = before / "overrefusal_po" / "engines" / "_first_token.py"
    module.write_text(module.read_text().replace("opener_scores", "_scores") + OLDER)
    command = [sys.executable, str(FILE.with_name("generation.py")), "--prompts", "6"]
    command += ["--model", str(styles["llama"].folder), "--dtype", "float32", "--tokens", "3"]
    command += [
        "--samples",
        str(samples),
        "--batch",
        "2",
        "--before",
        str(before),
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    names = ["way", "ours", "wide", "generate", "before", "limit"]
    assert [row[0].split()[1] for row in rows] == names
    ways = json.loads((tmp_path / "out.json").read_text())["ways"]
    for row, way in zip(rows[1:5], names[1:5], strict=True):
        # texts are drawn batch by batch, and the wide way has others
        assert ways[way]["same"] == 1 or (samples > 1 and way == "wide")
        assert ways[way]["first_off"] < 1e-4
        assert row[5] == f"{ways[way]['peak']:.0f}" and ways[way]["peak"] > 50
    assert float(rows[5][1]) > 0


def test_a_way_to_generate_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A version without what is measured."""
    monkeypatch.syspath_prepend(str(FILE.parent))
    import generation

    (tmp_path / "overrefusal_po").mkdir()
    (tmp_path / "overrefusal_po" / "__init__.py").write_text("")
    options = generation.arguments(["--before", str(tmp_path)])
    worker = generation.started("before", tmp_path, options)
    with pytest.raises(
        SystemExit, match=r"process --way=before ended with exit code 1 when .*warm"
    ):
        generation.asked(worker, "warm")
    assert "No module named 'overrefusal_po.engines'" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        generation.arguments(["--before", str(tmp_path / "elsewhere")])
    assert "there is no overrefusal_po in it" in capfd.readouterr().err
