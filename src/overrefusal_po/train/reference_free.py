"""What ORPO and CPO share: TRL's `DPOTrainer` with another loss, and without a reference model.

    @dataclass
    class MyConfig(ReferenceFreeConfig): ...
    trainer = reference_free_trainer(MyTrainer, MyConfig, model=model, pairs=pairs, args=args)

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trl import DPOConfig

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.first_rows import check_given_rows
from overrefusal_po.train.given import evaluation_rows, given_pairs, pair_preparer
from overrefusal_po.train.policy import checked_model, load_policy, tokenizer_and_template
from overrefusal_po.train.preference import finished
from overrefusal_po.train.settings import Settings, trainer_config
from overrefusal_po.train.sharded import no_reference
from overrefusal_po.train.trl_private import OwnLossTrainer, shared_prefix_on
from overrefusal_po.train.windows import check_passes

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from overrefusal_po.train.given import RowsGiven

Trainer = TypeVar("Trainer", bound=OwnLossTrainer)


@dataclass
class ReferenceFreeConfig(DPOConfig):
    """TRL's `DPOConfig` without the keys of DPO's own loss and reference."""

    # True, so that TRL loads no reference model
    precompute_ref_log_probs: bool = field(init=False, default=True)
    precompute_ref_batch_size: int | None = field(init=False, default=None)
    padding_free: bool = field(init=False, default=False)
    loss_type: list[str] = field(init=False, default_factory=lambda: ["sigmoid"])
    loss_weights: list[float] | None = field(init=False, default=None)
    ld_alpha: float | None = field(init=False, default=None)
    f_divergence_type: str = field(init=False, default="reverse_kl")
    f_alpha_divergence_coef: float = field(init=False, default=0.5)
    label_smoothing: float = field(init=False, default=0.0)
    use_weighting: bool = field(init=False, default=False)
    discopop_tau: float = field(init=False, default=0.05)
    sync_ref_model: bool = field(init=False, default=False)
    ref_model_mixup_alpha: float = field(init=False, default=0.6)
    ref_model_sync_steps: int = field(init=False, default=512)


def reference_free_trainer(
    make: type[Trainer],
    config_class: type[ReferenceFreeConfig],
    *,
    model: PreTrainedModel | str | Path,
    pairs: Sequence[PreferencePair] | RowsGiven | Prepared,
    eval_dataset: object = None,
    args: ReferenceFreeConfig | Settings | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    shared_prefix: bool = True,
    pass_tokens: int | None = None,
) -> Trainer:
    """A trainer of class `make` on preference pairs; arguments and errors as for `dpo_trainer`."""
    if ref_model is not None:
        raise ValueError(
            f"{make.__name__} has no reference model; ref_model must be None. Use dpo_trainer to "
            "train against one."
        )
    pairs = given_pairs(pairs)
    model = checked_model(model, processing_class or template)
    config = trainer_config(config_class, args)
    check_passes(vars(config), pass_tokens)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    rows = pair_preparer(template, max_length=config.max_length, opening=opening, too_long=too_long)
    prepared, evaluated = rows(pairs, "pairs"), evaluation_rows(eval_dataset, rows)
    check_given_rows(prepared, template)
    policy = load_policy(model, peft_config)
    trainer = make(
        model=policy,
        ref_model=no_reference(policy, peft_config, config),
        args=config,
        train_dataset=prepared.rows,
        eval_dataset=evaluated,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    if shared_prefix:
        shared_prefix_on(trainer)
    trainer.pass_tokens = pass_tokens
    return finished(trainer)


def reward_metrics(chosen: Tensor, rejected: Tensor, scale: float) -> dict[str, Tensor]:
    """TRL's metrics of both sides' log-probs, (P,) each; a reward is `scale` times a log-prob."""
    return {
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "rewards/chosen": scale * chosen,
        "rewards/rejected": scale * rejected,
        "rewards/margins": scale * (chosen - rejected),
        "rewards/accuracies": (chosen > rejected).float(),
    }
