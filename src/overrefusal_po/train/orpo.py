"""ORPO (arXiv 2403.07691, equation 6) as a loss on TRL's `DPOTrainer`, without a reference model.

    trainer = ORPOTrainer(
        model=..., args=ORPOConfig(beta=0.1), train_dataset=pairs, processing_class=tokenizer
    )

Loss and gradients are those of `trl.experimental.orpo`. That trainer builds the logits of every
position, and TRL may remove it. Tokens are those of `DPOTrainer`: a template that ends behind its
end-of-turn token gets no second one. The likelihood term covers the prompt of the chosen side too,
as in TRL and in the paper's code. Settings of DPO's own loss are fixed and cannot be given.

Shapes: P pairs, T tokens. This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import logsigmoid

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.preference import prepare as prepare
from overrefusal_po.train.preference import read as read
from overrefusal_po.train.reference_free import (
    ReferenceFreeConfig,
    reference_free_trainer,
    reward_metrics,
)
from overrefusal_po.train.settings import Settings
from overrefusal_po.train.trl_private import OwnLossTrainer
from overrefusal_po.train.windows import Batch, chosen_row_tokens

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from overrefusal_po.train.given import RowsGiven


@dataclass
class ORPOConfig(ReferenceFreeConfig):
    """TRL's `DPOConfig` without the keys of DPO's own loss and reference.

    `beta` is the paper's lambda.
    """


class ORPOTrainer(
    OwnLossTrainer,
    name="ORPO",
    paper={
        "title": "ORPO: Monolithic Preference Optimization without Reference Model",
        "id": "2403.07691",
    },
):
    """`DPOTrainer` with ORPO's loss."""

    def loss_tokens(self, batch: Batch) -> float:
        """The tokens that the likelihood of a batch is a mean over."""
        return chosen_row_tokens(batch)

    def batch_loss(
        self, model: Module, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, TRL's ORPO metrics); inputs are (2P, T), chosen rows and then rejected ones."""
        completion = inputs["completion_mask"]
        scored = inputs["attention_mask"].bool()  # (2P, T)
        half = len(completion) // 2  # P
        # the likelihood term reads the prompt of the chosen side alone
        scored[half:] &= completion[half:].bool()
        labels = inputs["input_ids"].masked_fill(~scored, -100)
        outputs = model(**self.model_arguments(inputs), labels=labels, fused_lm_head=True)
        likelihood, means = orpo_terms(outputs.log_probs, outputs.label_mask, completion[:, 1:])
        chosen, rejected = means.chunk(2)  # (P,) each
        odds = log_odds(chosen) - log_odds(rejected)  # (P,)
        ratio = logsigmoid(odds)  # (P,)
        shares = self.factors
        loss = shares.tokens * likelihood - shares.pairs * self.beta * ratio.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return loss, {
            "nll_loss": likelihood,
            "log_odds_ratio": ratio.mean(),
            "log_odds_chosen": odds.mean(),
            **reward_metrics(chosen, rejected, self.beta),
        }


def orpo_trainer(
    model: PreTrainedModel | str | Path,
    pairs: Sequence[PreferencePair] | RowsGiven | Prepared,
    *,
    eval_dataset: object = None,
    args: ORPOConfig | Settings | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    shared_prefix: bool = True,
    pass_tokens: int | None = None,
) -> ORPOTrainer:
    """ORPO on preference pairs. There is no reference: `ref_model` must be None.

    Arguments and errors as for `dpo_trainer`; `args` is `ORPOConfig` or a mapping of its keys.
    """
    return reference_free_trainer(
        ORPOTrainer,
        ORPOConfig,
        model=model,
        pairs=pairs,
        eval_dataset=eval_dataset,
        args=args,
        processing_class=processing_class,
        ref_model=ref_model,
        peft_config=peft_config,
        callbacks=callbacks,
        template=template,
        opening=opening,
        too_long=too_long,
        shared_prefix=shared_prefix,
        pass_tokens=pass_tokens,
    )


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
        pass_tokens=recipe.speed.pass_tokens,
    )


def orpo_terms(log_probs: Tensor, scored: Tensor, completion: Tensor) -> tuple[Tensor, Tensor]:
    """(mean negative log-likelihood of the chosen rows, mean log-prob of each row's completion).

    The first is a number, the second (2P,).

    Args:
        log_probs: (2P, T - 1), 0 if not scored; all chosen rows, then all rejected ones.
        scored: (2P, T - 1), True if a log-prob was computed.
        completion: (2P, T - 1), 1 for completion tokens.
    """
    log_probs = log_probs.float()  # (2P, T - 1)
    half = len(log_probs) // 2  # P
    likelihood = -log_probs[:half].sum() / scored[:half].sum()  # ()
    return likelihood, (log_probs * completion).sum(1) / completion.sum(1)  # (2P,)


def log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log-probs up to 0, of any shape.

    Near p = 1 another form of log(1 - p) is exact than near 0 (Maechler 2012). A log-prob of 0, as
    rounding makes it of a sure token, has great odds and no gradient: infinite ones would be NaN.
    """
    log_prob = log_prob.clamp(max=-torch.finfo(log_prob.dtype).tiny)
    near_one = log_prob > -0.6931471805599453  # log(1/2)
    # each form gets only the values of its own half, so that no gradient of the other is NaN
    big = torch.log(-torch.expm1(torch.where(near_one, log_prob, -0.5)))
    small = torch.log1p(-torch.exp(torch.where(near_one, -1.0, log_prob)))
    return log_prob - torch.where(near_one, big, small)
