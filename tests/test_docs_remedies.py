"""docs/remedies.md runs: its plug is written to a package, fitted by hand and put on a model; and it
describes every remedy that there is."""

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style

from overrefusal_po.model import load as models
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Steering, load_remedy, save_remedy
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.report import Report
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import Anchors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "remedies.md").read_text()
((FILE, CODE),) = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL)
YAML = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


class States:
    """A subject whose states are known: harmful ones 1 at each of 16 numbers, others 3."""

    def states(self, prompts: Sequence[Prompt], suffix: str = "") -> torch.Tensor:
        value = 1.0 if prompts[0].kind == "harmful" else 3.0
        return torch.full((len(prompts), 2, 16), value)


def anchors() -> Anchors:
    rows = [Prompt.of("How?", kind=kind) for kind in ("harmful", "benign", "general")]
    return Anchors(*([row] for row in rows))


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's plug on the path of this process; its name."""
    file = tmp_path / FILE
    file.parent.mkdir()
    file.write_text(CODE)
    (file.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == file.parent.name]:
        sys.modules.pop(name)  # another page's plug may have the same name
    importlib.invalidate_caches()
    return FILE.removesuffix(".py").replace("/", ".")


def test_the_plug_of_the_page_is_fitted_saved_and_changes_a_model(
    plug: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    settings: Any
    module, settings = find_plug("remedies", {"name": plug, "strengths": [0.5]})
    (candidate,) = module.fit(settings, States(), anchors(), anchors())
    change = candidate.remedy.change
    assert isinstance(change, Steering)
    assert change.layers == (1,) and change.vectors.tolist() == [[2.0] * 16]
    model: Any = models.load_model(str(styles["llama"].folder), dtype="float32")
    size = model.config.hidden_size
    remedy = candidate.remedy._replace(change=change._replace(vectors=torch.ones(1, size)))
    save_remedy(remedy, tmp_path / "remedy", facts={})
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    with remedied(model, load_remedy(tmp_path / "remedy", model)):
        assert not torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_the_page_shows_keys_that_exist() -> None:
    report, remedy = YAML
    assert Report(**report["report"]).baseline == "before"
    assert set(remedy["remedy"]) == {"name", "layer"} and "layer: int" in CODE


def test_the_page_describes_every_remedy_that_there_is() -> None:
    folder = ROOT / "src" / "overrefusal_po" / "remedies"
    there = [file.stem for file in folder.glob("[a-z]*.py")]
    headings = " ".join(re.findall(r"^### (.*)$", PAGE, re.MULTILINE))
    assert there and not [name for name in there if not re.search(rf"\b{name}\b", headings)]


def test_the_page_counts_the_lines_of_its_plug() -> None:
    (said,) = re.findall(r"this one has (\d+) lines beside blank ones", PAGE)
    assert int(said) == len([line for line in CODE.splitlines() if line.strip()])


def test_every_part_on_a_remedy_says_when_it_works_and_when_not_and_how_it_is_served() -> None:
    part = PAGE.partition("## The remedies\n")[2].partition("## How each is served")[0]
    found = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", part, re.MULTILINE | re.DOTALL))
    assert {"system prompt", "steptree", "safelora", "threshold"} <= found.keys()
    for name, text in found.items():
        assert re.search(r"works? (if|on|in|best)", text), name
        assert re.search(r"(does|do)\s+not\s+work", text), name
        assert re.search(r"server|served", text), name
        assert "```text" in text or name == "Pairs and a training", name
        assert "Ours" in text or "arXiv" in text or "POROver" in text or "rival" in text, name
