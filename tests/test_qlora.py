"""QLoRA for real, on a CPU: nf4 weights under an adapter that is trained, saved, resumed, merged
and handed on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style

from overrefusal_po.cli import main
from overrefusal_po.model import load as models
from overrefusal_po.model.remedy import Deltas, Remedy, base_facts, save_remedy
from overrefusal_po.records import PreferencePair, Prompt, Triple, write_jsonl
from overrefusal_po.train.derta import derta_trainer
from overrefusal_po.train.dpo import dpo_trainer

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes")
RECIPES = Path(__file__).parents[1] / "recipes"
NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "float32"}
QLORA = [
    "--model.load_in_4bit",
    "--model.use_bnb_nested_quant",
    "--model.lora_r=4",
    "--model.dtype=float32",
]
SETTINGS = {
    "use_cpu": True,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": [],
    "disable_tqdm": True,
    "max_length": 256,
}


def load(folder: Path, **section: Any) -> Any:
    """A model as a recipe's `model:` section loads it."""
    return models.load_model(**models.model_options({"model_name_or_path": str(folder), **section}))


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def adapter_weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 6, 7, 8, 9, 10]])).logits


def test_a_remedy_works_beside_quantised_weights(styles: dict[str, Style], tmp_path: Path) -> None:
    """No weight is edited: 4-bit modules get B A x added to what they say."""
    folder, path = styles["llama"].folder, "model.layers.1.mlp.down_proj"
    change = Deltas({path: torch.ones(1, 128)}, {path: torch.full((64, 1), 2.0)})
    facts = {"base": base_facts(styles["llama"].make_model())}
    said = [logits(load(folder, **NF4))]
    for name, strength in (("nothing", 0.0), ("much", 1.0)):
        save_remedy(Remedy(name, change, strength), tmp_path / name, facts)
        said.append(logits(load(folder, **NF4, remedy=str(tmp_path / name))))
    assert torch.equal(said[0], said[1]) and (said[0] - said[2]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", "float32"), ("bfloat16", "bfloat16"), (None, None)]
)
def test_a_quantised_model_computes_in_the_dtype_of_its_other_weights(
    dtype: str | None, expected: str | None, styles: dict[str, Style]
) -> None:
    """TRL's ModelConfig alone would say float32."""
    model = load(styles["llama"].folder, **{**NF4, "dtype": dtype})
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested
    assert (
        str(layer.compute_dtype)
        == str(model.dtype)
        == f"torch.{expected or models.default_dtype()}"
    )


def test_gradients_are_the_same_after_a_pass_in_eval_mode(styles: dict[str, Style]) -> None:
    """bitsandbytes repacks weights at such a pass on CPUs with AVX512-BF16, and gradients then end
    at the last layer."""
    ids, grads = torch.tensor([[5, 6, 7, 8, 9, 10]]), []
    for first in (False, True):
        model = load(styles["llama"].folder, **{**NF4, "dtype": "bfloat16"})
        if first:
            logits(model)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        model.train()(inputs_embeds=embedded).logits.float().square().sum().backward()
        grads.append(embedded.grad)
    assert grads[0].abs().max() > 0 and torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("method", ["dpo", "derta"])
