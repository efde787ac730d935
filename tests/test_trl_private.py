"""trl_private.py: each private name that we use is there in the installed releases.

A canary that fails names what breaks. Adapt train/trl_private.py (or the file that it names) to the
new release, or pin the old one. `test_private_names` says where such names may stand.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
import trl.trainer.utils
from conftest import Style, trainer_settings
from factories import conversations, two_steps
from transformers.trainer_pt_utils import LengthGroupedSampler

from overrefusal_po.records import PreferencePair
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.orpo import ORPOTrainer
from overrefusal_po.train.trl_private import (
    ReadyDPOTrainer,
    ReadyKTOTrainer,
    StoredDPOTrainer,
    attention_of,
    is_tokenised,
    without_autocast,
)


def names_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters."""
    return list(inspect.signature(function).parameters)


# ------------------------------------------------------------------------------------------
# canaries

METHODS: list[tuple[Any, str, list[str], str]] = [
    *(
        (
            cls,
            "_prepare_dataset",
            ["self", "dataset", "processing_class", "args", "dataset_name"],
            "our rows would be rendered and tokenised again (ReadyDPOTrainer, ReadyKTOTrainer)",
        )
        for cls in (trl.DPOTrainer, trl.KTOTrainer)
    ),
    (
        transformers.Trainer,
        "_prepare_input",
        ["self", "data"],
        "under DeepSpeed reference log-probs are rounded to bfloat16 (ExactInputs)",
    ),
    (
        trl.DPOTrainer,
        "_precompute_ref_logps",
        ["self", "dataset", "name", "batch_size"],
        "the reference store is never asked (StoredDPOTrainer), and ORPO loads a reference",
    ),
    (
        trl.DPOTrainer,
        "compute_ref_log_probs",
        ["self", "model", "inputs"],
        "reference log-probs cannot be computed (exact/reference_store.py, compute_parts)",
    ),
    (
        trl.KTOTrainer,
        "_precompute_ref_logps",
        ["self", "dataset", "name", "batch_size"],
        "a full KTO under FSDP 2 loads a reference (train/side_references.py)",
    ),
    (
        trl.KTOTrainer,
        "compute_ref_log_probs",
        ["self", "model", "inputs"],
        "KTO's reference log-probs cannot be computed (train/side_references.py)",
    ),
    (
        trl.DPOTrainer,
        "_compute_loss",
        ["self", "model", "inputs", "return_outputs"],
        "ORPO would train with DPO's loss (train/orpo.py)",
    ),
    (
        trl.SFTTrainer,
        "compute_loss",
        ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "DRO would train with the loss of SFT (train/dro.py)",
    ),
    (
        transformers.Trainer,
        "_get_train_sampler",
        ["self", "train_dataset"],
        "train_sampling_strategy=group_by_length draws other batches (use_sampler)",
    ),
    (
        transformers.Trainer,
        "_run_epoch",
        ["self", "model", "epoch", "train_dataloader", "steps_in_epoch"],
        "a run that was killed after its last step takes one more (run/interrupts.py)",
    ),
]


@pytest.mark.parametrize(
    ("cls", "name", "parameters", "breaks"),
    METHODS,
    ids=[f"{cls.__name__}.{name}" for cls, name, *_ in METHODS],
)
def test_a_method_that_we_replace_or_call_has_the_signature_that_we_rely_on(
    cls: Any, name: str, parameters: list[str], breaks: str
) -> None:
    found = getattr(cls, name, None)
    assert found is not None, f"{cls.__name__}.{name} is gone: {breaks}"
    known = names_of(found)[: len(parameters)]
    assert known == parameters, f"{cls.__name__}.{name} takes {known}, not {parameters}: {breaks}"


def test_the_log_prob_head_has_the_arguments_that_we_rely_on() -> None:
    head = trl.trainer.utils.add_fused_lm_head
    breaks = "ORPO and the shared prefix read log-probs from it (add_log_prob_head)"
    assert names_of(head)[0] == "model", breaks
    assert inspect.signature(head).parameters["outputs"].default == ("log_probs",), breaks
    fields = {field.name for field in dataclasses.fields(trl.trainer.utils.FusedCausalLMOutput)}
    assert {"log_probs", "label_mask", "aux_loss"} <= fields, breaks


