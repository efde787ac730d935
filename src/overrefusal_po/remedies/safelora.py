"""Safe LoRA: an adapter is projected onto the directions in which safety training moved the model.

    {name: safelora, adapter: "@tuned.adapter"}
    {name: safelora, adapter: ..., projection: orthogonal, merged: false}

Hsu et al. (2024, arXiv 2405.16833). For each module of the adapter,
with weights (outputs, inputs):

    D = W_aligned - W_reference,   C = D D^T / ||D||_F,   B <- C B where cos(B A, C B A) <= 0.35

So the modules in which the adapter leaves the safety directions are brought back; the others stay.
A module that safety training did not move (D = 0, but for rounding) has no C, and stays too, as in
the authors' code.
C scales as well, so it is no projection. `orthogonal` (ours) is one: onto the left singular vectors
of D, the greatest ones that hold 90 % of its square. All of them would often be the whole space,
since a merged model is rounded.

It is a defence of fine-tuning, not a cure of over-refusal by itself. The result is plain weights.
`reference` of the recipe is the model before its safety training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.model.blocks import UnfitModel
from overrefusal_po.model.compared import moved
from overrefusal_po.model.remedy import Deltas, Form, Remedy
from overrefusal_po.remedies import Anchors, Candidate, NoRemedy, Subject
from overrefusal_po.remedies._adapters import (
    check_adapters,
    joined,
    matrix,
    read_adapter,
    read_adapters,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

FORM: Form = "weights"
NEEDS_REFERENCE = True
COMPARES_WEIGHTS = True

Projection = Literal["scaled", "orthogonal"]
"""The paper's matrix C, or an orthogonal projection."""

COSINE = 0.35
"""The paper's limit: a module is projected if its change turns at least that far."""

ENERGY = 0.9
"""The share of D's square that the orthogonal projection's directions hold."""


class EqualWeights(ValueError):
    """The model and its reference have equal weights, but for rounding, in all modules that an
    adapter changes."""


class Projected(NamedTuple):
    """An adapter after its projection.

    Attributes:
        change: the adapter, projected in the modules `moved` and unchanged in the others.
        cosines: {module: the cosine between its change and the projected one}.
        moved: the modules whose change is projected.
        equal: the modules that safety training did not move, which have no cosine.
    """

    change: Deltas
    cosines: dict[str, float]
    moved: list[str]
    equal: list[str]


class Settings(BaseModel):
    """Which adapter is projected, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    adapter: str = Field(min_length=1)
    """The folder of the LoRA adapter that is projected, or `@stage.adapter` in a pipeline."""
    merged: bool = True
    """Whether the model has the adapter in its weights already. Else it is put on."""
    projection: Projection = "scaled"
    """The paper's matrix C, which scales too, or an orthogonal projection."""
    cosine: float = Field(default=COSINE, ge=-1, le=1)
    """A module is projected if its change and the projected one have at most this cosine."""


