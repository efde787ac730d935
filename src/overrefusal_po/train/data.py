"""What a training learns from: read and checked before any weight is loaded, then made and kept as
data.jsonl.

    check_training_data(recipe, template)
    # '267 pairs, longest row 187 tokens; linter: length 1'
    make_data(recipe, run, template)

Pairs, triples and prompts come from the starter set, a file, or a source; what only the student can
say (harmful responses for DeRTa and containment) comes from the start policy at run time and stays
in the run folder.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs import files as pair_files
from overrefusal_po.pairs.firewall import contamination
from overrefusal_po.pairs.lint import lint
from overrefusal_po.pairs.make import answer_of, containment_pair, written_pairs
from overrefusal_po.prompts import read_pairs, read_source, read_triples
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import DertaData, PairsData, SftData
from overrefusal_po.records import (
    Completion,
    PreferencePair,
    Prompt,
    Triple,
    Verdict,
    content_id,
    write_atomic,
    write_jsonl,
)
from overrefusal_po.run.complete import complete, engine_for, recipe_sampling
from overrefusal_po.run.folder import Run
from overrefusal_po.train.derta import refusal_token
from overrefusal_po.train.lengths import Fitting, fitting, noun, unwritten_length
from overrefusal_po.train.memory import settings_of
from overrefusal_po.train.rows import side_rows
from overrefusal_po.train.trainers import check_openers

logger = logging.getLogger(__name__)
R = TypeVar("R", PreferencePair, Prompt, Triple)


def check_training_data(recipe: TrainRecipe, template: ChatTemplate) -> str:
    """The part of `check_sources` that is about what is trained on."""
    data = recipe.typed_data
    if isinstance(data, PairsData):
        pairs = fitted(recipe, loaded_pairs(data.pairs), template)
        warnings = check_pairs(pairs.rows, data, anchored=asks_student(data))
        if asks_student(data):
            check_unwritten(recipe, template)
        else:
            check_batches(recipe, data, used_pairs(pairs.rows, data, recipe.seed), template)
        found = f"{len(pairs.rows)} pairs, longest row {pairs.longest} tokens{pairs}"
        return found + (f"; linter: {warnings}" if warnings else "")
    if isinstance(data, DertaData):
        return check_triples(recipe, data, template)
    if (data.prompts is None) == (data.pairs is None):
        raise ValueError(
            "data: give either `prompts` (with references) or `pairs` (their chosen sides)."
        )
    kept = fitted(recipe, sft_prompts(data), template)
    prompts = drawn(kept.rows, data.max_prompts, recipe.seed)
    check_firewall(prompts)
    return f"{len(prompts)} prompts with a reference{kept}"


def check_triples(recipe: TrainRecipe, data: DertaData, template: ChatTemplate) -> str:
    """The same for DeRTa's triples and helpful prompts; how long the student's own responses are is
    not known yet."""
    refusal_token(template, data.refusal_opener)
    left_out = ""
    if data.triples == "starter":
        check_unwritten(recipe, template)
        harmful = starter_harmful()
        safe = [(p.id, str(p.reference)) for p in harmful]
    else:
        kept = fitted(recipe, loaded_triples(data), template)
        harmful = [t.prompt for t in drawn(kept.rows, data.max_triples, recipe.seed)]
        safe = [(t.prompt.id, t.safe_response) for t in kept.rows]
        left_out = str(kept)
    check_openers(safe, data.refusal_opener)
    fit = fitted(recipe, helpful_prompts(data), template)
    helpful = drawn_helpful(data, fit.rows, recipe.seed)
    check_firewall([*harmful, *helpful])
    found = f"{len(safe)} harmful prompts, refusal opener {data.refusal_opener!r}, {len(helpful)} helpful prompts"
    return f"{found}{left_out}{fit}"


def fitted(recipe: TrainRecipe, rows: Sequence[R], template: ChatTemplate) -> Fitting[R]:
    """The rows that fit into the recipe's `max_length`; what becomes of others is
    `data.too_long`."""
    data = recipe.typed_data
    opening = data.opening if isinstance(data, PairsData) else None
    return fitting(
        rows, template, max_length=row_limit(recipe), too_long=data.too_long, opening=opening
    )


def kept_rows(recipe: TrainRecipe, run: Run, rows: Sequence[R], template: ChatTemplate) -> list[R]:
    """The rows that fit; those that do not are noted in too_long.json, {noun: {left_out, of,
    max_length, ids}}."""
    found = fitted(recipe, rows, template)
    if found.left_out:
        file = run.path / "too_long.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        counts = {"left_out": len(found.left_out), "of": len(rows), "max_length": found.max_length}
        write_atomic(
            file, json.dumps({**known, noun(rows[0]): {**counts, "ids": found.left_out}}, indent=1)
        )
    return found.warned()


def check_unwritten(recipe: TrainRecipe, template: ChatTemplate) -> None:
    """Raises ValueError where what the student has yet to write may make a row too long, and that
    would be an error.

    Once it is written it is too late: with other settings the run is another one, and the student
    is asked for all again.
    """
    data, limit, new = recipe.typed_data, row_limit(recipe), recipe.generation.max_new_tokens
    if limit is None or data.too_long == "drop":
        return
    options: dict[str, Any] = {"eats": "triples"}
    if isinstance(data, PairsData):
        options = {"eats": "pairs", "opening": data.opening}
    lengths = [(unwritten_length(p, template, new, **options), p.id) for p in starter_harmful()]
    longest, name = max(lengths)
    if longest > limit:
        raise ValueError(
            f"Prompt {name}: with what the student is yet to write (generation.max_new_tokens "
            f"{new}) its row may be {longest} tokens, more than max_length {limit} (as "
            f"{sum(length > limit for length, _ in lengths)} of {len(lengths)} such "
            "rows), and no row is cut. Raise trainer.max_length, lower generation.max_new_tokens, "
            "or leave such rows out (data.too_long: drop)."
        )


def check_batches(
    recipe: TrainRecipe, data: PairsData, pairs: Sequence[PreferencePair], template: ChatTemplate
) -> None:
    """Raises ValueError where the pairs that are used do not fill KTO's batches (see
    `kto.unpaired`)."""
    if recipe.method == "kto":
        settings = {**settings_of(recipe), "seed": recipe.trainer.get("seed", recipe.seed)}
        side_rows(pairs, template, settings, data.opening)


def check_firewall(prompts: Sequence[Prompt]) -> None:
    """Raises ValueError where prompts that are trained on are a benchmark's, or nearly."""
    hits = contamination(prompts)
    if hits:
        raise ValueError(
            f"{len({hit.id for hit in hits})} of the {len(prompts)} prompts to train on are a "
            f"benchmark's. The first: {' '.join(map(str, hits[0]))}. Delete these rows, or have "
            f"their source leave them out: {{name: SOURCE, "
            "without_benchmarks: true}."
        )


