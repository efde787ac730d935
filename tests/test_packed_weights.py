"""packed_weights.py: the same products by packed weights, and the weights as they were."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import Style
from factories import lora

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.model import packed_weights as packing
from overrefusal_po.model.packed_weights import packed_weights
from overrefusal_po.records import Prompt, Sampling

MANY = 1000
"""Steps that are worth the packing."""


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of tiny models are packed as those of real ones."""
    monkeypatch.setattr(packing, "LEAST", 1)


@pytest.fixture(params=["llama", "qwen", "mistral", "tied", "adapter"])
def model(request: pytest.FixtureRequest, styles: dict[str, Style]) -> Any:
    """Models of the three styles (qwen's layers have biases), one with a tied embedding, and one
    under an adapter."""
    from peft import get_peft_model

    name = request.param
    made = styles[name if name in styles else "llama"].make_model().eval()
    if name == "tied":
        made.lm_head.weight = made.get_input_embeddings().weight
    return get_peft_model(made, lora()) if name == "adapter" else made


def packed_layers(model: Any) -> list[str]:
    """The names of the layers that are packed now."""
    return [name for name, one in model.named_modules() if "forward" in vars(one)]


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies numbers of this format on this CPU; if not, layers stay as they
    are."""
    bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype != torch.bfloat16 or bfloat16


def tokens() -> torch.Tensor:
    return torch.randint(0, 100, (3, 17), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model: Any, **options: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=tokens(), **options).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_the_same_and_weights_stay(model: Any, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    same = {id(weight) for weight in model.parameters()}
    plain, last = logits(model), logits(model, logits_to_keep=1)
    with packed_weights(model, steps=MANY):
        linear = [name for name, one in model.named_modules() if type(one) is torch.nn.Linear]
        assert packed_layers(model) == (linear if can_pack(dtype) else [])
        # in 16 bits torch multiplies by the same library, in 32 bits by another one
        far = 0 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=far)
        torch.testing.assert_close(logits(model, logits_to_keep=1), last, rtol=0, atol=far)
    assert not packed_layers(model)
    assert {id(weight) for weight in model.parameters()} == same
    assert kept.keys() == model.state_dict().keys()
    assert all(torch.equal(kept[name], now) for name, now in model.state_dict().items())
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)


def test_without_room_for_a_copy_nothing_is_packed(
    styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = styles["llama"].make_model()
    linear = [one for one in model.modules() if type(one) is torch.nn.Linear]
    need = packing.ROOM * sum(one.weight.nbytes for one in linear)
    for free, count in ((need - 1, 0), (need, len(linear))):
        monkeypatch.setattr(packing, "free_memory", lambda free=free: free)
        with packed_weights(model, steps=MANY):
            assert len(packed_layers(model)) == count
    monkeypatch.undo()
    assert 0 < packing.free_memory() < 1e14


def test_gradients_are_those_of_the_layer(styles: dict[str, Style]) -> None:
    model = styles["llama"].make_model().eval()
    states = torch.randn(5, 64, requires_grad=True)
    layer = model.model.layers[0].mlp.up_proj
    [plain] = torch.autograd.grad(layer(states).square().sum(), [states])
    with packed_weights(model, steps=MANY):
        [packed] = torch.autograd.grad(layer(states).square().sum(), [states])
    assert plain.abs().sum() and torch.equal(plain, packed)


def test_a_model_trains_on_afterwards(styles: dict[str, Style]) -> None:
    """Whatever mode the texts were made in: weights of torch's inference mode cannot be trained."""
    model = styles["llama"].make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    with torch.inference_mode(), packed_weights(model, steps=MANY):
        logits(model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer.step()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert all(not torch.equal(before[name], now) for name, now in model.named_parameters())


def test_few_steps_and_what_cannot_be_packed_are_left_alone(styles: dict[str, Style]) -> None:
    class Other(torch.nn.Linear):
        """A class of somebody else, with a way of its own to multiply."""

    model = styles["llama"].make_model()
    with packed_weights(model, steps=packing.WORTH - 1):
        assert not packed_layers(model)
    with packed_weights(model.double(), steps=MANY):
        assert not packed_layers(model)
    model = model.float()
    model.lm_head = Other(64, model.config.vocab_size, bias=False)
    model.model.layers[1].mlp.up_proj.to("meta")
    hooked = model.model.layers[0].mlp.up_proj
    hooked.forward = lambda x: x @ hooked.weight.T
    with packed_weights(model, steps=MANY):
        assert hooked.weight.numel() and not isinstance(hooked.forward, packing.Product)
        found = packed_layers(model)
    assert "lm_head" not in found and "model.layers.1.mlp.up_proj" not in found
    assert "model.layers.1.mlp.down_proj" in found


def test_a_machine_that_cannot_pack_multiplies_as_before(
    styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it finds out at a later layer."""
    model = styles["llama"].make_model().eval()
    plain, packed = logits(model), packing.reordered

    def cannot(weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[1] == 128:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support")
        return packed(weight)

    monkeypatch.setattr(packing, "reordered", cannot)
    with packed_weights(model, steps=MANY):
        assert 0 < len(packed_layers(model)) < 15
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-5)
    assert torch.equal(logits(model), plain)


def asked(engine: TransformersEngine, count: int = 24) -> Iterator[Any]:
    prompts = [Prompt.of(f"How do I stop program {n}?", kind="benign") for n in range(count)]
    return engine.complete(prompts, Sampling(max_new_tokens=20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_packs_for_its_texts_alone(
    model: Any, dtype: torch.dtype, styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 prompts in twos, 20 tokens each: 240 steps. Texts are those of plain weights."""
    model, kind = model.to(dtype), model.config.model_type
    style = styles[{"qwen2": "qwen"}.get(kind, kind)]
    engine = TransformersEngine(model, style.template, name="m", batch_size=2, device="cpu")
    rows = asked(engine)
    first = next(rows)
    assert bool(packed_layers(model)) == can_pack(dtype)
    found = [first, *rows]
    assert not packed_layers(model)
    half = asked(engine)
    next(half)
    half.close()  # type: ignore[attr-defined]  # a generator, which the reader leaves
    assert not packed_layers(model)
    next(asked(engine, count=2))
    assert not packed_layers(model)
    monkeypatch.setattr(packing, "WORTH", 10**9)
    assert [row.text for row in asked(engine)] == [row.text for row in found]


def test_torch_still_has_the_operators() -> None:
    """A canary: without them nothing fails, and generation takes longer."""
    weight, rows = torch.randn(48, 32), torch.randn(5, 32)
    found = packing.product(rows, packing.reordered(weight), None)
    torch.testing.assert_close(found, rows @ weight.T, rtol=0, atol=1e-4)
