"""What DPO, ORPO, CPO and KTO share: pairs read, checked and tokenised, and TRL's trainer.

source = read(recipe)
prepared = prepare(recipe, source, template, None)
prepared.line             # "267 pairs, longest row 187 tokens; linter: length 1"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from overrefusal_po.curate.limits import most_of_each
from overrefusal_po.judges import Judge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.findings import Lint, faults_words
from overrefusal_po.pairs.firewall import Hit, benchmark_finding, contamination
from overrefusal_po.pairs.lint import lint
from overrefusal_po.pairs.make import written_pairs
from overrefusal_po.pairs.row_checks import SideVerdicts, side_verdicts
from overrefusal_po.prompts import read_pairs, read_source
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import PairsData
from overrefusal_po.recipe.shard import Shard, in_shard
from overrefusal_po.records import LabelledResponse, PreferencePair, Prompt
from overrefusal_po.run.judged import shared_judge
from overrefusal_po.train.data import Prepared, Source, draw_order
from overrefusal_po.train.lengths import group_by_length
from overrefusal_po.train.opening import equal_places
from overrefusal_po.train.rows import (
    check_sides,
    fit_pairs,
    longest_rows,
    pair_rows,
    pair_table,
    side_lengths,
    with_kinds,
)
from overrefusal_po.train.settings import full_settings
from overrefusal_po.train.sharded import ready_policy
from overrefusal_po.train.student import (
    StudentAnswer,
    check_unwritten,
    own_containment,
    starter_harmful,
    written_tokens,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import Trainer

logger = logging.getLogger(__name__)
T = TypeVar("T", bound="Trainer")
MakeRows = Callable[
    [Sequence[PreferencePair], "pa.Table", Mapping[str, Any], "int | None"], Prepared
]


def read(recipe: TrainRecipe) -> Source:
    """The pairs of a file, a source or the starter set, and the prompts the student answers: those
    of its shard."""
    data = pairs_section(recipe)
    asks = data.pairs == "starter" and data.containment == "student"
    asked = starter_harmful() if asks else []
    if data.shard is not None:
        asked = [prompt for prompt in asked if Shard.of(data.shard).has(prompt.id)]
    return Source(in_shard(read_any_pairs(data.pairs), data.shard), asked=asked)


def pairs_section(recipe: TrainRecipe) -> PairsData:
    """The recipe's data section."""
    data = recipe.typed_data
    assert isinstance(data, PairsData), "the table of methods names another section"
    return data


def read_any_pairs(spec: str | Mapping[str, Any]) -> list[PreferencePair]:
    """The pairs that the starter set carries, of a file, or of a source."""
    if spec == "starter":
        return written_pairs(read_source("starter", "train"))
    return read_pairs(spec, "train")


def pair_side_rows(
    pairs: Sequence[PreferencePair],
    table: pa.Table,
    settings: Mapping[str, Any],
    opening: int | None,
) -> Prepared:
    """A row a pair: what DPO and ORPO read."""
    return pair_rows(pairs, table, opening)


