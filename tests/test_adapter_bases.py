"""model/bases.py: an adapter of another model is named, also if its shapes fit."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import tiny_model
from tiny_subject import lora
from transformers import AutoModelForCausalLM

from overrefusal_po.model.bases import ancestors, warn_other_base
from overrefusal_po.model.bundled import BUNDLED, public_base
from overrefusal_po.remedies._adapters import read_adapter

HUB = BUNDLED["smollm2-135m-instruct"].hub_name
CACHE = "bundled/smollm2-135m-instruct-b179c952-2"


def warned(base: object, model: str, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether an adapter of `base` on `model` is a warning."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_other_base("an/adapter", {"base_model_name_or_path": base}, model)
    return bool(caplog.records)


def saved(kind: str, folder: Path, **changes: Any) -> Any:
    """A tiny model of 32 bits, saved and loaded again, so that it knows its place."""
    tiny_model(kind, **changes).float().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def test_an_adapter_of_another_architecture_with_equal_shapes_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llama = saved("Llama", tmp_path / "some-llama")
    gemma = saved("Gemma2", tmp_path / "some-gemma", head_dim=8)
    adapter = tmp_path / "adapter"
    lora(llama, adapter)
    with caplog.at_level(logging.WARNING):
        read_adapter(str(adapter), llama)
        assert not caplog.records
        read_adapter(str(adapter), gemma)
    assert f"was trained on {tmp_path / 'some-llama'}" in caplog.text
    assert f"it is put on {tmp_path / 'some-gemma'}" in caplog.text


@pytest.mark.parametrize(
    ("base", "model", "told"),
    [
        ("org/one-8b", "org/one-8b", False),
        ("org/one-8b", "/data/models/One-8B", False),
        ("org/one-8b", "org/two-8b", True),
        ("runs/sft-1/model", "/elsewhere/runs/sft-1/model", False),
        ("runs/sft-1/model", "runs/sft-2/model", True),
        (HUB, "bundled:smollm2-135m-instruct", False),
        (HUB, f"/home/me/.cache/overrefusal-po/{CACHE}", False),
        (f"/a/{CACHE}", f"/b/{CACHE}", False),
        (HUB, "bundled:qwen2.5-coder-0.5b-instruct", True),
        (None, "org/two-8b", False),
        ("", "org/two-8b", False),
        ("org/one-8b", "", False),  # a model that was made in memory
    ],
)
def test_names_tell_whether_two_models_are_one(
    base: object, model: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert warned(base, model, caplog) is told


def test_two_folders_of_one_name_are_two_models_and_a_link_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("a", "b"):
        (tmp_path / run / "derta" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "derta" / "model")
    one, two = (str(tmp_path / run / "derta" / "model") for run in "ab")
    assert warned(one, two, caplog)
    assert not warned(one, str(tmp_path / "link"), caplog)
    monkeypatch.chdir(tmp_path)
    assert not warned("a/derta/model", one, caplog)
    assert warned("b/derta/model", one, caplog)


def test_a_run_s_model_takes_the_adapters_of_what_it_was_trained_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """DeRTa's model holds the adapter of its own training, which was trained on the start model."""
    runs: dict[str, tuple[str, str]] = {  # {stage: (its start, how its folder says so)}
        "derta": ("org/start-1b", "adapter"),
        "dpo": (str(tmp_path / "derta" / "model"), "recipe"),
    }
    for name, (start, how) in runs.items():
        (tmp_path / name / "model").mkdir(parents=True)
        if how == "recipe":
            recipe = {"model": {"model_name_or_path": start}}
            (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        else:
            (tmp_path / name / "adapter").mkdir()
            config = {"base_model_name_or_path": start}
            (tmp_path / name / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    derta, dpo = (str(tmp_path / name / "model") for name in runs)
    assert ancestors(dpo) == [dpo, derta, "org/start-1b"]
    assert not warned("org/start-1b", dpo, caplog)
    assert not warned(derta, dpo, caplog)
    assert warned(dpo, derta, caplog)  # trained on what came later
    assert warned("org/other-1b", dpo, caplog)
    # damaged notes of a run stop nothing, and say nothing
    (tmp_path / "derta" / "adapter" / "adapter_config.json").write_text("{")
    (tmp_path / "dpo" / "recipe.yaml").write_text("model: [")
    assert ancestors(dpo) == [dpo] and ancestors(derta) == [derta]
    # a ring, made by hand
    shutil.rmtree(tmp_path / "derta" / "adapter")
    for name, start in (("derta", dpo), ("dpo", derta)):
        recipe = {"model": {"model_name_or_path": start}}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert ancestors(dpo) == [dpo, derta]


def test_a_public_name_is_the_hub_s() -> None:
    assert public_base("bundled:smollm2-135m-instruct") == public_base(f"/x/{CACHE}") == HUB
    for name in ("org/model", "bundled:none", "/x/smollm2-135m-instruct", "/x/bundled/other"):
        assert public_base(name) == name