def check(settings: Settings) -> None:
    """Raises ValueError for a folder that holds no plain LoRA adapter."""
    check_adapters(settings.adapter)


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises ValueError for an adapter of another model."""
    read_adapters(model, settings.adapter)


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """One candidate. Nothing is fitted on prompts. NoRemedy if no module is projected."""
    adapter = read_adapter(settings.adapter, subject.model)
    reference = subject.reference()

    def weights(path: str) -> tuple[Tensor, Tensor]:
        return weight_of(subject.model, path), weight_of(reference, path)

    found = projected(
        adapter,
        weights,
        merged=settings.merged,
        kind=settings.projection,
        cosine=settings.cosine,
    )
    if words := equal_words(found, "reference"):
        logger.warning("safelora: %s", words)
    if not found.moved:
        raise NoRemedy(
            f"no module is projected: the least cosine is {min(found.cosines.values()):.2f}, above "
            f"{settings.cosine}. The adapter stays in the directions of safety."
        )
    change = found.change
    if settings.merged:
        change = only_changed(adapter, change, found.moved)
    facts = {
        "projected": len(found.moved),
        "modules": len(adapter.down),
        "equal_modules": len(found.equal),
        "cosines": found.cosines,
    }
    return [Candidate(Remedy("safelora", change), facts)]


def projected(
    adapter: Deltas,
    weights: Callable[[str], tuple[Tensor, Tensor]],
    *,
    merged: bool = False,
    kind: Projection = "scaled",
    cosine: float = COSINE,
) -> Projected:
    """The adapter after its projection.

    `weights` gives the weights of a module's path, each (outputs, inputs): of the model, which has
    the adapter in them if `merged`, and of the model before safety training. A module whose weights
    differ by no more than rounding stays as it is. EqualWeights if that is true of all.
    """
    up, cosines = dict(adapter.up), {}
    for path, a in adapter.down.items():
        own, before = weights(path)
        change = matrix(adapter, path) if merged else None
        start = before if change is None else before + change
        if not moved(own, start, change):
            continue
        turned = projector(own - start, kind) @ up[path]
        cosines[path] = product_cosine(a, up[path], turned)
        if cosines[path] <= cosine:
            up[path] = turned
    if not cosines:
        raise EqualWeights(
            "The model and its reference have equal weights in all modules of the adapter, but for "
            "rounding, so there are no directions of safety. Give the model before its safety "
            "training as `reference`."
        )
    found = [path for path, value in cosines.items() if value <= cosine]
    equal = [path for path in adapter.down if path not in cosines]
    return Projected(Deltas(adapter.down, up), cosines, found, equal)


def equal_words(found: Projected, key: str) -> str:
    """How many modules safety training did not move, in a sentence; "" if it moved all. `key` is
    the recipe's key of the reference."""
    if not found.equal:
        return ""
    return (
        f"{len(found.equal)} of {len(found.change.down)} modules have equal weights in the model "
        f"and in {key}, but for rounding: safety training did not move them. They have no "
        "directions of safety, and keep what the adapter learned"
    )


def only_changed(before: Deltas, after: Deltas, paths: list[str]) -> Deltas:
    """`after` minus `before`, in these modules."""
    parts = [
        (weight, Deltas({p: part.down[p] for p in paths}, {p: part.up[p] for p in paths}))
        for weight, part in ((1.0, after), (-1.0, before))
    ]
    return joined(parts)


def weight_of(model: PreTrainedModel, path: str) -> Tensor:
    """(outputs, inputs) a module's weight, float32 on the CPU. ValueError if it is missing,
    UnfitModel if it is quantised."""
    module = dict(model.named_modules()).get(path)
    weight = cast("Linear", module).weight if hasattr(module, "weight") else None
    if weight is None or not weight.is_floating_point():
        what = "has no such module" if weight is None else "is quantised there"
        fault = ValueError if weight is None else UnfitModel
        raise fault(
            f"{path}: {model.name_or_path!r} {what}, so its weights cannot be compared. Give the "
            "model before safety training as `reference`, in 16 or 32 bits."
        )
    return weight.detach().float().cpu()


def projector(step: Tensor, kind: str) -> Tensor:
    """(outputs, outputs) C of a step D (outputs, inputs), which is not zero.

    D = diag(2, 0): D D^T / ||D||_F is diag(2, 0), the orthogonal projection diag(1, 0).
    """
    import torch

    gram = step @ step.T
    if kind == "scaled":
        return cast("Tensor", gram / step.norm())
    values, vectors = torch.linalg.eigh(gram.double())  # rising
    held = values.flip(0).cumsum(0) / values.sum()
    count = int((held < ENERGY).sum()) + 1
    kept = vectors[:, -count:].float()
    return cast("Tensor", kept @ kept.T)


def product_cosine(down: Tensor, one: Tensor, other: Tensor) -> float:
    """The cosine between `one` A and `other` A, as vectors; 0 if one of them is zero."""
    gram = (down @ down.T).double()
    both = [(one, other), (one, one), (other, other)]
    dot, first, second = (float(((a.T @ b).double() * gram).sum()) for a, b in both)
    return dot / (first * second) ** 0.5 if first > 0 and second > 0 else 0.0
