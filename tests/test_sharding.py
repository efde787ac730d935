"""sharding.py: ZeRO-3 and FSDP are found wherever they are asked for: environment, recipe, or a file of either."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from overrefusal_po.models import check_world, model_options
from overrefusal_po.recipe import TrainRecipe, check_body
from overrefusal_po.sharding import check_sharding, wants_fsdp, zero_3
from overrefusal_po.train import reference_folder

ZERO_2, ZERO_3 = ({"zero_optimization": {"stage": stage}} for stage in (2, 3))
AUTO: dict[str, Any] = {"zero_optimization": {"stage": "auto"}}
with_reference, without = (partial(check_sharding, frozen_reference=held) for held in (True, False))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A launch with DeepSpeed, whose variables a test may set."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    return monkeypatch


def written(folder: Path, config: Any) -> str:
    (folder / "deepspeed.json").write_text(json.dumps(config))
    return str(folder / "deepspeed.json")


def test_zero_3_is_refused_since_its_weights_would_be_saved_empty(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with_reference({})
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ValueError, match=r"saved empty\. Take recipes/accelerate/fsdp2\.yaml, or zero_stage 1 or 2"):
        without({})


def test_zero_3_is_found_in_a_config_file(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the launcher, where the file counts and not the stage beside it, and of the recipe, which counts before both."""
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", written(tmp_path, ZERO_3))
    assert "The accelerate config" in (zero_3({}) or "") and "deepspeed.json" in (zero_3({}) or "")
    assert zero_3({"deepspeed": ZERO_2}) is None
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    written(tmp_path, ZERO_2)
    assert zero_3({}) is None
    written(tmp_path, AUTO)
    assert zero_3({}) is not None


@pytest.mark.parametrize("as_file", [True, False])
def test_zero_3_is_found_in_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_file: bool) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    for config, found in ((ZERO_3, True), (ZERO_2, False), ({}, False)):
        given = written(tmp_path, config) if as_file else config
        assert (zero_3({"deepspeed": given}) is not None) == found
    with pytest.raises(ValueError, match=r"^trainer\.deepspeed.* asks for DeepSpeed's ZeRO-3"):
        without({"deepspeed": written(tmp_path, ZERO_3)})


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"trainer\.deepspeed names nowhere\.json, which cannot be read as a JSON file"
    ):
        without({"deepspeed": "nowhere.json"})
    with pytest.raises(ValueError, match="holds no mapping"):
        without({"deepspeed": written(tmp_path, [3])})


def test_a_frozen_reference_needs_weights_that_every_process_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with_reference({})  # without FSDP it says nothing
    with_reference({"fsdp": "full_shard"})  # transformers turns it off where the recipe does not say it
    (tmp_path / "fsdp.json").write_text('{"fsdp_cpu_ram_efficient_loading": true}')
    for config in ({"cpu_ram_efficient_loading": "true"}, str(tmp_path / "fsdp.json")):
        settings = {"fsdp": "full_shard", "fsdp_config": config}
        without(settings)
        with pytest.raises(ValueError, match=r"trainer\.fsdp_config"):
            with_reference(settings)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    without({})
    with pytest.raises(ValueError, match="--fsdp_cpu_ram_efficient_loading false"):
        with_reference({})


def test_fsdp_that_a_recipe_asks_for_is_treated_like_a_launchers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not wants_fsdp({}) and not wants_fsdp({"fsdp": ""}) and wants_fsdp({"fsdp": "full_shard"})
    with pytest.raises(ValueError, match="the recipe asks for FSDP, which accelerate does on GPUs only"):
        check_world(use_cpu=True, fsdp=True)
    with pytest.raises(ValueError, match="bnb_4bit_quant_storage=float32"):
        model_options({"model_name_or_path": "x", "dtype": "float32", "load_in_4bit": True}, fsdp=True)
    recipe = check_body({"task": "train", "method": "dpo", "model": {"model_name_or_path": "x"}}, "here")
    assert isinstance(recipe, TrainRecipe)
    assert reference_folder(recipe, {"fsdp": "full_shard"}) is not None  # transformers' version is 2
    with caplog.at_level(logging.INFO, "overrefusal_po"):
        assert reference_folder(recipe, {"fsdp": "full_shard", "fsdp_config": {"version": 1}}) is None
    assert "speed.reference_store is left out" in caplog.text