def test_a_model_under_autocast_keeps_its_plain_forward(
    style: Style, pairs: list[PreferencePair], tmp_path: Path
) -> None:
    args = trainer_settings(tmp_path, batch=2, max_steps=1, bf16=True)
    model = style.make_model()
    trainer = dpo_trainer(model, pairs, args=args, processing_class=style.tokenizer)
    trainer.accelerator.prepare_model(model)
    breaks = "a saved model is compared with log-probs under autocast (without_autocast)"
    assert "_original_forward" in model.__dict__, breaks
    wrapped, ids = model.forward, torch.tensor([[5, 6, 7]])
    with without_autocast(model):
        plain = model(input_ids=ids).logits
    assert model.forward == wrapped
    assert torch.equal(plain, style.make_model()(input_ids=ids).logits), breaks
    assert not torch.equal(plain, model(input_ids=ids).logits), "autocast changes nothing"


def test_the_log_prob_head_is_asked_for_by_its_keyword(style: Style) -> None:
    model, ids = style.make_model(), torch.tensor([[5, 6, 7]])
    trl.trainer.utils.add_fused_lm_head(model)
    said = model(input_ids=ids, labels=ids, fused_lm_head=True)
    breaks = "`fused_lm_head=True` no longer gives (rows, tokens - 1) log-probs of labels"
    assert said.log_probs.shape == said.label_mask.shape == (1, 2), breaks
    plain = style.make_model()(input_ids=ids).logits.log_softmax(-1)[:, :-1]
    expected = plain.gather(2, ids[:, 1:, None]).squeeze(2)
    assert torch.allclose(said.log_probs, expected, atol=1e-5), breaks


def test_deepspeeds_engine_is_made_from_model_and_accelerator() -> None:
    from trl.models import prepare_deepspeed

    breaks = "reference log-probs cannot be computed under DeepSpeed (reference_engine)"
    assert names_of(prepare_deepspeed)[:2] == ["model", "accelerator"], breaks


def test_the_sampler_of_similar_lengths_reads_the_generator_that_we_set() -> None:
    import torch

    breaks = "the order of group_by_length no longer follows from seed and epoch (EpochSampler)"
    known = names_of(LengthGroupedSampler.__init__)
    assert {"batch_size", "lengths", "generator"} <= set(known) and known[1] == "batch_size", breaks

    def drawn(seed: int) -> list[int]:
        sampler = LengthGroupedSampler(2, lengths=list(range(40)))
        sampler.generator = torch.Generator().manual_seed(seed)
        return list(sampler)

    assert drawn(1) == drawn(1) != drawn(2), breaks


@pytest.fixture
def trainer(styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path) -> Any:
    """TRL's own DPOTrainer, untrained."""
    llama = styles["llama"]
    config = trl.DPOConfig(**two_steps(tmp_path), bf16=False, gradient_checkpointing=False)
    return trl.DPOTrainer(
        model=llama.make_model(),
        ref_model=llama.make_model(),
        args=config,
        train_dataset=conversations(pairs, llama.template),
        processing_class=llama.tokenizer,
    )