def test_a_resumed_training_ends_where_the_undisturbed_one_does(
    method: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    tmp_path: Path,
) -> None:
    qwen = styles["qwen"]
    make: Callable[..., Any] = {"dpo": dpo_trainer, "derta": derta_trainer}[method]
    rows: Any = {"dpo": pairs, "derta": triples}[method]
    ends = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        args = {**SETTINGS, "output_dir": str(tmp_path), "gradient_checkpointing": True}
        model = load(qwen.folder, **NF4)
        trainer = make(model, rows, args=args, processing_class=qwen.tokenizer, peft_config=lora())
        start = adapter_weights(trainer.model)
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append(adapter_weights(trainer.model))
        assert all("lora_" in name for name in start) and trainer.state.global_step == 4
        assert all(
            not torch.equal(ends[-1][name], start[name]) for name in start if "lora_B" in name
        )
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_merged_model_says_what_the_trained_policy_said(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """Merging into the 4 bits, or into the weights before quantisation, would give another
    policy."""
    qwen = styles["qwen"]
    args = {**SETTINGS, "output_dir": str(tmp_path), "save_strategy": "no"}
    trainer = dpo_trainer(
        load(qwen.folder, **NF4),
        pairs,
        args=args,
        processing_class=qwen.tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    wanted = logits(trainer.model)
    folder = models.save_merged(trainer.model, qwen.tokenizer, tmp_path / "model")
    found = logits(models.load_model(str(folder), dtype="float32"))
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (wanted - logits(load(qwen.folder, dtype="float32"))).abs().max() > 1e-2
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert not end.value.code


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full", "lora", "qlora"])
def test_dpo_after_derta_starts_at_the_policy_that_derta_made(
    case: str,
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the recipes: rewards of the first step are 0 (reference = policy), and its log-probs those
    of DeRTa's model."""
    monkeypatch.setenv("OVERREFUSAL_PO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    qwen = styles["qwen"]
    asked = [
        "fold a paper fox",
        "open a jar of jam",
        "type a long letter",
        "press a shirt",
    ]  # no benchmark's prompts
    rows = [
        pair.model_copy(
            update={"id": thing, "prompt": Prompt.of(f"How do I {thing}?", kind="benign")}
        )
        for pair, thing in zip(pairs, asked, strict=False)
    ]
    how = {"full": ["--model.use_peft=false"], "lora": ["--model.dtype=float32"], "qlora": QLORA}[
        case
    ]
    how += [
        "--trainer.max_steps=2",
        "--trainer.logging_steps=1",
        "--trainer.learning_rate=5e-2",
        "--trainer.bf16=false",
    ]
    how += [
        "--trainer.report_to=none",
        "--trainer.max_length=256",
        "--trainer.use_cpu",
        "--trainer.warmup_steps=0",
    ]
    write_jsonl(tmp_path / "triples.jsonl", triples)
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    derta = [
        "--data.triples=triples.jsonl",
        "--data.max_helpful=0",
        "--data.rto_dropout=0",
        "--run_dir=derta",
    ]
    run(str(RECIPES / "derta.yaml"), f"--model.model_name_or_path={qwen.folder}", *how, *derta)
    dpo = [
        "--data.pairs=pairs.jsonl",
        "--data.containment=none",
        "--data.allow_no_anchor",
        "--data.opening=None",
    ]
    dpo += ["--run_dir=dpo"]
    run(str(RECIPES / "dpo.yaml"), f"--model.model_name_or_path={tmp_path}/derta/model", *how, *dpo)

    first = json.loads((tmp_path / "dpo" / "training.json").read_text())["history"][0]
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5) == first["rewards/rejected"]
    section = NF4 if case == "qlora" else {"dtype": "float32"}
    policy = load(tmp_path / "derta" / "model", **section)
    before = load(qwen.folder, **section)
    started, base = (mean_chosen(model, qwen, rows) for model in (policy, before))
    assert first["logps/chosen"] == pytest.approx(started, abs=2e-3)
    assert abs(started - base) > 0.1


def mean_chosen(model: Any, style: Style, pairs: list[PreferencePair]) -> float:
    """The mean over pairs of log P(chosen | prompt), worked out from logits one row at a time."""
    found = []
    for pair in pairs:
        turn = style.template.turn(pair.prompt.messages, pair.chosen)
        response = turn.response_ids  # with what ChatML puts behind a turn, which TRL scores too
        with torch.no_grad():
            logp = (
                model(input_ids=torch.tensor([turn.prompt_ids + response]))
                .logits[0]
                .float()
                .log_softmax(-1)
            )
        place = len(turn.prompt_ids) - 1
        found.append(sum(float(logp[place + i, token]) for i, token in enumerate(response)))
    return sum(found) / len(found)


def test_a_quantised_adapter_model_is_its_own_reference(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """A PeftModel that DeRTa has trained and that is handed on as it is: TRL freezes a copy of its
    adapter."""
    from peft import get_peft_model

    qwen = styles["qwen"]
    model = get_peft_model(load(qwen.folder, **NF4), lora())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.05)
    args = {**SETTINGS, "max_steps": 2, "output_dir": str(tmp_path), "save_strategy": "no"}
    trainer = dpo_trainer(model, pairs, args=args, processing_class=qwen.tokenizer)
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4) and first["loss"] == pytest.approx(
        0.6931, abs=1e-4
    )
    assert abs(second["rewards/chosen"]) > 1e-3


def test_a_quantised_evaluation_needs_no_adapter(styles: dict[str, Style]) -> None:
    from overrefusal_po.engines.transformers import Settings, engine
    from overrefusal_po.records import Sampling

    llama = styles["llama"]
    section = {"model_name_or_path": str(llama.folder), **NF4}
    made = engine(
        Settings(),
        section,
        llama.template,
        name="tiny",
        system_prompt=None,
        template_kwargs={},
        batch_size=2,
    )
    prompts = [Prompt.of("What is a fox?", kind="general")]
    assert len(list(made.complete(prompts, Sampling(max_new_tokens=2)))) == 1


def test_fsdp_wants_the_quantised_weights_stored_in_the_dtype_of_the_others(
    styles: dict[str, Style], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    section = {"model_name_or_path": str(styles["llama"].folder), **NF4, "dtype": "bfloat16"}
    with pytest.raises(ValueError, match=r"bnb_4bit_quant_storage=bfloat16 \(it is uint8\)"):
        models.model_options(section)
    models.model_options({**section, "bnb_4bit_quant_storage": "bfloat16"})


def test_an_adapter_folder_is_no_model_and_says_what_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"an adapter alone\. Give the merged model"):
        models.check_available(str(tmp_path))
