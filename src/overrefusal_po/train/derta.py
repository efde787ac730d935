"""DeRTa (arXiv 2407.09121, section 3): an SFT stage after which a model can refuse at any position.

    trainer = derta_trainer("my/model", triples, helpful=prompts, args={"output_dir": "out"})

`derta_rows` makes the rows and labels. Triples are loaded, or the student itself writes their
harmful responses (`asked`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overrefusal_po.identity import unique_prompts
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.prompts import read_source, read_triples
from overrefusal_po.recipe.harmful_rows import DERTA_ROWS, HarmfulRow
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import DertaData, TooLong
from overrefusal_po.records import Prompt, Triple
from overrefusal_po.train.asked import asked_prompts, asked_words, check_asked_rows, stand_ins
from overrefusal_po.train.data import (
    Prepared,
    Source,
    as_column,
    check_firewall,
    drawn,
    used_records,
)
from overrefusal_po.train.derta_rows import (
    DertaCollator,
    PrefixUnit,
    Row,
    check_openers,
    derta_rows,
    prompt_turns,
    refusal_token,
    sft_row,
    triple_sides,
    turn_length,
)
from overrefusal_po.train.derta_tree import TreeCollator, tree_or_rows
from overrefusal_po.train.first_rows import check_given_rows
from overrefusal_po.train.given import evaluation_rows, given_prompts, given_triples
from overrefusal_po.train.lengths import Fitting, fit, group_by_length, warn_of_left_out
from overrefusal_po.train.policy import checked_model, tokenizer_and_template
from overrefusal_po.train.rows_trainer import rows_trainer
from overrefusal_po.train.settings import full_settings, trainer_config
from overrefusal_po.train.student import StudentAnswer, own_triples

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from overrefusal_po.train.given import RowsGiven


def derta_trainer(
    model: PreTrainedModel | str | Path,
    triples: Sequence[Triple] | RowsGiven | Prepared,
    *,
    eval_dataset: object = None,
    args: SFTConfig | Mapping[str, Any] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    helpful: Sequence[Prompt] | RowsGiven = (),
    refusal_opener: str = "Sorry",
    rows: Sequence[HarmfulRow] = DERTA_ROWS,
    prefix_unit: PrefixUnit = "words",
    rto_dropout: float = 0.95,
    too_long: TooLong = "error",
    tree: bool = False,
) -> SFTTrainer:
    """TRL's `SFTTrainer` on DeRTa rows, mixed with helpful rows.

    Args as for `dpo_trainer`; `args` is `trl.SFTConfig` or a mapping of its keys, and further:
        triples, eval_dataset: each triple becomes two `rows`; also rows with prompt, safe_response
            and harmful_response (a list, a `datasets.Dataset`, a path).
        helpful: prompts with a reference response, learned by ordinary SFT.
        refusal_opener: its first token is the label of RTO; safe responses must begin with it.
        rows: two of "safe", "prefix" and "rto"; others than DeRTa's are its ablation.
        prefix_unit: "words" as in the released code, "tokens" as in the paper.
        rto_dropout: share of RTO positions without loss, drawn again at each pass (release: 0.95
            full, 0 LoRA).
        tree: run both rows of a question as one (see `derta_tree`); a batch then counts questions.

    Raises ValueError for no triples, a safe response that does not begin with the opener, and an
    opener that common answers begin with too.
    """
    triples = given_triples(triples)
    model = checked_model(model, processing_class or template)
    mixed = given_prompts(helpful, "helpful")
    assert not isinstance(mixed, Prepared), "helpful prompts are rows"
    from trl import SFTConfig

    config = trainer_config(SFTConfig, args)
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    prepare_given = partial(
        prepared_triples,
        template=template,
        max_length=config.max_length,
        refusal_opener=refusal_opener,
        rows=rows,
        prefix_unit=prefix_unit,
        too_long=too_long,
        seed=config.seed,
        tree=tree,
    )
    prepared = prepare_given(triples, "triples", helpful=mixed)
    evaluated = evaluation_rows(eval_dataset, prepare_given)
    check_given_rows(prepared, template)
    make = TreeCollator if tree else DertaCollator
    collator = make(pad_token_id=tokenizer.pad_token_id, rto_dropout=rto_dropout, seed=config.seed)
    trainer = rows_trainer(
        model, prepared, config, tokenizer, collator, ref_model, peft_config, callbacks, evaluated
    )
    return finished(trainer, collator)


def finished(trainer: SFTTrainer, collator: DertaCollator) -> SFTTrainer:
    """The trainer with trees run as such, and batches of rows of similar length."""
    from overrefusal_po.train.trl_private import shared_prefix_on

    if isinstance(collator, TreeCollator):
        collator.paired = shared_prefix_on(trainer)
    group_by_length(trainer)
    return trainer


def prepared_triples(
    given: object,
    name: str,
    *,
    template: ChatTemplate,
    helpful: Sequence[Prompt] = (),
    max_length: int | None,
    refusal_opener: str,
    rows: Sequence[HarmfulRow] = DERTA_ROWS,
    prefix_unit: PrefixUnit,
    too_long: TooLong,
    seed: int,
    tree: bool,
) -> Prepared:
    """Triples and helpful prompts as rows, in their order; a `Prepared` unchanged. It raises what
    `derta_trainer` raises, and names what was given."""
    triples = given_triples(given, name)
    if isinstance(triples, Prepared):
        return triples
    if not triples:
        raise ValueError(
            "DeRTa needs at least one (prompt, safe response, harmful response) triple; got none."
        )
    check_openers([(t.prompt.label, t.safe_response) for t in triples], refusal_opener)
    token = refusal_token(template, refusal_opener)
    sides = triple_sides(triples, template)
    lengths = [both.longest for both in sides]
    used = used_records(triples, lengths, max_length=max_length, too_long=too_long)
    warn_of_left_out(used.fitting.note)
    kept = used.taken(triples)
    asked = derta_rows(
        kept, used.taken(sides), token, seed=seed, prefix_unit=prefix_unit, rows=rows
    )
    answered, fitting = helpful_rows(helpful, template, max_length=max_length, too_long=too_long)
    return Prepared(
        tree_or_rows([*asked, *answered], tree),
        kept,
        helpful=[helpful[at] for at in fitting.warned()],
        lengths=as_column(used.taken(lengths)),
    )


def helpful_rows(
    prompts: Sequence[Prompt],
    template: ChatTemplate,
    *,
    max_length: int | None,
    too_long: TooLong,
) -> tuple[list[Row], Fitting]:
    """The rows of the helpful prompts that fit, and which those are."""
    turns = prompt_turns(prompts, template)
    lengths = [turn_length(turn) for turn in turns]
    fitting = fit(prompts, lengths, max_length=max_length, too_long=too_long)
    return [sft_row(prompts[at], turns[at]) for at in fitting.kept], fitting


def read(recipe: TrainRecipe) -> Source:
    """Loaded triples, the prompts whose harmful responses the student writes, and helpful prompts.

    A helpful prompt of several sources comes once.
    """
    data = derta_section(recipe)
    helpful = unique_prompts(
        p
        for spec in data.helpful_from
        for p in read_source(spec, "train")
        if p.kind in data.helpful and p.reference
    )
    triples: list[Triple] = []
    if data.triples not in ("starter", None):
        opener, lead = data.refusal_opener, data.safe_lead
        triples = read_triples(data.triples, "train", opener=opener, lead=lead)
    return Source(triples, helpful=list(helpful), asked=asked_prompts(data))


def derta_section(recipe: TrainRecipe) -> DertaData:
    """The recipe's data section."""
    data = recipe.typed_data
    assert isinstance(data, DertaData), "the table of methods names another section"
    return data


