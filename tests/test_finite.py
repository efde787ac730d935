"""A training that leaves the finite numbers stops, and ships nothing."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Style

from overrefusal_po.model.finite import NotFiniteError, all_finite, check_finite
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body


def test_one_value_among_many_is_seen() -> None:
    good = [torch.zeros(3), torch.ones(2, 2)]
    assert all_finite(good) and all_finite([]) and all_finite([torch.zeros(0)])
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([*good, torch.tensor([0.0, bad])])


def test_large_values_are_finite() -> None:
    """The largest numbers of the format: a norm of squares would overflow."""
    assert all_finite([torch.full((4,), torch.finfo(torch.float32).max)])
    assert all_finite([torch.full((4,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)])


def test_the_first_weight_is_named() -> None:
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.bias[0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"1 of 2 weights .*first: bias"):
        check_finite(layer, "a layer")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_training_stops_at_the_step_and_saves_no_model(
    method: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    data = {"dpo": {"pairs": "starter", "max_pairs": 4, "allow_no_anchor": True}}
    recipe = {
        "task": "train",
        "method": method,
        "model": {"model_name_or_path": str(styles["llama"].folder)},
        "data": data.get(method, {"prompts": "starter", "max_prompts": 4}),
        "trainer": {"learning_rate": 1e38, "max_grad_norm": 0.0, "max_steps": 3}
        | {"lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True}
        | {"max_length": None, "per_device_train_batch_size": 2},
    }
    folder = tmp_path / "run"
    with pytest.raises(NotFiniteError, match=r"became NaN or infinite at step [12]"):
        run_stage(check_body(recipe, "recipe"), "recipe", folder)
    assert not (folder / "model").exists() and not (folder / "training.json").exists()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and status["exit_code"] == 1


def test_bits_of_quantised_weights_are_no_numbers() -> None:
    """4-bit weights that are stored as bfloat16 may read as NaN; what is trained may not."""
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError):
        check_finite(model, "plain")
    model.is_quantized = True  # type: ignore[assignment]  # transformers sets it on its models
    check_finite(model, "quantised")
    with torch.no_grad():
        model.bias[0] = float("inf")
    with pytest.raises(NotFiniteError, match="bias"):
        check_finite(model, "quantised")