def check_pairs(pairs: Sequence[PreferencePair], data: PairsData, *, anchored: bool) -> str:
    """What the linter warns of, as `check: count`. ValueError for its errors and benchmark prompts,
    and for no anchor.

    `anchored`: containment pairs are still to be made. Tokens are counted by `fitted`.
    """
    if not anchored:
        check_anchor(pairs, data)
    found = lint(pairs, RefusalJudge(), waive=data.waive)
    hits = contamination([pair.prompt for pair in pairs])
    if found.errors or hits:
        first = found.errors[0] if found.errors else hits[0]
        raise ValueError(
            f"{len(found.errors)} faults in the pairs stop a training, and {len(hits)} of their "
            f"prompts are a benchmark's. The first: {' '.join(map(str, first))}. Mend or delete "
            "the rows (`overrefusal-po check PAIRS.jsonl` lists all), or "
            "waive one with a reason: data.waive: {id: reason}. Benchmark prompts cannot be waived."
        )
    return ", ".join(f"{check} {count}" for check, count in found.counts().items())


def check_anchor(pairs: Sequence[PreferencePair], data: PairsData) -> None:
    """Raises ValueError where no pair is about a harmful prompt, unless the recipe says that this
    is meant."""
    if not (data.allow_no_anchor or any(p.prompt.kind == "harmful" for p in pairs)):
        raise ValueError(
            f"None of the {len(pairs)} pairs is about a harmful prompt, so nothing would hold the "
            "model where it is safe. Add "
            "containment pairs (curate makes them; data.containment: student with starter pairs), "
            "or set data.allow_no_anchor: true if you know what you do."
        )


