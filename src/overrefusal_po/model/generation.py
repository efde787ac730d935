"""How a model generates: by the settings that are asked for, and by nothing of its own.

    config = generation_config({"do_sample": False, "max_new_tokens": 48, "eos_token_id": [2]})
    with generating_by(model, config):
        model.generate(**inputs, generation_config=config)
    own_settings({"model_name_or_path": "my/model"})   # {"repetition_penalty": 1.3}: left out

A model may bring a generation_config.json. transformers takes each value of it that nobody sets:
penalties, banned words, suppressed or forced tokens. With such a file a model can ban the words of
its own refusals. So texts are made without it; of the file only the tokens that end a text count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.model import load as models
from overrefusal_po.model.soft_tokens import soft_ids

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

TOKEN_KEYS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
"""Keys that say which tokens begin, end and pad a text. They are kept, and change no text."""

NO_SETTINGS = (*TOKEN_KEYS, "transformers_version", "max_length", "max_new_tokens", "use_cache")
"""Keys of a generation config that are no setting of a model: the recipe has its own limit."""

RECIPE_KEYS = (
    *("do_sample", "temperature", "top_p", "max_length", "max_new_tokens", "num_return_sequences"),
    *TOKEN_KEYS,
    *("return_dict_in_generate", "output_scores", "output_logits", "output_attentions"),
    *("output_hidden_states", "stop_strings", "max_time"),
)
"""Keys of a generation config that a recipe's own keys set, that change what is returned, or that
end a text without a token that says so."""

NEUTRAL: Mapping[str, object] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "typical_p": 1.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_return_sequences": 1,
    "early_stopping": False,
}
"""Values that change nothing."""


# Any: GenerationConfig checks the values
def without_recipe_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without `RECIPE_KEYS`."""
    return {key: value for key, value in settings.items() if key not in RECIPE_KEYS}


def generation_config(settings: Mapping[str, object]) -> GenerationConfig:
    """A fresh generation config with these settings alone. ValueError for an unknown key."""
    from transformers import GenerationConfig

    known = set(GenerationConfig().to_dict())
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"{unknown[0]} is no key of transformers' GenerationConfig; it has, among others, "
            "repetition_penalty, no_repeat_ngram_size, top_k, min_p and bad_words_ids."
        )
    try:
        found: GenerationConfig = GenerationConfig(**settings)
        found.validate()
    except (TypeError, ValueError) as error:
        raise ValueError(f"transformers refuses these settings: {error}") from None
    return found


@contextlib.contextmanager
def generating_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """The model has `config` in place of its own one; afterwards it has its own again.

    `generate` fills what is left open from the model's own config, so passing one is not enough.
    The output layer is asked in one matrix product (`whole_rows`).
    """
    # an adapter's wrapper reads and writes the config of the model in it
    holders = [m for m in model.modules() if "generation_config" in vars(m)]
    own = [m.generation_config for m in holders]
    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(whole_rows)
    try:
        for module in holders:
            module.generation_config = config  # type: ignore[assignment]  # no torch module
        yield
    finally:
        if handle is not None:
            handle.remove()
        for module, before in zip(holders, own, strict=True):
            module.generation_config = before


def whole_rows(_: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The output layer's input without gaps in memory.

    After a prompt `generate` gives it the last positions alone, a slice. If the weight is frozen,
    as under an adapter, torch then multiplies each row of the batch with a copy of the weight. For
    32 prompts and 152,000 tokens that took 9 GB, and most of the time of a short response.
    """
    return (inputs[0].contiguous(), *inputs[1:])


def changed_settings(config: GenerationConfig) -> dict[str, object]:
    """What a model's generation config would change in its texts: {key: value}."""
    # Any: values are numbers, lists and mappings
    given: dict[str, Any] = config.to_diff_dict()
    return {
        key: value
        for key, value in given.items()
        if key not in NO_SETTINGS
        and not key.startswith(("_", "output_", "return_"))
        and value not in (None, [], {})
        and value != NEUTRAL.get(key)
    }


def own_config(
    name: str, *, revision: str = "main", trust_remote_code: bool = False
) -> GenerationConfig:
    """The generation config of a model, without its weights; of config.json if it has no other."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(models.resolve(name), revision=revision)
    except OSError:
        config = models.load_config(name, revision=revision, trust_remote_code=trust_remote_code)
        return GenerationConfig.from_model_config(config)


def own_settings(section: Mapping[str, object]) -> dict[str, object]:
    """What the generation config of a `model:` section would change. Reads no weights.

    Models without generation_config.json may have such keys in config.json.
    """
    name = models.resolve(str(section["model_name_or_path"]))
    revision = str(section.get("model_revision") or "main")
    trust = bool(section.get("trust_remote_code", False))
    changed = changed_settings(own_config(name, revision=revision, trust_remote_code=trust))
    if (given := changed.get("suppress_tokens")) is not None:  # soft tokens are never said here
        tokenizer = models.load_tokenizer(name, revision=revision, trust_remote_code=trust)
        if set(cast("list[int]", given)) <= set(soft_ids(tokenizer)):
            del changed["suppress_tokens"]
    return changed


def settings_words(settings: Mapping[str, object]) -> str:
    """Settings in words: `repetition_penalty 1.3, bad_words_ids (12 entries)`."""
    return ", ".join(
        f"{key} ({len(value)} entries)" if isinstance(value, list | dict) else f"{key} {value}"
        for key, value in sorted(settings.items())
    )


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that a model can take; None if its config does not say."""
    return config_length(model.config)


def config_length(config: PretrainedConfig) -> int | None:
    """Tokens that a model of this config can take; None if the config does not say.

    A scaling of positions that its config asks for counts (linear, dynamic, YaRN).
    """
    config = config.get_text_config()
    length: int | None = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if length is None or not isinstance(scaling, Mapping):
        return length
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind not in ("linear", "dynamic", "yarn"):
        return length
    before = scaling.get("original_max_position_embeddings") or length
    return max(length, int(before * float(scaling.get("factor") or 1)))
