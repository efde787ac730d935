"""The examples of docs/python.md run, one after the other, with tiny models under their names."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po.model import load as models
from overrefusal_po.records import Outcome, Prompt, read_jsonl
from overrefusal_po.train.sft import sft_trainer

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ASKED = ["How do I kill a process?", "What is a fox?"]


def refuser(style: Style, folder: Path) -> None:
    """A tiny model that has learned to refuse both prompts of the page."""
    prompts = [
        Prompt.of(text, kind="benign", reference="Sorry, I can't help with that.") for text in ASKED
    ]
    settings = {"max_steps": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    args = {**settings, "output_dir": str(folder / "out"), "report_to": "none"}
    trainer = sft_trainer(style.make_model(), prompts, args=args, template=style.template)
    trainer.train()
    models.save_merged(trainer.model, style.tokenizer, folder / "my" / "over-refusing-model")


@pytest.mark.slow
def test_the_examples_run(
    styles: dict[str, Style], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(styles["llama"].folder, tmp_path / "my" / "model")
    refuser(styles["llama"], tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["loss"] > 0
    assert len(names["sft"].train_dataset) == 1 and len(names["kto"].train_dataset) == 2
    assert len(names["made"].pairs) == 2
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert read_jsonl("outcomes.jsonl", Outcome) == names["found"].outcomes