def prepare(
    recipe: TrainRecipe,
    source: Source,
    template: ChatTemplate,
    said: Sequence[StudentAnswer] | None = None,
    make_rows: MakeRows = pair_side_rows,
) -> Prepared:
    """The pairs to train on: tokenised, those that fit, linted, drawn, in training order.

    Raises ValueError for equal sides, rows that are too long, the linter's errors, benchmark
    prompts, and pairs that hold no harmful prompt.
    """
    data, settings = pairs_section(recipe), full_settings(recipe)
    pending = bool(source.asked) and said is None
    pairs = [p for p in source.records if isinstance(p, PreferencePair)]
    pairs += own_containment(said or ())
    judge = shared_judge(recipe.judge)
    table, read = tokenised_and_read(pairs, template, data.opening, judge)
    fitting = fit_pairs(pairs, table, max_length=settings["max_length"], too_long=data.too_long)
    places = fitting.kept
    kept = [pairs[at] for at in places]
    found = checked_pairs(kept, [read[at] for at in places], data, judge, anchored=pending)
    used = [places[at] for at in used_places(kept, data.max_pairs, recipe.seed)]
    used = used if pending else in_share(used, pairs, data.harmful_share)
    chosen = [pairs[at] for at in used]
    rows = table.take(used)
    if pending:
        check_student_rows(source.asked, template, data, recipe)
        prepared = Prepared(rows=None, lengths=side_lengths(rows))
    else:
        check_anchor(chosen, data)
        warn_of_no_containment(chosen, data)
        rows = with_kinds(rows, chosen) if data.weights else rows
        prepared = make_rows(chosen, rows, settings, data.opening)
        prepared = prepared._replace(alike=alike_pairs(chosen, rows, data.opening))
    counts = ", ".join(f"{check} {count}" for check, count in found.counts().items())
    line = f"{len(kept)} pairs, longest row {fitting.longest} tokens{fitting}"
    if data.harmful_share is not None and not pending:
        line += f"; {len(used)} used for harmful_share"
    line += f"; {len(found.waived)} findings waived" if found.waived else ""
    return prepared._replace(
        findings=found,
        waived=found.waived,
        left_out=fitting.note,
        line=line + (f"; linter: {counts}" if counts else ""),
    )


def alike_pairs(
    pairs: Sequence[PreferencePair], table: pa.Table, opening: int | None
) -> dict[str, object]:
    """How many pairs begin with the same tokens on both sides, and their ids; empty if none do."""
    ids = [pairs[at].id for at in equal_places(table)]
    return {"left_out": len(ids), "of": len(pairs), "opening": opening, "ids": ids} if ids else {}


class Read(NamedTuple):
    """What a pair's texts say: the judge's verdicts on its sides, and its prompt's benchmarks."""

    verdicts: SideVerdicts
    hits: list[Hit]


def tokenised_and_read(
    pairs: Sequence[PreferencePair], template: ChatTemplate, opening: int | None, judge: Judge
) -> tuple[pa.Table, list[Read]]:
    """The token ids of pairs, and what their texts say.

    The tokenizer does not hold Python's lock, so it works while the judge and the benchmark
    firewall read.
    """
    check_sides(pairs)
    with ThreadPoolExecutor(max_workers=1) as pool:
        tokenised = pool.submit(pair_table, pairs, template, opening)
        verdicts = side_verdicts(pairs, judge)
        hits: dict[str, dict[str, Hit]] = {}  # by prompt and benchmark
        for hit in contamination([pair.prompt for pair in pairs]):
            hits.setdefault(hit.id, {})[hit.benchmark] = hit
        read = [
            Read(both, list(hits.get(pair.prompt.id, {}).values()))
            for pair, both in zip(pairs, verdicts, strict=True)
        ]
        return tokenised.result(), read


def used_places(pairs: Sequence[PreferencePair], limit: int | None, seed: int) -> list[int]:
    """Places of at most `limit` pairs of each rule (None: all), in drawn order."""
    order = np.argsort(draw_order(pairs, seed), kind="stable").tolist()
    taken: dict[str | None, int] = {}
    used = []
    for at in order:
        rule = pairs[at].rule
        taken[rule] = taken.get(rule, 0) + 1
        if limit is None or taken[rule] <= limit:
            used.append(at)
    return used


def in_share(
    places: Sequence[int],
    records: Sequence[PreferencePair] | Sequence[LabelledResponse],
    share: float | None,
) -> list[int]:
    """The places of records in drawn order, without the last ones of the side that has too many
    for `share` of them to be on harmful prompts (None: all).

    Raises ValueError if one side has none.
    """
    if share is None:
        return list(places)
    harmful = [at for at in places if records[at].prompt.kind == "harmful"]
    harmless = [at for at in places if records[at].prompt.kind != "harmful"]
    if not harmful or not harmless:
        raise ValueError(
            f"data.harmful_share is {share:g}, but {len(harmful)} of the {len(places)} pairs are "
            "on harmful prompts. Give pairs of both sides, or take harmful_share out."
        )
    most = most_of_each(len(harmful), len(harmless), share)
    stay = {*harmful[: most[0]], *harmless[: most[1]]}
    return [at for at in places if at in stay]


