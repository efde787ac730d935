"""What a remedy for over-refusal is, as a file: what changes, how strongly, and for which prompts.

    remedy = Remedy(name="steering", change=Steering(...), strength=1.0, gate=gate)
    save_remedy(remedy, Path("run/remedy"), facts={"dev": [...]})
    load_remedy(Path("run/remedy"), model)      # ValueError if it was fitted on another shape

A remedy's folder holds remedy.json and remedy.safetensors (float32). It holds no code and no
pickle. `model.remedied` puts a remedy on a loaded model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from overrefusal_po.records import read_state, write_atomic

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FILE, TENSORS = "remedy.json", "remedy.safetensors"

Form = Literal["weights", "hooks", "logits"]
"""How a remedy can be served: as plain weights or an adapter, or only where this program runs the
model (`hooks`: the states of some rows change; `logits`: the first logits of a response do)."""


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


Change = Steering | Deltas | FirstLogits


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
        if isinstance(self.change, FirstLogits):
            return "logits"
        return "weights" if isinstance(self.change, Deltas) and self.gate is None else "hooks"


def save_remedy(remedy: Remedy, folder: Path, facts: Mapping[str, object]) -> None:
    """Writes a remedy's two files; `facts` (what was tried, the base model) stand beside it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, change = change_parts(remedy.change)
    found: dict[str, object] = {"name": remedy.name, "form": remedy.form}
    found |= {"strength": remedy.strength, "change": change, "gate": None}
    if (gate := remedy.gate) is not None:
        tensors |= {f"gate.{k}": getattr(gate, k) for k in ("mean", "scale", "weights")}
        numbers = {k: getattr(gate, k) for k in ("layer", "intercept", "threshold")}
        found["gate"] = numbers
    plain = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(plain, folder / TENSORS)
    # last: a folder with remedy.json is whole
    write_atomic(folder / FILE, json.dumps({**found, **facts}, indent=1))


def change_parts(change: Change) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of a change, and what else has to be known about it."""
    if isinstance(change, Steering):
        numbers: dict[str, object] = {"layers": list(change.layers), "tail": change.tail}
        return {"vectors": change.vectors}, {"kind": "steering", **numbers}
    if isinstance(change, FirstLogits):
        return {"tokens": change.tokens, "values": change.values}, {"kind": "first_logits"}
    tensors = {f"down.{path}": tensor for path, tensor in change.down.items()}
    tensors |= {f"up.{path}": tensor for path, tensor in change.up.items()}
    return tensors, {"kind": "deltas", "modules": sorted(change.down)}


def load_remedy(folder: Path, model: PreTrainedModel | None = None) -> Remedy:
    """The remedy in a folder. ValueError if files are missing or damaged, or if `model` has another
    shape than the one that it was fitted on."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / FILE).is_file() or not (folder / TENSORS).is_file():
        raise ValueError(
            f"model.remedy is {str(folder)!r}, which holds no {FILE} and {TENSORS}. Give the "
            "folder remedy/ of a fit run, or @stage.remedy in a pipeline."
        )
    known = read_state(folder / FILE, ("name", "strength", "change", "gate"))
    try:
        tensors = load_file(folder / TENSORS)
        remedy = Remedy(
            str(known["name"]),
            read_change(known["change"], tensors),
            float(known["strength"]),
            read_gate(known["gate"], tensors),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: this remedy cannot be read ({error}). Fit it again, or copy it again."
        ) from None
    if model is not None:
        check_shape(remedy, model, folder)
    return remedy


def read_change(known: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Change:
    """The change as `change_parts` wrote it."""
    kind = known["kind"]
    if kind == "steering":
        layers, tail = known["layers"], known["tail"]
        assert isinstance(layers, list) and isinstance(tail, int)
        return Steering(tuple(layers), tensors["vectors"], tail)
    if kind == "first_logits":
        return FirstLogits(tensors["tokens"].long(), tensors["values"])
    if kind != "deltas":
        raise ValueError(f"its change is {kind!r}; known are steering, deltas and first_logits")
    modules = known["modules"]
    assert isinstance(modules, list)
    return Deltas(
        {path: tensors[f"down.{path}"] for path in modules},
        {path: tensors[f"up.{path}"] for path in modules},
    )


def read_gate(known: Mapping[str, object] | None, tensors: Mapping[str, Tensor]) -> Gate | None:
    """The gate as `save_remedy` wrote it."""
    if known is None:
        return None
    parts = (tensors[f"gate.{key}"] for key in ("mean", "scale", "weights"))
    layer, intercept, threshold = (known[k] for k in ("layer", "intercept", "threshold"))
    return Gate(int(str(layer)), *parts, float(str(intercept)), float(str(threshold)))


def check_shape(remedy: Remedy, model: PreTrainedModel, folder: Path) -> None:
    """Raises ValueError if a remedy does not fit a model's shape."""
    config = model.config.get_text_config()
    layers, size, words = config.num_hidden_layers, config.hidden_size, config.vocab_size
    change, gate, wrong = remedy.change, remedy.gate, ""
    if gate is not None and (gate.layer >= layers or gate.mean.shape != (size,)):
        wrong = f"its gate reads block {gate.layer} of width {gate.mean.shape[-1]}"
    if isinstance(change, Steering) and (
        max(change.layers) >= layers or change.vectors.shape[-1] != size
    ):
        wrong = f"it steers block {max(change.layers)} of width {change.vectors.shape[-1]}"
    if isinstance(change, FirstLogits) and int(change.tokens.max()) >= words:
        wrong = f"it changes the logit of token {int(change.tokens.max())} of {words}"
    if isinstance(change, Deltas):
        wrong = wrong or wrong_module(change, model)
    if wrong:
        raise ValueError(
            f"{folder}: this remedy was fitted on another model: {wrong}. This model has {layers} "
            f"blocks of width {size}. Give the model that it was fitted on."
        )


def wrong_module(change: Deltas, model: PreTrainedModel) -> str:
    """What does not fit, in words; "" if each matrix has its module."""
    found = dict(model.named_modules())
    for path, up in change.up.items():
        module = found.get(path)
        outputs, inputs = (getattr(module, f"{k}_features", None) for k in ("out", "in"))
        if (outputs, inputs) != (up.shape[0], change.down[path].shape[1]):
            return f"it changes {path} with {up.shape[0]} outputs"
    return ""
