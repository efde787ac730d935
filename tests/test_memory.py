"""Memory: counts worked by hand, and settings that were measured (benchmarks/memory.py) but not
used to fit the constants."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Style
from numpy.typing import NDArray

from overrefusal_po.checks import check_stage, memory_of
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import PreferencePair, Prompt, write_jsonl
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.memory import (
    Batch,
    Memory,
    Shape,
    config_of,
    device_memory,
    estimate,
    layer_values,
    row_widths,
    shape_of,
    widest_batch,
)
from overrefusal_po.train.rows import pair_table, prepared_pairs, side_lengths
from overrefusal_po.train.sft import prepared_prompts

RECIPES = Path(__file__).parents[1] / "recipes"
SHAPE = Shape(
    weights=1000, quantised=640, adapter=10, whole=0, layers=2, hidden=8, kept=100, vocabulary=50
)
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
}
LLAMA_8B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}


def recipe(
    method: str = "dpo", model: dict[str, Any] | None = None, **sections: Any
) -> TrainRecipe:
    """A checked training recipe on a CPU."""
    sections["trainer"] = {
        "use_cpu": True,
        "gradient_checkpointing": False,
        "bf16": False,
        **sections.get("trainer", {}),
    }
    name = {"model_name_or_path": "some/model", "dtype": "float32"}
    body = check_body(
        {"task": "train", "method": method, "model": {**name, **(model or {})}, **sections}, "here"
    )
    assert isinstance(body, TrainRecipe)
    return body


def bytes_of(body: TrainRecipe, tokens: int = 10, scored: int = 4) -> Memory:
    return estimate(SHAPE, body, Batch(tokens, scored), "cpu", 1e12)


def test_full_training_holds_weights_gradients_and_two_moments_in_32_bits() -> None:
    found = bytes_of(recipe())
    assert (found.weights, found.gradients, found.optimiser, found.reference) == (
        4000,
        4000,
        8000,
        0,
    )


def test_a_reference_is_held_where_nothing_computes_it_ahead() -> None:
    store = {"speed": {"reference_store": False}}
    assert bytes_of(recipe(**store)).reference == 4000
    assert bytes_of(recipe(trainer={"precompute_ref_log_probs": True}, **store)).reference == 0
    assert bytes_of(recipe("orpo", **store)).reference == 0
    assert bytes_of(recipe("kto")).reference == 4000, "the store does not apply to it"
    assert bytes_of(recipe(model={"use_peft": True}, **store)).reference == 0, (
        "the base under the adapter is the reference"
    )


def test_lora_trains_rank_times_the_widths_of_its_layers() -> None:
    """10 weights a rank: rank 4 makes 40, in 32 bits beside 1000 weights in 16."""
    found = bytes_of(recipe(model={"use_peft": True, "lora_r": 4, "dtype": "bfloat16"}))
    assert (found.weights, found.gradients, found.optimiser) == (2000 + 160, 160, 320)


def test_modules_that_are_trained_whole_count_beside_the_adapter() -> None:
    """300 weights of a head, and 40 of the adapter, in 32 bits with two moments each."""
    body = recipe(model={"use_peft": True, "lora_r": 4, "dtype": "bfloat16"})
    found = estimate(SHAPE._replace(whole=300), body, Batch(10, 10), "cpu", 1e9)
    assert (found.weights, found.gradients, found.optimiser) == (2000 + 1360, 1360, 2720)


def test_nf4_takes_half_a_byte_and_a_scale_for_64_weights() -> None:
    """640 weights in 4 bits = 320 bytes, with ten scales of 4 bytes; double quantisation: ten of 1
    byte and a bit more."""
    model = {"use_peft": True, "lora_r": 1, "load_in_4bit": True, "dtype": "bfloat16"}
    rest = 2 * 360 + 40
    assert bytes_of(recipe(model=model)).weights == pytest.approx(rest + 320 + 40)
    assert bytes_of(recipe(model={**model, "use_bnb_nested_quant": True})).weights == pytest.approx(
        rest + 320 + 10, abs=1
    )


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer_whole() -> None:
    plain, less = (
        bytes_of(recipe(trainer={"gradient_checkpointing": on})).activations for on in (False, True)
    )
    assert plain == 2 * 1.5 * 4 * 100 * 10
    assert less == plain / 2 + 2 * 4 * 8 * 10


def test_accumulated_gradients_stand_beside_activations() -> None:
    one, two = (bytes_of(recipe(trainer={"gradient_accumulation_steps": n})) for n in (1, 2))
    assert two.activations - one.activations == 4000


def test_the_head_is_a_tile_however_long_the_batch_is() -> None:
    assert bytes_of(recipe()).logits == pytest.approx(8.4 * 4 * 4 * 50)
    assert bytes_of(recipe(), 10**6, 10**6).logits == pytest.approx(8.4 * 4 * 4096 * 50)


@pytest.mark.parametrize(
    ("available", "verdict"), [(20, "fits"), (10, "tight"), (9, "will not fit")]
)
def test_the_verdict_is_the_share_of_the_device(available: float, verdict: str) -> None:
    """1 + 1 + 3 + max(2 + 1, 2) + 2 = 10."""
    found = Memory(1, 1, 2, 3, 2, 1, 0, 2, available)
    assert found.total == 10 and found.verdict == verdict
    assert str(found._replace(weights=1e9, available=2e9)).startswith(
        "1.0 of 2.0 GB: fits (weights 1.0, reference 0.0"
    )


def test_the_saved_model_counts_if_it_is_larger_than_the_training() -> None:
    """1000 weights in 16 bits stand alone at the end. On a GPU it is compared on the CPU."""
    lora = {"use_peft": True, "lora_r": 4, "dtype": "bfloat16"}
    found = bytes_of(recipe(model=lora), tokens=1, scored=0)
    assert found.saved == found.weights - 160 == 2000
    assert found.total == found.weights + found.optimiser + found.activations + 0.76e9
    assert found._replace(saved=1e9).total == 1e9 + 0.76e9
    assert estimate(SHAPE, recipe(model=lora), Batch(1, 0), "cuda", 1e12).saved == 0


def test_a_quantised_model_is_saved_whole() -> None:
    model = {"use_peft": True, "lora_r": 1, "load_in_4bit": True, "dtype": "bfloat16"}
    assert bytes_of(recipe(model=model)).saved == 2000


def test_a_shape_is_counted_from_the_models_own_classes() -> None:
    """Llama-3.1-8B has 8,030,261,248 weights; without the head (in and out) and the norms they are
    quantised."""
    from transformers import LlamaConfig

    shape = shape_of(
        LlamaConfig(**LLAMA_8B), {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}
    )
    assert shape.weights == 8_030_261_248
    assert shape.quantised == 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    assert shape.adapter == 32 * ((4096 + 4096) + (4096 + 1024))
    assert shape.kept == layer_values(4096, 14336, 4096, 1024)
    assert shape.whole == 0
    everything = shape_of(
        LlamaConfig(**LLAMA_8B), {"use_peft": True, "lora_target_modules": "all-linear"}
    )
    assert 16 * everything.adapter == 41_943_040, "peft says so for rank 16"


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["self_attn.q_proj"], 32 * 8192),
        (["layers.0.self_attn.q_proj"], 8192),
        (r".*layers\.[01]\.self_attn\.q_proj", 2 * 8192),
        (["q_proj", "no_proj"], 32 * 8192),
    ],
)
def test_the_adapter_is_counted_where_peft_puts_it(targets: list[str] | str, adapted: int) -> None:
    """By the end of a path, by the whole path, and by a pattern; the head is trained whole."""
    from transformers import LlamaConfig

    section = {"lora_target_modules": targets, "lora_modules_to_save": ["lm_head"]}
    shape = shape_of(LlamaConfig(**LLAMA_8B), {"use_peft": True, **section})
    assert (shape.adapter, shape.whole) == (adapted, 128256 * 4096)
    plain = shape_of(LlamaConfig(**LLAMA_8B), section)
    assert (plain.adapter, plain.whole) == (0, 0)


@pytest.mark.parametrize("folder", ["llama-3.1-8b", "qwen3-8b", "mistral-7b"])
@pytest.mark.parametrize("method", ["dpo", "derta"])
def test_a_qlora_recipe_fits_a_gpu_of_24_gb(folder: str, method: str) -> None:
    """By the arithmetic alone (no GPU has been measured), with all rows as long as they may be."""
    from transformers import LlamaConfig

    body = load_recipe(RECIPES / folder / f"{method}.yaml", ["--trainer.bf16"]).body
    assert isinstance(body, TrainRecipe)
    size, width = body.trainer["per_device_train_batch_size"], body.trainer["max_length"]
    rows = size * width * (2 if method == "dpo" else 1)
    shape = shape_of(LlamaConfig(**LLAMA_8B), body.model)
    found = estimate(shape, body, Batch(rows, rows), "cuda", 24e9)
    assert found.verdict == "fits" and found.weights < 6.2e9
    plain = body.model_copy(
        update={"model": {**body.model, "load_in_4bit": False, "dtype": "bfloat16"}}
    )
    assert estimate(shape, plain, Batch(rows, rows), "cuda", 24e9).total > found.total + 9e9


def lengths_of(
    pairs: list[PreferencePair], style: Style, opening: int | None = None
) -> NDArray[np.int64]:
    """(pairs, 3): tokens of prompt, chosen and rejected side."""
    return side_lengths(pair_table(pairs, style.template, opening))


def test_a_shared_prefix_counts_the_prompt_once(style: Style, pairs: list[PreferencePair]) -> None:
    turns = [
        style.template.turn(pairs[0].prompt.messages, side)
        for side in (pairs[0].chosen, pairs[0].rejected)
    ]
    prompt = len(turns[0].prompt_ids)
    chosen, rejected = (len(turn.response_ids) for turn in turns)
    lengths = lengths_of(pairs[:1], style)
    assert lengths.tolist() == [[prompt, chosen, rejected]]
    shared, plain, orpo = recipe(), recipe(speed={"shared_prefix": False}), recipe("orpo")
    both = prompt + chosen + rejected
    longest = prompt + max(chosen, rejected)
    assert row_widths(shared, lengths).tolist() == [[both, chosen + rejected]]
    assert row_widths(orpo, lengths).tolist() == [[both, both]]
    assert row_widths(plain, lengths).tolist() == [[2 * longest, 2 * longest]]
    assert row_widths(recipe("kto"), lengths).tolist() == [[longest, longest]]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_widest_batch_is_padded_only_without_a_shared_prefix(
    method: str, shared: bool, style: Style, uneven: list[PreferencePair]
) -> None:
    """Two rows of a batch: the sum of the two widest if they lie one behind the other, else twice
    the widest."""
    body = recipe(
        method, trainer={"per_device_train_batch_size": 2}, speed={"shared_prefix": shared}
    )
    lengths = lengths_of(uneven, style)
    tokens, scored = row_widths(body, lengths).T.tolist()
    assert len(tokens) == len(uneven)
    found = widest_batch(body, lengths)
    if shared and method != "kto":
        assert (
            found
            == (sum(sorted(tokens)[-2:]), sum(sorted(scored)[-2:]))
            != (2 * max(tokens), 2 * max(scored))
        )
        assert widest_batch(body, lengths[:1]) == (tokens[0], scored[0])
    else:
        assert found == (2 * max(tokens), 2 * max(scored))


@pytest.mark.parametrize("shared", [True, False])
def test_passes_count_as_the_widest_batch(
    shared: bool, style: Style, uneven: list[PreferencePair]
) -> None:
    """A limit below the batch is the batch; a pair above the limit is a pass of its own."""
    lengths = lengths_of(uneven, style)

    def widest(method: str, most: int | None) -> Batch:
        speed = {"shared_prefix": shared, "pass_tokens": most}
        trainer = {"per_device_train_batch_size": 4}
        return widest_batch(recipe(method, trainer=trainer, speed=speed), lengths)

    whole, pair = widest("dpo", None).tokens, int(row_widths(recipe(), lengths)[:, 0].max())
    pair = pair if shared else whole // 4
    assert widest("dpo", whole) == widest("dpo", None)
    assert widest("dpo", whole - 1).tokens == whole - 1 and widest("dpo", 1).tokens == pair
    assert widest("orpo", 1).tokens == pair and widest("kto", 1) == widest("kto", None)
    assert bytes_of(recipe(speed={"pass_tokens": 9})).activations > bytes_of(recipe()).activations


def test_of_a_pair_trained_on_its_opening_only_that_is_counted(
    style: Style, pairs: list[PreferencePair]
) -> None:
    prompt = len(style.template.turn(pairs[0].prompt.messages, pairs[0].chosen).prompt_ids)
    body = recipe(data={"opening": 3})
    assert row_widths(body, lengths_of(pairs[:1], style, 3)).tolist() == [[prompt + 6, 6]]


def test_a_prompt_with_its_reference_is_one_row(style: Style, helpful: list[Prompt]) -> None:
    turn = style.template.turn(helpful[0].messages, helpful[0].reference or "")
    width = len(turn.prompt_ids) + len(turn.response_ids)
    prepared = prepared_prompts(helpful[:1], style.template, max_length=None)
    body = recipe("sft", data={"prompts": "starter"})
    assert row_widths(body, prepared.lengths).tolist() == [[width, width]]


# (config, recipe, batch, GB that the kernel reported): the four settings of benchmarks/RESULTS.md
# that test the fit
WIDE = {
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 8,
    "num_attention_heads": 10,
}
DEEP = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
}
LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear"}
NF4 = {**LORA, "load_in_4bit": True, "use_bnb_nested_quant": True}
MEASURED: list[tuple[dict[str, int], TrainRecipe, Batch, float]] = [
    (DEEP, recipe(model=LORA), Batch(1599, 906), 3.63),
    (DEEP, recipe(speed={"reference_store": False}), Batch(726, 464), 3.02),
    (
        WIDE,
        recipe("sft", data={"prompts": "starter"}, trainer={"gradient_checkpointing": True}),
        Batch(2128, 2128),
        4.18,
    ),
    (DEEP, recipe("orpo", model=NF4), Batch(1086, 1086), 3.22),
]


@pytest.mark.parametrize(("widths", "body", "batch", "measured"), MEASURED)
def test_the_estimate_is_within_a_quarter_of_what_was_measured(
    widths: dict[str, int], body: TrainRecipe, batch: Batch, measured: float
) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=49152, num_key_value_heads=2, tie_word_embeddings=True, **widths
    )
    total = estimate(shape_of(config, body.model), body, batch, "cpu", 1e12).total
    assert total / 1e9 == pytest.approx(measured, rel=0.25)


def test_check_says_what_a_training_takes_without_loading_weights(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """A folder with a config and a tokenizer, but no weights."""
    folder = tmp_path / "model"
    styles["llama"].tokenizer.save_pretrained(folder)
    config_of({"model_name_or_path": str(styles["llama"].folder)}).save_pretrained(folder)
    model = {"model_name_or_path": str(folder)}
    template = styles["llama"].template
    body = recipe(model=model)
    config = config_of(model)
    found = memory_of(body, prepared_pairs(pairs, template, max_length=None), config)
    assert found.weights == 4 * sum(p.numel() for p in styles["llama"].make_model().parameters())
    assert found.verdict == "fits" and found.available == device_memory(use_cpu=True)[1]
    rto = recipe("derta", model=model, trainer={"max_length": 64})
    derta = memory_of(rto, Prepared(None), config)
    assert derta.activations > 0
    asked = [
        pair.model_copy(update={"prompt": Prompt.of(f"How do I {thing}?", kind="benign")})
        for pair, thing in zip(pairs, ("fold a paper fox", "type a long letter"), strict=False)
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", asked)
    line = check_stage(recipe(model=model, data={"pairs": str(file), "allow_no_anchor": True}))
    assert line.startswith("2 pairs, longest row") and " GB: fits (weights 0.0, reference" in line
