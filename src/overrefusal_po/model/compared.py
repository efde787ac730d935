"""Two models -> whether they can be compared: one architecture, equal shapes, other weights.

    check_comparable(own, other, key="reference", named="the model", advice="Name another.")
    moved(weight, before)         # whether a weight differs by more than rounding

`check_comparable` reads configs and the names of files; weights only from files of this machine, up
to the first difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.model import load as models
from overrefusal_po.model import parts
from overrefusal_po.model.whole import named_faults

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from overrefusal_po.model.load import LoadOptions

SHAPES = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)
"""Keys of a config that decide the shapes of linear layers; a message can name them."""

EQUAL_WEIGHTS = (
    "it has equal weights in all linear layers, but for rounding, so none of them has a direction "
    "of safety"
)

ROUNDING = 2.0**-8 + 2.0**-11
"""Half a step of bfloat16 and half a step of float16, as a share of the number."""

SMALLEST = 2.0**-24
"""A step of float16 at its smallest numbers."""

WEIGHT_FILES = (
    (parts.SINGLE, parts.INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Files of weights as transformers looks for them: all in one, or an index of several."""


def check_comparable(
    own: LoadOptions,
    other: LoadOptions,
    *,
    key: str,
    named: str,
    advice: str,
    vocabulary: bool = False,
    weights: bool = True,
) -> None:
    """Raises ValueError if `other`, which the recipe names in `key`, cannot be compared with `own`.
    What an earlier stage makes (`@...`) is not read.

    Args:
        own: the model; `named` is what messages call it.
        other: the model that it is compared with.
        key: the recipe's key of `other`.
        named: what messages call `own`: "the model".
        advice: what to do, as the end of each message.
        vocabulary: whether both need as many tokens.
        weights: whether weights are compared, and not only what the models compute: then neither
            may be quantised, and they may not all be equal.
    """
    why = None
    if is_same(own, other):
        why = f"it is {named} itself"
    else:
        config = known_config(own)
        try:
            reference = known_config(other)
        except ValueError as error:
            raise ValueError(f"{key} is {other['name']!r}: {error}") from None
        quantised = [is_quantised(*side) for side in ((own, config), (other, reference))]
        if weights and any(quantised):
            why = "its weights are quantised" if quantised[1] else f"{named} is quantised"
        elif reference is not None and (lost := missing_weights(models.resolve(other["name"]))):
            why = f"its folder holds no {lost}"
        elif config is not None and reference is not None:
            why = differing_key(config, reference, named, vocabulary=vocabulary)
            if why is None and not any(quantised):
                why = differing_weights(own, other, named, equal=weights)
    if why is not None:
        raise ValueError(f"{key} is {other['name']!r}: {why}. {advice}")


def known_config(options: LoadOptions) -> PretrainedConfig | None:
    """The config of a model; None if an earlier stage makes it (`@...`). ValueError if it cannot be
    found."""
    name, revision = options["name"], options["revision"]
    if name.startswith("@"):
        return None
    trust = options["trust_remote_code"]
    models.check_available(name, revision=revision, trust_remote_code=trust)
    return models.load_config(name, revision=revision, trust_remote_code=trust)


def is_quantised(options: LoadOptions, config: PretrainedConfig | None) -> bool:
    """Whether a model's weights are loaded in 4 or 8 bits, by the recipe or by its own config."""
    given = options["quantization_config"] is not None
    return given or bool(getattr(config, "quantization_config", None))


def differing_weights(
    own: LoadOptions, other: LoadOptions, named: str, *, equal: bool
) -> str | None:
    """The first linear layer of another shape, in words; or that all are equal in the files here,
    if `equal` is asked for. None if there is nothing of the kind."""
    why = differing_layer(shapes_of(own), shapes_of(other), named)
    if why is not None or not equal:
        return why
    here = all(Path(models.resolve(side["name"])).is_dir() for side in (own, other))
    # nothing is downloaded for a check
    return EQUAL_WEIGHTS if here and equal_in_files(own, other) else None


