"""Records in, a ready TRL trainer out: one factory a method, all with the same signature.

    from overrefusal_po import dpo_trainer
    trainer = dpo_trainer("bundled:smollm2-135m-instruct", pairs, args={"learning_rate": 5e-6, "beta": 0.1})
    trainer.train()

`args` is TRL's own config object or a mapping of its keys; keys that hardware decides (`use_cpu`,
`bf16`, `gradient_checkpointing`) are filled in where a mapping leaves them open. METHODS is the
table of what exists.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from overrefusal_po.exact.shared_prefix import share_prefix
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.sharding import wants_fsdp
from overrefusal_po.recipe.load import check_sampling
from overrefusal_po.recipe.methods import check_kto
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.recipe.words import unknown_key
from overrefusal_po.records import PreferencePair, Prompt, Triple
from overrefusal_po.train.derta import DertaCollator, Row, derta_rows, refusal_token, sft_rows
from overrefusal_po.train.derta_tree import TreeCollator, trees
from overrefusal_po.train.kto import warn_of_cut
from overrefusal_po.train.lengths import fitting, group_by_length
from overrefusal_po.train.opening import opening_of
from overrefusal_po.train.rows import pair_dataset, side_dataset

logger = logging.getLogger(__name__)


class Method(NamedTuple):
    """A training method: its factory, TRL's config class for it, what it eats, and a line for
    `list`."""

    factory: Callable[..., Any]
    config: str
    eats: Literal["pairs", "triples", "prompts"]
    summary: str


def dpo_trainer(
    model: Any,
    pairs: Sequence[PreferencePair],
    *,
    args: Any = None,
    processing_class: Any = None,
    ref_model: Any = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    shared_prefix: bool = True,
    reference_store: str | Path | None = None,
) -> Any:
    """A TRL `DPOTrainer` on preference pairs (DPO, arXiv 2305.18290, equation 7, unless `loss_type`
    says otherwise).

    Args:
        model: a loaded model, or a name or path (`bundled:...` too). Its state now is the
            reference.
        pairs: preference pairs with at least one row.
        args: `trl.DPOConfig`, or a mapping of its keys, or None for TRL's defaults.
        processing_class: the tokenizer; None loads the model's own.
        ref_model: another reference than the start policy.
        peft_config: a peft config; None trains all weights.
        callbacks: transformers callbacks.
        template: chat options (system prompt, template kwargs); None uses the tokenizer's template
            as it is.
        opening: train on this many first tokens of each side (see `opening`); None: on whole sides.
        too_long: "drop" leaves out, and counts, pairs longer than `max_length`; none is ever cut
            (see `lengths`).
        shared_prefix: compute the prompt of a pair once, where that is proven exact (see
            `shared_prefix`).
        reference_store: a folder that keeps reference log-probs from run to run (see
            `reference_store`); turns `precompute_ref_log_probs` on, and no reference model is held
            in memory, except under FSDP.

    Raises:
        ValueError: no pairs, a tokenizer without chat template, a pair longer than `max_length`
            (see `too_long`).
    """
    from trl import DPOConfig, DPOTrainer

    config = trainer_config(DPOConfig, args)
    if reference_store is not None:
        config = copy.copy(config)  # the caller's own object stays as it is
        config.precompute_ref_log_probs = True
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    dataset = pair_dataset(pairs, template, config.max_length, opening, too_long)
    policy = load_policy(model, peft_config)
    cls, extra = DPOTrainer, {}
    if config.precompute_ref_log_probs:
        from overrefusal_po.exact.reference_store import StoredDPOTrainer

        store = Path(reference_store) if reference_store is not None else None
        cls, extra = StoredDPOTrainer, {"store": store, "shared_prefix": shared_prefix}
    sharded = wants_fsdp(vars(config))  # TRL then wants one even to compute log-probs ahead
    if (
        ref_model is None
        and trains_all(policy, peft_config)
        and (sharded or not config.precompute_ref_log_probs)
    ):
        ref_model = frozen_copy(policy)
    return preference_trainer(
        opening_of(cls, opening),
        share=shared_prefix
        and cls is DPOTrainer,  # the other has done so before its reference pass
        model=policy,
        ref_model=ref_model,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
        **extra,
    )


def orpo_trainer(
    model: Any,
    pairs: Sequence[PreferencePair],
    *,
    args: Any = None,
    processing_class: Any = None,
    ref_model: Any = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
    shared_prefix: bool = True,
) -> Any:
    """ORPO (arXiv 2403.07691, equation 6; see `orpo`). There is no reference: `ref_model` must be
    None.

    Arguments and errors as for `dpo_trainer`; `args` is `overrefusal_po.train.orpo.ORPOConfig` or a
    mapping of its keys.
    """
    from overrefusal_po.train.orpo import ORPOConfig, ORPOTrainer

    if ref_model is not None:
        raise ValueError(
            "ORPO has no reference model; ref_model must be None. Use dpo_trainer to train against "
            "one."
        )
    config = trainer_config(ORPOConfig, args)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    return preference_trainer(
        opening_of(ORPOTrainer, opening),
        share=shared_prefix,
        model=load_policy(model, peft_config),
        args=config,
        train_dataset=pair_dataset(pairs, template, config.max_length, opening, too_long),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )


def kto_trainer(
    model: Any,
    pairs: Sequence[PreferencePair],
    *,
    args: Any = None,
    processing_class: Any = None,
    ref_model: Any = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
) -> Any:
    """TRL's `KTOTrainer` (arXiv 2402.01306, equation 7) on the sides of pairs as rows of their own,
    in the order of `kto`.

    Arguments as for `dpo_trainer`; `args` is `trl.KTOConfig` or a mapping of its keys. A batch
    counts sides, not pairs, and there are at least 2 in one.

    Raises:
        ValueError: as for `dpo_trainer`, and where the prompts of a batch cannot all be different.
    """
    from trl import KTOConfig, KTOTrainer

    config = trainer_config(KTOConfig, args)
    check_kto(vars(config))
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    dataset = side_dataset(pairs, template, config, opening, too_long)
    policy = load_policy(model, peft_config)
    if ref_model is None and trains_all(policy, peft_config):
        ref_model = frozen_copy(policy)
    trainer = preference_trainer(
        opening_of(KTOTrainer, opening),
        share=False,  # its rows share no prompt
        model=policy,
        ref_model=ref_model,
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    warn_of_cut(trainer.train_dataset, config.max_length)
    return trainer


def preference_trainer(trainer_class: Any, *, share: bool, **arguments: Any) -> Any:
    """One of TRL's trainers on pairs or their sides, with what is ours around its steps."""
    trainer = trainer_class(**arguments)
    exact_adapter(trainer.model)
    if share:
        share_prefix(trainer)
    group_by_length(trainer)  # by what a step computes, which a shared prefix changes
    return trainer


