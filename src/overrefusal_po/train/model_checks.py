"""Whether a training's rows, its template and its model fit each other; no weights are loaded.

check_model(recipe, config)
check_vocabulary(prepared, template, config)
missing_bos(template)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from overrefusal_po.model.blocks import model_of_config
from overrefusal_po.model.chat import SHORT_CONVERSATION, ChatTemplate
from overrefusal_po.model.padded import plain_bos
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.words import nearest
from overrefusal_po.train.data import Prepared, highest_id
from overrefusal_po.train.hold_place import check_hold
from overrefusal_po.train.policy import EMBEDDINGS, PLAIN_NAME, named_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

ADAPTED = ("lora_target_modules", "lora_modules_to_save")
"""Keys of `model:` that name modules."""


def check_model(recipe: TrainRecipe, config: PretrainedConfig) -> str:
    """Why the model will be trained without the recipe's `hold`; "" if it will not. ValueError for
    an adapter that does not fit the model, or a `hold` without a place in it that is needed."""
    check_adapter(recipe.model, config)
    if recipe.hold is None:
        return ""
    return check_hold(recipe.model, recipe.hold, config).why_not


def check_adapter(section: Mapping[str, object], config: PretrainedConfig) -> None:
    """Raises ValueError for an adapter on shared embeddings, or on modules that are not there.

    `section` is a recipe's `model:`.
    """
    if section.get("use_peft"):
        names = {key: named_modules(section, key) for key in ADAPTED}
        check_tied(names, config)
        if not section.get("trust_remote_code"):  # other people's code may not load without weights
            check_there(names, config)


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
    paths = [path for path, _ in model_of_config(config).named_modules()]
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
    if not plain_bos(template.tokenizer):
        return False
    return template.tokenizer.bos_token_id not in template.prompt_ids(SHORT_CONVERSATION)[:2]
