"""Whether a training's rows, its template and its model fit each other; no weights are loaded.

check_model(recipe, config)
check_vocabulary(prepared, template, config)
missing_bos(template)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from overrefusal_po.model.chat import SHORT_CONVERSATION, ChatTemplate
from overrefusal_po.model.opener_bias import bias_site
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.words import nearest
from overrefusal_po.train.data import Prepared, highest_id
from overrefusal_po.train.policy import PLAIN_NAME

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"})
"""Names of input and output embeddings in model classes."""

ADAPTED = ("lora_target_modules", "lora_modules_to_save")
"""Keys of `model:` that name modules."""


def check_model(recipe: TrainRecipe, config: PretrainedConfig) -> None:
    """Raises ValueError for an adapter that does not fit the model, or a `hold` without a place in
    it."""
    check_adapter(recipe.model, config)
    if recipe.hold is not None:
        check_hold(recipe.model, config)


def check_adapter(section: Mapping[str, object], config: PretrainedConfig) -> None:
    """Raises ValueError for an adapter on shared embeddings, or on modules that are not there.

    `section` is a recipe's `model:`.
    """
    if section.get("use_peft"):
        names = {key: named_modules(section, key) for key in ADAPTED}
        check_tied(names, config)
        if not section.get("trust_remote_code"):  # other people's code may not load without weights
            check_there(names, config)


def named_modules(section: Mapping[str, object], key: str) -> list[str]:
    """The names under a key of `model:`; a text is one name."""
    value = section.get(key) or ()
    return [value] if isinstance(value, str) else list(cast("list[str]", value))


def check_tied(names: Mapping[str, Sequence[str]], config: PretrainedConfig) -> None:
    """Raises ValueError for an adapter on embeddings that input and output share.

    Merging such an adapter changes the other embedding too, so the saved model would be another
    one than the trained.
    """
    found = sorted({name for named in names.values() for name in named} & EMBEDDINGS)
    if found and getattr(config, "tie_word_embeddings", False):
        raise ValueError(
            f"model: {', '.join(found)} would be adapted, but this model shares one matrix for "
            "its input and output embeddings (tie_word_embeddings), and the merged model would "
            "not be the trained one. Take these names out of lora_target_modules and "
            "lora_modules_to_save, or train all weights (use_peft: false)."
        )


def check_there(names: Mapping[str, Sequence[str]], config: PretrainedConfig) -> None:
    """Raises ValueError for a name that no module has: peft leaves it out if others are there."""
    plain = {key: [n for n in named if PLAIN_NAME.fullmatch(n)] for key, named in names.items()}
    if not any(plain.values()):
        return
    paths = [path for path, _ in model_of(config).named_modules()]
    for key, named in plain.items():
        for name in named:
            if not any(f".{path}".endswith(f".{name}") for path in paths):
                ends = sorted(
                    {path.rpartition(".")[2] for path in paths if not path[-1:].isdigit()}
                )
                raise ValueError(
                    f"model.{key} names {name!r}, and this model has no such module. Its modules "
                    f"are {', '.join(filter(None, ends))}.{nearest(name, ends)}"
                )


def model_of(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def check_hold(section: Mapping[str, object], config: PretrainedConfig) -> None:
    """Raises ValueError if the bias that `hold` calibrates has no place in this model, or in the
    adapter that `section`, a recipe's `model:`, asks for."""
    if section.get("trust_remote_code"):  # other people's code may not load without weights
        return
    site = bias_site(model_of(config))
    if not section.get("use_peft"):
        return
    if section.get("use_dora"):
        raise ValueError(
            "hold: a bias cannot be folded into a DoRA adapter, which rescales each matrix as a "
            "whole. Set model.use_dora: false, or leave hold out and use select."
        )
    names = named_modules(section, "lora_target_modules")
    if shared := sorted(set(names) & (EMBEDDINGS - {"lm_head", "embed_out"})):
        raise ValueError(
            f"hold gives an adapter one rank more, and peft cannot do that to {shared[0]}. Take it "
            "out of model.lora_target_modules, or leave hold out."
        )
    if not any(is_adapted(site.down, name) for name in names):
        raise ValueError(
            f"hold folds its bias into the adapter of {site.down}, and model.lora_target_modules "
            f"is {', '.join(names) or 'not given'}. Add {site.down.rpartition('.')[2]} to it, or "
            "set it to all-linear."
        )


def is_adapted(path: str, name: str) -> bool:
    """Whether an entry of lora_target_modules means the module at `path`."""
    if name == "all-linear":
        return True
    if PLAIN_NAME.fullmatch(name):
        return f".{path}".endswith(f".{name}")
    return re.fullmatch(name, path) is not None


def check_vocabulary(prepared: Prepared, template: ChatTemplate, config: PretrainedConfig) -> None:
    """Raises ValueError if a token id has no row in the model's embedding.

    Without rows yet, the tokenizer's own tokens count.
    """
    size: int = config.get_text_config().vocab_size
    own = len(template.tokenizer) - 1
    highest = own if prepared.rows is None else highest_id(prepared.rows)
    if prepared.added:  # the new tokens get rows of their own
        highest = own
    if highest >= size:
        token = template.tokenizer.convert_ids_to_tokens(highest)
        raise ValueError(
            f"The token {token!r} has the id {highest}, but the model's embedding has {size} rows "
            "(vocab_size). The tokenizer is another model's, or tokens were added without "
            "model.resize_token_embeddings. Use the model's own tokenizer, or resize and save it."
        )


def warn_of_missing_bos(template: ChatTemplate) -> None:
    """Warns if no prompt begins with the BOS with which the tokenizer begins plain text."""
    if missing_bos(template):
        logger.warning(
            "missing_bos: the tokenizer begins plain text with %r, and the chat template begins no "
            "prompt with it. If the model was trained with it, its template lacks it.",
            template.tokenizer.bos_token,
        )


def missing_bos(template: ChatTemplate) -> bool:
    """Whether the tokenizer begins plain text with BOS, but the template begins no prompt so."""
    tokenizer = template.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    plain: list[int] = tokenizer("Hello")["input_ids"]
    return bos in plain[:1] and bos not in template.prompt_ids(SHORT_CONVERSATION)[:2]
