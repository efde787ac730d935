"""TRL's settings as a table: every class, every default, and the cache."""

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.trl_fields import CONFIGS, cache_folder, check_fields, field_table
from overrefusal_po.recipe.words import unknown_key

DPO = "trl.DPOConfig"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder."""
    monkeypatch.setenv("OVERREFUSAL_PO_CACHE", str(tmp_path))
    field_table.cache_clear()
    yield tmp_path
    field_table.cache_clear()


def test_every_method_has_its_table() -> None:
    assert {row.config for row in METHODS.values()} | {"trl.ModelConfig"} == set(CONFIGS)
    for config, key in [(DPO, "beta"), ("trl.SFTConfig", "packing"), ("trl.ModelConfig", "lora_r")]:
        assert key in field_table(config)
    assert "beta" in field_table("overrefusal_po.train.orpo.ORPOConfig")
    assert "loss_type" not in field_table("overrefusal_po.train.orpo.ORPOConfig")
    assert field_table(DPO)["learning_rate"]["default"] == 1e-6


@pytest.mark.parametrize("config", CONFIGS)
def test_the_table_has_every_field_of_the_class(config: str) -> None:
    module, _, name = config.rpartition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    assert set(field_table(config)) == {f.name for f in fields if f.init}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_default_of_trl_is_allowed(config: str) -> None:
    defaults = {
        name: row["default"]
        for name, row in field_table(config).items()
        if row["default"] is not None
    }
    checked = check_fields(config, defaults, "trainer")
    assert {k: v for k, v in checked.items() if v != defaults[k] and v != [defaults[k]]} == {}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("loss_type", "ipo", "ipo"),
        ("loss_type", ["sigmoid", "sft"], ["sigmoid", "sft"]),
        ("loss_weights", 1.0, [1.0]),
        ("label_names", "x", ["x"]),
        ("report_to", "wandb", "wandb"),
        ("report_to", ["wandb", "none"], ["wandb", "none"]),
        ("max_length", None, None),
        ("max_steps", 2.0, 2),
        ("beta", 1, 1),
        ("save_steps", 0.5, 0.5),
        ("optim", "adamw_torch", "adamw_torch"),
        ("lr_scheduler_type", "cosine", "cosine"),
        ("save_strategy", "no", "no"),
        ("save_strategy", False, "no"),
        ("bf16", False, False),
        ("fsdp", True, True),
        ("fsdp", "full_shard", "full_shard"),
        ("fsdp", None, None),
    ],
)
def test_a_value_is_allowed_and_a_scalar_stands_for_a_list(
    name: str, value: Any, wanted: Any
) -> None:
    found = check_fields(DPO, {name: value}, "trainer")[name]
    assert found == wanted and type(found) is type(wanted)


def test_one_target_module_stands_for_a_list_of_one() -> None:
    checked = check_fields("trl.ModelConfig", {"lora_target_modules": "all-linear"}, "model")
    assert checked == {"lora_target_modules": ["all-linear"]}


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("optim", "adamwx", ["'adamwx' (text)", "one of adamw_torch, "]),
        ("lr_scheduler_type", "cosin", ["cosine (nearest)"]),
        ("run_name", False, ["False (true/false)"]),
        ("save_strategy", True, ["True (true/false)"]),
        ("save_strategy", "never", ["one of no, steps, epoch, best"]),
        ("loss_type", "sigmoyd", ["sigmoid (nearest)"]),
        ("loss_type", ["sigmoid", "x"], ["(list)"]),
        ("learning_rate", -1e-6, ["at least 0"]),
        ("learning_rate", "5e-6x", ["(text)", "a number of at least 0"]),
        ("gradient_accumulation_steps", 0, ["a whole number of at least 1"]),
        ("beta", True, ["(true/false)", "a number"]),
        ("max_length", "long", ["a whole number or null"]),
        ("bf16", "yes please", ["true or false or null"]),
        ("fsdp", 2, ["true or false or text or null"]),
    ],
)
def test_enums_that_hide_in_strings_and_ranges_are_checked(
    name: str, value: Any, parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        check_fields(DPO, {name: value}, "trainer")
    for part in [f"trainer.{name}", *parts]:
        assert part in str(caught.value)


def test_an_unknown_key_names_near_ones_or_all() -> None:
    assert unknown_key("betta", ["beta", "alpha"], "trainer", owner="X") == (
        "trainer.betta is not a known key of X. Did you mean beta?"
    )
    assert (
        unknown_key("zzz", ["beta", "alpha"], "")
        == "zzz is not a known key. Known keys: alpha, beta."
    )


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREFUSAL_PO_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
    monkeypatch.delenv("OVERREFUSAL_PO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/y")
    assert cache_folder() == Path("/tmp/y/overrefusal-po")


@pytest.mark.slow
def test_the_table_is_made_once_and_then_read_from_the_cache(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = field_table(DPO)
    [file] = (fresh / "fields").iterdir()
    monkeypatch.setattr(
        sys, "executable", "/nowhere/python"
    )  # a child process could not be started any more
    field_table.cache_clear()
    assert field_table(DPO) == made and file.is_file()
    file.unlink()
    field_table.cache_clear()
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        field_table(DPO)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("lora_r", 0, "a whole number of at least 1"),
        ("lora_dropout", 2, "a number from 0 to 1"),
        ("lora_dropout", -0.1, "a number from 0 to 1"),
    ],
)
def test_an_adapter_that_peft_cannot_make_is_told_by_the_table(
    name: str, value: float, allowed: str
) -> None:
    """PEFT says so itself only once the weights are loaded."""
    with pytest.raises(ValueError, match=rf"model\.{name} is .*{allowed}"):
        check_fields("trl.ModelConfig", {name: value}, "model")
