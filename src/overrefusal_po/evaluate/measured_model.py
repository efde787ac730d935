"""The model that an evaluation measures: its responses, its perplexity and its first tokens.

model = MeasuredModel(recipe, template)
model.will_ask_first_tokens(prompts)
completions = model.completions(run, prompts)
model.perplexity(run, prompts)        # None if the recipe leaves it out
model.first_token(run, outcomes, judge)       # the same
model.release()
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import cast

from overrefusal_po.engines import Engine
from overrefusal_po.engines._first_states import FirstStates
from overrefusal_po.engines._first_token import opener_scores, other_decision
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.capability import asked_references, check_lm_eval, perplexity
from overrefusal_po.evaluate.entries import PerplexityEntry
from overrefusal_po.evaluate.first_token import (
    KINDS,
    FirstTokenEntry,
    answered_outcomes,
    first_token_entry,
    wants_first_token,
)
from overrefusal_po.evaluate.first_token_rows import (
    FILE,
    OTHERS_FILE,
    TEXTS_FILE,
    Decided,
    FirstToken,
    FirstTokens,
    decided_row,
    drop_first_tokens,
    drop_unmatched_texts,
    opens,
)
from overrefusal_po.evaluate.speed import Clock, answer_speed
from overrefusal_po.judges import Judge, refusal_verdict
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.remedy_facts import remedy_words
from overrefusal_po.plugins import split_spec
from overrefusal_po.prompts import fixed_subset
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import (
    Completion,
    Outcome,
    Prompt,
    read_state,
    write_atomic,
    write_jsonl,
)
from overrefusal_po.run.appender import Appender
from overrefusal_po.run.complete import complete, engine_for, in_process, recipe_sampling
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import is_slow, release_judge, resumable_verdicts
from overrefusal_po.run.openers import every_opener, refusal_openers, thinks
from overrefusal_po.run.remedies import put_on, remedy_form
from overrefusal_po.run.unscored import check_scored

logger = logging.getLogger(__name__)

COMPLETIONS = "completions.jsonl"

NOT_MEASURED = "The first token was not measured"
"""The beginning of the note that says why."""


def wants_perplexity(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> bool:
    """Whether perplexity is measured. If the recipe leaves that open: if it can be. A remedy with
    two streams has none (`remedy_checks`).

    Attacked prompts do not count. Raises ValueError if the recipe asks for it and it cannot be.
    """
    asked = recipe.capability.perplexity
    if asked is False:
        return False
    if asked and not in_process(recipe.engine):
        raise ValueError(
            "capability.perplexity needs the model in process, and the engine is a server. Measure "
            "it in a recipe of its own with engine: transformers, or leave the key out."
        )
    known = bool(asked_references(prompts))
    if asked and not known:
        raise ValueError(
            "capability.perplexity needs benign or general prompts with a reference answer; none "
            f"of the {len(prompts)} prompts is one. Name a set that has references (starter), or "
            "leave the key out."
        )
    return known and in_process(recipe.engine) and not in_two_streams(recipe)


def in_two_streams(recipe: EvaluateRecipe) -> bool:
    """Whether the model decodes in two streams: its logits are no probabilities of a text."""
    return remedy_form(recipe.model) == "streams"


def perplexity_notes(recipe: EvaluateRecipe) -> list[str]:
    """Why perplexity is not measured, for a reader of the report; empty if it is, or if the recipe
    leaves it out."""
    if recipe.capability.perplexity is False or not in_two_streams(recipe):
        return []
    return ["Perplexity was not measured: the remedy decodes in two streams."]


def check_task_model(recipe: EvaluateRecipe) -> None:
    """Raises ValueError if capability tasks are asked for, and cannot be measured of this model."""
    if not recipe.capability.tasks:
        return
    if not in_process(recipe.engine):
        raise ValueError(
            "capability.tasks need the model in process, and the engine is "
            f"{split_spec(recipe.engine, 'engines')[0]!r}. Measure them in a recipe of their own "
            "with engine: transformers."
        )
    if remedy := recipe.model.get("remedy"):
        raise ValueError(
            "capability.tasks: the lm-eval harness does not say where a prompt ends, and "
            f"model.remedy ({remedy}) begins there. Take the tasks out. If the remedy became "
            "weights, measure the folder model/ beside it, without model.remedy."
        )
    check_lm_eval()


def measured_form(section: Mapping[str, object]) -> str:
    """The form of the measured weights, and the remedy on them: a quantised form, the merged one
    of the same training, and one with a remedy are different models."""
    words = f"weights in {section.get('dtype') or 'the dtype that fits the hardware'}"
    for bits in ("4bit", "8bit"):
        if section.get(f"load_in_{bits}"):
            words = f"weights in {bits}"
    remedy = put_on(section)
    return words if remedy is None else f"{words}, with the remedy {remedy_words(remedy)}"


class MeasuredModel:
    """The model of an evaluation. Its weights are loaded when they are first needed."""

    def __init__(self, recipe: EvaluateRecipe, template: ChatTemplate | None) -> None:
        self.recipe, self.template = recipe, template
        self.first_states = FirstStates()
        self.answered: list[Prompt] = []
        """The prompts of completions.jsonl that have a response."""

    @cached_property
    def engine(self) -> Engine:
        """The engine, with weights if it runs in process."""
        recipe = self.recipe
        name = str(recipe.model["model_name_or_path"])
        found = engine_for(
            recipe.model,
            self.template,
            recipe.generation,
            name,
            engine=recipe.engine,
            chat=recipe.chat,
        )
        if isinstance(found, TransformersEngine):
            found.first_states = self.first_states
        return found

    def release(self) -> None:
        """Frees the weights: a judge may need the memory. They are loaded again if needed."""
        if self.__dict__.pop("engine", None) is not None:
            gc.collect()  # a model and its remedy refer to each other

    def will_ask_first_tokens(self, prompts: Sequence[Prompt]) -> None:
        """Lets `completions` keep what `first_token` needs of these prompts, so that they need not
        be read twice."""
        plain = [p for p in prompts if p.attack is None]
        if wants_first_token(self.recipe, plain):
            self.first_states.wanted |= {p.id for p in plain if p.kind in KINDS}

    def completions(
        self, run: Run, prompts: Sequence[Prompt], file: str = COMPLETIONS
    ) -> list[Completion]:
        """A completion for each prompt, kept in this file of the run folder."""
        recipe, clock = self.recipe, Clock(lambda: self.engine)
        found = complete(
            run.path / file,
            prompts,
            recipe_sampling(recipe.generation, recipe.seed),
            clock.engine,
            f"{recipe.run_name}: answering {len(prompts)} prompts",
        )
        if file == COMPLETIONS:
            if in_process(recipe.engine) and self.template is not None:
                run.facts |= answer_speed(clock, found, self.template.tokenizer)
            self.answered = [p for p, c in zip(prompts, found, strict=True) if c.error is None]
        return found

    def perplexity(self, run: Run, prompts: Sequence[Prompt]) -> PerplexityEntry | None:
        """Perplexity on the references of `prompts`, kept in the run folder; None if it is not
        wanted."""
        if not wants_perplexity(self.recipe, prompts):
            return None
        file = run.path / "perplexity.json"
        if not file.is_file():
            limit = self.recipe.capability.max_answers_per_kind
            read = fixed_subset(asked_references(prompts), limit)
            logger.info(
                "%s: perplexity on %d reference answers (capability.perplexity: false leaves it "
                "out)",
                self.recipe.run_name,
                len(read),
            )
            engine, template = self.engine, self.template
            assert isinstance(engine, TransformersEngine) and template is not None
            found = perplexity(engine.model, template, read, seed=self.recipe.seed)
            write_atomic(file, json.dumps(found.as_dict(), indent=1))
        known = read_state(file, PerplexityEntry.__required_keys__)
        return cast(PerplexityEntry, known)

    def first_token(
        self, run: Run, outcomes: Sequence[Outcome], judge: Judge
    ) -> tuple[FirstTokenEntry | None, list[str]]:
        """How far the first token separates harmful from benign prompts, and notes for a reader.

        None if it is not wanted, or if it says nothing: a note then says why. `outcomes` are those
        of the prompts as they were asked. `judge` reads what the model says after the other
        decision, if the recipe asks for texts.
        """
        own = answered_outcomes(outcomes)
        prompts = [o.prompt for o in own]
        if not wants_first_token(self.recipe, [o.prompt for o in outcomes]):
            return None, []
        # an earlier try may have had other verdicts
        (run.path / TEXTS_FILE).unlink(missing_ok=True)
        if len({prompt.kind for prompt in prompts}) < 2:
            return no_first_token(run, "a kind of prompts has no response")
        if thinks(outcomes):
            return no_first_token(run, "the model thinks before it answers")
        assert self.template is not None, "an engine in process has one"
        texts = self.recipe.first_token == "texts"
        openers = (every_opener if texts else refusal_openers)(self.template, outcomes)
        if not openers.ids:
            return no_first_token(run, "no token opens refusals more often than answers")
        rows = self.first_tokens(run, prompts, openers.ids)
        found = FirstTokens({key: row.log_odds for key, row in rows.items()})
        if texts:
            began = time.monotonic()
            found = found._replace(decided=self.decided(run, own, rows, judge))
            run.facts["first_token_texts_seconds"] = round(time.monotonic() - began, 3)
        return first_token_entry(own, found, openers), []

    def first_tokens(
        self, run: Run, prompts: Sequence[Prompt], openers: tuple[int, ...]
    ) -> dict[str, FirstToken]:
        """{prompt id: how near its response is to opening with one of `openers`}, kept row by row
        in the run folder. Rows for other openers, from another verdict of the judge, are made
        again.
        """
        with Appender(run.path / FILE, FirstToken) as file:
            known = [row for row in file.rows if row.openers == openers and row.margin is not None]
            found = {row.prompt_id: row for row in known}
            drop_unmatched_texts(run.path, found)
            if any(prompt.id not in found for prompt in prompts):
                logger.info(
                    "%s: first tokens of %d prompts (first_token: false leaves them out)",
                    self.recipe.run_name,
                    len(prompts),
                )
                engine = self.engine
                assert isinstance(engine, TransformersEngine)
                scores = opener_scores(
                    engine, prompts, openers, had=frozenset(found), answered=self.answered
                )
                for prompt, value, margin in scores:
                    row = FirstToken(
                        prompt_id=prompt.id, log_odds=value, openers=openers, margin=margin
                    )
                    file.add(row)
                    found[prompt.id] = row
        self.first_states.clear()
        write_jsonl(run.path / FILE, [found[prompt.id] for prompt in prompts])
        return {prompt.id: found[prompt.id] for prompt in prompts}

    def decided(
        self, run: Run, own: Sequence[Outcome], rows: Mapping[str, FirstToken], judge: Judge
    ) -> dict[str, Decided]:
        """{prompt id: what becomes of it with both decisions at the first token}, kept in the run
        folder. `own` is what the model says by itself, `rows` how it opens."""
        prompts = [outcome.prompt for outcome in own]
        said = self.other_completions(run, prompts, rows)
        if is_slow(judge):
            self.release()
        verdicts = resumable_verdicts(run.path / "verdicts.jsonl", judge, prompts, said)
        release_judge(judge)
        check_scored(
            [refusal_verdict(verdict) for verdict in verdicts],
            self.recipe.unscored_max,
            run.path,
            what=f"{self.recipe.run_name}, what it says after the other first token",
        )
        found = [
            decided_row(outcome, Outcome(prompt=outcome.prompt, completion=c, verdict=v), rows)
            for outcome, c, v in zip(own, said, verdicts, strict=True)
        ]
        write_jsonl(run.path / TEXTS_FILE, found)
        return {row.prompt_id: row for row in found}

    def other_completions(
        self, run: Run, prompts: Sequence[Prompt], rows: Mapping[str, FirstToken]
    ) -> list[Completion]:
        """What the model says to each prompt after the other decision, kept in the run folder."""
        recipe, openers = self.recipe, rows[prompts[0].id].openers
        found: dict[str, Completion] = {}
        for side, word in ((True, "without"), (False, "with")):
            asked = [prompt for prompt in prompts if opens(rows[prompt.id]) is side]
            given = complete(
                run.path / OTHERS_FILE,
                asked,
                recipe_sampling(recipe.generation, recipe.seed),
                partial(self.other_engine, openers, opens=side),
                f"{recipe.run_name}: answering {len(asked)} prompts {word} the openers of refusals",
            )
            found |= {completion.prompt_id: completion for completion in given}
        return [found[prompt.id] for prompt in prompts]

    def other_engine(self, openers: Sequence[int], *, opens: bool) -> Engine:
        """The engine for prompts whose responses do or do not open with one of `openers`: with it
        they do the other thing."""
        engine = self.engine
        assert isinstance(engine, TransformersEngine)
        return other_decision(engine, openers, opens=opens)


def no_first_token(run: Run, why: str) -> tuple[None, list[str]]:
    """That the first token says nothing, with the note for a reader. What an earlier try noted of
    it is deleted."""
    drop_first_tokens(run.path)
    return None, [f"{NOT_MEASURED}: {why}."]
