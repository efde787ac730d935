"""Several LoRA adapters of one base as one change: a weighted sum, or a rule that withstands a bad
client.

    {name: fusion, adapters: {task: "@sft.adapter", safety: "@derta.adapter"},
     weights: {task: [0.9, 0.8, 0.7], safety: [0.1, 0.2, 0.3]}, merged: "@derta.adapter"}
    {name: fusion, adapters: {a: "@client_a.adapter", b: ..., c: ...}, rule: median}

`sum`, Gudipudi et al. (2024, arXiv 2501.06208): W <- W0 + sum_i weight_i B_i A_i, for example
(1 - lambda) task + lambda safety with lambda from 0 to .4. It is exact: the ranks add up (peft's
"cat"; "linear" would mix the A of one with the B of the other). The rules `mean` (by the clients'
numbers of rows), `median`, `trimmed` (without the least and the greatest value) and `krum`
(Blanchard et al. 2017) are those of federated training, compared by Ye et al. (2024, arXiv
2406.10630). They work on the matrices B A. `median` and `trimmed` have a full rank, so they are
brought to the adapters' joint rank; `residual` in remedy.json says what is lost.

The result is plain weights. A model that has one of the adapters in its weights already (`merged`)
loses that one first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from overrefusal_po.model.remedy import Deltas, Form, Remedy
from overrefusal_po.remedies import Anchors, Candidate, Subject
from overrefusal_po.remedies._adapters import check_adapters, joined, read_adapter, read_adapters
from overrefusal_po.remedies._robust import FAULTY, by_entry, krum, mean, median_of, trimmed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORM: Form = "weights"

RULES = {"median": median_of, "trimmed": trimmed_of}

FEWEST = {"median": 2 * FAULTY + 1, "trimmed": 2 * FAULTY + 1, "krum": 2 * FAULTY + 3}
"""How many adapters a rule needs, so that it withstands a bad one."""


class Settings(BaseModel):
    """Which adapters become one, and by what rule."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    adapters: dict[str, str] = Field(min_length=1)
    """{a name of your own: the folder of an adapter, or `@stage.adapter`}. All are of the same
    base."""
    weights: dict[str, tuple[FiniteFloat, ...]] | None = None
    """{name: weights to try}, equally many for each name. The first ones make a candidate, the
    second ones another. With `rule: mean` they are counts of rows (null: equal counts)."""
    rule: Literal["sum", "mean", "median", "trimmed", "krum"] = "sum"
    """How the adapters are put together. The last three take no weights."""
    merged: str | None = None
    """The folder of the adapter that the model has in its weights. It is taken out first."""

    @model_validator(mode="after")
    def weights_fit_rule(self) -> Settings:
        """Every adapter has weights where the rule takes them, and all have equally many."""
        if self.weights is None:
            if self.rule == "sum":
                raise ValueError("rule is sum, so each adapter needs weights: {name: [0.4]}")
            return self
        if self.rule not in ("sum", "mean"):
            raise ValueError(f"rule is {self.rule}, which takes no weights; leave weights out")
        counts = {len(values) for values in self.weights.values()}
        if self.weights.keys() != self.adapters.keys() or len(counts) != 1 or counts == {0}:
            raise ValueError(
                f"weights has {', '.join(f'{k} ({len(v)})' for k, v in self.weights.items())}; "
                f"give each of {', '.join(self.adapters)} equally many weights, at least one"
            )
        if self.rule == "mean" and min(min(v) for v in self.weights.values()) <= 0:
            raise ValueError("rule is mean, so weights are counts of rows; give numbers above 0")
        return self

    @model_validator(mode="after")
    def adapters_fit_rule(self) -> Settings:
        """There are adapters enough for the rule."""
        n, least = len(self.adapters), FEWEST.get(self.rule, 1)
        if n < least:
            raise ValueError(
                f"rule is {self.rule} and there are {n} adapters; it needs at least {least}, to "
                "withstand a bad one. Give more, or take rule: mean"
            )
        return self


def check(settings: Settings) -> None:
    """Raises ValueError for a folder that holds no plain LoRA adapter."""
    check_adapters(*settings.adapters.values(), settings.merged)


def check_model(settings: Settings, model: PreTrainedModel) -> None:
    """Raises ValueError for an adapter of another model."""
    read_adapters(model, *settings.adapters.values(), settings.merged)


def fit(settings: Settings, subject: Subject, train: Anchors, dev: Anchors) -> list[Candidate]:
    """One candidate a set of weights, in their order; one of a rule that takes none. Nothing is
    fitted on prompts."""
    have = {name: read_adapter(path, subject.model) for name, path in settings.adapters.items()}
    merged = read_adapter(settings.merged, subject.model) if settings.merged else None
    found = []
    for weights in weight_rows(settings):
        change, facts = fused(settings.rule, list(have.values()), weights)
        whole = joined([(1.0, change), (-1.0, merged)]) if merged is not None else change
        known = dict(zip(have, weights, strict=True)) if settings.weights else {}
        facts = {"rule": settings.rule, "weights": known, **facts}
        found.append(Candidate(Remedy("fusion", whole), facts))
    return found


def weight_rows(settings: Settings) -> list[tuple[float, ...]]:
    """The weights of each candidate, in the adapters' order; ones if there are none."""
    if settings.weights is None:
        return [(1.0,) * len(settings.adapters)]
    return list(zip(*(settings.weights[name] for name in settings.adapters), strict=True))


def fused(
    rule: str, changes: Sequence[Deltas], weights: Sequence[float]
) -> tuple[Deltas, Mapping[str, object]]:
    """The adapters as one change, and facts about it."""
    if rule == "sum":
        return joined(list(zip(weights, changes, strict=True))), {}
    if rule == "mean":
        return mean(changes, weights), {}
    if rule == "krum":
        place = krum(changes)
        return changes[place], {"client": place}
    rank = max(len(down) for down in joined([(1.0, part) for part in changes]).down.values())
    change, residual = by_entry(changes, RULES[rule], rank)
    return change, {"rank": rank, "residual": residual}
