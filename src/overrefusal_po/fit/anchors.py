"""A fit recipe's prompts -> those that a remedy is fitted on, and those that choose its strength.

train, dev = fit_prompts(recipe.data)      # ValueError for a benchmark's prompt
"""

from __future__ import annotations

from typing import NamedTuple

from overrefusal_po.curate.inputs import read_sources
from overrefusal_po.identity import check_kinds, unique_prompts
from overrefusal_po.pairs.apart import check_apart
from overrefusal_po.pairs.firewall import contamination
from overrefusal_po.prompts import fixed_subset, read_source
from overrefusal_po.recipe.fit import FitData
from overrefusal_po.recipe.sections import PlugSpec
from overrefusal_po.records import Kind, Prompt, content_id
from overrefusal_po.remedies import Anchors

DEV = "data.choose.sets"
"""The key of the prompts that choose."""


class FitPrompts(NamedTuple):
    """The prompts of a fit: those that it reads, and those that choose."""

    train: Anchors
    dev: Anchors


def fit_prompts(data: FitData) -> FitPrompts:
    """The prompts of a recipe, each once and in a fixed order.

    ValueError if a kind is missing, if a prompt is a benchmark's, if it is harmful and harmless, or
    if one that chooses is fitted on.
    """
    found = FitPrompts(train_anchors(data), dev_anchors(data))
    train, dev = (all_anchors(side) for side in found)
    check_kinds([*train, *dev])
    check_firewall({"data": train, DEV: dev})
    check_apart({DEV: dev}, {"data": train})
    return found


def train_anchors(data: FitData) -> Anchors:
    """The prompts that a remedy is fitted on. ValueError if a kind is missing."""
    sources: dict[Kind, PlugSpec | tuple[PlugSpec, ...]] = {
        "harmful": data.harmful,
        "benign": data.benign,
        "general": data.ordinary,
    }
    sides = []
    for kind, spec in sources.items():
        read = [p for p in read_sources(spec, data.split, kind) if p.kind == kind]
        if not read:
            key = "ordinary" if kind == "general" else kind
            raise ValueError(
                f"data.{key}: {spec!r} has no {kind} prompt (split {data.split!r}), and a remedy "
                "is fitted on harmful, benign and ordinary ones. Name a source that has some."
            )
        sides.append(fixed_subset(list(unique_prompts(read)), data.max_prompts_per_kind))
    return Anchors(*sides)


def dev_anchors(data: FitData) -> Anchors:
    """The prompts that choose. ValueError without harmful or without benign ones."""
    choose = data.choose
    sets = [
        fixed_subset(read_source(spec, choose.split), choose.max_prompts_per_kind)
        for spec in choose.sets
    ]
    every = list(unique_prompts(prompt for part in sets for prompt in part))
    kinds: tuple[Kind, ...] = ("harmful", "benign", "general")
    found = Anchors(*([p for p in every if p.kind == kind] for kind in kinds))
    if not (found.harmful and found.benign):
        raise ValueError(
            f"{DEV} gives {len(found.harmful)} harmful and {len(found.benign)} benign prompts "
            f"(split {choose.split!r}); it needs both. Name sets that have both kinds."
        )
    return found


def all_anchors(anchors: Anchors) -> list[Prompt]:
    """The prompts of all kinds, harmful ones first."""
    return [*anchors.harmful, *anchors.benign, *anchors.ordinary]


def check_firewall(sets: dict[str, list[Prompt]]) -> None:
    """Raises ValueError for the first prompt that is a benchmark's."""
    for key, prompts in sets.items():
        hits = contamination(prompts)
        if hits:
            name = next(p.label for p in prompts if p.id == hits[0].id)
            raise ValueError(
                f"{key}: {len(hits)} prompts are a benchmark's, the first {name} "
                f"({hits[0].benchmark}, similarity {hits[0].similarity:.2f}). Nothing is fitted on "
                "what is measured, and nothing is chosen by it. Take them out, or set "
                "without_benchmarks: true in the source."
            )


def anchor_facts(anchors: Anchors) -> dict[str, dict[str, object]]:
    """{kind: how many prompts, and a hash of their ids}."""
    return {
        kind: {"n": len(prompts), "ids": content_id(sorted(p.id for p in prompts))}
        for kind, prompts in anchors._asdict().items()
    }
