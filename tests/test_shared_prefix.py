"""shared_prefix.py: one row a pair gives TRL's losses, gradients and metrics, or the plain rows
stay with a log line."""

import copy
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings
from factories import gradient

from overrefusal_po.exact.shared_prefix import pack, shared_length, unproven_adapter, unproven_model
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.trl_private import attention_of

LOSSES: list[dict[str, Any]] = [
    {"loss_types": [name]}
    for name in (
        *(
            "sigmoid",
            "hinge",
            "ipo",
            "nca_pair",
            "bco_pair",
            "sppo_hard",
            "aot",
            "aot_unpaired",
            "apo_zero",
        ),
        *("apo_down", "discopop", "sft", "sigmoid_norm", "exo_pair", "robust"),
    )
] + [
    {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
    {"loss_types": ["sigmoid"], "ld_alpha": 0.5},
    {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"},
]
"""What is set on a trainer before a step."""

settings = partial(trainer_settings, label_smoothing=0.1)


def unproven(model: Any, max_length: int | None) -> str | None:
    """Why a model is not covered, with the attention that it has."""
    return unproven_model(model, max_length, attention_of(model))


def trainers(
    style: Style, rows: list[PreferencePair], how: str, args: dict[str, Any]
) -> tuple[Any, Any]:
    """(plain, shared) trainers of one policy, against a reference that differs from it."""
    from peft import LoraConfig, get_peft_model

    made = []
    for shared in (False, True):
        model: Any = style.make_model()
        reference = None if how == "lora" else style.make_model(seed=1)
        if (
            how == "lora"
        ):  # with B not zero the adapter is no identity, so policy and reference differ
            torch.manual_seed(2)
            model = get_peft_model(
                model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            )
        trainer = dpo_trainer(
            model,
            rows,
            args=args,
            processing_class=style.tokenizer,
            ref_model=reference,
            shared_prefix=shared,
        )
        if how == "lora":
            for name, weight in trainer.model.named_parameters():
                if ".ref." in name:
                    weight.data.mul_(0.5)
        assert (
            hasattr(
                trainer.model.get_base_model() if how == "lora" else trainer.model, "_shares_prefix"
            )
            == shared
        )
        made.append(trainer)
    return made[0], made[1]


def step(trainer: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor, dict[str, list[float]]]:
    """(loss, gradient as one vector, metrics) of one batch."""
    trainer._metrics["train"].clear()
    loss, slopes = gradient(trainer, batch)
    return loss, slopes, copy.deepcopy(trainer._metrics["train"])


def check_equal(plain: Any, shared: Any, batch: dict[str, Any]) -> None:
    """One step of each: equal within 1e-5 (gradients 2e-5: discopop is steep), where numbers above
    1 count relatively."""
    (loss, gradient, metrics), (loss2, gradient2, metrics2) = (
        step(plain, batch),
        step(shared, batch),
    )
    assert loss2 == pytest.approx(loss, rel=1e-5, abs=1e-5)
    assert gradient.abs().max() > 0
    assert (gradient - gradient2).abs().max() <= 2e-5 * max(1.0, gradient.abs().max().item())
    metrics.pop("num_tokens"), metrics2.pop("num_tokens")  # a running total
    for name, values in metrics.items():
        assert metrics2[name] == pytest.approx(values, rel=1e-4, abs=1e-4), name


def batches(trainer: Any) -> list[dict[str, Any]]:
    return list(trainer.get_train_dataloader())


# ---------------------------------------------------------------------------------------- exactness


@pytest.fixture(scope="module", params=["full", "lora"])
def both(
    request: pytest.FixtureRequest,
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Any, Any]]:
    """(plain, shared) trainers in batches of four, full and LoRA."""
    args = settings(tmp_path_factory.mktemp("both"), 4)
    yield trainers(styles["qwen"], uneven, request.param, args)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(str(v) for v in loss.values()))
def test_every_loss_type_has_trls_loss_gradient_and_metrics(
    both: tuple[Any, Any], loss: dict[str, Any]
) -> None:
    plain, shared = both
    kept = {
        name: getattr(plain, name)
        for name in ("loss_types", "loss_weights", "ld_alpha", "f_divergence_type")
    }
    for trainer in both:
        for name, value in {**kept, "loss_weights": [1.0], **loss}.items():
            setattr(trainer, name, value)
    try:
        check_equal(plain, shared, batches(plain)[0])
    finally:
        for trainer in both:
            for name, value in kept.items():
                setattr(trainer, name, value)


