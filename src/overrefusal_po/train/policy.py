"""The model that is trained, its tokenizer, and the reference that it is compared with.

tokenizer, template = tokenizer_and_template("my/model", None, None)
policy = load_policy("my/model", peft_config=None)      # float32 without an adapter
reference = frozen_copy(policy)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.load import ModelSection
from overrefusal_po.model.padded import give_pad_token
from overrefusal_po.model.parts import load_start
from overrefusal_po.model.remedied import remedy_of
from overrefusal_po.model.zero import is_shared_out, shared_copy
from overrefusal_po.recipe.model_names import OWN_MODEL_KEYS
from overrefusal_po.run.loaded import check_tokenizer, check_tokenizer_known

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLAIN_NAME = re.compile(r"[\w.]+")
"""A module's name or the end of its path; `all-linear` and patterns with other signs are none."""


EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"})
"""Names of input and output embeddings in model classes."""


def checked_model(
    model: PreTrainedModel | str | Path, tokenizer: object = None
) -> PreTrainedModel | str:
    """The model, a path as text. TypeError for what is no model, ValueError for a loaded one whose
    tokenizer is not known, or that has a remedy on it."""
    if isinstance(model, str | Path):
        return str(model)
    if not (hasattr(model, "config") and callable(getattr(model, "parameters", None))):
        raise TypeError(
            f"model is a {type(model).__name__}; allowed is a loaded causal language model, or the "
            "name or path of one as text."
        )
    if (remedy := remedy_of(model)) is not None:
        raise ValueError(
            f"The model has the remedy {remedy.name} on it, and a training changes weights alone, "
            "not a remedy beside them. Remove it first: installed_on(model).remove() of "
            "overrefusal_po.model.remedied."
        )
    check_tokenizer_known(model, tokenizer, "processing_class=tokenizer.")
    return model


def tokenizer_and_template(
    model: PreTrainedModel | str,
    processing_class: PreTrainedTokenizerBase | None,
    template: ChatTemplate | None,
) -> tuple[PreTrainedTokenizerBase, ChatTemplate]:
    """The tokenizer with a pad token, and its chat template.

    The tokenizer is the template's, or the one given, or the model's own. ValueError if the model
    cannot be found.
    """
    if template is None:
        check_tokenizer("processing_class", processing_class)
        if processing_class is None:
            name = model if isinstance(model, str) else str(model.config.name_or_path)
            models.check_available(name)
            processing_class = models.load_tokenizer(name)
        template = ChatTemplate(processing_class)
    tokenizer: PreTrainedTokenizerBase = template.tokenizer
    give_pad_token(tokenizer)  # TRL does so after the collator has asked for its id
    return tokenizer, template


def check_reference(ref_model: object) -> None:
    """Raises TypeError for a reference that is no loaded model."""
    if ref_model is not None and not callable(getattr(ref_model, "parameters", None)):
        raise TypeError(
            f"ref_model is a {type(ref_model).__name__}; allowed is a loaded model "
            "(AutoModelForCausalLM.from_pretrained(NAME)), or None for the start policy."
        )


def load_policy(model: PreTrainedModel | str, peft_config: PeftConfig | None) -> PreTrainedModel:
    """A loaded model unchanged, a name or path loaded; in training mode.

    Without an adapter the weights themselves are trained. They are then loaded in float32 (TRL's
    default), since bfloat16 loses steps of 1e-6.
    """
    loaded: PreTrainedModel
    if isinstance(model, str):
        options = models.model_options({"model_name_or_path": model})
        options["dtype"] = "float32" if peft_config is None else None
        loaded = load_start(options, trains_all=peft_config is None)
    else:
        loaded = model
    loaded.train()
    return loaded


def adapter_config(section: ModelSection) -> PeftConfig | None:
    """The adapter that a recipe's `model:` asks for; None without `use_peft`."""
    from trl import ModelConfig, get_peft_config

    config = ModelConfig(**{k: v for k, v in section.items() if k not in OWN_MODEL_KEYS})
    # ModelConfig makes one name a text, which peft reads as a pattern of a module's whole path
    targets = config.lora_target_modules
    if isinstance(targets, str) and PLAIN_NAME.fullmatch(targets):
        config.lora_target_modules = [targets]
    return get_peft_config(config)


def named_modules(section: Mapping[str, object], key: str) -> list[str]:
    """The names under a key of `model:`; a text is one name."""
    value = section.get(key) or ()
    return [value] if isinstance(value, str) else list(cast("list[str]", value))


def adapts(target: str, path: str) -> bool:
    """Whether an entry of lora_target_modules means the module at `path`: all linear ones, those
    whose path ends so, or those whose whole path a pattern matches."""
    if target == "all-linear":
        return True
    if PLAIN_NAME.fullmatch(target):
        return f".{path}".endswith(f".{target}")
    return re.fullmatch(target, path) is not None


def trains_all(policy: PreTrainedModel, peft_config: PeftConfig | None) -> bool:
    """Whether all weights are trained, so that only a copy still holds the start policy."""
    return peft_config is None and not hasattr(policy, "peft_config")


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """A copy of the start policy. TRL would reload the model's name or path, which may be
    another."""
    reference = shared_copy(policy) if is_shared_out(policy) else copy.deepcopy(policy)
    reference.eval()
    reference.requires_grad_(False)
    return reference


def exact_adapter(model: Module | None) -> None:
    """Trains the adapter of a quantised model in float32, as peft does over other bases.

    TRL rounds it to bfloat16, and three things go wrong. Steps of 1e-6 are lost. A policy that
    comes with an adapter is no longer its own reference (TRL does not round its copy `ref`). After
    a resume peft reads it in float32, and losses differ.
    """
    if model is None or not getattr(model, "is_quantized", False):
        return
    known: dict[str, Parameter] = dict(model.named_parameters())
    for name, weight in known.items():
        if weight.requires_grad:
            source = known.get(name.replace(".default.", ".ref."), weight)
            weight.data = source.data.float().clone()
