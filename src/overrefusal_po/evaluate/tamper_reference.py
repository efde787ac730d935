"""The model before safety training, for the defence `safelora` of a tamper test: whether its
weights can be compared with those of the measured model.

    check_reference(recipe, recipe.tamper)     # ValueError; reads configs and names of files
    check_directions(recipe)                   # ValueError; reads weights, trains nothing

Safe LoRA needs the change W_aligned - W_reference of each linear layer that a copy's adapter is put
on. A layer without a change has no direction, and is not projected. At least one has to have one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.model import load as models
from overrefusal_po.model import parts
from overrefusal_po.model.whole import named_faults
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.recipe.tamper import Tamper

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

OTHER_REFERENCE = (
    "tamper.reference is {!r}: {}. The defence safelora compares the weights of both. Name the "
    "model that the safety training began with, in 16 or 32 bits, or take safelora out of "
    "tamper.defences."
)

SHAPES = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)
"""Keys of a config that decide the shapes of linear layers; a message can name them."""

EQUAL_WEIGHTS = (
    "it has equal weights in all linear layers, so none of them has a direction of safety"
)

WEIGHT_FILES = (
    (parts.SINGLE, parts.INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Files of weights as transformers looks for them: all in one, or an index of several."""


def measured_config(recipe: EvaluateRecipe) -> PretrainedConfig | None:
    """The config of the measured model; see `config_of`."""
    name, revision = measured_name(recipe)
    return config_of(recipe, name, revision)


def measured_name(recipe: EvaluateRecipe) -> tuple[str, str]:
    """(name, revision) of the measured model."""
    return str(recipe.model["model_name_or_path"]), str(recipe.model.get("model_revision", "main"))


def config_of(recipe: EvaluateRecipe, name: str, revision: str) -> PretrainedConfig | None:
    """The config of a model; None if an earlier stage makes it (`@...`). ValueError if it cannot be
    found."""
    if name.startswith("@"):
        return None
    trust = bool(recipe.model.get("trust_remote_code", False))
    models.check_available(name, revision=revision, trust_remote_code=trust)
    return models.load_config(name, revision=revision, trust_remote_code=trust)


def check_reference(recipe: EvaluateRecipe, tamper: Tamper) -> None:
    """Raises ValueError for a `tamper.reference` that cannot be compared with the measured model,
    as far as configs and files on this machine say it. What an earlier stage makes (`@...`) is not
    read."""
    reference = str(tamper.reference)
    refused = partial(OTHER_REFERENCE.format, reference)
    if is_same(reference, measured_name(recipe)):
        raise ValueError(refused("it is the measured model itself"))
    config = measured_config(recipe)
    try:
        other = config_of(recipe, reference, "main")
    except ValueError as error:
        raise ValueError(f"tamper.reference is {reference!r}: {error}") from None
    if getattr(other, "quantization_config", None):
        raise ValueError(refused("its weights are quantised"))
    if other is not None and (lost := missing_weights(models.resolve(reference))):
        raise ValueError(refused(f"its folder holds no {lost}"))
    if config is None or other is None:
        return
    if why := differing_key(config, other) or differing_layer(
        *(shapes_of(options) for options in (own_options(recipe), options_of(recipe)))
    ):
        raise ValueError(refused(why))
    here = (Path(models.resolve(name)).is_dir() for name in (measured_name(recipe)[0], reference))
    if all(here) and equal_in_files(recipe):  # nothing is downloaded for a check
        raise ValueError(refused(EQUAL_WEIGHTS))


def is_same(reference: str, measured: tuple[str, str]) -> bool:
    """Whether both names are one model: the same name, or two paths to one folder."""
    if (reference, "main") == measured:
        return True
    places = Path(reference), Path(measured[0])
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


def differing_key(config: PretrainedConfig, reference: PretrainedConfig) -> str | None:
    """The first key of both configs that gives other shapes, in words; None if there is none."""
    own, other = (found.get_text_config() for found in (config, reference))
    for key in SHAPES:
        here, there = (getattr(found, key, None) for found in (own, other))
        if here != there:
            return f"its {key} is {there}, and that of the measured model is {here}"
    return None


def differing_layer(
    own: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]]
) -> str | None:
    """The first linear layer of the measured model that the reference lacks or has in another
    shape, in words; None if there is none. Both: {path: (outputs, inputs)}."""
    for path, shape in own.items():
        if path not in other:
            return f"it has no layer {path}, which the measured model has"
        if other[path] != shape:
            return f"its {path} has the shape {other[path]}, and that of the measured model {shape}"
    return None


def shapes_of(options: models.LoadOptions) -> dict[str, tuple[int, ...]]:
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


def own_options(recipe: EvaluateRecipe) -> models.LoadOptions:
    """How the measured model is loaded, without its remedy."""
    return models.model_options({**recipe.model, "remedy": None})


def options_of(recipe: EvaluateRecipe) -> models.LoadOptions:
    """How `tamper.reference` is loaded: as the measured model is."""
    assert recipe.tamper is not None
    own = {"model_name_or_path": recipe.tamper.reference, "model_revision": "main", "remedy": None}
    return models.model_options({**recipe.model, **own})


def check_directions(recipe: EvaluateRecipe) -> None:
    """Raises ValueError if all linear layers have equal weights in both models: none of them has a
    direction, so no copy could be projected.

    Files are read up to the first difference. Models in another format than safetensors, or under
    other names, are loaded.
    """
    assert recipe.tamper is not None
    refused = partial(OTHER_REFERENCE.format, recipe.tamper.reference)
    equal = equal_in_files(recipe)
    if equal is None:
        logger.info("loading the model and tamper.reference, to compare their weights")
        measured, reference = (
            models.load_model(**options) for options in (own_options(recipe), options_of(recipe))
        )
        if why := differing_layer(linear_shapes(measured), linear_shapes(reference)):
            raise ValueError(refused(why))
        equal = equal_weights(dict(linear_weights(measured)), dict(linear_weights(reference)))
    if equal:
        raise ValueError(refused(EQUAL_WEIGHTS))


def equal_weights(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all weights have the same values in both models."""
    import torch

    return all(torch.equal(weight, other[path]) for path, weight in own.items())


def equal_in_files(recipe: EvaluateRecipe) -> bool | None:
    """Whether the files of both models hold equal weights in all linear layers; None if they do not
    hold them in safetensors under the names that the model's class has for them."""
    sides = own_options(recipe), options_of(recipe)
    own, other = (parts.tensor_files(side["name"], side["revision"]) for side in sides)
    keys = [f"{path}.weight" for path in shapes_of(sides[0])]
    if any(key not in files for files in (own, other) for key in keys):
        return None
    with named_faults(f"{sides[0]['name']} or {sides[1]['name']}"):
        return all(parts.equal_tensors((own[key], key), (other[key], key)) for key in keys)
