"""The one reader of prompts, triples and pairs, and of what a recipe measures or selects by.

prompts = read_source("starter", "test")
triples = read_triples({"name": "pku_saferlhf", "max": 3000}, "train")
measured_prompts(recipe.data)      # every set of an evaluation, with attacks
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from overrefusal_po.attacks import Attack
from overrefusal_po.identity import check_kinds, unique_prompts
from overrefusal_po.json_files import is_file
from overrefusal_po.pairs.make import behind_lead
from overrefusal_po.plugins import (
    PlugSpec,
    find_search,
    find_source,
    make_attack,
    names,
    plug,
    set_name,
)
from overrefusal_po.recipe.overrides import nested_texts
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import EvaluateData
from overrefusal_po.recipe.two_sided import DevSets
from overrefusal_po.records import (
    LabelledResponse,
    PreferencePair,
    Prompt,
    Split,
    Triple,
    content_id,
    first_fault,
)

logger = logging.getLogger(__name__)

SourceRow = Prompt | Triple | PreferencePair | LabelledResponse
"""A row that a source gives."""

R = TypeVar("R", Prompt, Triple, PreferencePair, LabelledResponse)

SOURCE_FUNCTIONS: dict[type[SourceRow], str] = {
    LabelledResponse: "responses",
    Prompt: "prompts",
    Triple: "triples",
    PreferencePair: "pairs",
}
"""The function of a source that gives rows of this kind."""


def read_source(spec: PlugSpec, split: Split | None) -> list[Prompt]:
    """The prompts of a source in one split (sources without splits give all)."""
    return source_rows(Prompt, spec, split)


def refuse_measured(spec: PlugSpec, split: Split | None) -> None:
    """ValueError if what a source gives for a split is there to measure on."""
    source, settings, _ = find_source(spec)
    measures: Callable[..., bool] = getattr(source, "measures", lambda *_: False)
    if not measures(settings, split):
        return
    why = f"in split {split!r} is there to measure on. Train on its train part: split: train"
    if measures(settings, "train"):
        why = "is a benchmark and has no train split; use it in `evaluate` only"
    raise ValueError(f"{set_name(spec)} {why}.")


def read_triples(
    spec: PlugSpec, split: Split | None, *, opener: str = "", lead: str | None = None
) -> list[Triple]:
    """The triples of a source or of a file. `lead` is put before safe responses that do not begin
    with `opener`.

    The answers of public sets seldom begin with a refusal, and DeRTa's safe responses must.
    """
    triples = source_rows(Triple, spec, split)
    if lead is None:
        return triples
    bare = [not triple.safe_response.startswith(opener) for triple in triples]
    logger.info("%d of %d safe responses are put behind %r", sum(bare), len(bare), lead)
    return [
        t.model_copy(update={"safe_response": behind_lead(t.safe_response, opener, lead)})
        for t in triples
    ]


def read_pairs(spec: PlugSpec, split: Split | None) -> list[PreferencePair]:
    """The preference pairs of a source; those of public sets have no rule."""
    return source_rows(PreferencePair, spec, split)


def read_responses(spec: PlugSpec, split: Split | None) -> list[LabelledResponse]:
    """The labelled responses of a source of TRL's unpaired form."""
    return source_rows(LabelledResponse, spec, split)


def is_unpaired(spec: PlugSpec) -> bool:
    """Whether a source's first row is of TRL's unpaired form (prompt, completion, label)."""
    source, settings, _ = find_source(spec)
    look: Callable[[object], bool] = getattr(source, "unpaired", lambda _: False)
    return look(settings)


# Any: rows of the record that the key names
_known: ContextVar[dict[str, list[Any]] | None] = ContextVar("known", default=None)