def checked_pairs(
    pairs: Sequence[PreferencePair],
    read: Sequence[Read],
    data: PairsData,
    judge: Judge,
    *,
    anchored: bool,
) -> Lint:
    """What the linter finds. Raises ValueError for its errors, benchmark prompts, and no anchor.

    `anchored`: containment pairs are still to be made. `fit_pairs` counts tokens.
    """
    if not anchored:
        check_anchor(pairs, data)
    verdicts = [row.verdicts for row in read]
    hits = [
        benchmark_finding(hit, pair.id, pair.origin)
        for pair, row in zip(pairs, read, strict=True)
        for hit in row.hits
    ]
    found = lint(pairs, judge, waive=data.waive, verdicts=verdicts, contaminated=hits)
    if found.errors:
        raise ValueError(faults_words(found.errors, "pairs", judge.name))
    return found


def check_anchor(
    pairs: Sequence[PreferencePair] | Sequence[LabelledResponse], data: PairsData
) -> None:
    """Raises ValueError if no pair is about a harmful prompt, unless the recipe allows it."""
    if not (data.allow_no_anchor or any(p.prompt.kind == "harmful" for p in pairs)):
        raise ValueError(
            f"None of the {len(pairs)} pairs is about a harmful prompt, so nothing would hold the "
            "model where it is safe. Add containment pairs (curate makes them; data.containment: "
            "student with starter pairs), or set data.allow_no_anchor: true if you know what you "
            "do."
        )


def warn_of_no_containment(pairs: Sequence[PreferencePair], data: PairsData) -> None:
    """Warns if the user's own pairs, with a rule or imported, hold none on a harmful prompt."""
    if data.pairs != "starter" and not any(p.prompt.kind == "harmful" for p in pairs):
        logger.warning(
            "%s holds no containment pairs: nothing in it keeps harmful prompts refused",
            data.pairs,
        )


def check_student_rows(
    asked: Sequence[Prompt], template: ChatTemplate, data: PairsData, recipe: TrainRecipe
) -> None:
    """Raises ValueError if pairs that the student has yet to write may be too long."""
    if data.too_long == "drop":
        return
    new = recipe.generation.max_new_tokens
    lengths = unwritten_lengths(asked, template, new, opening=data.opening)
    limit: int | None = full_settings(recipe)["max_length"]
    check_unwritten(
        list(zip(lengths, [p.id for p in asked], strict=True)), limit=limit, new_tokens=new
    )


def unwritten_lengths(
    prompts: Sequence[Prompt], template: ChatTemplate, new_tokens: int, *, opening: int | None
) -> list[int]:
    """The tokens that a pair of each prompt may take once the student has written one side."""

    def longest(side: str | None, cut: int | None) -> list[int]:
        pairs = [
            PreferencePair(id=p.id, prompt=p, chosen=side or str(p.reference), rejected="x")
            for p in prompts
        ]
        found: list[int] = longest_rows(side_lengths(pair_table(pairs, template, cut))).tolist()
        return found

    known, stand_in, asked = longest(None, opening), longest("y", None), longest("y", 0)
    found = []
    for prompt, own, short, alone in zip(prompts, known, stand_in, asked, strict=True):
        whole = short + written_tokens(prompt, template, new_tokens)
        found.append(max(own, min(whole, alone + (opening or whole))))
    return found


def finished(trainer: T) -> T:
    """A preference trainer with what is ours around its steps (the shared prefix comes before)."""
    ready_policy(trainer)
    group_by_length(trainer)  # by what a step computes, which a shared prefix changes
    return trainer
