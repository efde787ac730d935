"""A recipe's prompts -> those that curation uses: each once, without the benchmarks' if asked.

benign, harmful, cleaning = clean_prompts(recipe.data, *read_prompts(recipe))
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypedDict

from overrefusal_po.curate.quotas import FilterCounts, filter_counts
from overrefusal_po.identity import check_kinds, conversation_text, unique_prompts
from overrefusal_po.pairs.duplicates import duplicates
from overrefusal_po.pairs.firewall import Hit, contamination
from overrefusal_po.pairs.set_checks import uneven_prompts
from overrefusal_po.pairs.signatures import split_words
from overrefusal_po.prompts import fixed_subset, read_source, refuse_measured
from overrefusal_po.recipe.reading import with_keys
from overrefusal_po.recipe.schema import CurateRecipe
from overrefusal_po.recipe.sections import CurateData, PlugSpec
from overrefusal_po.records import Kind, Prompt, Split
from overrefusal_po.run.appender import cut_torn_line, rows_if_any

logger = logging.getLogger(__name__)


def read_prompts(recipe: CurateRecipe) -> tuple[list[Prompt], list[Prompt]]:
    """(benign, harmful) prompts that have a reference, or that some model will answer. ValueError
    without a benign one, or if a source of harmful ones has none."""
    data, chosen = recipe.data, recipe.chosen
    # a prompt that the student answers itself needs no reference
    answered = bool(chosen.model or chosen.answers) or recipe.makes == "sft"
    read = read_sources(data.benign, data.split, "benign")
    benign = [p for p in read if p.kind in data.kinds and (p.reference or answered)]
    answered = chosen.refusals != "reference" or recipe.makes == "sft"
    read = [] if data.harmful is None else read_sources(data.harmful, data.split, "harmful")
    harmful = [p for p in read if p.kind == "harmful" and (p.reference or answered)]
    if data.harmful is not None and not harmful:
        raise ValueError(missing_harmful(data, read))
    if not benign:
        raise ValueError(
            f"data.benign: {recipe.data.benign!r} has no harmless prompt with a reference answer. "
            "Give prompts with references, name a teacher that answers them (chosen.model), or let "
            "the student answer them (chosen.answers: student)."
        )
    if data.max_prompts is None:
        return benign, harmful
    return subsets_with_partners(benign, harmful, data.max_prompts)


def subsets_with_partners(
    benign: Sequence[Prompt], harmful: Sequence[Prompt], limit: int
) -> tuple[list[Prompt], list[Prompt]]:
    """At most `limit` prompts of each kind. Of the harmful ones with harmless partners (of the same
    topic), those come first whose partner is chosen; how many have none stays as in a plain subset.

    Partners are worded alike, so both together show what the words do not.
    """
    chosen = fixed_subset(benign, limit)
    known, taken = ({p.topic for p in side} - {None} for side in (benign, chosen))
    alone = [p for p in fixed_subset(harmful, limit) if p.topic not in known]
    found = alone + fixed_subset([p for p in harmful if p.topic in taken], limit - len(alone))
    rest = [p for p in harmful if p.topic in known - taken]
    return chosen, found + fixed_subset(rest, limit - len(found))


def warn_of_other_prompts(
    folder: Path, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> None:
    """Warns if a run folder holds a model's answers to prompts that are not asked now.

    Such a curation began with other prompts, although recipe and files are the same: in a version
    that sampled `max_prompts` otherwise. What was said to the others is not used.
    """
    sides = {"benign": benign, "harmful": harmful}
    for who, (side, prompts) in product(("student", "teacher"), sides.items()):
        file = folder / f"{who}_{side}.jsonl"
        cut_torn_line(file)
        answered = {row["prompt_id"] for row in rows_if_any(file) if "prompt_id" in row}
        if others := answered - {prompt.id for prompt in prompts}:
            logger.warning(
                "%s holds answers to %d prompts that this curation does not ask (%d of its %d are "
                "answered there): it began with others, in another version of this package. They "
                "are not used; all pairs are of the prompts that are asked now.",
                *(file, len(others), len(answered) - len(others), len(prompts)),
            )


def read_sources(
    specs: PlugSpec | tuple[PlugSpec, ...], split: Split | None, kind: Kind
) -> list[Prompt]:
    """The prompts to train on of a source, or of several, one behind the other. Rows of files that
    say no kind are of the kind that the recipe's key names. ValueError if models are measured on
    one of them."""
    each = specs if isinstance(specs, tuple) else (specs,)
    for spec in each:
        refuse_measured(spec, split)
    named = [with_keys(spec, {"kind": kind}) for spec in each]
    return [prompt for spec in named for prompt in read_source(spec, split)]


def missing_harmful(data: CurateData, read: Sequence[Prompt]) -> str:
    """Why a source of harmful prompts gives none."""
    counts = Counter(p.kind for p in read)
    found = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"
    why = "no harmful prompt that can be used"
    if counts["harmful"]:
        why = "no harmful prompt with a reference, and chosen.refusals is reference"
    return (
        f"data.harmful: {data.harmful!r} has {why} (split {data.split!r}; read: {found}). Name a "
        "source of harmful prompts: they keep the model safe. data.harmful: null makes pairs "
        "without any."
    )


class Hygiene(TypedDict):
    """What was found in the prompts, as summary.json has it."""

    duplicates: dict[str, int]
    """{exact or near: prompts that were dropped}."""
    contaminated: dict[str, int]
    """{benchmark: prompts that are in it}."""
    harmless_and_harmful: int
    """Texts with the same words on both sides."""


class Cleaning(NamedTuple):
    """What the cleaning found and dropped."""

    filters: dict[str, list[FilterCounts]]
    """{side: its filters}."""
    hygiene: Hygiene


class CleanPrompts(NamedTuple):
    """The prompts of both sides, and what the cleaning found."""

    benign: list[Prompt]
    harmful: list[Prompt]
    cleaning: Cleaning


def clean_prompts(
    data: CurateData, benign: Sequence[Prompt], harmful: Sequence[Prompt]
) -> CleanPrompts:
    """Both sides without duplicates and near-duplicates; benchmark prompts are treated as the
    recipe says.

    A harmless prompt in a harmful one's words is a contrast, and stays. If all words are the same,
    it is reported. ValueError if one prompt is on both sides, if no harmless prompt is left, or for
    a benchmark's prompt if the recipe says so.
    """
    check_kinds([*benign, *harmful])
    hits = benchmark_hits(data, [*benign, *harmful])
    dropped = {hit.id: hit.benchmark for hit in hits} if data.contaminated == "drop" else {}
    one, other = clean_side(benign, dropped), clean_side(harmful, dropped)
    if not one.prompts:
        raise ValueError(
            "All harmless prompts are a benchmark's, and data.contaminated is drop. Give others "
            "(data.benign), or set data.contaminated: report."
        )
    texts = [
        {tuple(split_words(conversation_text(p.messages))) for p in side.prompts}
        for side in (one, other)
    ]
    hygiene: Hygiene = {
        "duplicates": dict(one.duplicates + other.duplicates),
        "contaminated": dict(Counter(hit.benchmark for hit in hits)),
        "harmless_and_harmful": len(texts[0] & texts[1]),
    }
    filters = {"harmless prompts": one.filters, "harmful prompts": other.filters}
    return CleanPrompts(one.prompts, other.prompts, Cleaning(filters, hygiene))


def dropped_words(cleaning: Cleaning) -> list[str]:
    """`harmless prompts: 13 of 60 are used (duplicates: 47 near)` for each side that lost some."""
    found = []
    for side, filters in cleaning.filters.items():
        why = [
            f"{step['filter']}: {', '.join(f'{n} {name}' for name, n in step['why'].items())}"
            for step in filters
            if step["in"] > step["out"]
        ]
        if why:
            first, last = filters[0]["in"], filters[-1]["out"]
            found.append(f"{side}: {last} of {first} are used ({'; '.join(why)})")
    return found


def uneven_words(data: CurateData, prompts: Sequence[Prompt]) -> str | None:
    """What to say if length tells harmless prompts from harmful ones; None if it does not, or if
    the recipe has the rows matched."""
    return None if data.length_ratio_max else uneven_prompts(prompts, curated=True)


def benchmark_hits(data: CurateData, prompts: Sequence[Prompt]) -> list[Hit]:
    """The prompts that are a benchmark's. ValueError if there are some and the recipe forbids
    them."""
    hits = contamination(prompts)
    if hits and data.contaminated == "error":
        first = hits[0]
        name = next(prompt.label for prompt in prompts if prompt.id == first.id)
        raise ValueError(
            f"{len(hits)} prompts are a benchmark's, the first {name} ({first.benchmark}, "
            f"similarity {first.similarity}). Take them out, or set data.contaminated: drop."
        )
    if hits:
        logger.warning(
            "%d prompts are a benchmark's (data.contaminated: %s)", len(hits), data.contaminated
        )
    return hits


class CleanSide(NamedTuple):
    """The prompts of one side that are left, and what was dropped."""

    prompts: list[Prompt]
    duplicates: Counter[str]
    filters: list[FilterCounts]


def clean_side(prompts: Sequence[Prompt], dropped: Mapping[str, str]) -> CleanSide:
    """One side without duplicates and without the prompts in `dropped` ({id: benchmark})."""
    once = list(unique_prompts(prompts))
    again = {d.id: "exact" if d.similarity == 1 else "near" for d in duplicates(once)}
    why = Counter(again.values()) + Counter({"exact": len(prompts) - len(once)})
    different = [p for p in once if p.id not in again]
    clean = [p for p in different if p.id not in dropped]
    benchmarks = Counter(dropped[p.id] for p in different if p.id in dropped)
    filters = [
        filter_counts("duplicates", len(prompts), len(different), why=why),
        filter_counts("contamination", len(different), len(clean), why=benchmarks),
    ]
    return CleanSide(clean, why, filters)