def prepare(
    recipe: TrainRecipe,
    source: Source,
    template: ChatTemplate,
    said: Sequence[StudentAnswer] | None = None,
) -> Prepared:
    """The triples and helpful prompts to train on, those that fit, drawn, in training order.

    Raises ValueError for an opener that common answers begin with, safe responses without it, rows
    that are too long, benchmark prompts, and a student that refuses everything.
    """
    data, settings = derta_section(recipe), full_settings(recipe)
    limit: int | None = settings["max_length"]
    if source.asked and said is None:
        return checked_before_answers(recipe, source, template, limit)
    known = [t for t in source.records if isinstance(t, Triple)]
    known += own_triples(said, loaded=len(known)) if said is not None else []
    check_openers([(t.prompt.label, t.safe_response) for t in known], data.refusal_opener)
    token = refusal_token(template, data.refusal_opener)
    sides = triple_sides(known, template)
    lengths = [both.longest for both in sides]
    used = used_records(
        known,
        lengths,
        max_length=limit,
        too_long=data.too_long,
        limit=data.max_triples,
        seed=recipe.seed,
    )
    kept = used.taken(known)
    rows = derta_rows(
        kept,
        used.taken(sides),
        token,
        seed=settings["seed"],
        prefix_unit=data.prefix_unit,
        rows=data.rows,
    )
    answered, fit_helpful, helpful = drawn_helpful(recipe, source.helpful, template, limit)
    waived = check_firewall([*(t.prompt for t in kept), *helpful], data.waive)
    return Prepared(
        tree_or_rows([*rows, *answered], recipe.speed.tree),
        kept,
        helpful=helpful,
        lengths=as_column(used.taken(lengths)),
        line=data_line(data, [t.prompt for t in kept], len(helpful))
        + f"{used.fitting}{fit_helpful}",
        left_out={**fit_helpful.note, **used.fitting.note},
        waived=waived,
    )


