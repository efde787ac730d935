"""A small kill test of `benchmarks/`: a run that is killed while it overgenerates and while it
judges ends with the same files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import kill_test

pytestmark = pytest.mark.slow


def test_a_run_that_was_killed_twice_ends_with_the_files_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with kill_test.stub() as url:
        found = kill_test.measure(tmp_path, url, goals=[60, 260], count=50)
    assert found["kills"] == {"overgeneration": 1, "judging": 1} and found["equal"]
    assert (found["rows"]["completions.jsonl"], found["rows"]["verdicts.jsonl"]) == (200, 200)