@pytest.mark.parametrize(
    ("name", "batch", "more"),
    [
        ("llama", 1, {"use_weighting": True}),
        ("mistral", 3, {"gradient_checkpointing": True}),
        (
            "llama",
            4,
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
        ),
        ("mistral", 2, {"pad_to_multiple_of": 16}),
        ("qwen", 4, {"truncation_mode": "keep_end"}),
        ("qwen", 2, {"max_length": None}),
    ],
    ids=["weighting", "checkpointing", "reentrant", "multiple of 16", "keep_end", "no limit"],
)
@pytest.mark.parametrize("how", ["full", "lora"])
def test_other_models_batches_and_options_are_exact_too(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    name: str,
    batch: int,
    more: dict[str, Any],
    how: str,
) -> None:
    """keep_end cuts prompts from their beginning, so that the two sides of a pair may have nothing
    in common."""
    plain, shared = trainers(styles[name], uneven, how, settings(tmp_path, batch, **more))
    if "gradient_checkpointing" in more:  # transformers turns it on in `train`
        for trainer in (plain, shared):
            trainer.model.gradient_checkpointing_enable(more.get("gradient_checkpointing_kwargs"))
            trainer.model.enable_input_require_grads()
            assert trainer.model.is_gradient_checkpointing
    if "truncation_mode" in more:
        plain.data_collator.max_length = shared.data_collator.max_length = 12
    for inputs in batches(plain):
        check_equal(plain, shared, inputs)


