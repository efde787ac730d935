"""The benchmarks run: exactness.py in small, and what it says of a difference."""

import json
import os
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
