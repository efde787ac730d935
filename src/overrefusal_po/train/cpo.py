"""CPO (arXiv 2401.08417) and SimPO (arXiv 2405.14734) as losses on TRL's `DPOTrainer`, without a
reference model.

    trainer = CPOTrainer(
        model=..., args=CPOConfig(loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=1.0),
        train_dataset=pairs, processing_class=tokenizer
    )

Keys, loss and gradients are those of `trl.experimental.cpo`. That trainer builds the logits of
every position, and TRL may remove it. SimPO is `loss_type: simpo` with `cpo_alpha: 0`.

Shapes: P pairs, T tokens. This module imports TRL at its top: import it inside a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from overrefusal_po.train.given import RowsGiven

LOSSES = ("sigmoid", "hinge", "ipo", "simpo")
"""The values of `loss_type`."""

MEANS = ("ipo", "simpo")
"""The losses that compare mean log-probs of tokens; the others compare sums."""


@dataclass
class CPOConfig(ReferenceFreeConfig):
    """TRL's `DPOConfig` without the keys of DPO's own loss and reference, with those of CPO."""

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "The loss of a pair: `simpo` and `ipo` compare means over tokens, `sigmoid` "
            "and `hinge` sums.",
            "choices": LOSSES,
        },
    )
    cpo_alpha: float = field(
        default=1.0, metadata={"help": "Weight of the likelihood of the chosen sides; 0: none."}
    )
    simpo_gamma: float = field(
        default=0.5, metadata={"help": "SimPO's target margin, in units of the reward."}
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "Share of pairs whose sides may be swapped (`sigmoid` and `simpo`)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]  # TRL's own
        if len(self.loss_type) != 1 or self.loss_type[0] not in LOSSES:
            raise ValueError(
                f"loss_type is {self.loss_type}; allowed is one of {', '.join(LOSSES)}. The "
                "likelihood of the chosen sides is cpo_alpha."
            )


class CPOTrainer(
    OwnLossTrainer,
    name="CPO",
    paper={
        "title": "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance "
        "in Machine Translation",
        "id": "2401.08417",
    },
):
    """`DPOTrainer` with the loss of CPO or SimPO."""

    def batch_loss(
        self, model: Module, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, TRL's CPO metrics); inputs are (2P, T), chosen rows and then rejected ones."""
        completion = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(completion == 0, -100)
        outputs = model(**self.model_arguments(inputs), labels=labels, fused_lm_head=True)
        log_probs, lengths = outputs.log_probs.float(), completion[:, 1:].sum(1)
        scores = log_probs.sum(1) / (lengths if self.loss_types[0] in MEANS else 1)  # (2P,)
        chosen, rejected = scores.chunk(2)  # (P,) each
        half = len(chosen)
        likelihood = -log_probs[:half].sum() / lengths[:half].sum()
        shares, config = self.factors, self.args
        assert isinstance(config, CPOConfig), "the trainer is made with its own config"
        losses = pair_losses(chosen - rejected, self.beta, config)
        loss = shares.pairs * losses.mean() + shares.tokens * config.cpo_alpha * likelihood
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        return loss, {
            "nll_loss": likelihood,
            **reward_metrics(chosen, rejected, self.beta),
        }


def pair_losses(margins: Tensor, scale: float, config: CPOConfig) -> Tensor:
    """The loss of each pair, of the shape of `margins`: chosen minus rejected log-probs.

    `scale` turns a margin into one of rewards.
    """
    kind = config.loss_type[0]
    if kind == "hinge":
        return torch.relu(1 - scale * margins)
    if kind == "ipo":
        return (margins - 1 / (2 * scale)) ** 2
    rewards = scale * margins - (config.simpo_gamma if kind == "simpo" else 0.0)
    swapped = config.label_smoothing
    return -logsigmoid(rewards) * (1 - swapped) - logsigmoid(-rewards) * swapped


def cpo_trainer(
    model: PreTrainedModel | str | Path,
    pairs: Sequence[PreferencePair] | RowsGiven | Prepared,
    *,
    eval_dataset: object = None,
    args: CPOConfig | Settings | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    shared_prefix: bool = True,
    pass_tokens: int | None = None,
) -> CPOTrainer:
    """CPO or SimPO on preference pairs. There is no reference: `ref_model` must be None.

    Arguments and errors as for `dpo_trainer`; `args` is `CPOConfig` or a mapping of its keys.
    """
    return reference_free_trainer(
        CPOTrainer,
        CPOConfig,
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
    args: CPOConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> CPOTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    return cpo_trainer(
        model,
        prepared,
        args=args,
        template=template,
        peft_config=peft_config,
        shared_prefix=recipe.speed.shared_prefix,
        pass_tokens=recipe.speed.pass_tokens,
    )