def trains_all(policy: Any, peft_config: Any) -> bool:
    """Whether all weights are trained, so that the start policy is nowhere but in a copy."""
    return peft_config is None and not hasattr(policy, "peft_config")


def derta_trainer(
    model: Any,
    triples: Sequence[Triple],
    *,
    args: Any = None,
    processing_class: Any = None,
    ref_model: Any = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    template: ChatTemplate | None = None,
    helpful: Sequence[Prompt] = (),
    refusal_opener: str = "Sorry",
    prefix_unit: Literal["words", "tokens"] = "words",
    rto_dropout: float = 0.95,
    too_long: TooLong = "error",
    tree: bool = False,
) -> Any:
    """TRL's `SFTTrainer` on DeRTa rows (arXiv 2407.09121, section 3; see `derta`), mixed with
    helpful rows.

    Args as for `dpo_trainer`; `args` is `trl.SFTConfig` or a mapping of its keys, and further:
        triples: each becomes one RTO row and one prefix row.
        helpful: prompts with a reference response, learned by ordinary SFT.
        refusal_opener: its first token is the label of RTO; safe responses must begin with it.
        prefix_unit: "words" as in the released code, "tokens" as in the paper.
        rto_dropout: share of RTO positions without loss, drawn anew at each pass (release: 0.95 full, 0 LoRA).
        tree: run both rows of a question as one (see `derta_tree`); a batch then counts questions.

    Raises:
        ValueError: no triples, a safe response that does not begin with the opener, an opener that
            is no tell.
    """
    if not triples:
        raise ValueError(
            "DeRTa needs at least one (prompt, safe response, harmful response) triple; got none."
        )
    check_openers([(t.prompt.id, t.safe_response) for t in triples], refusal_opener)
    from trl import SFTConfig

    config = trainer_config(SFTConfig, args)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    token = refusal_token(template, refusal_opener)
    triples = fitting(triples, template, max_length=config.max_length, too_long=too_long).warned()
    rows = derta_rows(triples, template, token, seed=config.seed, prefix_unit=prefix_unit)
    rows += sft_rows(
        fitting(helpful, template, max_length=config.max_length, too_long=too_long).warned(),
        template,
    )
    make = TreeCollator if tree else DertaCollator
    collator = make(pad_token_id=tokenizer.pad_token_id, rto_dropout=rto_dropout, seed=config.seed)
    trainer = rows_trainer(
        model, rows, config, tokenizer, collator, ref_model, peft_config, callbacks
    )
    if isinstance(collator, TreeCollator):
        collator.paired = share_prefix(trainer)
    group_by_length(trainer)
    return trainer


