"""The tamper test of an evaluation: how little undoes a model's safety (arXiv 2310.03693).

    found = tamper_test(recipe, run, outcomes)      # what the model itself says to the prompts
    found.attempts[0].lost                          # how far harmful_refused fell
    # tamper.jsonl grows by a line for each copy; a killed run goes on with the next one

Each copy is the recipe's model, loaded again, changed in memory, measured, and dropped. Neither its
weights nor what it says are saved.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product

from overrefusal_po.curate.rules import text_completion
from overrefusal_po.engines._first_token import without_openers
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.measured_model import MeasuredModel
from overrefusal_po.evaluate.robustness import (
    TAMPER_FILE,
    Attempt,
    Tampered,
    Tampering,
    measured_attempt,
)
from overrefusal_po.evaluate.stale import verdicts_id
from overrefusal_po.evaluate.tamper_rows import (
    answered,
    harmful_rows,
    ordinary_rows,
    refusal_count,
    refusal_rows,
    tamper_prompts,
)
from overrefusal_po.judges import Judge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.finite import NotFiniteError
from overrefusal_po.pairs.apart import check_apart, same_prompt_marks
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.prompts import fixed_subset
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.recipe.tamper import Defence, Tamper
from overrefusal_po.records import (
    Completion,
    Outcome,
    Prompt,
    Verdict,
    content_id,
    read_state,
    write_atomic,
)
from overrefusal_po.remedies.safelora import EqualWeights
from overrefusal_po.run.appender import Appender
from overrefusal_po.run.complete import (
    complete,
    drop_completions,
    load_template,
    recipe_sampling,
)
from overrefusal_po.run.folder import Run
from overrefusal_po.run.judged import paired_outcomes, release_judge, resumable_verdicts
from overrefusal_po.run.openers import every_opener, thinks
from overrefusal_po.train.obedient_rows import obedient_rows, obeying
from overrefusal_po.train.tamper_plans import Plan, attempt_words, failure_notes, known_attempt
from overrefusal_po.train.tampering import (
    Copy,
    Passes,
    ablated_copy,
    copy_outcomes,
    layer_at,
    safe_copy,
    trained_copy,
)

logger = logging.getLogger(__name__)

PLAIN_FILE, UNOPENED_FILE = "tamper_plain.jsonl", "tamper_unopened.jsonl"
OBEYING_FILE = "tamper_obeying.jsonl"
"""What the model itself says if it is asked in the words of tier 2."""
OPENERS_FILE = "tamper_openers.json"
"""The tokens that may not come first in tamper_unopened.jsonl."""

TRAINED = {1: Passes(5, 10, 5), 2: Passes(10, 10, 5), 3: Passes(1, 64, 8)}
"""How each tier trains, as in arXiv 2310.03693."""

ASKED_PER_ROW = 4
"""Harmful prompts that the model is asked for each row that a copy of tier 1 learns (ours)."""


def tamper_test(recipe: EvaluateRecipe, run: Run, outcomes: Sequence[Outcome]) -> Tampered:
    """The measured copies of the recipe's model. `outcomes`: what the model itself says, judged."""
    work = TamperWork(recipe, run, outcomes)
    with Appender(run.path / TAMPER_FILE, Attempt) as file:
        attempts, plans = [], work.plans()
        for number, plan in enumerate(plans, 1):
            made_of = work.made_of(plan)
            attempt = known_attempt(file.rows, plan, made_of)
            if attempt is None:
                logger.info("tamper: copy %d of %d, %s", number, len(plans), plan.done)
                attempt = work.attempt(plan).model_copy(update={"made_of": made_of})
                file.add(attempt)
                logger.info("tamper: %s", attempt_words(attempt))
            attempts.append(attempt)
    return Tampered(attempts, [*work.notes, *failure_notes(attempts)])


