"""The trainer factories by method, what each eats, and pairs as the conversations that TRL reads.

trainer = FACTORIES["dpo"](model, data[EATS["dpo"]], args=settings)
DPOTrainer(model, train_dataset=conversations(pairs, template), ...)   # TRL's own token ids
"""

from collections.abc import Callable, Sequence
from typing import Any

from overrefusal_po import derta_trainer, dpo_trainer, kto_trainer, orpo_trainer, sft_trainer
from overrefusal_po.model.chat import ChatTemplate, thinking_end
from overrefusal_po.records import PreferencePair, Triple

FACTORIES: dict[str, Callable[..., Any]] = {
    "sft": sft_trainer,
    "derta": derta_trainer,
    "dpo": dpo_trainer,
    "orpo": orpo_trainer,
    "kto": kto_trainer,
}
EATS = {"sft": "prompts", "derta": "triples", "dpo": "pairs", "orpo": "pairs", "kto": "pairs"}

VERBATIM = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
"""A chat template for messages that are rendered already."""

MARK = "\u2402"


def conversation(template: ChatTemplate, pair: PreferencePair) -> dict[str, Any]:
    """A pair as a conversational row, with the template's options; TRL renders and tokenises it.

    A model that thinks is trained behind an empty block, which TRL cannot put into the prompt. Its
    row is rendered here, from what `prompt_text` puts before a begun answer.
    """
    said = {
        side: template.neutral(text[thinking_end(text) :].strip())
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    prompt, kwargs = template.messages(pair.prompt.messages), template.template_kwargs
    begun = template.prompt_text(pair.prompt.messages, MARK).removesuffix(MARK)
    if begun.rstrip().endswith("</think>"):
        prompt, kwargs = [{"role": "user", "content": begun}], {"chat_template": VERBATIM}
        end = template.tokenizer.convert_ids_to_tokens(template.end_of_turn_id)
        said = {side: text + end for side, text in said.items()}
    row = {side: [{"role": "assistant", "content": text}] for side, text in said.items()}
    return {"prompt": prompt, **row, **({"chat_template_kwargs": kwargs} if kwargs else {})}


def conversations(pairs: Sequence[PreferencePair], template: ChatTemplate) -> Any:
    """Pairs as a dataset of such rows."""
    from datasets import Dataset

    return Dataset.from_list([conversation(template, pair) for pair in pairs])


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
