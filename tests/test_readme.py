"""The README is short and true. `test_docs` checks its links, commands and code."""

import re
import shlex
from pathlib import Path

import pytest

from overrefusal_po.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_readme_has_at_most_a_hundred_lines() -> None:
    assert len(TEXT.splitlines()) <= 100


def test_the_rates_are_defined_before_the_table_uses_them() -> None:
    table = TEXT.index("| run (")
    for rate in ("harmful_refused", "benign_answered"):
        assert TEXT.index(f"**{rate}**:") < table


def test_the_commands_that_need_no_model_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    for command in ("overrefusal-po list", f"overrefusal-po init {tmp_path}"):
        assert " ".join(command.split()[:2]) in TEXT
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command)[1:])
        assert end.value.code in (0, None)
    assert "dpo" in capsys.readouterr().out


def test_the_commands_of_make_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", TEXT, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("file", ["README.md", "benchmarks/RESULTS.md", "CHANGELOG.md"])
def test_no_figure_is_still_to_be_filled_in(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"PLACEHOLDER|^(STORY|TRIED)$|TODO", text, re.MULTILINE)


def test_the_figures_of_the_demo_are_those_of_the_results() -> None:
    results = (ROOT / "benchmarks/RESULTS.md").read_text()
    rows = re.findall(r"^\| (base|DeRTa|DeRTa\+DPO) \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for name, rates in rows:
        assert f"| {name} | {rates} |" in results
