"""remedied.py: a remedy on a model, against weights, adapters and prompts one by one; values worked
by hand."""

import copy
import math
from typing import Any, NamedTuple

import pytest
import torch
from factories import tiny_model
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from overrefusal_po.model.blocks import blocks, kept_streams, writers
from overrefusal_po.model.remedied import check_generation, install, remedied, remedy_of
from overrefusal_po.model.remedy import Change, Deltas, FirstLogits, Gate, Remedy, Steering

KINDS = ("Llama", "Qwen2", "Mistral")
WIDTH, NEW = 12, 6


class Batch(NamedTuple):
    """Three prompts, padded on the left."""

    ids: torch.Tensor
    mask: torch.Tensor

    def of(self, rows: list[int]) -> "Batch":
        return Batch(self.ids[rows], self.mask[rows])


@pytest.fixture
def batch() -> Batch:
    """Prompts of 8, 10 and 12 tokens."""
    torch.manual_seed(1)
    mask = torch.ones(3, WIDTH, dtype=torch.long)
    mask[0, :4] = mask[1, :2] = 0
    return Batch(torch.randint(3, 97, (3, WIDTH)), mask)


def answers(model: Any, batch: Batch, **more: Any) -> tuple[list[list[int]], torch.Tensor]:
    """(tokens of each response, (NEW, B, V) logits of every step)."""
    with torch.inference_mode():
        found = model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **more,
        )
    return found.sequences[:, WIDTH:].tolist(), torch.stack(found.logits)


def last_logits(model: Any, batch: Batch) -> torch.Tensor:
    """(B, V): the logits behind the prompts, in one pass without a cache from outside."""
    places = (batch.mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        found = model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=places)
    return found.logits[:, -1]


def mixed_gate(model: Any, batch: Batch, layer: int = 3) -> Gate:
    """A gate that lets some of three prompts through, not all of them."""
    places = (batch.mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode(), kept_streams(model, [layer]) as kept:
        model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=places)
    weights = torch.linspace(-1, 1, 32)
    scores = (kept[layer].float() @ weights).sort().values
    threshold = float(scores[1:].mean())  # between the second and the third
    return Gate(layer, torch.zeros(32), torch.ones(32), weights, 0.0, threshold)


def deltas(model: Any) -> Deltas:
    """Random matrices of rank 2 for everything that writes into the residual stream."""
    torch.manual_seed(2)
    sizes = {path: model.get_submodule(path).in_features for path in writers(model)}
    return Deltas(
        {path: torch.randn(2, size).double() for path, size in sizes.items()},
        {path: torch.randn(32, 2).double() for path in sizes},
    )


def steering(tail: int = 3) -> Steering:
    torch.manual_seed(3)
    return Steering((1, 2), torch.randn(2, 32).double() * 3, tail)


def change_of(kind: str, model: Any) -> Change:
    """One change of each form."""
    torch.manual_seed(4)
    logits = FirstLogits(torch.arange(5, 50), torch.randn(3, 45).double() * 9)
    return {"steering": steering(), "deltas": deltas(model), "logits": logits}[kind]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_what_weights_and_an_adapter_do(kind: str, tied: bool, batch: Batch) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied)
    change, plain = deltas(model), last_logits(model, batch)
    with remedied(model, Remedy("d", change, 0.5)):
        tokens, hooks = answers(model, batch)
    weighted = copy.deepcopy(model)
    for path, down in change.down.items():
        weighted.get_submodule(path).weight.data += 0.5 * change.up[path] @ down
    config = LoraConfig(r=2, lora_alpha=1, target_modules=list(change.down))  # scale 1 / 2
    adapted = get_peft_model(copy.deepcopy(model), config).double().eval()
    for path, down in change.down.items():
        layer = adapted.get_base_model().get_submodule(path)
        layer.lora_A["default"].weight.data = down
        layer.lora_B["default"].weight.data = change.up[path]
    for other in (weighted, adapted):
        assert answers(other, batch)[0] == tokens
        torch.testing.assert_close(answers(other, batch)[1], hooks)
    torch.testing.assert_close(last_logits(model, batch), plain)  # nothing is left on the model
    assert (hooks[0] - plain).abs().max() > 0.1


