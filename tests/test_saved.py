"""What is saved is what was trained."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Style, trainer_settings
from transformers import AutoModelForCausalLM, LlamaConfig

from overrefusal_po.model.load import save_merged
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import PreferencePair
from overrefusal_po.run.folder import Run
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.model_checks import check_adapter
from overrefusal_po.train.output import compare_saved
from overrefusal_po.train.policy import adapter_config
from overrefusal_po.train.saved import (
    Probe,
    check_saved,
    live_probe,
    next_log_probs,
    release_training,
    release_weights,
)

OWN_MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def probe_of(style: Style, model: torch.nn.Module) -> Probe:
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids)
    return Probe(ids, mask, next_log_probs(model, ids, mask), "float32")


def test_the_same_weights_pass(styles: dict[str, Style], tmp_path: Path) -> None:
    style = styles["llama"]
    model = style.make_model()
    probe = probe_of(style, model)
    check_saved(probe, save_merged(model, style.tokenizer, tmp_path / "model"))


def test_other_weights_fail(styles: dict[str, Style], tmp_path: Path) -> None:
    style = styles["llama"]
    model = style.make_model()
    probe = probe_of(style, model)
    with torch.no_grad():
        model.lm_head.weight += 0.1 * torch.randn_like(model.lm_head.weight)
    folder = save_merged(model, style.tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match="is not the model that was trained"):
        check_saved(probe, folder)


@pytest.mark.parametrize("key", ["lora_target_modules", "lora_modules_to_save"])
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_an_adapter_on_shared_embeddings_is_refused(key: str, name: str) -> None:
    section = {"use_peft": True, key: ["q_proj", name]}
    tied, free = (LlamaConfig(tie_word_embeddings=shared) for shared in (True, False))
    with pytest.raises(ValueError, match=f"{name} would be adapted"):
        check_adapter(section, tied)
    check_adapter(section, free)
    check_adapter({**section, "use_peft": False}, tied)
    check_adapter({"use_peft": True, "lora_target_modules": "all-linear"}, tied)


@pytest.mark.parametrize("key", ["lora_target_modules", "lora_modules_to_save"])
def test_an_adapter_on_a_module_that_is_not_there_is_refused(key: str) -> None:
    """peft leaves such a name out without a word if it finds another one."""
    section = {"use_peft": True, key: ["k_proj", "q_projj"]}
    with pytest.raises(ValueError, match=f"model.{key} names 'q_projj'.*Did you mean q_proj"):
        check_adapter(section, LlamaConfig())
    check_adapter({**section, key: ["self_attn.q_proj", "mlp"]}, LlamaConfig())
    check_adapter({**section, key: r".*\.q_proj"}, LlamaConfig())  # a pattern is peft's to read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["q_proj"], {"q_proj"}),
        ("q_proj", {"q_proj"}),
        (["q_proj", "k_proj"], {"q_proj", "k_proj"}),
        (["all-linear"], "all-linear"),
        (r".*\.q_proj", r".*\.q_proj"),
    ],
)
def test_one_name_of_a_module_stays_a_name(given: object, read: object) -> None:
    """TRL makes a list of one name a text, which peft reads as a pattern of the whole path."""
    section = {"model_name_or_path": "x", "use_peft": True, "lora_target_modules": given}
    found = adapter_config(section)
    assert found is not None and found.target_modules == read
    assert adapter_config({**section, "use_peft": False}) is None


def test_a_training_says_that_the_saved_model_agrees(
    styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": str(styles["qwen"].folder), "use_peft": True, "lora_r": 4}
        | {"lora_target_modules": ["all-linear"]},
        "data": {"pairs": "starter", "max_pairs": 4, "allow_no_anchor": True},
        "trainer": {"max_steps": 1, "report_to": "none", "use_cpu": True, "max_length": None}
        | {"per_device_train_batch_size": 2, "learning_rate": 1e-2},
    }
    caplog.set_level("INFO", logger="overrefusal_po")
    found = run_stage(check_body(recipe, "recipe"), "recipe", tmp_path / "run")
    assert "the saved model agrees with the live one" in caplog.text
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    # training turns the cache off, and a saved config that says so has forward passes give none
    assert json.loads((Path(found["model"]) / "config.json").read_text())["use_cache"] is True


def test_the_live_model_says_the_same_without_what_only_a_next_step_needs(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """All weights are trained: optimiser states, gradients and a reference stand beside them."""
    style = styles["llama"]
    trainer = dpo_trainer(
        style.make_model(),
        pairs,
        args=trainer_settings(tmp_path, batch=2, max_steps=1),
        processing_class=style.tokenizer,
    )
    trainer.train()
    before = live_probe(trainer)
    assert before is not None and trainer.optimizer.state and trainer.ref_model is not None
    release_training(trainer)
    after = live_probe(trainer)
    assert after is not None and torch.equal(before.log_probs, after.log_probs)
    assert not trainer.optimizer.state
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert sum(weight.numel() for weight in trainer.ref_model.parameters()) == 0
    release_weights(trainer.model)
    assert sum(weight.numel() for weight in trainer.model.parameters()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_training_under_autocast_is_compared_without_it(
    method: str,
    lora: bool,
    styles: dict[str, Style],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Weights of 32 bits under `bf16`: a probe that is rounded differs from the saved copy."""
    style, folder = styles["llama"], tmp_path / "base"
    model = style.make_model()
    with torch.no_grad():
        model.lm_head.weight *= 30  # logits as large as a real model's
    model.save_pretrained(folder)
    style.tokenizer.save_pretrained(folder)
    adapter = {"use_peft": lora} | (
        {"lora_r": 4, "lora_target_modules": "all-linear"} if lora else {}
    )
    data = {"pairs": "starter", "max_pairs": 4, "allow_no_anchor": True}
    recipe = {
        "task": "train",
        "method": method,
        "model": {"model_name_or_path": str(folder), "dtype": "float32"} | adapter,
        "data": data if method == "dpo" else {"pairs": "starter", "max_prompts": 4},
        "trainer": {"max_steps": 1, "report_to": "none", "use_cpu": True, "max_length": None}
        | {"per_device_train_batch_size": 2, "save_strategy": "no", "bf16": True},
    }
    caplog.set_level("INFO", logger="overrefusal_po")
    found = run_stage(check_body(recipe, "recipe"), "recipe", tmp_path / "run")
    assert "the saved model agrees with the live one" in caplog.text
    assert (Path(found["model"]) / "model.safetensors").is_file()


