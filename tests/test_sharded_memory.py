"""sharded_memory.py: counts worked by hand. What two processes hold is measured by
test_fsdp_memory.py."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from test_memory import SHAPE, recipe

from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.train.memory import Batch, estimate
from overrefusal_po.train.settings import full_settings
from overrefusal_po.train.sharded_memory import (
    Kind,
    Layout,
    checked_spread,
    on_gpu,
    sharded_estimate,
)
from overrefusal_po.train.stage import check_shardable

KINDS: tuple[Kind, ...] = get_args(Kind)
BATCH = Batch(tokens=10, scored=4)


def found(body: TrainRecipe, kind: Kind = "fsdp2", world: int = 4) -> dict[str, Any]:
    return sharded_estimate(
        SHAPE, body, BATCH, Layout(world, kind, per_node=2), "cpu", 1e12
    )._asdict()


def states(body: TrainRecipe, kind: Kind = "fsdp2") -> tuple[float, float, float]:
    held = found(body, kind)
    return held["weights"], held["gradients"], held["optimiser"]


def test_fsdp_holds_a_share_of_32_bit_weights_gradients_and_moments() -> None:
    """1000 weights of 4 bytes on 4 devices; in 16 bits too, since the optimiser steps on 32."""
    assert states(recipe()) == (1000, 1000, 2000)
    mixed = recipe(model={"dtype": "bfloat16"}, trainer={"bf16": True})
    assert states(mixed) == (1000, 1000, 2000)


def test_zero_shards_states_then_gradients_then_weights() -> None:
    """In 16 bits: 2 bytes a weight and a gradient, and 12 for the optimiser with its copy."""
    mixed = recipe(trainer={"bf16": True})
    assert states(mixed, "zero1") == (2000 + 1000, 2000, 2000)
    assert states(mixed, "zero2") == (2000 + 1000, 500, 2000)
    assert states(mixed, "zero3") == (500 + 1000, 500, 2000)


def test_an_adapter_shares_its_frozen_base() -> None:
    """10 weights a rank, rank 4, in 32 bits, beside 1000 in 16."""
    lora = recipe(model={"use_peft": True, "lora_r": 4, "dtype": "bfloat16"})
    assert states(lora) == ((2000 + 160) / 4, 40, 80)


def test_a_layer_and_the_next_and_the_head_are_whole_for_a_moment() -> None:
    """320 matrix weights a layer, a head of 50 x 8, gradients of the head."""
    assert found(recipe())["gathered"] == 4 * (2 * 320 + 400 + 400)


def test_a_reference_is_held_by_zero_alone() -> None:
    """1000 weights of 4 bytes, or of 2 if it computes in 16 bits; ZeRO-3 shares them out."""
    kto = recipe("kto")
    assert [found(kto, kind)["reference"] for kind in KINDS] == [0, 4000, 4000, 1000]
    assert found(recipe("kto", trainer={"bf16": True}), "zero3")["reference"] == 500
    assert found(recipe(), "zero3")["reference"] == 0, "the store has its log-probs"
    layout = Layout(4, "zero3")
    whole = sharded_estimate(SHAPE, kto, BATCH, layout, "cpu", 1e12)
    assert whole.total - whole._replace(reference=0.0).total == 1000


def test_a_named_gpu_computes_as_a_gpu_does() -> None:
    """On this machine without one a recipe that leaves it open would count as on its CPU."""
    body = {"task": "train", "method": "dpo", "model": {"model_name_or_path": "some/model"}}
    left_open = check_body(body, "here")
    assert isinstance(left_open, TrainRecipe)
    settings = full_settings(on_gpu(left_open))
    assert settings["bf16"] and settings["gradient_checkpointing"]
    assert not full_settings(on_gpu(recipe()))["bf16"], "what the recipe says stays"


def test_zero_3_shares_out_no_4_bit_weights() -> None:
    qlora = recipe(model={"use_peft": True, "load_in_4bit": True, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="Take zero_stage 2"):
        found(qlora, "zero3")
    assert found(qlora, "zero2")["weights"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_sharding_trains_gets_no_estimate(kind: Kind) -> None:
    """A method that trains rows of the embedding, and measurements of the model in training."""
    settings = {"fsdp" if kind == "fsdp2" else "deepspeed": True}
    with pytest.raises(ValueError, match="hold cannot be used with"):
        check_shardable(recipe(hold={}), settings)
    check_shardable(recipe(), settings)


def test_no_reference_is_held_by_fsdp_and_activations_are_a_devices_own() -> None:
    body = recipe(speed={"reference_store": False})
    plain = estimate(SHAPE, body, BATCH, "cpu", 1e12)
    held = found(body)
    assert plain.reference == 4000 and held["reference"] == 0
    assert held["logits"] == plain.logits and held["activations"] == plain.activations
    several = recipe(trainer={"gradient_accumulation_steps": 2})
    assert found(several)["activations"] == held["activations"] + 1000


def test_a_host_reads_tensors_one_by_one_and_an_adapters_base_once() -> None:
    overhead = 2 * 0.76e9  # two processes
    lora = recipe(model={"use_peft": True, "dtype": "bfloat16"})
    assert found(recipe())["host_load"] - overhead == pytest.approx(2 * 4 * 400, abs=1)
    assert found(lora)["host_load"] - overhead == pytest.approx(2000, abs=1)
    assert found(recipe(), "zero2")["host_load"] - overhead == pytest.approx(2 * 4000, abs=1)
    assert found(recipe(), "zero3")["host_load"] == found(lora, "zero3")["host_load"]
    assert found(recipe(), "zero3")["host_load"] - overhead == pytest.approx(2 * 4 * 400, abs=1)
    assert found(recipe())["host_save"] - overhead == pytest.approx(4000, abs=1)


@pytest.mark.parametrize(
    ("zero", "uncounted", "reads_whole"),
    [
        ({}, (), False),
        ({"offload_param": {"device": "none"}, "zero_hpz_partition_size": 1}, (), False),
        ({"offload_param": {"device": "cpu"}}, ("offload_param cpu",), False),
        ({"offload_optimizer": {"device": "nvme"}}, ("offload_optimizer nvme",), False),
        ({"offload_param": {"device": "nvme"}}, ("offload_param nvme",), True),
        ({"zero_hpz_partition_size": 8}, ("zero_hpz_partition_size 8",), True),
        ({"zero_quantized_weights": True}, ("zero_quantized_weights",), True),
        (
            {"zero_quantized_nontrainable_weights": True},
            ("zero_quantized_nontrainable_weights",),
            True,
        ),
    ],
)
def test_what_zero_3_keeps_elsewhere_is_named_and_read_whole(
    zero: dict[str, Any], uncounted: tuple[str, ...], reads_whole: bool
) -> None:
    """The first process of a host reads 1000 weights of 4 bytes, or two read a head of 50 x 8."""
    body = recipe(trainer={"deepspeed": {"zero_optimization": {"stage": 3, **zero}}})
    held = sharded_estimate(SHAPE, body, BATCH, Layout(4, "zero3", per_node=2), "cpu", 1e12)
    assert held.uncounted == uncounted
    read = held.host_load - 2 * 0.76e9
    assert read == pytest.approx(4000 if reads_whole else 2 * 4 * 400, abs=1)
    told = f"; not counted: {', '.join(uncounted)}"
    assert str(held).endswith(told) if uncounted else "not counted" not in str(held)
    assert found(body, "fsdp2")["uncounted"] == ()


def test_quantised_weights_of_a_deepspeed_config_file_are_named(tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 3}, "weight_quantization": {"quantized": {}}}
    (tmp_path / "zero.json").write_text(json.dumps(config))
    body = recipe(trainer={"deepspeed": str(tmp_path / "zero.json")})
    assert found(body, "zero3")["uncounted"] == ("weight_quantization",)


def test_the_line_names_device_and_host() -> None:
    line = str(sharded_estimate(SHAPE, recipe(), BATCH, Layout(4), "cuda", 80e9))
    assert line.startswith("1.5 of 80.0 GB: fits (weights 0.0, gathered 0.0, reference 0.0")
    assert "; a host: 6 GB to load, 6 GB to save" in line


def test_a_layout_that_is_none_is_refused() -> None:
    assert checked_spread(None) is None
    spread = checked_spread(16, "zero2", gpu_gb=80)
    assert spread is not None and spread.layout == Layout(16, "zero2", 8)
    small = checked_spread(2)
    assert small is not None and small.layout.per_node == 2
    with pytest.raises(ValueError, match="--sharding fsdp is not known; allowed is one of fsdp2"):
        checked_spread(16, "fsdp")
    with pytest.raises(ValueError, match="--world 0"):
        checked_spread(0)
