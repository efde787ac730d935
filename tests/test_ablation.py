"""ablation.py: values by hand, and that an edit of weights computes what hooks would."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style

from overrefusal_po.model.ablation import (
    ablate_,
    ablated,
    check_ablation,
    direction,
    is_tied,
    untie,
)
from overrefusal_po.model.blocks import last_states, writers

ROWS = [[5, 9, 17, 4], [8, 3], [11, 12, 13, 14, 15, 6, 7]]
TEXTS = ["How do I bake bread?", "Hi", "Tell me how a kiln is fired, step by step."]


def test_a_state_loses_its_part_along_a_direction_of_any_length() -> None:
    h, v = torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])
    assert ablated(h, v).tolist() == [0, 4]
    assert ablated(h, v, 0.5).tolist() == [1.5, 4]


def test_a_matrix_writes_nothing_along_the_direction_afterwards() -> None:
    w, v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.6, 0.8])
    torch.testing.assert_close(v @ w, torch.tensor([3.0, 4.4]))
    found = ablated(w.T, v).T
    torch.testing.assert_close(found, torch.tensor([[-0.8, -0.64], [0.6, 0.48]]))
    torch.testing.assert_close(v @ found, torch.zeros(2))


def test_the_direction_is_the_difference_of_two_means() -> None:
    harmful, ordinary = torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[0, 2.0], [0, 4]])
    found = direction(harmful, ordinary)
    torch.testing.assert_close(found, torch.tensor([2.0, -3.0]) / 13**0.5)
    with pytest.raises(ValueError, match="the same mean state"):
        direction(harmful, harmful)


def tied_model(style: Style) -> Any:
    """A tiny model whose embedding is its output head."""
    model = style.make_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert is_tied(model)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in ROWS])


def states(model: Any, style: Style, size: int) -> torch.Tensor:
    """(3, layers, D) behind TEXTS, in batches of this size."""
    return last_states(model, style.tokenizer, TEXTS, batch_size=size)


@contextmanager
def hooked(model: Any, v: torch.Tensor, strength: float) -> Iterator[None]:
    """The model with the direction taken out behind each module that writes."""
    places = [model.get_input_embeddings(), *map(model.get_submodule, writers(model))]
    handles = [
        place.register_forward_hook(lambda _m, _i, out: ablated(out, v, strength))
        for place in places
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_edited_weights_compute_what_hooks_compute(
    style: Style, tied: bool, strength: float
) -> None:
    model = tied_model(style) if tied else style.make_model()
    v = torch.randn(64, generator=torch.Generator().manual_seed(3))
    before = logits(model)
    with hooked(model, v, strength):
        wanted = logits(model)
    untie(model)
    torch.testing.assert_close(logits(model), before)
    ablate_(model, v, strength)
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-4)
    assert (wanted - before).abs().max() > 0.01


def test_the_stream_has_nothing_along_the_direction_afterwards(style: Style) -> None:
    model = style.make_model()
    v = torch.randn(64, generator=torch.Generator().manual_seed(3))
    v /= v.norm()
    before = states(model, style, 2)
    assert before.shape == (3, 2, 64) and (before @ v).abs().min() > 1e-4
    ablate_(model, v)
    after = states(model, style, 2)
    torch.testing.assert_close(after @ v, torch.zeros(3, 2), atol=1e-6, rtol=0)


def test_states_are_those_of_each_row_alone(style: Style) -> None:
    """Padding and order change nothing, and no hook stays."""
    model = style.make_model()
    found = states(model, style, 3)
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(found, states(model, style, 1), atol=1e-5, rtol=1e-4)
    ids = style.tokenizer(TEXTS[0], add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        behind = model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found[0, 0], behind[1][0, -1], atol=1e-5, rtol=1e-4)


def test_an_untied_model_is_saved_and_loaded_as_it_is(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    from overrefusal_po.model.load import load_model

    model = tied_model(styles["qwen"])
    with pytest.raises(ValueError, match="Untie them first"):
        ablate_(model, torch.ones(64))
    untie(model)
    ablate_(model, torch.ones(64))
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype="float32")
    assert not is_tied(again)
    torch.testing.assert_close(logits(again), logits(model))


def test_models_that_are_built_otherwise_are_refused_without_their_weights() -> None:
    from transformers import Gemma2Config, GPT2Config, LlamaConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="GPT2Block writes into its stream"):
        check_ablation(GPT2Config(n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="has post_feedforward_layernorm"):
        check_ablation(Gemma2Config(**small, head_dim=8, num_key_value_heads=1))
    check_ablation(LlamaConfig(**small, intermediate_size=32))
