"""opener_bias.py: values worked by hand, and that the weights do what was calculated."""

import copy
from typing import Any

import pytest
import torch
from conftest import Style
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GraniteConfig,
    OlmoConfig,
    PhiConfig,
    Qwen3Config,
)

from overrefusal_po.model import load as models
from overrefusal_po.model.folding import check_site, fold
from overrefusal_po.model.opener_bias import (
    FirstStates,
    OpenerBias,
    TextIds,
    bias_site,
    first_states,
    flip_points,
    margins,
    norm_scale,
    opener_bias,
    position_reader,
    texts_to_read,
)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "qwen3, tied": lambda: Qwen3Config(
        **SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True
    ),
    "qwen3, untied": lambda: Qwen3Config(
        **SMALL, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False
    ),
    "granite, scaled residuals": lambda: GraniteConfig(
        **SMALL, num_key_value_heads=2, residual_multiplier=0.22, logits_scaling=3.0
    ),
    "phi, parallel layers and a bias": lambda: PhiConfig(**SMALL),
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3)
    return model


def texts(n: int = 12) -> list[TextIds]:
    """Prompts of several lengths that end alike, each with a response."""
    drawn = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 60, (n, 9), generator=drawn).tolist()
    return [TextIds([*row[: 3 + i % 4], 61, 62], row[7:]) for i, row in enumerate(rows)]


def first_logits(model: Any, rows: list[TextIds]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(
            [model(input_ids=torch.tensor([r.prompt])).logits[0, -1] for r in rows]
        ).float()


def margin_of(logits: torch.Tensor, openers: list[int]) -> torch.Tensor:
    rest = logits.clone()
    rest[:, openers] = -torch.inf
    return logits[:, openers].amax(-1) - rest.amax(-1)


def lora(model: Any, **more: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **more}
    found = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(2)
    for name, weight in found.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.05)
    return found.eval()


# ------------------------------------------------------------------------------- values by hand


def test_the_position_reader_is_one_where_it_should_be_and_zero_elsewhere() -> None:
    """Inputs (1, 0) at first positions and (0, 1) at others: `a` is (1, 0)."""
    first, other = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 3)
    found = position_reader(FirstStates(first, torch.zeros(3, 2), other))
    assert found.tolist() == pytest.approx([1, 0], abs=2e-3)


def test_a_few_first_positions_count_as_much_as_many_others() -> None:
    """One of 1 against 999 of 0 that differ by a little: without weights `a.x` would be near 0."""
    first = torch.tensor([[1.0, 1.0]])
    other = torch.tensor([[1.0, 0.0]] * 999)
    found = position_reader(FirstStates(first, torch.zeros(1, 2), other))
    assert float(first[0] @ found) == pytest.approx(1, abs=0.02)
    assert float(other[0] @ found) == pytest.approx(0, abs=0.02)


# ----------------------------------------------------------------------- weights do what is said


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("adapter", [False, True])
def test_folded_weights_have_the_margins_that_were_calculated(name: str, adapter: bool) -> None:
    model = lora(made(name)) if adapter else made(name)
    rows, openers = texts(), [5, 9]
    site = bias_site(model)
    states = first_states(model, site, rows, batch_size=5)
    before = first_logits(model, rows)
    assert margins(model, site, states, zero_bias(states), openers, torch.zeros(12)).tolist() == (
        pytest.approx(margin_of(before, openers).tolist(), abs=1e-3)
        if "granite" not in name
        else pytest.approx((margin_of(before, openers) * 3).tolist(), abs=1e-3)
    )
    bias = opener_bias(model, site, states, openers)
    flips = flip_points(model, site, states, bias, openers, limit=50.0)
    found = sorted(flips[flips.isfinite()].tolist())
    gaps = [(b - a, (a + b) / 2) for a, b in zip(found[:-1], found[1:], strict=True)]
    strength = max(gaps)[1]  # far from every flip point
    fold(model, site, bias, strength)
    opens = margin_of(first_logits(model, rows), openers) > 0
    assert opens.tolist() == (strength > flips).tolist()
    assert 0 < int(opens.sum()) < 12