ATTRIBUTES = {
    "_metrics": (dict, "ORPO's metrics are not logged (train/orpo.py), and a resume loses them"),
    "_total_train_tokens": (int, "num_tokens of ORPO and of resumed runs is wrong"),
    "_tp_size": (int, "ORPO counts tokens wrongly (train/orpo.py)"),
    "_precompute_engine": (
        type(None),
        "reference log-probs make an engine each time under DeepSpeed (reference_engine)",
    ),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_that_we_read_or_set_is_trls(name: str, trainer: Any) -> None:
    kind, breaks = ATTRIBUTES[name]
    assert hasattr(trainer, name), f"DPOTrainer.{name} is gone: {breaks}"
    assert type(getattr(trainer, name)) is kind, f"DPOTrainer.{name} is another thing: {breaks}"


def test_metrics_are_lists_by_mode(trainer: Any) -> None:
    breaks = "ORPO cannot add its metrics (train/orpo.py)"
    assert trainer._metrics.keys() == {"train", "eval"}, breaks
    assert trainer._metrics["train"]["anything"] == [], breaks


RESUMED = ("_tr_loss", "_globalstep_last_logged", "_initial_global_step")


@pytest.mark.parametrize("name", RESUMED)
def test_an_attribute_of_a_training_is_there_while_it_trains(name: str, trainer: Any) -> None:
    """What a resume puts back; it is set by `train` and not before."""
    seen = []

    class Spy(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(hasattr(trainer, name))

        on_step_end = on_train_begin

    trainer.add_callback(Spy())
    trainer.train()
    breaks = "the first log row after a resume is not that of an undisturbed run"
    assert seen == [True] * 3, f"Trainer.{name} is gone: {breaks} (run/interrupts.py)"


def test_names_of_a_config_are_those_that_we_read(style: Style) -> None:
    config = style.make_model().config.get_text_config()
    breaks = "a shared prefix cannot tell which attention a model has (attention_of)"
    assert hasattr(config, "_attn_implementation"), breaks
    assert attention_of(style.make_model()) == "sdpa", breaks
    saved = style.make_model().config.to_dict()
    assert "use_cache" in saved and {"_name_or_path", "transformers_version"} & {*saved}, (
        "names that a reference's key leaves out are spelled otherwise (exact/reference_store.py)"
    )


def test_an_attention_that_is_set_anew_is_seen(style: Style) -> None:
    model = style.make_model()
    model.config._attn_implementation = "eager"
    assert attention_of(model) == "eager"


# -------------------------------------------------------------------------------- what we replace


def test_trl_calls_what_we_replaced(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """A trainer that is made without our rows: TRL asks for both hooks under these names."""
    llama, called = styles["llama"], []

    class Watched(trl.DPOTrainer):
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            called.append("_prepare_dataset")
            return super()._prepare_dataset(*args, **kwargs)

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            called.append("_precompute_ref_logps")
            return dataset

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            called.append("_compute_loss")
            return super()._compute_loss(model, inputs, return_outputs)

    args = {**two_steps(tmp_path), "precompute_ref_log_probs": True}
    made = Watched(
        model=llama.make_model(),
        args=trl.DPOConfig(**args, bf16=False, gradient_checkpointing=False),
        train_dataset=conversations(pairs, llama.template),
        processing_class=llama.tokenizer,
    )
    assert called == ["_prepare_dataset", "_precompute_ref_logps"]
    batch = {**next(iter(made.get_train_dataloader()))}
    zeros = batch["input_ids"].new_zeros(2, dtype=made.model.dtype)
    made.compute_loss(made.model, {**batch, "ref_chosen_logps": zeros, "ref_rejected_logps": zeros})
    assert called[2:] == ["_compute_loss"]


def test_rows_with_tokens_pass_and_others_are_left_to_trl(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path, trainer: Any
) -> None:
    llama = styles["llama"]
    made = dpo_trainer(
        llama.make_model(), pairs, args=two_steps(tmp_path), processing_class=llama.tokenizer
    )
    assert type(made) is ReadyDPOTrainer and is_tokenised(made.train_dataset)
    rows = conversations(pairs, llama.template)
    assert not is_tokenised(rows) and not is_tokenised(None)
    assert made._prepare_dataset(made.train_dataset, None, None, "train") is made.train_dataset
    theirs = made._prepare_dataset(rows, llama.tokenizer, made.args, "eval")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    expected = [[row[name] for name in names] for row in trainer.train_dataset]
    assert [[row[name] for name in names] for row in theirs] == expected
    assert issubclass(StoredDPOTrainer, ReadyDPOTrainer) and issubclass(
        ORPOTrainer, ReadyDPOTrainer
    )
    assert issubclass(ReadyKTOTrainer, trl.KTOTrainer)