def trained_prompts(recipe: TrainRecipe) -> list[Prompt]:
    """All prompts that the recipe may train on, before limits are drawn."""
    data = recipe.typed_data
    if isinstance(data, SftData):
        return sft_prompts(data)
    if isinstance(data, PairsData):
        pairs = [p.prompt for p in loaded_pairs(data.pairs)]
        return pairs + (starter_harmful() if asks_student(data) else [])
    asked = (
        starter_harmful() if data.triples == "starter" else [t.prompt for t in loaded_triples(data)]
    )
    return helpful_prompts(data) + asked


def asks_student(data: PairsData) -> bool:
    """Whether the student has to write containment pairs first."""
    return data.pairs == "starter" and data.containment == "student"


def starter_harmful() -> list[Prompt]:
    """The starter set's harmful prompts to train on."""
    return [p for p in read_source("starter", "train") if p.kind == "harmful"]


def loaded_pairs(spec: str | Mapping[str, Any]) -> list[PreferencePair]:
    """The pairs that the starter set carries, of a file, or of a source."""
    if spec == "starter":
        return written_pairs(read_source("starter", "train"))
    return (
        pair_files.read_pairs(spec)
        if isinstance(spec, str) and spec.endswith(".jsonl")
        else read_pairs(spec, "train")
    )


def loaded_triples(data: DertaData) -> list[Triple]:
    """The triples of a file or a source, their safe responses behind the recipe's lead where one is
    needed."""
    return read_triples(data.triples, "train", opener=data.refusal_opener, lead=data.safe_lead)


def helpful_prompts(data: DertaData) -> list[Prompt]:
    """The prompts with references that are mixed in as ordinary SFT, each once."""
    sources = [read_source(spec, "train") for spec in data.helpful_from]
    return list(
        {
            p.id: p
            for prompts in sources
            for p in prompts
            if p.kind in data.helpful and p.reference
        }.values()
    )


