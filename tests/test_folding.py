"""folding.py: what is left of a bias in 16 bits."""

from typing import Any

import pytest
import torch
from test_opener_bias import SMALL, first_logits, lora, texts
from transformers import AutoModelForCausalLM, Qwen3Config

from overrefusal_po.model import load as models
from overrefusal_po.model.folding import fold, folded_inputs, rounded
from overrefusal_po.model.opener_bias import OpenerBias, bias_site, first_states, opener_bias


def wide(dtype: torch.dtype) -> Any:
    """One layer of 8,192 inputs, as wide as a 3B model's, in a number format."""
    shape = {**SMALL, "intermediate_size": 8192, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**shape, num_key_value_heads=2)).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.1)
    return model.to(dtype)


def bias_of(model: Any) -> OpenerBias:
    site = bias_site(model)
    return opener_bias(model, site, first_states(model, site, texts(), batch_size=12), [5, 9])


def kept_share(model: Any, before: torch.Tensor, bias: OpenerBias, strength: float) -> float:
    """How much of a bias the weights add at a first position: 1 is all."""
    after = model.get_submodule(bias_site(model).down).weight.detach()
    added = (after.float() - before.float()) @ bias.input
    wanted = bias.direction * strength * (bias.position @ bias.input)
    return float(added @ wanted / (wanted @ wanted))


def test_the_error_of_a_rounded_number_goes_into_the_next_one() -> None:
    """Of a thousand additions of a tenth of the distance of two numbers plain rounding keeps none,
    this keeps all."""
    weights, inputs = torch.ones(3, 1000, dtype=torch.bfloat16), torch.ones(1000)
    wanted = weights.float() + 2**-7 / 10
    assert torch.equal(wanted.bfloat16(), weights)
    found = rounded(wanted, torch.bfloat16, inputs)
    assert found.dtype == torch.bfloat16
    sums = (found.float() @ inputs).tolist()
    assert sums == pytest.approx([1000 + 1000 * 2**-7 / 10] * 3, abs=2**-7)
    assert (found.float() - wanted).abs().max() <= 2**-7


def test_an_error_does_not_grow_where_inputs_are_small() -> None:
    drawn = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 500, generator=drawn).bfloat16()
    inputs = torch.randn(500, generator=drawn) ** 5
    inputs[::7] = 0
    wanted = weights.float() + 1e-4
    found = rounded(wanted, torch.bfloat16, inputs).float()
    assert (found - wanted).abs().max() < 2 * 2**-8 * float(weights.abs().max())
    assert (found @ inputs).tolist() == pytest.approx((wanted @ inputs).tolist(), abs=1.0)


@pytest.mark.parametrize("strength", [0.01, 2.0])
def test_a_merged_adapter_has_the_whole_bias(strength: float) -> None:
    """Of the small one peft's merge alone keeps 0.69: one number of seven changes by more than half
    the distance to the next one."""
    model = wide(torch.bfloat16)
    site, bias = bias_site(model), bias_of(model)
    before = model.get_submodule(site.down).weight.detach().clone()
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    fold(adapted, site, bias, strength)
    assert list(folded_inputs(adapted)) == [site.down]
    assert kept_share(models.merged(adapted), before, bias, strength) == pytest.approx(1, abs=0.03)


def test_whole_weights_keep_the_whole_bias_in_bfloat16() -> None:
    model = wide(torch.bfloat16)
    site, bias = bias_site(model), bias_of(model)
    before = model.get_submodule(site.down).weight.detach().clone()
    undo = fold(model, site, bias, 0.01)
    assert kept_share(model, before, bias, 0.01) == pytest.approx(1, abs=0.03)
    undo()
    assert torch.equal(model.get_submodule(site.down).weight, before)


def test_a_bias_that_is_undone_leaves_no_mark() -> None:
    adapted = lora(wide(torch.float32))
    undo = fold(adapted, bias_site(adapted), bias_of(adapted), 1.0)
    undo()
    assert folded_inputs(adapted) == {}
    live = first_logits(adapted, texts())
    assert torch.allclose(first_logits(models.merged(adapted), texts()), live, atol=1e-3)