def sft_trainer(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    args: Any = None,
    processing_class: Any = None,
    ref_model: Any = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    template: ChatTemplate | None = None,
    too_long: TooLong = "error",
) -> Any:
    """TRL's `SFTTrainer` on prompts with reference responses, loss on the response only.

    Arguments as for `dpo_trainer`; `args` is `trl.SFTConfig` or a mapping of its keys. `ref_model`
    must be None.
    """
    if not prompts:
        raise ValueError("SFT needs at least one prompt with a reference response; got none.")
    from trl import SFTConfig

    config = trainer_config(SFTConfig, args)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    rows = sft_rows(
        fitting(prompts, template, max_length=config.max_length, too_long=too_long).warned(),
        template,
    )
    collator = DertaCollator(pad_token_id=tokenizer.pad_token_id, seed=config.seed)
    trainer = rows_trainer(
        model, rows, config, tokenizer, collator, ref_model, peft_config, callbacks
    )
    group_by_length(trainer)
    return trainer


METHODS = {
    "sft": Method(
        sft_trainer, "trl.SFTConfig", "prompts", "supervised fine-tuning on reference responses"
    ),
    "derta": Method(
        derta_trainer,
        "trl.SFTConfig",
        "triples",
        "SFT after which a model can refuse at any position",
    ),
    "dpo": Method(
        dpo_trainer,
        "trl.DPOConfig",
        "pairs",
        "direct preference optimisation against the start policy",
    ),
    "orpo": Method(
        orpo_trainer,
        "overrefusal_po.train.orpo.ORPOConfig",
        "pairs",
        "odds-ratio PO, no reference model",
    ),
    "kto": Method(
        kto_trainer,
        "trl.KTOConfig",
        "pairs",
        "each side of a pair by itself against the start policy",
    ),
}
"""Every training method by its name in a recipe."""


def trainer_config(cls: Any, args: Any) -> Any:
    """`args` as a TRL config object; what a mapping leaves open and hardware decides is filled
    in."""
    if isinstance(args, cls):
        check_sampling(args.train_sampling_strategy)
        return args
    if args is not None and not isinstance(args, Mapping):
        wanted = f"{cls.__module__}.{cls.__name__}"
        raise ValueError(
            f"args must be a {wanted}, a mapping of its keys or None; got {type(args).__name__}."
        )
    given = dict(args or {})
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in given:
        if name not in known:
            raise ValueError(unknown_key(name, known, "", owner=cls.__name__))
    check_sampling(given.get("train_sampling_strategy"))
    return cls(**{**hardware_settings(given), **given})


