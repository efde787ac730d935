"""DRO (arXiv 2401.18018): soft tokens in the system turn, trained to move prompts apart.

    prompts = {"harmful": [...], "benign": [...]}
    trainer = dro_trainer("my/model", prompts, args={"output_dir": "out"})
    trainer.train()
    trainer.processing_class           # the tokenizer with the new tokens, and its chat template

The soft tokens begin as a text. Harmless prompts are moved to where the model answers, and harmful
ones to where it refuses. Only the soft tokens' rows of the embedding are trained. What is left is
plain weights and a chat template. This module imports TRL at its top: import it inside a function.

`SoftRows`, in `model/soft_rows.py`, says why no adapter is used.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from trl import SFTConfig

from overrefusal_po.curate.inputs import read_sources
from overrefusal_po.evaluate.given import given_prompts
from overrefusal_po.identity import unique_prompts
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.sharding import check_whole
from overrefusal_po.model.soft_rows import SoftRows
from overrefusal_po.model.soft_tokens import SoftPrompt, soft_prompt
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.prompts import fixed_subset
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import PlugSpec, TooLong
from overrefusal_po.recipe.soft_prompt import SHORT_TEXT, SoftPromptData
from overrefusal_po.records import Kind, Prompt, Sampling
from overrefusal_po.run.judged import fresh_outcomes
from overrefusal_po.train.data import Prepared, Source, check_firewall
from overrefusal_po.train.dro_loss import directions, dro_terms
from overrefusal_po.train.dro_rows import (
    RENDERINGS,
    AnchorCollator,
    Shares,
    both_ways,
    check_anchors,
    prepared_anchors,
    shares,
)
from overrefusal_po.train.lengths import warn_of_left_out
from overrefusal_po.train.policy import checked_model, load_policy, tokenizer_and_template
from overrefusal_po.train.settings import full_settings, trainer_config
from overrefusal_po.train.student import StudentAnswer
from overrefusal_po.train.trl_private import TermsSFTTrainer
from overrefusal_po.train.weights import generating

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from transformers.trainer_utils import TrainOutput

    from overrefusal_po.judges import Judge

logger = logging.getLogger(__name__)


@dataclass
class DROConfig(SFTConfig):
    """TRL's `SFTConfig` with the keys of DRO's loss. Their defaults are the released code's."""

    dimensions: int = field(
        default=4,
        metadata={"help": "Principal components of the states in which answers and harm are read."},
    )
    harm_weight: float = field(
        default=0.01, metadata={"help": "Weight of the term that moves prompts by their harm."}
    )
    rest_weight: float = field(
        default=0.001,
        metadata={"help": "Weight of the mean square of all other movements of the states."},
    )