def is_same(own: LoadOptions, other: LoadOptions) -> bool:
    """Whether both are one model: the same name and revision, or two paths to one folder."""
    if all(own[key] == other[key] for key in ("name", "revision")):
        return True
    places = Path(own["name"]), Path(other["name"])
    return all(place.is_dir() for place in places) and places[0].resolve() == places[1].resolve()


def missing_weights(place: str) -> str | None:
    """The weight file that a model's folder lacks; None if it lacks none or is no folder here. Of
    several formats the one that transformers would read counts."""
    folder = Path(place)
    if not folder.is_dir():
        return None
    for single, index in WEIGHT_FILES:
        if (folder / index).is_file():
            known = json.loads((folder / index).read_text(encoding="utf-8")).get("weight_map", {})
            lost = sorted(name for name in set(known.values()) if not (folder / name).is_file())
            return str(lost[0]) if lost else None
        if (folder / single).is_file():
            return None
    return f"file of weights ({parts.SINGLE})"


def differing_key(
    config: PretrainedConfig, reference: PretrainedConfig, named: str, *, vocabulary: bool
) -> str | None:
    """The first key of both configs that gives other shapes, in words; None if there is none."""
    own, other = (found.get_text_config() for found in (config, reference))
    for key in (*SHAPES, "vocab_size") if vocabulary else SHAPES:
        here, there = (getattr(found, key, None) for found in (own, other))
        if here != there:
            return f"its {key} is {there}, and that of {named} is {here}"
    return None


def differing_layer(
    own: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]], named: str
) -> str | None:
    """The first linear layer of a model that the other lacks or has in another shape, in words;
    None if there is none. Both: {path: (outputs, inputs)}."""
    for path, shape in own.items():
        if path not in other:
            return f"it has no layer {path}, which {named} has"
        if other[path] != shape:
            return f"its {path} has the shape {other[path]}, and that of {named} {shape}"
    return None


def shapes_of(options: LoadOptions) -> dict[str, tuple[int, ...]]:
    """`linear_shapes` of a model that is not loaded. Its form of attention decides none, and may
    need a GPU."""
    return linear_shapes(parts.empty_model({**options, "attn_implementation": None}))


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """{path: (outputs, inputs)} of the layers that an adapter on all linear layers changes."""
    return {path: tuple(weight.shape) for path, weight in linear_weights(model)}


def linear_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(path, weight) of all linear layers but the output layer, as peft takes `all-linear`."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        if isinstance(module, Linear | Conv1D) and module is not head:
            yield path, module.weight


def moved(one: Tensor, other: Tensor, change: Tensor | None = None) -> bool:
    """Whether two weights differ by more than rounding to 16 bits does.

    `change` is what a training added to `other`, and `one` has it too: then both are rounded, each
    for itself. A training moves numbers near zero as far as others, and rounding does not, so a
    small training is seen.
    """
    import torch

    first, second = one.float(), other.float()
    if change is None:
        size = torch.minimum(first.abs(), second.abs())
    else:
        size = first.abs() + second.abs() + change.abs()
    return bool(((first - second).abs() > ROUNDING * size + SMALLEST).any())


def is_unmoved(one: Tensor, other: Tensor) -> bool:
    """Whether two weights have one shape, and differ by no more than rounding."""
    return one.shape == other.shape and not moved(one, other)


def equal_weights(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all weights have the same names, shapes and values in both models, but for
    rounding."""
    return own.keys() == other.keys() and all(
        is_unmoved(weight, other[path]) for path, weight in own.items()
    )


def equal_in_files(own: LoadOptions, other: LoadOptions) -> bool | None:
    """Whether the files of both models hold equal weights in all linear layers, but for rounding;
    None if they are no safetensors under the names that the model's class has for them."""
    here, there = (parts.tensor_files(side["name"], side["revision"]) for side in (own, other))
    keys = [f"{path}.weight" for path in shapes_of(own)]
    if any(key not in files for files in (here, there) for key in keys):
        return None
    with named_faults(f"{own['name']} or {other['name']}"):
        return all(
            parts.equal_tensors((here[key], key), (there[key], key), is_unmoved) for key in keys
        )