def data_line(data: DertaData, harmful: Sequence[Prompt], helpful: int) -> str:
    """A line of what is trained on. `harmful`: the prompt of each triple."""
    opener, different = repr(data.refusal_opener), len({prompt.id for prompt in harmful})
    answers = "" if different == len(harmful) else f"{len(harmful)} answers to "
    rows = f"{answers}{different} harmful prompts, two rows of each ({', '.join(data.rows)})"
    return f"{rows}, refusal opener {opener}, {helpful} helpful prompts"


def drawn_helpful(
    recipe: TrainRecipe, prompts: Sequence[Prompt], template: ChatTemplate, limit: int | None
) -> tuple[list[Row], Fitting, list[Prompt]]:
    """(rows, which prompts fit, the prompts) of at most `max_helpful` helpful prompts a kind."""
    data = derta_section(recipe)
    rows, fitting = helpful_rows(prompts, template, max_length=limit, too_long=data.too_long)
    by_id = {row.row_id: row for row in rows}
    kept = [prompts[at] for at in fitting.kept]
    helpful = [
        prompt
        for kind in data.helpful
        for prompt in drawn([p for p in kept if p.kind == kind], data.max_helpful, recipe.seed)
    ]
    return [by_id[prompt.id] for prompt in helpful], fitting, helpful


def checked_before_answers(
    recipe: TrainRecipe, source: Source, template: ChatTemplate, limit: int | None
) -> Prepared:
    """What can be said before the student has written its harmful responses; without rows."""
    data, new = derta_section(recipe), recipe.generation.max_new_tokens
    refusal_token(template, data.refusal_opener)
    known = [t for t in source.records if isinstance(t, Triple)]
    unsaid = stand_ins(source.asked)
    check_openers(
        [(t.prompt.label, t.safe_response) for t in [*known, *unsaid]], data.refusal_opener
    )
    lengths = [both.longest for both in triple_sides(known, template)]
    fit_known = fit(known, lengths, max_length=limit, too_long=data.too_long)
    longest = None if data.too_long == "drop" else limit  # what is too long is then left out
    check_asked_rows(unsaid, template, limit=longest, new_tokens=new)
    _, fitting, helpful = drawn_helpful(recipe, source.helpful, template, limit)
    harmful = [*(t.prompt for t in known), *source.asked]
    check_firewall([*harmful, *helpful], data.waive)
    line = data_line(data, harmful[: data.max_triples], len(helpful)) + f"{fit_known}{fitting}"
    return Prepared(rows=None, line=f"{line}; {asked_words(source.asked)}")


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: SFTConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> SFTTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    return derta_trainer(
        model,
        prepared,
        args=args,
        template=template,
        peft_config=peft_config,
        rto_dropout=derta_section(recipe).rto_dropout,
        tree=recipe.speed.tree,
    )
