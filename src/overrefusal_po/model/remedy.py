"""What a remedy for over-refusal is, as a file: what changes, how strongly, and for which prompts.

    remedy = Remedy(name="steering", change=Steering(...), strength=1.0, gate=gate)
    save_remedy(remedy, Path("run/remedy"), facts={"dev": [...]})
    load_remedy(Path("run/remedy"), model)      # ValueError if it was fitted on another shape

A remedy's folder holds remedy.json and remedy.safetensors (float32). It holds no code and no
pickle. Its id follows from what it does: files that were damaged or edited have another one.
`model.remedied` puts a remedy on a loaded model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from overrefusal_po.model.contrast import Contrast, contrast_parts, read_contrast
from overrefusal_po.model.remedy_facts import FILE, TENSORS, remedy_head
from overrefusal_po.model.remedy_facts import base_facts as base_facts
from overrefusal_po.model.remedy_facts import config_hash as config_hash
from overrefusal_po.records import write_atomic

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

Form = Literal["weights", "hooks", "logits", "streams"]
"""How a remedy can be served: as plain weights or an adapter, or only where this program runs the
model (`hooks`: the states of some rows change; `logits`: the first logits of a response do;
`streams`: they do, and each prompt is read a second time)."""


class Steering(NamedTuple):
    """A vector is added to the residual stream behind some blocks (SCANS, arXiv 2408.11491).

    Attributes:
        layers: the blocks, from 0.
        vectors: (len(layers), D), for strength 1.
        tail: the last positions of a prompt that are steered: those behind the user's text. Every
            generated token is steered too.
    """

    layers: tuple[int, ...]
    vectors: Tensor
    tail: int


class Deltas(NamedTuple):
    """W += strength * B A, of low rank, for some linear modules.

    Attributes:
        down: {path of the module: A, (rank, inputs)}.
        up: {path of the module: B, (outputs, rank)}.
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]


class FirstLogits(NamedTuple):
    """A constant is added to logits at the first positions of a response.

    Attributes:
        tokens: (n,) the token ids that it concerns.
        values: (L, n), at response position t < L for strength 1.
    """

    tokens: Tensor
    values: Tensor


Change = Steering | Deltas | FirstLogits | Contrast


class Gate(NamedTuple):
    """Which prompts a remedy changes: those whose score is below the threshold.

    score = weights . (h - mean) / scale + intercept, with h (D,) the residual stream behind block
    `layer` at the last token of the rendered prompt. A high score means harmful.
    """

    layer: int
    mean: Tensor
    scale: Tensor
    weights: Tensor
    intercept: float
    threshold: float

    def scores(self, states: Tensor) -> Tensor:
        """(N,) from (N, D)."""
        h = states.float()
        return ((h - self.mean.to(h)) / self.scale.to(h)) @ self.weights.to(h) + self.intercept


class Remedy(NamedTuple):
    """A fitted remedy. Without a gate it changes every prompt's response."""

    name: str
    change: Change
    strength: float = 1.0
    gate: Gate | None = None

    @property
    def form(self) -> Form:
        """How it can be served."""
        if isinstance(self.change, FirstLogits | Contrast):
            return "logits" if isinstance(self.change, FirstLogits) else "streams"
        return "weights" if isinstance(self.change, Deltas) and self.gate is None else "hooks"