def drawn_helpful(data: DertaData, helpful: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Those of them that are used, at most `max_helpful` of each kind."""
    return [
        p
        for k in data.helpful
        for p in drawn([h for h in helpful if h.kind == k], data.max_helpful, seed)
    ]


def row_limit(recipe: TrainRecipe) -> int | None:
    """`max_length` of a row in tokens; None means no limit."""
    limit: int | None = settings_of(recipe)["max_length"]
    return limit


def make_data(recipe: TrainRecipe, run: Run, template: ChatTemplate) -> None:
    """Writes data.jsonl (pairs, triples or prompts; helpful.jsonl beside triples) unless it is
    there."""
    file = run.path / "data.jsonl"
    if file.exists():
        return
    data = recipe.typed_data
    rows: Sequence[PreferencePair | Prompt | Triple]
    if isinstance(data, PairsData):
        rows = pairs_of(recipe, data, run, template)
    elif isinstance(data, DertaData):
        helpful = kept_rows(recipe, run, helpful_prompts(data), template)
        write_jsonl(run.path / "helpful.jsonl", drawn_helpful(data, helpful, recipe.seed))
        rows = triples_of(recipe, data, run, template)
    else:
        rows = drawn(
            kept_rows(recipe, run, sft_prompts(data), template), data.max_prompts, recipe.seed
        )
    write_jsonl(file, rows)


def pairs_of(
    recipe: TrainRecipe, data: PairsData, run: Run, template: ChatTemplate
) -> list[PreferencePair]:
    """The pairs of a recipe, at most `max_pairs` of each rule."""
    made: list[PreferencePair] = []
    pairs = loaded_pairs(data.pairs)
    if asks_student(data):
        made = own_containment(recipe, run, template)
    pairs = kept_rows(recipe, run, [*pairs, *made], template)
    if data.pairs != "starter" and not any(p.rule == "containment" for p in pairs):
        logger.warning(
            "%s holds no containment pairs: nothing in it keeps harmful prompts refused", data.pairs
        )
    kept = used_pairs(pairs, data, recipe.seed)
    if made:  # which `check_sources` has not seen
        logger.info(
            "linter, with %d pairs made: %s",
            len(made),
            check_pairs(kept, data, anchored=False) or "no warning",
        )
    else:
        check_anchor(kept, data)
    if asks_student(data):
        check_batches(recipe, data, kept, template)
    return drawn(kept, None, recipe.seed)


def used_pairs(pairs: Sequence[PreferencePair], data: PairsData, seed: int) -> list[PreferencePair]:
    """At most `max_pairs` of each rule."""
    rules = dict.fromkeys(p.rule for p in pairs)
    return [
        p
        for rule in rules
        for p in drawn([q for q in pairs if q.rule == rule], data.max_pairs, seed)
    ]


def own_containment(recipe: TrainRecipe, run: Run, template: ChatTemplate) -> list[PreferencePair]:
    """Containment pairs: the reference refusal over what the start policy itself says where it
    complies."""
    said = student_answers(recipe, run, template)
    made = [containment_pair(p, str(p.reference), c, v).pair for p, c, v in said]
    return [pair for pair in made if pair is not None]


def student_answers(
    recipe: TrainRecipe, run: Run, template: ChatTemplate
) -> list[tuple[Prompt, Completion, Verdict]]:
    """What the start policy says to the starter set's harmful prompts, judged; kept in the run
    folder only."""
    name = str(recipe.model["model_name_or_path"])
    harmful = starter_harmful()
    answers = complete(
        run.path / "student_harmful.jsonl",
        harmful,
        recipe_sampling(recipe.generation, recipe.seed),
        lambda: engine_for(recipe.model, template, recipe.generation, name),
        "student: harmful prompts",
    )
    return list(zip(harmful, answers, RefusalJudge().score(harmful, answers), strict=True))


def triples_of(
    recipe: TrainRecipe, data: DertaData, run: Run, template: ChatTemplate
) -> list[Triple]:
    """Loaded triples, or starter prompts with the student's own harmful responses. A yield of zero
    is an error."""
    if data.triples != "starter":
        return drawn(
            kept_rows(recipe, run, loaded_triples(data), template), data.max_triples, recipe.seed
        )
    said = student_answers(recipe, run, template)
    triples = [
        Triple(prompt=p, safe_response=str(p.reference), harmful_response=answer_of(c))
        for p, c, v in said
        if v.refusal == "none" and not v.degenerate
    ]
    if not triples:
        raise ValueError(
            f"The student refuses all {len(said)} harmful prompts, so it gives no harmful "
            "responses for DeRTa. Load "
            "triples instead (data.triples: FILE.jsonl with prompt, safe_response, "
            "harmful_response)."
        )
    logger.info("%d of %d harmful prompts gave a harmful response", len(triples), len(said))
    return drawn(kept_rows(recipe, run, triples, template), data.max_triples, recipe.seed)


def sft_prompts(data: SftData) -> list[Prompt]:
    """Prompts with references, or the chosen sides of pairs as references."""
    if data.pairs is not None:
        return [
            p.prompt.model_copy(update={"reference": p.chosen}) for p in loaded_pairs(data.pairs)
        ]
    assert data.prompts is not None
    prompts = [
        p for p in read_source(data.prompts, "train") if p.kind in data.kinds and p.reference
    ]
    if not prompts:
        raise ValueError(
            f"data.prompts: {data.prompts!r} has no prompt of kind {' or '.join(data.kinds)} with "
            "a reference."
        )
    return prompts


def drawn(rows: Sequence[R], limit: int | None, seed: int) -> list[R]:
    """At most `limit` rows in an order that follows from seed and content alone."""
    return sorted(
        rows, key=lambda r: random.Random(content_id(seed, r.model_dump(mode="json"))).random()
    )[:limit]
