"""The trainer factories by method, what each eats, and settings for a step or two.

trainer = FACTORIES["dpo"](model, data[EATS["dpo"]], args=settings)
DPOTrainer(model, train_dataset=conversations(pairs, template), ...)   # TRL's own token ids
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from overrefusal_po import (
    cpo_trainer,
    derta_trainer,
    dpo_trainer,
    dro_trainer,
    kto_trainer,
    orpo_trainer,
    sft_trainer,
)
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.records import PreferencePair, Triple

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from trl_rows import conversation as conversation
from trl_rows import conversations as conversations

FACTORIES: dict[str, Callable[..., Any]] = {
    "sft": sft_trainer,
    "derta": derta_trainer,
    "dpo": dpo_trainer,
    "orpo": orpo_trainer,
    "cpo": cpo_trainer,
    "kto": kto_trainer,
    "dro": dro_trainer,
}
PAIRED = ("dpo", "orpo", "cpo", "kto")
EATS = {
    "sft": "prompts",
    "derta": "triples",
    **dict.fromkeys(PAIRED, "pairs"),
    "dro": "anchors",
}
WRITTEN = [method for method, eats in EATS.items() if eats != "anchors"]
"""Methods whose data hold the responses; `dro` asks the model for its own."""


def two_steps(folder: Any) -> dict[str, Any]:
    """Trainer keys for two short steps on a CPU that write and report nothing."""
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "max_length": 256,
    }


def lora() -> Any:
    """A small adapter that is the identity at its start."""
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True)


def weights(model: Any) -> Any:
    """All weights of a model as one vector of 32-bit numbers."""
    import torch

    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def row_lengths(records: Sequence[Any], template: ChatTemplate, opening: Any = None) -> list[int]:
    """Tokens of the longest row that each pair, triple or prompt may become."""
    from overrefusal_po.train.derta_rows import prompt_turns, triple_sides, turn_length
    from overrefusal_po.train.rows import longest_rows, pair_table, side_lengths

    if isinstance(records[0], PreferencePair):
        lengths = side_lengths(pair_table(records, template, opening))
        found: list[int] = longest_rows(lengths).tolist()
        return found
    if isinstance(records[0], Triple):
        return [both.longest for both in triple_sides(records, template)]
    return [turn_length(turn) for turn in prompt_turns(records, template)]


def gradient(trainer: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """(loss of a batch, the gradients of all trained numbers in one row)."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), torch.cat(
        [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    )


def tiny_model(kind: str, **changes: Any) -> Any:
    """A Llama, Qwen2 or Mistral with 4 blocks, random weights and 64-bit numbers; in eval mode."""
    import transformers

    known = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**known, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval().double()