@pytest.mark.parametrize("change", ["steering", "deltas", "logits"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_three_is_three_batches_of_one_in_every_step(
    kind: str, change: str, batch: Batch
) -> None:
    model = tiny_model(kind)
    gate, (before, plain) = mixed_gate(model, batch), answers(model, batch)
    with remedied(model, Remedy("r", change_of(change, model), 1.0, gate)) as found:
        tokens, together = answers(model, batch)
        assert found.on is not None
        on = found.on.bool()
        for row in range(3):
            alone, logits = answers(model, batch.of([row]))
            assert alone[0] == tokens[row]
            torch.testing.assert_close(logits[:, 0], together[:, row])
    assert sorted(on.tolist()) == [False, True, True]
    (closed,) = (~on).nonzero().flatten().tolist()
    assert tokens[closed] == before[closed]
    torch.testing.assert_close(together[:, closed], plain[:, closed])
    assert ((together[0] - plain[0]).abs().amax(-1) > 1e-3).tolist() == on.tolist()


def test_steering_reads_only_the_end_of_a_prompt_again(batch: Batch) -> None:
    model, seen = tiny_model("Llama"), []
    gate = mixed_gate(model, batch)
    blocks(model)[0][1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    with remedied(model, Remedy("r", steering(tail=3), 1.0, gate)):
        answers(model, batch)
    assert seen == [WIDTH, 3, *[1] * (NEW - 1)]


@pytest.mark.parametrize("window", [4, 64])
def test_under_a_sliding_window_the_cache_is_cut_or_the_prompt_read_twice(
    window: int, batch: Batch
) -> None:
    model = tiny_model("Mistral", sliding_window=window)
    gate = mixed_gate(model, batch)
    with remedied(model, Remedy("r", steering(), 1.0, gate)):
        tokens, logits = answers(model, batch)
        torch.testing.assert_close(logits[0], last_logits(model, batch).float())
        for row in range(3):
            assert answers(model, batch.of([row]))[0][0] == tokens[row]


def test_steering_every_position_is_a_bias_of_the_down_projection(batch: Batch) -> None:
    model, change = tiny_model("Llama"), steering(tail=WIDTH)
    biased = tiny_model("Llama", mlp_bias=True)
    biased.load_state_dict(model.state_dict(), strict=False)
    for at, (_, block) in enumerate(blocks(biased)):
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(block.mlp, name).bias.data.zero_()
        if at in change.layers:
            block.mlp.down_proj.bias.data += -0.5 * change.vectors[change.layers.index(at)]
    with remedied(model, Remedy("s", change, -0.5)):
        tokens, logits = answers(model, batch)
    assert answers(biased, batch)[0] == tokens
    torch.testing.assert_close(answers(biased, batch)[1], logits)


class Fixed(torch.nn.Module):
    """An output layer that always says the same three logits."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.tensor([3.0, 2.0, 0.0]).expand(*states.shape[:-1], 3).clone()


def test_first_logits_change_the_first_positions_and_no_other(batch: Batch) -> None:
    model = tiny_model("Llama", vocab_size=3)
    model.lm_head = Fixed()
    short = Batch(batch.ids % 3, batch.mask)
    # logits of the two models differ by (2, 0, 0) at positions 0 and 1; what is alike says nothing
    change = FirstLogits(torch.tensor([0, 2]), torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    with remedied(model, Remedy("debias", change, -1.0)):
        tokens, logits = answers(model, short)
    assert tokens == [[1, 1, *[0] * (NEW - 2)]] * 3
    assert logits[:3, 0].tolist() == [[1, 2, 0], [1, 2, 0], [3, 2, 0]]


def test_a_token_that_is_forbidden_first_stays_forbidden(batch: Batch) -> None:
    model = tiny_model("Llama")
    change = FirstLogits(torch.tensor([7]), torch.full((1, 1), 1000.0))
    with remedied(model, Remedy("push", change)):
        assert {tokens[0] for tokens in answers(model, batch)[0]} == {7}
        suppressed = answers(model, batch, begin_suppress_tokens=[7])[0]
    assert 7 not in {tokens[0] for tokens in suppressed}


def test_the_score_of_a_gate_is_that_of_a_standardised_probe() -> None:
    mean, scale, weights = map(torch.tensor, ([1.0, 0.0], [2.0, 1.0], [3.0, -1.0]))
    gate = Gate(0, mean, scale, weights, 0.5, 0.0)
    # (3, 2): 3 x (3 - 1) / 2 - 2 + 0.5; the mean itself: the intercept
    assert gate.scores(torch.tensor([[3.0, 2.0], [1.0, 0.0]])).tolist() == [1.5, 0.5]


def test_a_prompt_at_the_threshold_counts_as_harmful(batch: Batch) -> None:
    model = tiny_model("Qwen2")
    gate, one = mixed_gate(model, batch), batch.of([2])
    plain = last_logits(model, one)
    with torch.inference_mode(), kept_streams(model, [3]) as kept:
        model(input_ids=one.ids, attention_mask=one.mask)
    score = float(gate.scores(kept[3])[0])
    above = math.nextafter(score, math.inf) + 1e-6
    changed = []
    for threshold in (score, above):
        with remedied(model, Remedy("s", steering(), 1.0, gate._replace(threshold=threshold))):
            changed.append(not torch.equal(last_logits(model, one), plain))
    assert changed == [False, True]


@pytest.mark.parametrize("wrapped", [False, True])
def test_after_it_the_model_is_what_it_was(wrapped: bool, batch: Batch) -> None:
    model = tiny_model("Llama")
    if wrapped:  # as exact/shared_prefix.py leaves it
        own = model.forward
        model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    known = dict(model.__dict__)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with (
        pytest.raises(RuntimeError, match="stopped"),
        remedied(model, Remedy("d", deltas(model), 1.0, mixed_gate(model, batch))),
    ):
        assert remedy_of(model) is not None
        with pytest.raises(ValueError, match="a remedy already"):
            install(model, Remedy("s", steering()))
        last_logits(model, batch)
        raise RuntimeError("stopped")
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model.__dict__.keys() == known.keys() and model.__dict__.get("forward") == known.get(
        "forward"
    )
    assert remedy_of(model) is None


def test_other_rows_than_those_that_were_decided_about_are_an_error(batch: Batch) -> None:
    model, cache = tiny_model("Llama"), DynamicCache()
    with remedied(model, Remedy("s", steering(), 1.0, mixed_gate(model, batch))):
        model(input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([0, 2]))
        with pytest.raises(ValueError, match="decided about 3 prompts, and now 2 rows go on"):
            model(input_ids=batch.ids[:2, :1], past_key_values=cache)


def test_a_cache_from_before_the_remedy_is_an_error(batch: Batch) -> None:
    model, cache = tiny_model("Llama"), DynamicCache()
    model(input_ids=batch.ids, past_key_values=cache)
    with (
        remedied(model, Remedy("s", steering())),
        pytest.raises(ValueError, match="filled before the model had its remedy"),
    ):
        model(input_ids=batch.ids[:, :1], past_key_values=cache)


def test_prompts_are_padded_on_the_left_and_are_tokens(batch: Batch) -> None:
    model = tiny_model("Llama")
    with remedied(model, Remedy("s", steering())):
        with pytest.raises(ValueError, match="padded on the left"):
            model(input_ids=batch.ids, attention_mask=batch.mask.flip(1))
        with pytest.raises(ValueError, match="token ids, not embeddings"):
            model(inputs_embeds=torch.zeros(1, 2, 32).double())


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 2}, {"use_cache": False}, {"prefill_chunk_size": 8}, {"guidance_scale": 1.5}],
)
def test_generation_that_reads_otherwise_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"generation_config has {next(iter(settings))}: .* out"):
        check_generation(settings)


def test_generation_one_token_at_a_time_is_served() -> None:
    check_generation({"num_beams": 1, "use_cache": True, "repetition_penalty": 1.3, "top_k": 5})


def test_a_change_of_modules_that_the_model_does_not_have_is_refused() -> None:
    other = deltas(tiny_model("Llama", intermediate_size=48))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj with 32 outputs"):
        install(tiny_model("Llama"), Remedy("d", other))