def hardware_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer keys that hardware decides; TRL's own defaults (bf16, checkpointing) raise on a
    CPU."""
    if models.has_cuda() and not given.get("use_cpu"):
        return {"bf16": models.has_bf16(), "gradient_checkpointing": True}
    return {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def tokenizer_and_template(
    model: Any, processing_class: Any, template: ChatTemplate | None
) -> tuple[Any, ChatTemplate]:
    """The tokenizer (the template's, the one given, or the model's own) with a pad token, and its
    chat template."""
    if template is None:
        if processing_class is None:
            processing_class = models.load_tokenizer(
                model if isinstance(model, str) else model.config._name_or_path
            )
        template = ChatTemplate(processing_class)
    if (
        template.tokenizer.pad_token is None
    ):  # TRL does the same, but only after the collator has asked for its id
        template.tokenizer.pad_token = template.tokenizer.eos_token
    return template.tokenizer, template


def load_policy(model: Any, peft_config: Any) -> Any:
    """A loaded model as it is, a name or path loaded; in training mode.

    Without an adapter the weights themselves are trained, and are loaded in float32 (TRL's
    default): in bfloat16 steps of 1e-6 are lost.
    """
    if isinstance(model, str):
        model = models.load_model(model, dtype="float32" if peft_config is None else None)
    return model.train()


def exact_adapter(model: Any) -> None:
    """Trains a quantised model's adapter in float32, as peft does over other bases.

    TRL rounds it to bfloat16: steps of 1e-6 are lost, a policy that comes with an adapter is no
    longer its own reference (TRL's copy `ref` is not rounded), and after a resume, when peft reads
    it in float32, losses are others.
    """
    if not getattr(model, "is_quantized", False):
        return
    known: dict[str, Any] = dict(model.named_parameters())
    for name, weight in known.items():
        if weight.requires_grad:
            weight.data = known.get(name.replace(".default.", ".ref."), weight).data.float().clone()


def frozen_copy(policy: Any) -> Any:
    """A copy of the start policy: TRL would reload `config._name_or_path`, which need not be this
    policy."""
    return copy.deepcopy(policy).eval().requires_grad_(False)


def check_openers(safe: Iterable[tuple[str, str]], opener: str) -> None:
    """Raises ValueError for the first of the (prompt id, safe response) that does not begin with
    the refusal opener."""
    stray = next(((key, text) for key, text in safe if not text.startswith(opener)), None)
    if stray is not None:
        raise ValueError(
            f"Safe responses must begin with the refusal opener {opener!r} (data.refusal_opener), "
            f"which RTO teaches at every position; the one for prompt {stray[0]} begins with "
            f"{stray[1][:30]!r}. Change the opener or the response."
        )


def rows_trainer(
    model: Any,
    rows: Sequence[Row],
    config: Any,
    tokenizer: Any,
    collator: DertaCollator,
    ref_model: Any,
    peft_config: Any,
    callbacks: Sequence[Any],
) -> Any:
    """An `SFTTrainer` on rows that carry their labels. They are ready, so TRL prepares and drops
    nothing."""
    from datasets import Dataset
    from trl import SFTTrainer

    if ref_model is not None:
        raise ValueError("Supervised fine-tuning has no reference model; ref_model must be None.")
    if config.packing or config.padding_free:
        raise ValueError(
            "packing and padding_free cannot be used with these rows (their labels are drawn at "
            "each pass)."
        )
    examples = (
        trees(rows) if isinstance(collator, TreeCollator) else [row._asdict() for row in rows]
    )
    config = copy.copy(config)  # the caller's own object stays as it is
    config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
    config.remove_unused_columns = False
    trainer = SFTTrainer(
        model=load_policy(model, peft_config),
        args=config,
        data_collator=collator,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[*callbacks, epoch_callback(collator)],
    )
    exact_adapter(trainer.model)
    return trainer


def epoch_callback(collator: DertaCollator) -> Any:
    """A callback that tells the collator which pass over the data has begun."""
    from transformers import TrainerCallback

    class EpochCallback(TrainerCallback):  # type: ignore[misc]
        """Sets `collator.epoch`, so that RTO dropout is drawn anew at each pass, also after a
        resume."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            collator.epoch = int(state.epoch or 0)

    return EpochCallback()