@contextmanager
def sources_read_once() -> Iterator[None]:
    """Within, a source that is asked twice in the same way is read once.

    A file that changed is read again. A pipeline runs in it, since its stages share their sources.
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def source_rows(record: type[R], spec: PlugSpec, split: Split | None) -> list[R]:
    """`fresh_rows`, or a copy of them within `sources_read_once`."""
    known = _known.get()
    if known is None:
        return fresh_rows(record, spec, split)
    key = source_key(record, spec, split)
    if key not in known:
        known[key] = fresh_rows(record, spec, split)
    return list(known[key])


def source_key(record: type[R], spec: PlugSpec, split: Split | None) -> str:
    """What a source is asked, and the state of each file that it names."""
    named = (text for _, text in nested_texts(spec) if len(text) < 1000)
    states = [file.stat() for file in map(Path, named) if is_file(file)]
    # the inode and the time of the last change too: a program may set the other time back
    stamps = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states]
    return content_id(record.__name__, spec, split, stamps)


def fresh_rows(record: type[R], spec: PlugSpec, split: Split | None) -> list[R]:
    """The rows of this kind that a source gives; ValueError if it has no function for them, gives
    something else, or has nothing in this split."""
    if split == "train":
        refuse_measured(spec, split)
    module, settings, common = find_source(spec)
    name = SOURCE_FUNCTIONS[record]
    if not hasattr(module, name):
        givers = [source for source in names("sources") if hasattr(plug("sources", source), name)]
        raise ValueError(
            f"The source {spec!r} gives no {name}; those that do are {', '.join(givers)}."
        )
    function: Callable[..., list[R]] = getattr(module, name)
    rows = checked_rows(record, function(settings, split), f"The source {spec!r}: {name}()")
    if common.without_benchmarks:
        rows = outside_benchmarks(rows, spec)
    if not rows:
        raise ValueError(f"The source {spec!r} has no {name} in split {split!r}.")
    return rows if common.max is None else hashed_subset(rows, common.max)


def checked_rows(record: type[R], given: Iterable[R], where: str) -> list[R]:
    """What a source or an attack gave, as a list. ValueError if it is no list of valid records."""
    if given is None or isinstance(given, str | bytes | Mapping | BaseModel):
        raise ValueError(
            f"{where} gives {type(given).__name__}. It must give a list of {record.__name__}s of "
            "overrefusal_po.records."
        )
    rows = list(given)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, record):
            raise ValueError(
                f"{where} gives {type(row).__name__}. Every row must be a {record.__name__} of "
                "overrefusal_po.records."
            )
        try:
            # a copy may have left the checks out (model_copy, model_construct)
            record.model_validate(row.model_dump(include=set(record.model_fields), warnings=False))
        except ValidationError as error:
            raise ValueError(f"{where} gives a row {number} with {first_fault(error)}.") from None
    return rows


def hashed_subset(rows: list[R], limit: int) -> list[R]:
    """At most `limit` rows, chosen by content hash, in their order."""
    if len(rows) <= limit:
        return rows
    ranks = [content_id("max", row_key(row)) for row in rows]
    last = sorted(ranks)[limit - 1]
    return [row for row, rank in zip(rows, ranks, strict=True) if rank <= last][:limit]


def outside_benchmarks(rows: list[R], spec: PlugSpec) -> list[R]:
    """The rows whose prompt the benchmark firewall does not know."""
    from overrefusal_po.pairs.firewall import contamination

    hits = {hit.id for hit in contamination([row_prompt(row) for row in rows])}
    kept = [row for row in rows if row_prompt(row).id not in hits]
    logger.info(
        "%r: %d of %d rows are a benchmark's or nearly, and left out",
        spec,
        len(rows) - len(kept),
        len(rows),
    )
    return kept


def row_prompt(row: SourceRow) -> Prompt:
    """The prompt of a row, which may be one itself."""
    return row if isinstance(row, Prompt) else row.prompt


def row_key(row: SourceRow) -> str:
    """The id by which a row differs from the others of its source."""
    if isinstance(row, Triple):
        return content_id(row.prompt.id, row.safe_response, row.harmful_response)
    if isinstance(row, LabelledResponse):
        return content_id(row.prompt.id, row.response, row.desirable)
    return row.id


def looked_at(recipe: TrainRecipe) -> dict[str, list[Prompt]]:
    """{key: prompts} that a training measures on its way. ValueError if a kind is missing."""
    sections = {"select": recipe.looks, "hold": recipe.held}
    return {
        f"{key}.sets": dev_prompts(sets, key) for key, sets in sections.items() if sets is not None
    }


def dev_prompts(sets: DevSets, key: str = "select") -> list[Prompt]:
    """The harmful and the benign prompts of the section `key`, each once, in a fixed order.

    Raises ValueError if a kind is missing.
    """
    found = [prompt for part in dev_prompt_sets(sets) for prompt in part]
    counts = Counter(prompt.kind for prompt in found)
    if not (counts["harmful"] and counts["benign"]):
        raise ValueError(
            f"{key}.sets gives {counts['harmful']} harmful and {counts['benign']} benign prompts "
            f"(split {sets.split!r}); it needs both. Name sets that have both kinds, or another "
            "split."
        )
    check_kinds(found)
    return found


def dev_prompt_sets(sets: DevSets) -> list[list[Prompt]]:
    """The harmful and the benign prompts of each set; one that stands in two is in the first."""
    seen: set[str] = set()
    found = []
    for spec in sets.sets:
        prompts = [p for p in read_source(spec, sets.split) if p.kind != "general"]
        part = fixed_subset(prompts, sets.max_prompts_per_kind)
        once = {p.id: p for p in part if p.id not in seen}
        seen |= set(once)
        found.append(list(once.values()))
    return found


def fixed_subset(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` prompts of each kind (None: all), chosen by content hash and spread evenly
    over the categories."""
    ranked: dict[str, list[tuple[int, str, Prompt]]] = defaultdict(list)
    seen: dict[tuple[str, str, bool], int] = defaultdict(int)
    for prompt in sorted(prompts, key=lambda p: content_id("subset", p.id)):
        group = (prompt.kind, prompt.category, prompt.contrast)
        ranked[prompt.kind].append((seen[group], content_id(prompt.id), prompt))
        seen[group] += 1
    return [row[2] for rows in ranked.values() for row in sorted(rows, key=lambda r: r[:2])[:limit]]