def zero_bias(states: FirstStates) -> OpenerBias:
    none = torch.zeros(states.inputs.shape[1])
    return OpenerBias(none, torch.zeros(states.residual.shape[1]), none)


@pytest.mark.parametrize("name", ["qwen3, tied", "qwen3, untied"])
def test_other_positions_hardly_change(name: str) -> None:
    """In a wide layer, as real models have: 32 inputs cannot tell 12 texts' positions apart."""
    config = CONFIGS[name]()
    config.intermediate_size = 2048
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3)
    rows, openers, site = texts(), [5], bias_site(model)
    states = first_states(model, site, rows, batch_size=12)
    whole = torch.tensor([[*rows[0].prompt, *rows[0].response]])
    before = model(input_ids=whole).logits[0].detach()
    fold(model, site, opener_bias(model, site, states, openers), 4.0)
    change = (model(input_ids=whole).logits[0] - before).abs().amax(-1)
    at = len(rows[0].prompt) - 1
    others = [float(value) for i, value in enumerate(change) if i != at]
    assert float(change[at]) > 1.0
    assert max(others) < 0.1 * float(change[at])


def test_an_adapter_grows_by_one_rank_and_merges_to_the_same_model(tmp_path: Any) -> None:
    model = lora(made("qwen3, tied"))
    rows, openers, site = texts(), [5, 9], None
    site = bias_site(model)
    states = first_states(model, site, rows, batch_size=12)
    plain = first_logits(model, rows)
    fold(model, site, opener_bias(model, site, states, openers), 0.0)
    assert torch.allclose(first_logits(model, rows), plain, atol=1e-5)  # the wider one is the same
    fold(model, site, opener_bias(model, site, states, openers), 3.0)
    live = first_logits(model, rows)
    assert not torch.allclose(live, plain, atol=0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    from peft import PeftModel

    again = PeftModel.from_pretrained(made("qwen3, tied"), str(tmp_path / "adapter")).eval()
    assert again.peft_config["default"].r == 6
    assert again.peft_config["default"].lora_alpha == 12
    assert torch.allclose(first_logits(again, rows), live, atol=1e-5)
    assert torch.allclose(first_logits(models.merged(model), rows), live, atol=1e-4)


def test_a_rank_stabilised_adapter_keeps_its_scaling(tmp_path: Any) -> None:
    model = lora(made("qwen3, tied"), use_rslora=True)
    site = bias_site(model)
    states = first_states(model, site, texts(), batch_size=12)
    fold(model, site, opener_bias(model, site, states, [5]), 2.0)
    live = first_logits(model, texts())
    model.save_pretrained(str(tmp_path / "adapter"))
    from peft import PeftModel

    again = PeftModel.from_pretrained(made("qwen3, tied"), str(tmp_path / "adapter")).eval()
    assert torch.allclose(first_logits(again, texts()), live, atol=1e-4)


def test_states_do_not_depend_on_the_batch(styles: dict[str, Style]) -> None:
    model = styles["llama"].make_model()
    site = bias_site(model)
    alone, together = (first_states(model, site, texts(), batch_size=size) for size in (1, 12))
    assert torch.allclose(alone.inputs, together.inputs, atol=1e-5)
    assert torch.allclose(alone.residual, together.residual, atol=1e-5)


def test_texts_are_read_whole_until_there_are_enough_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """40 positions and a limit of 10: every fourth text whole, else the prompts of the first 6."""
    monkeypatch.setattr("overrefusal_po.model.opener_bias.READ_STATES", 10)
    rows = [TextIds([1, 2, at], [4, 5]) for at in range(8)]
    found = texts_to_read(rows, 6)
    assert found == {0: rows[0], 4: rows[4]} | {at: TextIds([1, 2, at], ()) for at in (1, 2, 3, 5)}
    monkeypatch.setattr("overrefusal_po.model.opener_bias.READ_STATES", 40)
    assert texts_to_read(rows, 6) == dict(enumerate(rows))


def test_first_positions_are_the_same_however_much_else_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other positions come from the texts that are read whole, and from no prompt alone."""
    model, rows = made("qwen3, tied"), texts()
    site = bias_site(model)
    all_read = first_states(model, site, rows, batch_size=5)
    monkeypatch.setattr("overrefusal_po.model.opener_bias.READ_STATES", 30)
    fewer = first_states(model, site, rows, batch_size=5, firsts=7)
    step = round(sum(len(p) + len(r) for p, r in rows) / 30)
    assert torch.allclose(fewer.inputs, all_read.inputs[:7], atol=1e-4)
    assert torch.allclose(fewer.residual, all_read.residual[:7], atol=1e-4)
    whole = first_states(model, site, rows[::step], batch_size=5)
    assert step == 3
    assert torch.allclose(fewer.others, whole.others, atol=1e-4)


def test_a_layer_that_norms_what_it_adds_has_no_place_for_a_bias() -> None:
    model = AutoModelForCausalLM.from_config(
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8)
    )
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM.*has post_feedforward_layernorm"):
        bias_site(model)


def test_the_site_is_found_without_weights() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["qwen3, tied"]())
    assert bias_site(model).down == "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("adapter", [False, True])
def test_a_fold_can_be_undone(adapter: bool) -> None:
    model = (lora(made("qwen3, untied")) if adapter else made("qwen3, untied")).to(torch.bfloat16)
    before, plain = copy.deepcopy(model.state_dict()), first_logits(model, texts())
    site = bias_site(model)
    states = first_states(model, site, texts(), batch_size=12)
    undo = fold(model, site, opener_bias(model, site, states, [5]), 3.0)
    assert not torch.equal(first_logits(model, texts()), plain)
    undo()
    assert torch.equal(first_logits(model, texts()), plain)
    if not adapter:
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bias_of_one_raises_the_openers_by_about_one_logit(name: str) -> None:
    """And the others by much less: the residual stream of these texts has a mean square of about
    1, and the edit is small beside it."""
    model = made(name)
    if "granite" in name:
        model.config.logits_scaling = model.model.config.logits_scaling = 1.0
    rows, openers, site = texts(), [5, 9], bias_site(model)
    states = first_states(model, site, rows, batch_size=12)
    before = first_logits(model, rows)
    fold(model, site, opener_bias(model, site, states, openers), 0.1)
    change = (first_logits(model, rows) - before) / 0.1
    others = [token for token in range(64) if token not in openers]
    assert change[:, openers].mean() == pytest.approx(1, abs=0.15)
    assert change[:, others].abs().mean() < 0.5


def test_a_norm_is_measured_and_not_read() -> None:
    """Weights as they are, weights minus 1 (Gemma), and none (OLMo)."""
    like = torch.zeros(3, 64)
    gemma = AutoModelForCausalLM.from_config(
        GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8)
    )
    gemma.model.norm.weight.data.fill_(0.5)
    assert norm_scale(gemma.model.norm, like).tolist() == pytest.approx([1.5] * 64, abs=1e-3)
    plain = made("qwen3, tied")
    plain.model.norm.weight.data.fill_(0.5)
    assert norm_scale(plain.model.norm, like).tolist() == pytest.approx([0.5] * 64, abs=1e-3)
    olmo = AutoModelForCausalLM.from_config(OlmoConfig(**SMALL, num_key_value_heads=2))
    assert norm_scale(olmo.model.norm, like).tolist() == pytest.approx([1.0] * 64, abs=1e-3)


def test_two_openers_with_equal_rows_are_no_fault() -> None:
    model = made("qwen3, untied")
    head = model.get_output_embeddings().weight
    head.data[9] = head.data[5]
    site = bias_site(model)
    states = first_states(model, site, texts(), batch_size=12)
    assert bool(opener_bias(model, site, states, [5, 9]).direction.isfinite().all())


def test_an_adapter_without_the_site_is_refused() -> None:
    model = lora(made("qwen3, tied"), target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"this adapter has none there"):
        check_site(model, bias_site(model))
    dora = lora(made("qwen3, tied"), use_dora=True)
    with pytest.raises(ValueError, match=r"or it is DoRA"):
        check_site(dora, bias_site(dora))