def test_qwen3_is_exact() -> None:
    """Its queries and keys are normed per head; the forward alone is compared."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from overrefusal_po.exact.shared_prefix import patch_forward

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=50, head_dim=16, num_key_value_heads=1, **shape)
    )
    assert unproven(model, None) is None
    add_fused_lm_head(model)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8], [3, 4, 5, 9, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    expected = model(**inputs, fused_lm_head=True).log_probs
    patch_forward(model, 1e-5)
    assert torch.allclose(model(**inputs, fused_lm_head=True).log_probs, expected, atol=1e-5)


def test_training_ends_with_the_same_weights(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """SGD, because Adam divides by gradients near zero and so makes rounding visible."""
    plain, shared = trainers(
        styles["llama"],
        uneven,
        "full",
        settings(tmp_path, 2, optim="sgd", gradient_accumulation_steps=2),
    )
    plain.train(), shared.train()
    for a, b in zip(plain.model.parameters(), shared.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    losses = [
        [log["loss"] for log in t.state.log_history if "loss" in log] for t in (plain, shared)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("how", ["full", "lora"])
def test_under_autocast_it_stays_within_rounding(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path, how: str
) -> None:
    """Accelerate wraps the policy's forward over the patch, and the reference's under it."""
    plain, shared = trainers(styles["llama"], uneven, how, settings(tmp_path, 4, bf16=True))
    plain.train(), shared.train()
    losses = [
        [log["loss"] for log in t.state.log_history if "loss" in log] for t in (plain, shared)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    reached = shared.model.get_base_model() if how == "lora" else shared.model
    assert reached._shares_prefix


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2", "fsdp2 in bfloat16"])
def test_a_wrapped_model_is_reached(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path, wrap: str
) -> None:
    """DDP calls the module's own forward, FSDP2 changes its class and its parameters: both after
    the patch."""
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    plain, shared = trainers(
        styles["llama"], uneven, "full", settings(tmp_path, 4, bf16="bfloat16" in wrap)
    )
    batch = batches(plain)[0]
    loss, gradient, _ = step(plain, batch)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    try:
        model = shared.model
        if wrap == "ddp":
            model = DistributedDataParallel(model)
        else:
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if "bfloat16" in wrap else None
            )
            for layer in model.model.layers:
                fully_shard(layer, mp_policy=policy)
            fully_shard(model, mp_policy=policy)
        found = shared.compute_loss(model, dict(batch))
        found.backward()
        grads = [p.grad for p in shared.model.parameters()]
        whole = torch.cat(
            [(g.full_tensor() if hasattr(g, "full_tensor") else g).flatten() for g in grads]
        )
    finally:
        dist.destroy_process_group()
    assert shared.model._shares_prefix
    allowed = 0.02 if "bfloat16" in wrap else 1e-5
    assert found.item() == pytest.approx(loss, abs=allowed)
    assert torch.allclose(whole, gradient, atol=allowed)


# ------------------------------------------------------------------------------------------ the row


def test_pairs_become_one_row() -> None:
    """[1 2 | 3 4 5] and [1 2 | 6] are 1 2 3 4 5 6, with 6 at position 2; behind them [1 7] and [1
    8] are 1 7 8."""
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 7, 0, 0, 0], [1, 2, 6, 0, 0], [1, 8, 0, 0, 0]])
    mask = (ids > 0).long()
    labels = ids.masked_fill((ids < 3), -100)
    packed = pack(ids, mask, labels)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 1, 7, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 1]]
    assert packed.attention_mask.pairs == [(5, 1, 2), (2, 1, 1)]
    assert packed.labels.tolist() == [3, 4, 5, 7, 6, 8]
    assert packed.places.tolist() == [1, 2, 3, 6, 1, 6]  # token 2 predicts both 3 and 6


def test_pairs_attend_as_the_whole_rows_mask_says() -> None:
    """Gradients too, with a pair whose second side has nothing of its own and one without a common
    beginning."""
    from overrefusal_po.exact.pair_attention import Pair, PairMask

    pairs = [Pair(4, 3, 2), Pair(3, 0, 1), Pair(1, 2, 0), Pair(2, 1, 2)]
    whole = torch.zeros(16, 16, dtype=torch.bool)
    start = 0
    for first, tail, common in pairs:
        split, end = start + first, start + first + tail
        whole[start:split, start:split] = torch.ones(first, first).tril().bool()
        whole[split:end, start : start + common] = True
        whole[split:end, split:end] = torch.ones(tail, tail).tril().bool()
        start = end
    assert start == 16
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 16, 4, requires_grad=True) for _ in range(3)]
    attend = torch.nn.functional.scaled_dot_product_attention
    found, wanted = (
        attend(*inputs, attn_mask=mask, scale=0.7) for mask in (PairMask.of(pairs, "cpu"), whole)
    )
    assert torch.allclose(found, wanted, atol=1e-6)
    upstream = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(wanted, inputs, upstream),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_no_other_attention_can_read_the_mask() -> None:
    from overrefusal_po.exact.pair_attention import Pair, PairMask

    mask = PairMask.of([Pair(1, 1, 1)], "cpu")
    assert mask.shape == (1, 1, 1, 1) and mask.dtype == torch.bool
    assert (
        mask.to("meta").tails[0].device.type == "meta"
    )  # a model that is spread over devices moves it along
    with pytest.raises(ValueError, match=r"calls add .* shared_prefix to false"):
        torch.randn(1, 1, 2, 2) + mask


def test_padding_is_no_common_token() -> None:
    """Token 7 is the pad token too: the sides share what both have, not what padding repeats."""
    ids = torch.tensor([[1, 7, 7, 7], [1, 7, 7, 7]])
    assert shared_length(ids, torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])).tolist() == [2]


# ------------------------------------------------------------------------------------- falling back


def test_what_is_not_proven_falls_back_with_a_log_line(
    styles: dict[str, Style],
    uneven: list[PreferencePair],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    eager = styles["llama"].make_model()
    eager.config._attn_implementation = "eager"
    with caplog.at_level(logging.WARNING, logger="overrefusal_po.exact.shared_prefix"):
        trainer = dpo_trainer(
            eager, uneven, args=settings(tmp_path, 2), processing_class=styles["llama"].tokenizer
        )
    assert "shared prefix is off" in caplog.text
    assert "eager" in caplog.text
    assert not hasattr(trainer.model, "_shares_prefix")
    trainer.train()


def test_unproven_models_are_named(styles: dict[str, Style]) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    tiny = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    window = MistralForCausalLM(
        MistralConfig(vocab_size=9, num_key_value_heads=1, sliding_window=4, **tiny)
    )
    assert "sliding window 4" in str(unproven(window, 5))
    assert "sliding window 4" in str(unproven(window, None))
    assert unproven(window, 4) is None
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    assert "gpt2" in str(unproven(gpt2, 4))
    drops = styles["llama"].make_model()
    drops.config.attention_dropout = 0.1
    assert "dropout" in str(unproven(drops, 4))
    assert [unproven(s.make_model(), 512) for s in styles.values()] == [None, None, None]


def test_unproven_adapters_are_named(styles: dict[str, Style]) -> None:
    from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

    def reason(config: Any) -> str | None:
        return unproven_adapter(get_peft_model(styles["llama"].make_model(), config))

    plain = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)
    assert reason(plain) is None
    assert "dropout" in str(
        unproven(get_peft_model(styles["llama"].make_model(), plain).get_base_model(), 4)
    )
    assert "PROMPT_TUNING" in str(
        reason(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    )
    assert "IA3" in str(reason(IA3Config(target_modules=["k_proj"], feedforward_modules=[])))


def test_a_wrong_mask_stops_the_first_batch(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    """Attention that turns eager behind our back reads a boolean mask as numbers to add: wrong, and
    without an error."""
    trainer = trainers(styles["llama"], uneven, "full", settings(tmp_path, 4))[1]
    trainer.model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="shared_prefix to false"):
        trainer.train()


def test_the_check_leaves_the_random_state_and_the_modes_alone(
    styles: dict[str, Style], uneven: list[PreferencePair], tmp_path: Path
) -> None:
    trainer = trainers(styles["llama"], uneven, "full", settings(tmp_path, 2))[1]
    trainer.model.train()
    trainer.model.model.norm.eval()
    state = torch.get_rng_state()
    trainer.compute_loss(trainer.model, dict(batches(trainer)[0]))
    shuffled = torch.get_rng_state()
    assert trainer.model._shares_prefix
    assert trainer.model.training
    assert not trainer.model.model.norm.training
    batches(trainer)
    torch.set_rng_state(state)
    batches(trainer)
    assert torch.equal(torch.get_rng_state(), shuffled)