def save_remedy(remedy: Remedy, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes a remedy's two files; `facts` (what was tried, the base model) stand beside it.

    `facts["base"]` is what `base_facts` gives for the model that it was fitted on.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    found, tensors = remedy_parts(remedy)
    # first and last: a folder with remedy.json is whole
    (folder / FILE).unlink(missing_ok=True)
    save_file(tensors, folder / TENSORS)
    head = {"id": remedy_id(remedy), "form": remedy.form, **found}
    write_atomic(folder / FILE, json.dumps({**head, **facts, **head}, indent=1))


def remedy_parts(remedy: Remedy) -> tuple[dict[str, object], dict[str, Tensor]]:
    """What is written of a remedy: numbers for the JSON file, and tensors in float32."""
    tensors, change = change_parts(remedy.change)
    found: dict[str, object] = {"name": remedy.name, "strength": float(remedy.strength)}
    found |= {"change": change, "gate": None}
    if (gate := remedy.gate) is not None:
        tensors |= {f"gate.{k}": getattr(gate, k) for k in ("mean", "scale", "weights")}
        found["gate"] = {
            "layer": int(gate.layer),
            "intercept": float(gate.intercept),
            "threshold": float(gate.threshold),
        }
    plain = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
    return found, plain


def remedy_id(remedy: Remedy) -> str:
    """Its name and 8 hex digits for all that it does: `steering-1a2b3c4d`."""
    found, tensors = remedy_parts(remedy)
    seen = hashlib.sha256(json.dumps(found, sort_keys=True).encode())
    for key in sorted(tensors):
        seen.update(f"{key}{tuple(tensors[key].shape)}".encode())
        seen.update(tensors[key].numpy().tobytes())
    return f"{remedy.name}-{seen.hexdigest()[:8]}"


def change_parts(change: Change) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of a change, and what else has to be known about it."""
    if isinstance(change, Steering):
        numbers: dict[str, object] = {"layers": [int(layer) for layer in change.layers]}
        numbers["tail"] = int(change.tail)
        return {"vectors": change.vectors}, {"kind": "steering", **numbers}
    if isinstance(change, FirstLogits):
        return {"tokens": change.tokens, "values": change.values}, {"kind": "first_logits"}
    if isinstance(change, Contrast):
        return {}, contrast_parts(change)
    tensors = {f"down.{path}": tensor for path, tensor in change.down.items()}
    tensors |= {f"up.{path}": tensor for path, tensor in change.up.items()}
    return tensors, {"kind": "deltas", "modules": sorted(change.down)}


def load_remedy(folder: Path, model: PreTrainedModel | PretrainedConfig | None = None) -> Remedy:
    """The remedy in a folder.

    ValueError if files are missing or damaged, or if `model` has another shape than the one that it
    was fitted on. A model's config alone says nearly as much, before any weight is loaded.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    known = remedy_head(folder)
    try:
        tensors = load_file(folder / TENSORS)
        remedy = Remedy(
            str(known["name"]),
            read_change(known["change"], tensors),
            number(known["strength"], "strength"),
            read_gate(known["gate"], tensors),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: this remedy cannot be read ({error}). Fit it again, or copy it again."
        ) from None
    if known.get("id") not in (None, remedy_id(remedy)):
        raise ValueError(
            f"{folder}: {FILE} and {TENSORS} do not belong together, or were edited after they "
            "were written. Fit the remedy again, or copy its folder again."
        )
    if model is not None:
        check_shape(remedy, model, place=str(folder), base=known.get("base"))
    return remedy


def number(value: object, what: str) -> float:
    """A finite number; ValueError if it is none."""
    found = float(str(value))
    if not math.isfinite(found):
        raise ValueError(f"its {what} is {value}")
    return found


def read_tensor(tensors: Mapping[str, Tensor], key: str, dims: int) -> Tensor:
    """A tensor of so many dimensions, with finite numbers in it; ValueError if it is another."""
    found = tensors[key]
    if found.dim() != dims or not found.numel() or not bool(found.isfinite().all()):
        raise ValueError(f"{key} has the shape {tuple(found.shape)}, or holds NaN or infinity")
    return found


# Any: what JSON holds
def read_change(known: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
    """The change as `change_parts` wrote it."""
    kind = known["kind"]
    if kind == "steering":
        return read_steering(known, read_tensor(tensors, "vectors", 2))
    if kind == "first_logits":
        tokens, values = read_tensor(tensors, "tokens", 1), read_tensor(tensors, "values", 2)
        if values.shape[1] != len(tokens) or int(tokens.min()) < 0:
            raise ValueError(f"it has {len(tokens)} tokens and {values.shape[1]} values for each")
        return FirstLogits(tokens.long(), values)
    if kind == "contrast":
        return read_contrast(known)
    if kind != "deltas":
        known_kinds = "steering, deltas, first_logits and contrast"
        raise ValueError(f"its change is {kind!r}; known are {known_kinds}")
    down = {path: read_tensor(tensors, f"down.{path}", 2) for path in known["modules"]}
    up = {path: read_tensor(tensors, f"up.{path}", 2) for path in known["modules"]}
    if not down or any(up[path].shape[1] != down[path].shape[0] for path in down):
        raise ValueError("it changes no module, or the ranks of its matrices differ")
    return Deltas(down, up)


# Any: what JSON holds
def read_steering(known: Mapping[str, Any], vectors: Tensor) -> Steering:
    """The steering with these vectors."""
    layers, tail = tuple(int(layer) for layer in known["layers"]), int(known["tail"])
    if len(layers) != len(vectors) or min(layers) < 0 or len(set(layers)) < len(layers):
        raise ValueError(f"it has {len(vectors)} vectors for the blocks {layers}")
    if tail < 1:
        raise ValueError(f"its tail is {tail}; it steers one position of the prompt at least")
    return Steering(layers, vectors, tail)


# Any: what JSON holds
def read_gate(known: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Gate | None:
    """The gate as `save_remedy` wrote it."""
    if known is None:
        return None
    mean, scale, weights = (
        read_tensor(tensors, f"gate.{key}", 1) for key in ("mean", "scale", "weights")
    )
    layer = int(known["layer"])
    if layer < 0 or not mean.shape == scale.shape == weights.shape or not bool((scale > 0).all()):
        raise ValueError(f"its gate reads block {layer}, or its tensors do not fit each other")
    intercept, threshold = (number(known[key], key) for key in ("intercept", "threshold"))
    return Gate(layer, mean, scale, weights, intercept, threshold)


def check_shape(
    remedy: Remedy,
    model: PreTrainedModel | PretrainedConfig,
    *,
    place: str = "",
    base: object = None,
) -> None:
    """Raises ValueError if a remedy does not fit the shape of a model, or of a model's config.

    `place` is the remedy's folder, and `base` says what it was fitted on.
    """
    from transformers import PreTrainedModel

    whole = model if isinstance(model, PreTrainedModel) else None
    config = cast("PretrainedConfig", model if whole is None else whole.config).get_text_config()
    layers, size = config.num_hidden_layers, config.hidden_size
    wrong = misfit(remedy, layers, size, config.vocab_size)
    if isinstance(base, Mapping) and "blocks" in base:
        theirs = (base["blocks"], base.get("width"))
        if theirs != (layers, size):
            wrong = wrong or f"its model had {theirs[0]} blocks of width {theirs[1]}"
    if isinstance(remedy.change, Deltas) and whole is not None:
        wrong = wrong or wrong_module(remedy.change, whole)
    if wrong:
        raise ValueError(
            f"{place or f'The remedy {remedy.name}'}: this remedy was fitted on another model: "
            f"{wrong}. This model has {layers} blocks of width {size}. Give the model that it was "
            "fitted on."
        )


def misfit(remedy: Remedy, layers: int, size: int, words: int) -> str:
    """What does not fit a model with so many blocks, this width and so many tokens, in words; ""
    if nothing is known to."""
    change, gate = remedy.change, remedy.gate
    if gate is not None and (gate.layer >= layers or gate.mean.shape != (size,)):
        return f"its gate reads block {gate.layer} of width {gate.mean.shape[-1]}"
    if isinstance(change, Steering) and (
        max(change.layers) >= layers or change.vectors.shape[-1] != size
    ):
        return f"it steers block {max(change.layers)} of width {change.vectors.shape[-1]}"
    if isinstance(change, FirstLogits) and int(change.tokens.max()) >= words:
        return f"it changes the logit of token {int(change.tokens.max())} of {words}"
    if isinstance(change, Contrast) and max(change.ids) >= words:
        return f"it puts token {max(change.ids)} of {words} into prompts"
    return ""


def wrong_module(change: Deltas, model: PreTrainedModel) -> str:
    """What does not fit, in words; "" if each matrix has its module."""
    found = dict(model.named_modules())
    for path, up in change.up.items():
        module = found.get(path)
        outputs, inputs = (getattr(module, f"{k}_features", None) for k in ("out", "in"))
        if (outputs, inputs) != (up.shape[0], change.down[path].shape[1]):
            return f"it changes {path} with {up.shape[0]} outputs"
    return ""