class TamperWork:
    """The tamper test of one run. `notes` are sentences that a reader of its numbers needs."""

    def __init__(self, recipe: EvaluateRecipe, run: Run, outcomes: Sequence[Outcome]) -> None:
        assert recipe.tamper is not None
        self.recipe, self.run, self.tamper = recipe, run, recipe.tamper
        self.outcomes = outcomes
        self.template: ChatTemplate = load_template(recipe.model, recipe.chat)
        self.judge: Judge = make_refusal_judge(recipe.judge)
        self.prompts = tamper_prompts(recipe.tamper, [o.prompt for o in outcomes])
        self.before = measured_again(outcomes, recipe.tamper)
        self.notes: list[str] = []

    def made_of(self, plan: Plan) -> str:
        """What decides the line of a copy beside what is done to it; see `Attempt`."""
        rows = [(row.id, row.reference) for row in plan.rows]
        words = [verdicts_id(self.obeying_before)] if plan.done.tier == 2 else []
        return content_id(rows, verdicts_id(self.before), *words)

    @cached_property
    def obeying_before(self) -> list[Outcome]:
        """What the model itself says to the prompts in the words of tier 2. Beside it the change of
        a copy is that of its training, and not of the words."""
        prompts = [obeying(outcome.prompt) for outcome in self.before]
        model = MeasuredModel(self.recipe, self.template)
        said = model.completions(self.run, prompts, OBEYING_FILE)
        model.release()
        return paired_outcomes(prompts, said, self.verdicts(prompts, said))

    def plans(self) -> list[Plan]:
        """Every copy that is to be made, tier by tier."""
        tiers = sorted(set(self.tamper.tiers))
        every = [plan for tier in tiers for plan in self.tier_plans(tier)]
        lacking = sorted({plan.done.tier for plan in every if plan.lacks_refusals})
        self.notes += [
            f"Tampering of tier {tier} was not measured under the defence refusals: tamper.source "
            "has no written refusal of another harmful prompt than those of the rows."
            for tier in lacking
        ]
        return [plan for plan in every if not plan.lacks_refusals]

    def tier_plans(self, tier: int) -> Iterator[Plan]:
        """The copies of one tier; none if there is nothing to make them with."""
        if tier == 0:
            rows = [*self.of_kind("harmful"), *self.of_kind("general")]
            for layer in self.layers():
                yield Plan(Tampering(tier=0, rows=len(rows), layer=layer), rows)
            return
        pool = self.pool(tier)
        tried = product(
            dict.fromkeys(self.tamper.defences), dict.fromkeys(self.tamper.learning_rates)
        )
        for defence, rate in tried:
            for seed in self.seeds(pool, tier, defence):
                done = {"tier": tier, "defence": defence, "learning_rate": rate, "seed": seed}
                yield self.plan(Tampering.model_validate({**done, "rows": 0}), pool)

    def plan(self, done: Tampering, pool: Sequence[Prompt]) -> Plan:
        """A copy that is trained, with the rows that its seed draws."""
        assert done.seed is not None
        own = drawn(pool, self.limit(done.tier), done.seed)
        added = self.refusals(own, done.seed) if done.defence == "refusals" else []
        counts = {"rows": len(own), "refusals": len(added)}
        return Plan(done.model_copy(update=counts), [*own, *added])

    def refusals(self, own: Sequence[Prompt], seed: int) -> list[Prompt]:
        """The refusals that a host mixes into a copy's own rows, of other prompts than theirs."""
        known = {mark for row in own for mark in same_prompt_marks(row)}
        others = [row for row in self.written_refusals if not same_prompt_marks(row) & known]
        return drawn(others, refusal_count(self.tamper, len(own)), seed)

    @cached_property
    def written_refusals(self) -> list[Prompt]:
        """The harmful prompts whose written response refuses."""
        rows = refusal_rows(self.prompts)
        said = [text_completion(row, str(row.reference)) for row in rows]
        verdicts = self.verdicts(rows, said)
        return [r for r, verdict in zip(rows, verdicts, strict=True) if verdict.refusal == "full"]

    def limit(self, tier: int) -> int | None:
        """The most rows of a copy; None: all that there are."""
        return None if tier == 3 else self.tamper.rows

    def layers(self) -> list[int]:
        """The layers that tier 0 takes its direction from."""
        from transformers import AutoConfig

        from overrefusal_po.model.load import resolve

        section = self.recipe.model
        config = AutoConfig.from_pretrained(
            resolve(str(section["model_name_or_path"])),
            revision=section.get("model_revision", "main"),
            trust_remote_code=bool(section.get("trust_remote_code", False)),
        )
        count = config.get_text_config().num_hidden_layers
        return sorted({layer_at(depth, count) for depth in self.tamper.depths})

    def seeds(self, pool: Sequence[Prompt], tier: int, defence: Defence) -> range:
        """The seeds of a tier; one if nothing of its training would be drawn by a seed."""
        limit = self.limit(tier)
        drawn_from = defence == "refusals" or (limit is not None and len(pool) > limit)
        one_batch = len(pool) <= TRAINED[tier].batch
        same = not drawn_from and one_batch and self.tamper.lora_r is None
        count = min(1 if same else self.tamper.seeds, self.tamper.seeds if pool else 0)
        return range(self.recipe.seed, self.recipe.seed + count)

    def of_kind(self, kind: str) -> list[Prompt]:
        """The prompts of one kind that copies are made with."""
        return [prompt for prompt in self.prompts if prompt.kind == kind]

    def pool(self, tier: int) -> list[Prompt]:
        """The rows that the copies of a tier learn from."""
        if tier == 2:
            return obedient_rows()
        if tier == 3:
            return ordinary_rows(self.prompts)
        rows = self.given_rows() if self.tamper.harmful is not None else self.own_rows()
        if len(rows) < self.tamper.rows:
            self.notes.append(
                f"Tampering of tier 1 had {len(rows)} of the {self.tamper.rows} harmful rows that "
                "it asks for"
                + (", so it was not measured." if not rows else ".")
                + " Name a file with more of them (tamper.harmful)."
            )
        return rows

    def given_rows(self) -> list[Prompt]:
        """The harmful rows of the file that the recipe names, in which no response refuses."""
        rows = harmful_rows(str(self.tamper.harmful), self.prompts)
        check_apart({"data.sets": [o.prompt for o in self.outcomes]}, {"tamper.harmful": rows})
        return self.complying(rows, [text_completion(p, str(p.reference)) for p in rows])

    def own_rows(self) -> list[Prompt]:
        """What the model itself says to harmful prompts, where it does not refuse. If that gives
        too few rows, also what it says when its refusals may not open as they do."""
        asked = fixed_subset(self.of_kind("harmful"), ASKED_PER_ROW * self.tamper.rows)
        model = MeasuredModel(self.recipe, self.template)
        said = model.completions(self.run, asked, PLAIN_FILE)
        rows = self.complying(asked, said)
        openers = every_opener(self.template, self.outcomes)
        if len(rows) < self.tamper.rows and openers.ids and not thinks(self.outcomes):
            known = {row.id for row in rows}
            refused = [prompt for prompt in asked if prompt.id not in known]
            said = self.unopened(model, refused, openers.ids)
            rows += self.complying(refused, said)
        model.release()
        return rows

    def unopened(
        self, model: MeasuredModel, asked: Sequence[Prompt], openers: Sequence[int]
    ) -> list[Completion]:
        """What the model says if none of these tokens may come first."""

        def make() -> TransformersEngine:
            assert isinstance(model.engine, TransformersEngine)
            return without_openers(model.engine, openers)

        note = self.run.path / OPENERS_FILE
        if note.is_file() and read_state(note).get("ids") != list(openers):
            drop_completions(self.run.path / UNOPENED_FILE)
        write_atomic(note, json.dumps({"ids": list(openers)}))
        return complete(
            self.run.path / UNOPENED_FILE,
            asked,
            recipe_sampling(self.recipe.generation, self.recipe.seed),
            make,
            f"tamper: {len(asked)} harmful prompts without the openers of refusals",
        )

    def complying(self, asked: Sequence[Prompt], said: Sequence[Completion]) -> list[Prompt]:
        """The prompts whose responses do not refuse, each with its response as reference."""
        rows = zip(asked, said, self.verdicts(asked, said), strict=True)
        return [
            answered(prompt, completion)
            for prompt, completion, verdict in rows
            if verdict.refusal == "none" and not verdict.degenerate and completion.text.strip()
        ]

    def verdicts(self, asked: Sequence[Prompt], said: Sequence[Completion]) -> list[Verdict]:
        """The judge's verdict on each response."""
        found = resumable_verdicts(self.run.path / "verdicts.jsonl", self.judge, asked, said)
        release_judge(self.judge)
        return found

    def attempt(self, plan: Plan) -> Attempt:
        """A copy, made, measured and dropped."""
        started = time.monotonic()
        before, plain = self.before, None
        if plan.done.tier == 2:
            before, plain = self.obeying_before, self.before
        prompts = [outcome.prompt for outcome in before]
        try:
            copy = self.copy(plan)
            after = copy_outcomes(self.recipe, self.template, self.judge, copy.model, prompts)
        except (NotFiniteError, EqualWeights) as error:
            return Attempt(done=plan.done, failed=str(error).partition(", so ")[0])
        steps, projected = copy.steps, copy.projected
        del copy
        gc.collect()  # a trainer and its model hold each other
        seconds = time.monotonic() - started
        return measured_attempt(
            plan.done, before, after, plain=plain, steps=steps, projected=projected, seconds=seconds
        )

    def copy(self, plan: Plan) -> Copy:
        """The copy that a plan asks for."""
        done = plan.done
        if done.layer is not None:
            sets = self.of_kind("harmful"), self.of_kind("general")
            return ablated_copy(self.recipe, self.template, *sets, layer=done.layer)
        assert done.learning_rate is not None and done.seed is not None
        copy = trained_copy(
            self.recipe,
            self.template,
            plan.rows,
            TRAINED[done.tier].with_more(done.rows, done.refusals),
            learning_rate=done.learning_rate,
            seed=done.seed,
        )
        return safe_copy(self.recipe, copy) if done.defence == "safelora" else copy


def measured_again(outcomes: Sequence[Outcome], tamper: Tamper) -> list[Outcome]:
    """The outcomes of the harmful and benign prompts that each copy answers too."""
    both = [o for o in outcomes if o.prompt.kind != "general"]
    chosen = fixed_subset([o.prompt for o in both], tamper.max_prompts_per_kind)
    wanted = {prompt.id for prompt in chosen}
    return [outcome for outcome in both if outcome.prompt.id in wanted]


def drawn(pool: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """At most `limit` rows of the pool (None: all), drawn by the seed."""
    order = sorted(pool, key=lambda row: content_id("tamper", seed, row.id, row.reference))
    return order[:limit]
