"""ORPO (arXiv 2403.07691, equation 6) as a loss on TRL's `DPOTrainer`: no reference model, no full
logits.

    trainer = ORPOTrainer(model=..., args=ORPOConfig(beta=0.1, ...), train_dataset=pairs, processing_class=tokenizer)

Loss and gradients are those of `trl.experimental.orpo`, which builds the logits of every position
and may vanish; tokens are DPOTrainer's, so that a template that ends behind its end-of-turn token
gets no second one. As there and in the paper's code, the likelihood term covers the prompt of the
chosen side too. Settings that belong to DPO are fixed and cannot be given.

This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import logsigmoid
from trl import DPOConfig

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.policy import load_policy, tokenizer_and_template
from overrefusal_po.train.preference import finished
from overrefusal_po.train.preference import prepare as prepare
from overrefusal_po.train.preference import read as read
from overrefusal_po.train.rows import prepared_pairs
from overrefusal_po.train.settings import trainer_config
from overrefusal_po.train.trl_private import (
    ReadyDPOTrainer,
    add_log_prob_head,
    shared_prefix_on,
)

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


@dataclass
class ORPOConfig(DPOConfig):
    """TRL's `DPOConfig` without the keys of DPO's own loss and reference. `beta` is the paper's
    lambda."""

    precompute_ref_log_probs: bool = field(
        init=False, default=True
    )  # so that TRL loads no reference model
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


class ORPOTrainer(ReadyDPOTrainer):
    """`DPOTrainer` with ORPO's loss. Full fine-tuning under FSDP loads a reference for a moment and
    drops it (TRL's rule)."""

    _tag_names = ["trl", "orpo"]  # noqa: RUF012  # TRL's own form
    _name = "ORPO"
    _paper = {  # noqa: RUF012
        "title": "ORPO: Monolithic Preference Optimization without Reference Model",
        "id": "2403.07691",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # TRL's head also computes entropy, mean logits and top-1 for DPO's metrics; this one
        # computes log-probs alone
        add_log_prob_head(self.model)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Nothing is computed: there is no reference."""
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        completion = inputs["completion_mask"]
        scored = inputs["attention_mask"].bool()
        half = len(completion) // 2
        scored[half:] &= completion[
            half:
        ].bool()  # the likelihood term reads the prompt of the chosen side alone
        arguments = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {
            "use_cache": False
        }
        if self.aux_loss_enabled:
            arguments["output_router_logits"] = True
        labels = inputs["input_ids"].masked_fill(~scored, -100)
        outputs = model(**arguments, labels=labels, fused_lm_head=True)
        likelihood, means = orpo_terms(outputs.log_probs, outputs.label_mask, completion[:, 1:])
        chosen, rejected = means.chunk(2)
        odds = log_odds(chosen) - log_odds(rejected)
        ratio = logsigmoid(odds)
        loss = likelihood - self.beta * ratio.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self.note(inputs, likelihood, chosen, rejected, odds, ratio)
        if return_outputs:
            with torch.no_grad():
                return loss, model(**arguments)
        return loss

    def note(
        self,
        inputs: dict[str, Any],
        likelihood: Any,
        chosen: Any,
        rejected: Any,
        odds: Any,
        ratio: Any,
    ) -> None:
        """Adds TRL's ORPO metrics of one batch, as means over all processes."""
        mode = "train" if cast(Module, self.model).training else "eval"
        if mode == "train":
            seen = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += seen // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        values = {
            "nll_loss": likelihood,
            "log_odds_ratio": ratio.mean(),
            "log_odds_chosen": odds.mean(),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "rewards/chosen": self.beta * chosen,
            "rewards/rejected": self.beta * rejected,
            "rewards/margins": self.beta * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).float(),
        }
        for name, value in values.items():
            self._metrics[mode][name].append(
                self.accelerator.gather_for_metrics(value.detach()).mean().item()
            )


def orpo_trainer(
    model: PreTrainedModel | str,
    pairs: Sequence[PreferencePair] | Prepared,
    *,
    args: ORPOConfig | Mapping[str, Any] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    shared_prefix: bool = True,
) -> ORPOTrainer:
    """ORPO on preference pairs. There is no reference: `ref_model` must be None.

    Arguments and errors as for `dpo_trainer`; `args` is `ORPOConfig` or a mapping of its keys.
    """
    if ref_model is not None:
        raise ValueError(
            "ORPO has no reference model; ref_model must be None. Use dpo_trainer to train against "
            "one."
        )
    config = trainer_config(ORPOConfig, args)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    prepared = prepared_pairs(
        pairs, template, max_length=config.max_length, opening=opening, too_long=too_long
    )
    trainer = ORPOTrainer(
        model=load_policy(model, peft_config),
        args=config,
        train_dataset=prepared.rows,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    if shared_prefix:
        shared_prefix_on(trainer)
    return finished(trainer)


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: ORPOConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> ORPOTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    return orpo_trainer(
        model,
        prepared,
        args=args,
        template=template,
        peft_config=peft_config,
        shared_prefix=recipe.speed.shared_prefix,
    )


def orpo_terms(log_probs: Tensor, scored: Tensor, completion: Tensor) -> tuple[Tensor, Tensor]:
    """(the chosen rows' mean negative log-likelihood, each row's mean log-prob over its
    completion).

    Args:
        log_probs: (2 * batch, seq - 1), zero where not scored; all chosen rows, then all rejected
            ones.
        scored: (2 * batch, seq - 1), True where a log-prob was computed.
        completion: (2 * batch, seq - 1), 1 for completion tokens.
    """
    log_probs = log_probs.float()
    half = len(log_probs) // 2
    likelihood = -log_probs[:half].sum() / scored[:half].sum()
    return likelihood, (log_probs * completion).sum(1) / completion.sum(1)


def log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log-probs below 0; which form of log(1 - p) is exact depends on p
    (Maechler 2012)."""
    near_one = log_prob > -0.6931471805599453  # log(1/2)
    # each side sees only its own half, so that the gradient of the other is no NaN
    big = torch.log(-torch.expm1(torch.where(near_one, log_prob, -0.5)))
    small = torch.log1p(-torch.exp(torch.where(near_one, -1.0, log_prob)))
    return log_prob - torch.where(near_one, big, small)
