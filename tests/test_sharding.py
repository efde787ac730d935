"""sharding.py: ZeRO-3 and FSDP are found wherever they are asked for: environment, recipe, or a
file of either."""

import copy
import importlib.util
import json
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Style

from overrefusal_po.model.load import check_world, model_options, save_merged
from overrefusal_po.model.sharding import check_sharding, wants_fsdp, zero_3
from overrefusal_po.model.zero import check_deepspeed, check_not_empty, joining
from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.train.dpo import store_folder
from overrefusal_po.train.settings import trainer_config
from overrefusal_po.train.sharded import check_adapter_rows, without_reference

RECIPES = Path(__file__).parents[1] / "recipes"
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


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is not None,
    reason="deepspeed is installed, so that nothing has to be said",
)
def test_deepspeed_that_is_not_installed_is_named(launched: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"pip install 'overrefusal-po\[deepspeed\]'"):
        check_deepspeed({}, {})
    launched.delenv("ACCELERATE_USE_DEEPSPEED")
    with pytest.raises(ValueError, match="DeepSpeed is asked for"):
        check_deepspeed({"deepspeed": ZERO_2}, {})
    check_deepspeed({}, {"load_in_4bit": True})  # which nobody asks for


@pytest.mark.parametrize(
    ("settings", "quantised", "init", "says"),
    [
        ({"deepspeed": ZERO_2, "use_cpu": True}, False, None, "Leave use_cpu out"),
        ({"deepspeed": ZERO_3}, True, None, "Take zero_stage 2"),
        ({"deepspeed": ZERO_3}, False, "false", "Set zero3_init_flag: true"),
        ({"deepspeed": ZERO_3}, False, "0", "Set zero3_init_flag: true"),
        ({"deepspeed": ZERO_3}, False, None, None),
        ({"deepspeed": ZERO_2}, True, "false", None),
    ],
)
def test_what_deepspeed_cannot_train_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, Any],
    quantised: bool,
    init: str | None,
    says: str | None,
) -> None:
    """Here a folder of that name stands for the package, which is looked for and not imported."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    if init is not None:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_INIT", init)
    with pytest.raises(ValueError, match=says) if says else nullcontext():
        check_deepspeed(settings, {"load_in_8bit": quantised})


def test_deepspeed_without_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with (
        pytest.raises(ValueError, match="DeepSpeed needs a launcher"),
        joining({"deepspeed": ZERO_2}),
    ):
        pass
    with joining({}):  # nobody asks for it
        pass


def test_empty_weights_are_never_saved(styles: dict[str, Style], tmp_path: Path) -> None:
    """Whatever forgot to gather them."""
    model = styles["llama"].make_model()
    weight = model.lm_head.weight
    weight.data = weight.data.new_empty(0)
    with pytest.raises(ValueError, match=r"1 of 21 weights are empty \(the first: lm_head"):
        save_merged(model, styles["llama"].tokenizer, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", [2, 3])
def test_the_accelerate_configs_are_some_that_accelerate_knows(stage: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "accelerate" / f"zero{stage}.yaml"))
    assert config.distributed_type == "DEEPSPEED"
    assert config.deepspeed_config["zero_stage"] == stage
    assert config.deepspeed_config["zero3_init_flag"] == (stage == 3)


def test_zero_3_is_found_in_a_config_file(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the launcher, where the file counts and not the stage beside it, and of the recipe, which
    counts before both."""
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", written(tmp_path, ZERO_3))
    assert "the accelerate config" in (zero_3({}) or "") and "deepspeed.json" in (zero_3({}) or "")
    assert zero_3({"deepspeed": ZERO_2}) is None
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    written(tmp_path, ZERO_2)
    assert zero_3({}) is None
    written(tmp_path, AUTO)
    assert zero_3({}) is not None


@pytest.mark.parametrize("as_file", [True, False])
def test_zero_3_is_found_in_the_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_file: bool
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    as_float: dict[str, Any] = {"zero_optimization": {"stage": 3.0}}
    for config, found in ((ZERO_3, True), (as_float, True), (ZERO_2, False), ({}, False)):
        given = written(tmp_path, config) if as_file else config
        assert (zero_3({"deepspeed": given}) is not None) == found
    for text in (written(tmp_path, ZERO_3), json.dumps(ZERO_3)):  # transformers takes both
        assert (zero_3({"deepspeed": text}) or "").startswith("trainer.deepspeed")


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"trainer\.deepspeed names nowhere\.json, which cannot be read as JSON text or a "
        r"JSON file",
    ):
        zero_3({"deepspeed": "nowhere.json"})
    with pytest.raises(ValueError, match=r"trainer\.deepspeed names \{1\}, which cannot be read"):
        zero_3({"deepspeed": "{1}"})
    with pytest.raises(ValueError, match="holds no mapping"):
        zero_3({"deepspeed": written(tmp_path, [3])})