class DROTrainer(TermsSFTTrainer):
    """TRL's `SFTTrainer` with DRO's loss. After `train()` the model has plain weights again."""

    def __init__(self, *args: Any, soft_rows: SoftRows, **kwargs: Any) -> None:  # Any: TRL's own
        super().__init__(*args, **kwargs)
        self.soft_rows = soft_rows
        self.settings = cast(DROConfig, self.args)
        rows = cast(Dataset, self.train_dataset)
        states = {name: self.states_of(list(rows[f"{name}_ids"])) for name in RENDERINGS}
        answered = [torch.tensor(list(rows[f"{name}_answered"])) for name in RENDERINGS]
        harmless = torch.tensor(list(rows["harmless"])).repeat(len(RENDERINGS))
        found = directions(
            torch.cat([states[name] for name in RENDERINGS]),
            torch.cat(answered),
            harmless,
            dimensions=self.settings.dimensions,
        )
        logger.info(
            "%d dimensions hold %.0f%% of the variance of %d states; in them a probe says whether "
            "the model answers of %.0f%%, and whether a prompt is harmless of %.0f%%",
            *(self.settings.dimensions, 100 * found.kept, len(harmless)),
            *(100 * share for share in found.fits),
        )
        self.directions = found._replace(
            basis=found.basis.to(self.args.device),
            answers=found.answers.to(self.args.device),
            harmless=found.harmless.to(self.args.device),
        )
        self.train_dataset = rows.add_column("text_state", states["text"].tolist())

    def states_of(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(N, D) float32, on the CPU: the last hidden state at the last token of each row."""
        collator = cast(AnchorCollator, self.data_collator)
        model, size = cast(Module, self.model), self.args.per_device_eval_batch_size
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        order = sorted(range(len(ids)), key=lambda at: -len(ids[at]))
        training = model.training
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                inputs = collator.padded([ids[at] for at in batch])
                rows = last_states(model, {k: v.to(self.args.device) for k, v in inputs.items()})
                for at, row in zip(batch, rows.cpu(), strict=True):
                    found[at] = row
        model.train(training)
        return torch.stack(found)

    def compute_loss(  # Any: the output depends on the model
        self,
        model: Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """DRO's loss of a batch of `AnchorCollator`; its terms go into the log."""
        moved = last_states(model, inputs) - inputs["text_state"]  # (B, D)
        terms = dro_terms(moved, inputs["harmless"], self.directions)
        self.add_terms({f"{name}_loss": value for name, value in terms._asdict().items()})
        own = self.settings
        loss = terms.loss(harm_weight=own.harm_weight, rest_weight=own.rest_weight)
        return (loss, {"loss": loss}) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:  # Any: transformers' own
        """Trains, and writes the rows into the embedding. ValueError if that was done already."""
        if self.soft_rows.folded:
            raise ValueError(
                "This trainer has trained: its soft tokens stand in the weights. Make a new one."
            )
        found: TrainOutput = super().train(*args, **kwargs)
        self.soft_rows.fold()
        return found


def last_states(model: Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, D) float32: the last hidden state, behind the last norm, at the last position."""
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    outputs = model(**given, output_hidden_states=True, use_cache=False, logits_to_keep=1)
    states: Tensor = outputs.hidden_states[-1][:, -1]
    return states.float()


def dro_trainer(
    model: PreTrainedModel | str | Path,
    prompts: object,
    *,
    args: DROConfig | Mapping[str, Any] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    text: str = SHORT_TEXT,
    answered: Shares | None = None,
    judge: PlugSpec | Judge = "refusal",
    max_new_tokens: int = 20,
    too_long: TooLong = "error",
) -> DROTrainer:
    """DRO on prompts of both kinds. A loaded model is changed: it gets the new tokens.

    Args as for `dpo_trainer`; `args` is `DROConfig` or a mapping of its keys, and further:
        prompts: harmful and harmless ones, in a form that `evaluate_model` takes, or `Prepared`.
        text: what the soft tokens begin as; a template with a system prompt is an error.
        answered: {id of each of `both_ways(prompts, text)`: share of answers that do not refuse}.
            None: the model is asked, greedily, and `judge` says what refuses.
        max_new_tokens: how long its answers may be.

    Raises ValueError for prompts of one kind, a model that refuses or answers all of them, an
    adapter, quantised weights, sharding, and a prompt longer than `max_length`.
    """
    model = checked_model(model, processing_class or template)
    config = checked_config(trainer_config(DROConfig, args), ref_model, peft_config)
    given = prompts if isinstance(prompts, Prepared) else anchors(prompts)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    soft = soft_prompt(template, text)
    policy = load_policy(model, None)
    if isinstance(given, Prepared):
        prepared = given
    else:
        if answered is None:
            answered = asked_shares(policy, template, both_ways(given, text), judge, max_new_tokens)
        prepared = prepared_anchors(
            given,
            soft,
            template,
            text=text,
            shares=answered,
            max_length=config.max_length,
            too_long=too_long,
        )
        warn_of_left_out(prepared.left_out)
    return DROTrainer(
        model=policy,
        args=config,
        data_collator=AnchorCollator(pad_token_id=int(tokenizer.pad_token_id or 0)),
        train_dataset=prepared.rows,
        processing_class=soft.template.tokenizer,
        callbacks=list(callbacks),
        soft_rows=opened(policy, soft),
    )


def checked_config(
    config: DROConfig, ref_model: object | None, peft_config: object | None
) -> DROConfig:
    """A copy of the settings for ready rows. ValueError for what DRO cannot use."""
    if ref_model is not None:
        raise ValueError("DRO has no reference model; ref_model must be None.")
    if peft_config is not None:
        raise ValueError(
            "DRO trains the rows of new tokens in plain weights, so it takes no adapter; "
            "peft_config must be None."
        )
    check_whole(vars(config), "DRO")
    config = copy.copy(config)  # the caller's own object stays unchanged
    given = cast("dict[str, Any]", config.dataset_kwargs or {})
    config.dataset_kwargs = {**given, "skip_prepare_dataset": True}
    config.remove_unused_columns = False
    return config


def anchors(given: object) -> list[Prompt]:
    """The prompts that Python code gives. ValueError unless they are of both kinds."""
    empty = isinstance(given, Sequence | Mapping) and not given
    found = [] if empty else given_prompts(given, split="train")
    check_anchors(found)
    return found


def asked_shares(
    model: PreTrainedModel,
    template: ChatTemplate,
    asked: Sequence[Prompt],
    judge: PlugSpec | Judge,
    max_new_tokens: int,
) -> dict[str, float]:
    """The shares of a loaded model's greedy answers that do not refuse."""
    from overrefusal_po.engines.transformers import TransformersEngine

    judges = make_refusal_judge(judge) if isinstance(judge, str | dict) else judge
    with generating(model):
        engine = TransformersEngine(model, template, name="student", batch_size=32)
        sampling = Sampling(max_new_tokens=max_new_tokens)
        outcomes = fresh_outcomes(engine, judges, asked, sampling, label="student: answering")
    return shares((outcome.prompt, outcome.verdict) for outcome in outcomes)


def opened(model: PreTrainedModel, soft: SoftPrompt) -> SoftRows:
    """The soft tokens' rows on a model; the log says how many, and if they do not begin exactly."""
    words = "" if soft.exact else ", though a token of it reaches over its end"
    logger.info("%d soft tokens begin as the text%s", len(soft.ids), words)
    return SoftRows(model, soft)


def soft_section(recipe: TrainRecipe) -> SoftPromptData:
    """The recipe's data section."""
    data = recipe.typed_data
    assert isinstance(data, SoftPromptData), "the table of methods names another section"
    return data


def read(recipe: TrainRecipe) -> Source:
    """The prompts of both kinds; the model is asked each of them without and with the text."""
    data = soft_section(recipe)
    if data.samples > 1 and recipe.generation.temperature == 0:
        raise ValueError(
            f"data.samples is {data.samples} and generation.temperature is 0, so all answers would "
            "be the same. Set generation.temperature to 1, or data.samples to 1."
        )
    sides: dict[Kind, PlugSpec | tuple[PlugSpec, ...]]
    sides = {"harmful": data.harmful, "benign": data.benign}
    found: list[Prompt] = []
    for kind, spec in sides.items():
        prompts = [p for p in read_sources(spec, data.split, kind) if p.kind == kind]
        if not prompts:
            raise ValueError(
                f"data.{kind}: {spec!r} has no {kind} prompt (split {data.split!r}), and DRO "
                "learns from both kinds. Name a source that has some."
            )
        found += fixed_subset(list(unique_prompts(prompts)), data.max_prompts_per_kind)
    return Source(found, asked=both_ways(found, data.prompt), samples=data.samples)


def prepare(
    recipe: TrainRecipe,
    source: Source,
    template: ChatTemplate,
    said: Sequence[StudentAnswer] | None = None,
) -> Prepared:
    """The rows of the prompts (see `method.MethodModule`); ValueError for benchmark prompts too."""
    data = soft_section(recipe)
    prompts = [p for p in source.records if isinstance(p, Prompt)]
    prepared = prepared_anchors(
        prompts,
        soft_prompt(template, data.prompt),
        template,
        text=data.prompt,
        shares=None if said is None else shares((row.prompt, row.verdict) for row in said),
        max_length=full_settings(recipe)["max_length"],
        too_long=data.too_long,
    )
    used = [p for p in prepared.records if isinstance(p, Prompt)]
    return prepared._replace(waived=check_firewall(used, data.waive))


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: DROConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> DROTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    text = soft_section(recipe).prompt
    return dro_trainer(
        model, prepared, args=args, template=template, peft_config=peft_config, text=text
    )
