"""Attacks that search with models (PAIR): what they ask, kept in the run folder, and the forms that
they find.

    found = run_searches(recipe, run, MeasuredModel(recipe, template), prompts)
    found.prompts, found.completions      # attacked forms, and the responses to them

| file | holds |
|---|---|
| pair-attacker.jsonl, pair-judge.jsonl | the helpers' replies (failures and ledger beside them) |
| pair-target.jsonl | the measured model's responses to all forms that were tried |
| pair-turns.jsonl | what was tried, a row for each turn; made anew from the files above |

A request's id is the hash of all that it says, with its stream and round. So a run that was killed
plays again from the files, and asks only what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from overrefusal_po.attacks import Helper
from overrefusal_po.engines import Engine
from overrefusal_po.evaluate.measured_model import MeasuredModel
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.frame import thinking_end
from overrefusal_po.plugins import FoundSearch, check_engine, find_search
from overrefusal_po.prompts import fixed_subset
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.records import Completion, Prompt, Sampling, content_id, write_jsonl
from overrefusal_po.run.complete import (
    complete,
    continues_prefix,
    engine_for,
    in_process,
    load_template,
)
from overrefusal_po.run.folder import Run
from overrefusal_po.run.shards import shard_prompts

logger = logging.getLogger(__name__)


class Searched(NamedTuple):
    """The forms that all searches of a recipe found, and the measured model's responses."""

    prompts: list[Prompt]
    completions: list[Completion]
    notes: list[str]


def recipe_searches(recipe: EvaluateRecipe) -> list[FoundSearch]:
    """The searches among a recipe's attacks. ValueError if two have one name: they would share
    their files and their row in the report."""
    found = [search for spec in recipe.data.attacks if (search := find_search(spec)) is not None]
    seen: set[str] = set()
    for search in found:
        if search.name in seen:
            raise ValueError(
                f"data.attacks: {search.name!r} is there twice. Measure the second one in a recipe "
                "of its own."
            )
        seen.add(search.name)
    return found


def searched_questions(search: FoundSearch, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The harmful prompts that a search attacks. ValueError if there are none."""
    harmful = [p for p in prompts if p.kind == "harmful" and p.attack is None]
    if not harmful:
        raise ValueError(
            f"data.attacks: {search.name!r} attacks harmful prompts, and data.sets has none. Give "
            "sets with harmful prompts."
        )
    return fixed_subset(harmful, search.settings.max_questions)


def check_searches(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for what can be known before a model answers: no harmful prompt, or a
    helper without its key, its tokenizer, or an engine that continues a reply that is begun."""
    for search in recipe_searches(recipe):
        searched_questions(search, prompts)
        for role, helper in search.module.helpers(search.settings).items():
            with naming(search, role):
                check_engine(helper.engine)
                check_begun(helper)
                helper_template(helper)


def check_begun(helper: Helper) -> None:
    """Raises ValueError if a helper's replies are begun, and its servers may not continue them."""
    if helper.begins_replies and not continues_prefix(helper.engine):
        raise ValueError(
            "the program begins its replies, and its servers may not continue them. Set "
            "engine.continue_final_message: true if yours know it (vLLM, SGLang), or let the "
            "program begin none."
        )


def search_costs(recipe: EvaluateRecipe, prompts: Sequence[Prompt]) -> list[str]:
    """What each search asks at most, in words."""
    return [
        f"{search.name}: {search.module.cost(search.settings, len(questions))}"
        for search in recipe_searches(recipe)
        if (questions := searched_questions(search, prompts))
    ]


def run_searches(
    recipe: EvaluateRecipe, run: Run, model: MeasuredModel, prompts: Sequence[Prompt]
) -> Searched:
    """What all searches of a recipe find, one after the other. A shard searches for its own
    questions, of the same ones that a whole run attacks."""
    found = Searched([], [], [])
    for search in recipe_searches(recipe):
        questions = searched_questions(search, prompts)
        if recipe.shard is not None:
            questions = shard_prompts(questions, recipe.shard)
        if not questions:
            continue  # other shards have them
        logger.info("%s: %s", search.name, search.module.cost(search.settings, len(questions)))
        players = RunPlayers(recipe, run, model, search)
        made = search.module.search(search.settings, questions, players)
        write_jsonl(run.path / f"{search.name}-turns.jsonl", made.turns)
        run.facts[search.name] = made.facts
        found.prompts.extend(form for form, _ in made.forms)
        found.completions.extend(completion for _, completion in made.forms)
        found.notes.extend(f"{recipe.run_name}, {note}" for note in made.notes)
    return found


class RunPlayers:
    """The models of one search in an open run folder (`attacks.Players`)."""

    def __init__(
        self, recipe: EvaluateRecipe, run: Run, model: MeasuredModel, search: FoundSearch
    ) -> None:
        self.recipe, self.run, self.model, self.search = recipe, run, model, search
        self.helpers = search.module.helpers(search.settings)
        self.engines: dict[str, Engine] = {}
        """Loaded once for all roles that one model plays."""

    def replies(self, role: str, requests: Sequence[Prompt]) -> list[str | None]:
        """A helper's replies, without its thinking; None if there is none."""
        helper = self.helpers[role]
        sampling = Sampling(
            max_new_tokens=helper.max_new_tokens,
            temperature=helper.temperature,
            top_p=helper.top_p,
            seed=self.recipe.seed,
        )
        with naming(self.search, role):
            said = complete(
                self.run.path / f"{self.search.name}-{role}.jsonl",
                requests,
                sampling,
                lambda: self.engine(helper),
                f"{self.search.name}: {role}, {len(requests)} requests",
            )
        return [None if c.error is not None else c.text[thinking_end(c.text) :] for c in said]

    def responses(self, forms: Sequence[Prompt]) -> list[Completion]:
        """The measured model's responses, drawn as those to the plain prompts."""
        return self.model.completions(self.run, forms, f"{self.search.name}-target.jsonl")

    def engine(self, helper: Helper) -> Engine:
        """The engine of a helper."""
        key = content_id(helper.model, helper.engine, helper.batch_size)
        if key not in self.engines:
            self.engines[key] = engine_for(
                {"model_name_or_path": helper.model},
                helper_template(helper),
                Generation(batch_size=helper.batch_size),
                engine=helper.engine,
            )
        return self.engines[key]


def helper_template(helper: Helper) -> ChatTemplate | None:
    """The chat template of a helper in process; None for one over HTTP."""
    if not in_process(helper.engine):
        return None
    return load_template({"model_name_or_path": helper.model}, Chat())


@contextmanager
def naming(search: FoundSearch, role: str) -> Iterator[None]:
    """Within, a ValueError says which helper it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.attacks: {search.name}, {role}: {error}") from None