def measured_prompts(data: EvaluateData) -> list[Prompt]:
    """The prompts of all sets, each once. A fixed subset of each kind in each set if the recipe
    limits them. ValueError if one is harmful and harmless."""
    sets = [
        fixed_subset(read_source(spec, data.split), data.max_prompts_per_kind) for spec in data.sets
    ]
    plain = measured_once([prompt for prompts in sets for prompt in prompts])
    check_kinds(plain)
    return plain + attacked_prompts(plain, data.attacks)


def measured_once(prompts: Sequence[Prompt]) -> list[Prompt]:
    """`unique_prompts`; the log counts those that come again."""
    found = {prompt.id: prompt for prompt in unique_prompts(prompts)}
    again = [(prompt, found[prompt.id]) for prompt in prompts if found[prompt.id] is not prompt]
    if again:
        prompt, first = again[0]
        logger.warning(
            "%d prompts come again and are measured once; the first: %s is %s",
            *(len(again), prompt.label, first.label),
        )
    return list(found.values())


def attacked_prompts(prompts: Sequence[Prompt], attacks: Sequence[PlugSpec]) -> list[Prompt]:
    """Every attack on every harmful prompt, each form once. Searches are left out: their forms
    are known when models have answered. ValueError if an attack makes nothing of all of them."""
    found: dict[str, Prompt] = {}
    harmful = [prompt for prompt in prompts if prompt.kind == "harmful"]
    for spec in attacks:
        if find_search(spec) is not None:
            continue
        attack = make_attack(spec)
        made = [form for prompt in harmful for form in attacked_forms(spec, attack, prompt)]
        if not made:
            raise ValueError(
                f"data.attacks: {spec!r} makes no prompt of the {len(harmful)} harmful prompts in "
                "data.sets. Give sets with harmful prompts, or a file of attacks on these prompts."
            )
        found |= {form.id: form for form in made}
    return list(found.values())


def attacked_forms(spec: PlugSpec, attack: Attack, prompt: Prompt) -> list[Prompt]:
    """The forms of one prompt that an attack makes. ValueError if they do not say what was
    attacked, or cannot be distinguished from it."""
    where = f"data.attacks: {spec!r} on prompt {prompt.id!r}"
    forms = checked_rows(Prompt, attack(prompt), where)
    for form in forms:
        fault = None
        if form.attack is None:
            fault = "has no `attack`, the name under which it is counted"
        elif form.original_id != prompt.id:
            fault = f"has original_id {form.original_id!r}; the prompt's id is needed"
        elif form.id == prompt.id or sum(form.id == other.id for other in forms) > 1:
            fault = f"has the id {form.id!r} of another prompt; each form needs one of its own"
        elif form.kind != prompt.kind:
            fault = f"is of kind {form.kind}; the prompt is {prompt.kind}"
        if fault is not None:
            raise ValueError(f"{where}: a form of it {fault}.")
    return forms