@pytest.mark.parametrize("adapter", [False, True])
def test_a_saved_model_that_is_another_one_is_not_lost(
    adapter: bool, styles: dict[str, Style], tmp_path: Path
) -> None:
    """Without an adapter beside it, it is the only copy of a training."""
    style, run = styles["llama"], Run.open(tmp_path / "run", {}, {})
    model = style.make_model()
    probe = probe_of(style, model)
    save_merged(model, style.tokenizer, run.path / "model")
    if adapter:
        (run.path / "adapter").mkdir()
    recipe = TrainRecipe(task="train", method="sft", model={}, data={}, trainer={})
    with pytest.raises(ValueError, match="adapter/ is as it was" if adapter else "to look at"):
        compare_saved(probe._replace(log_probs=probe.log_probs + 1), recipe, run)
    assert not (run.path / "model").exists()
    assert (run.path / "model_unlike_trained" / "config.json").is_file() is not adapter


def test_a_probe_without_a_next_token_is_no_other_model(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    style = styles["llama"]
    model, ids = style.make_model(), torch.tensor([[5, 6, 7, 8], [5, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    probe = Probe(ids, mask, next_log_probs(model, ids, mask), "float32")
    check_saved(probe, save_merged(model, style.tokenizer, tmp_path / "model"))


@pytest.mark.slow
def test_a_model_with_code_of_its_own_is_compared_too(
    styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    style, folder = styles["llama"], tmp_path / "base"
    style.make_model().save_pretrained(folder)
    style.tokenizer.save_pretrained(folder)
    (folder / "own.py").write_text(OWN_MODEL)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = {
        "task": "train",
        "method": "sft",
        "model": {"model_name_or_path": str(folder), "trust_remote_code": True},
        "data": {"pairs": "starter", "max_prompts": 4},
        "trainer": {"max_steps": 1, "report_to": "none", "use_cpu": True, "max_length": None}
        | {"per_device_train_batch_size": 2, "save_strategy": "no"},
    }
    caplog.set_level("INFO", logger="overrefusal_po")
    found = run_stage(check_body(recipe, "recipe"), "recipe", tmp_path / "run")
    assert "the saved model agrees with the live one" in caplog.text
    assert (Path(found["model"]) / "own.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["modules to save", "rows without a token", "all weights"])
def test_what_a_plain_loader_reads_is_what_was_trained(
    case: str, styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An output layer that is trained whole, and an embedding that is longer than the tokenizer."""
    style, folder = styles["llama"], tmp_path / "base"
    model = style.make_model()
    if case == "rows without a token":
        model.resize_token_embeddings(len(style.tokenizer) + 9)
    model.save_pretrained(folder)
    style.tokenizer.save_pretrained(folder)
    lora: dict[str, object] = {
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    if case == "modules to save":
        assert not model.config.tie_word_embeddings
        lora["lora_modules_to_save"] = ["lm_head", "embed_tokens"]
    recipe = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": str(folder)} | ({} if case == "all weights" else lora),
        "data": {"pairs": "starter", "max_pairs": 4, "allow_no_anchor": True},
        "trainer": {"max_steps": 2, "report_to": "none", "use_cpu": True, "max_length": None}
        | {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_strategy": "no"},
    }
    caplog.set_level("INFO", logger="overrefusal_po")
    found = run_stage(check_body(recipe, "recipe"), "recipe", tmp_path / "run")
    assert "the saved model agrees with the live one" in caplog.text
    saved = AutoModelForCausalLM.from_pretrained(found["model"])
    assert saved.config.vocab_size == saved.lm_head.weight.shape[0] == model.config.vocab_size
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before, after = model(ids).logits, saved(ids).logits
    assert (before - after).abs().max() > 1e-3  # it was trained