@pytest.mark.parametrize("word", ["true", "yes", "1"])
def test_a_reference_needs_no_second_model_under_fsdp_2_alone(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", word)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with_reference({})  # without FSDP it says nothing
    monkeypatch.setenv("ACCELERATE_USE_FSDP", word)
    without({})
    for settings in ({}, {"fsdp": "full_shard", "fsdp_config": {"version": 1}}):
        with pytest.raises(ValueError, match="--fsdp_version 2"):
            with_reference(settings)
    monkeypatch.setenv("FSDP_VERSION", "2")
    with_reference({})
    with pytest.raises(ValueError, match="sync_ref_model moves the reference with the policy"):
        with_reference({"sync_ref_model": True})


def test_full_training_under_fsdp_2_computes_its_reference_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trl import DPOConfig

    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    plain = DPOConfig("unused", report_to=[], use_cpu=True)
    assert without_reference(plain) is plain
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    assert without_reference(plain).precompute_ref_log_probs
    assert not plain.precompute_ref_log_probs, "the caller's own object has changed"
    synced = copy.copy(plain)
    synced.sync_ref_model = True
    assert without_reference(synced) is synced, "whole weights allow a second model"
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert without_reference(plain) is plain


@pytest.mark.parametrize(
    ("settings", "environment", "named"),
    [
        ({"parallelism_config": {"tp_size": 2}}, {}, "tp_size asks for tensor"),
        ({"parallelism_config": {"cp_size": 4}}, {}, "cp_size asks for context"),
        ({}, {"PARALLELISM_CONFIG_SP_SIZE": "2"}, "sp_size. asks for sequence"),
        ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}, "MEGATRON_LM. asks for tensor and pipeline"),
        ({"parallelism_config": {"dp_shard_size": 2, "tp_size": 1}}, {}, None),
    ],
)
def test_layers_and_rows_are_not_split_over_devices(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    environment: dict[str, str],
    named: str | None,
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    for name, value in {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    if named is None:
        return without(settings)
    with pytest.raises(ValueError, match=f"{named}.* parallelism"):
        without(settings)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"tensor_parallel": {"autotp_size": 2}}, r"tensor_parallel\.autotp_size"),
        ({"expert_parallel": {"enabled": True, "autoep_size": 4}}, r"expert_parallel\.enabled"),
        ({"expert_parallel": {"enabled": True}}, r"expert_parallel\.enabled"),
        ({"expert_parallel": {"enabled": False, "autoep_size": 4}}, None),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
        ({"tensor_parallel": {"autotp_size": 1}, **ZERO_3}, None),
    ],
)
def test_deepspeeds_own_splits_are_refused_too(
    launched: pytest.MonkeyPatch, tmp_path: Path, config: dict[str, Any], named: str | None
) -> None:
    """In the recipe, in a file that the launcher names, and from Python."""
    from trl import DPOConfig

    launched.delenv("ACCELERATE_USE_PARALLELISM_CONFIG", raising=False)
    launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", written(tmp_path, config))
    for settings, place in (({"deepspeed": config}, r"trainer\.deepspeed"), ({}, "the accelerate")):
        words = f"{named} in the DeepSpeed config of {place}.* asks for .* parallelism"
        with pytest.raises(ValueError, match=words) if named else nullcontext():
            without(settings)
        if named:  # settings from Python come by another way
            with pytest.raises(ValueError, match=words):
                trainer_config(DPOConfig, settings)


def test_weights_are_loaded_once_by_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trainer.fsdp_config says comes into the environment with the trainer, when the models
    have their weights."""
    from transformers.distributed import fsdp
    from trl import DPOConfig

    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    monkeypatch.setattr(fsdp, "_is_torch_distributed_initialized", lambda: True)
    settings = {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}
    assert DPOConfig("unused", report_to=[], use_cpu=True, **settings).fsdp_plugin_args[
        "cpu_ram_efficient_loading"
    ]
    assert not fsdp.is_fsdp_enabled()
    with_reference(settings)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "yes")
    assert fsdp.is_fsdp_enabled()


def test_fsdp_that_a_recipe_asks_for_is_treated_like_a_launchers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert (
        not wants_fsdp({}) and not wants_fsdp({"fsdp": ""}) and wants_fsdp({"fsdp": "full_shard"})
    )
    with pytest.raises(
        ValueError, match="the recipe asks for FSDP, which accelerate does on GPUs only"
    ):
        check_world(use_cpu=True, fsdp=True)
    with pytest.raises(ValueError, match="bnb_4bit_quant_storage=float32"):
        model_options(
            {"model_name_or_path": "x", "dtype": "float32", "load_in_4bit": True}, fsdp=True
        )
    asked = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": "x"},
        "trainer": {"fsdp": True},
    }
    recipe = check_body(asked, "here")
    assert isinstance(recipe, TrainRecipe)
    assert store_folder(recipe, {"fsdp": "full_shard"}) is not None  # transformers' version is 2
    (tmp_path / "fsdp.json").write_text('{"fsdp_version": 1}')
    with caplog.at_level(logging.INFO, "overrefusal_po"):
        for config in ({"version": 1}, '{"version": 1}', str(tmp_path / "fsdp.json")):
            assert store_folder(recipe, {"fsdp": True, "fsdp_config": config}) is None
    assert "speed.reference_store is left out" in caplog.text


def test_an_adapter_has_a_row_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    section: dict[str, Any] = {"use_peft": True, "lora_r": 8}
    for name, value in (("WORLD_SIZE", "16"), ("ACCELERATE_USE_FSDP", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="lora_r is 8, and 16 processes"):
        check_adapter_rows(section, {})
    check_adapter_rows({**section, "lora_r": 16}, {})
    check_adapter_rows({"lora_r": 8}, {})
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    check_adapter_rows(section, {})


def test_an_empty_gathered_weight_is_not_saved() -> None:
    import torch

    check_not_empty({"a": torch.ones(2)}, "here")
    for empty in (torch.ones(0), torch.ones(2, device="meta")):
        with pytest.raises(ValueError, match=r"here: 1 of 2 weights are empty \(the first: b\)"):
            check_not_empty({"a": torch.ones(2), "b": empty}, "here")
    with pytest.raises(ValueError, match="all of 0 weights are empty"):
        check_not_empty({}, "here")
