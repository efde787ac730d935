"""The dev prompts answered by the model, with each candidate on it, in files that survive a kill.

    dev = Measuring(Untreated(folder, key), engine, judge, prompts, sampling)
    dev.untreated()            # outcomes; dev/untreated.jsonl
    dev.rows(candidates)       # a row of dev.jsonl for each; dev/<id without its gate>.jsonl

A candidate is known by its remedy's id, which follows from its numbers. So a fit that is made again
after a kill goes on with what was measured, if it found the same.

A gate decides at the prompt: behind it a response is the changed model's or the plain one's. So a
gated candidate is measured without its gate, and candidates that differ by their thresholds alone
are generated once. The gate then says whose response to each prompt counts.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overrefusal_po.evaluate.capability import asked_references, reference_turn, response_nats
from overrefusal_po.fit.choice import DevRates, Tried, rate_words, rates_of
from overrefusal_po.fit.untreated import DEV_FOLDER, UNTREATED, VERDICTS_FILE, Untreated
from overrefusal_po.judges import Judge
from overrefusal_po.model.blocks import last_states
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Gate, remedy_id
from overrefusal_po.prompts import fixed_subset
from overrefusal_po.records import Outcome, Prompt, Sampling
from overrefusal_po.remedies import Candidate
from overrefusal_po.run.appender import Appender
from overrefusal_po.run.complete import complete
from overrefusal_po.run.judged import paired_outcomes, resumable_verdicts

if TYPE_CHECKING:
    from torch import Tensor

    from overrefusal_po.engines.transformers import TransformersEngine
    from overrefusal_po.model.chat import ChatTemplate, Turn

logger = logging.getLogger(__name__)

DEV_FILE = "dev.jsonl"

REFERENCES, REFERENCE_TOKENS, REFERENCE_BATCH = 20, 512, 8
"""Of how many reference answers of each kind the perplexity is, how long one may be with its
prompt, and how many are read at a time."""

MOST_NATS = 700
"""What the loss of a token counts as at most: beyond it a perplexity is no number."""


class Measuring:
    """What measures one run's candidates. `shared`: what other fits of a pipeline measured."""

    def __init__(
        self,
        shared: Untreated,
        engine: TransformersEngine,
        judge: Judge,
        prompts: Sequence[Prompt],
        sampling: Sampling,
    ) -> None:
        self.shared, self.folder, self.engine, self.judge = shared, shared.folder, engine, judge
        self.prompts, self.sampling = prompts, sampling
        self.states: Tensor | None = None
        self.plain: list[Outcome] | None = None
        self.references = reference_turns(engine.template, prompts)
        self.nats: dict[str, list[float]] = {}

    def untreated(self) -> list[Outcome]:
        """What the model says without a remedy, judged. Another fit may have measured it."""
        if self.plain is None:
            self.shared.take(self.prompts, self.sampling)
            label = f"without a remedy: {len(self.prompts)} dev prompts"
            self.plain = self.outcomes(UNTREATED, label)
            self.shared.keep()
        return self.plain

    def rows(self, candidates: Sequence[Candidate]) -> list[Tried]:
        """A row for each candidate, in their order."""
        found = []
        with Appender(self.folder / DEV_FILE, Tried) as file:
            known = {(row.number, row.remedy): row for row in file.rows}
            for number, candidate in enumerate(candidates, 1):
                key = remedy_id(candidate.remedy)
                row = known.get((number, key))
                if row is None:
                    of = f"candidate {number} of {len(candidates)}"
                    row = self.tried(number, key, candidate, of)
                    file.add(row)
                found.append(row)
        return found

    def tried(self, number: int, key: str, candidate: Candidate, of: str) -> Tried:
        """The row of a candidate that is measured now."""
        strength = candidate.remedy.strength
        open_gate = candidate.remedy._replace(gate=None)
        name = remedy_id(open_gate)
        whole = not (self.folder / DEV_FOLDER / f"{name}.jsonl").is_file()
        begun = time.monotonic()
        with remedied(self.engine.model, open_gate):
            changed = self.outcomes(name, f"{of}, strength {strength:g}")
            if candidate.remedy.form != "streams":  # which has no probability of a text
                self.read_references(name)
        gate = candidate.remedy.gate
        rates = rates_of(self.behind(gate, changed), self.perplexity(name, gate))
        seconds = round(time.monotonic() - begun, 1) if whole else None
        logger.info("%s, strength %g: %s", of, strength, rate_words(rates))
        return Tried(
            number=number,
            remedy=key,
            strength=strength,
            rates=rates,
            facts=dict(candidate.facts),
            seconds=seconds,
        )

    def behind(self, gate: Gate | None, changed: list[Outcome]) -> list[Outcome]:
        """The changed model's outcomes for the prompts that a gate lets through, the plain model's
        for the others."""
        rows = zip(self.let_through(gate), changed, self.untreated(), strict=True)
        return [new if passes else plain for passes, new, plain in rows]

    def let_through(self, gate: Gate | None) -> list[bool]:
        """Which prompts a gate lets through; all without one. The model has to be the plain one."""
        if gate is None:
            return [True] * len(self.prompts)
        if self.states is None:
            texts = [self.engine.input_text(prompt) for prompt in self.prompts]
            self.states = last_states(
                self.engine.model,
                self.engine.template.tokenizer,
                texts,
                batch_size=self.engine.batch_size,
            )
        passed: list[bool] = (gate.scores(self.states[:, gate.layer]) < gate.threshold).tolist()
        return passed

    def read_references(self, name: str) -> None:
        """Reads the reference answers with the model as it is now, kept under this name."""
        if name not in self.nats and self.references:
            turns = [*self.references.values()]
            self.nats[name] = response_nats(self.engine.model, turns, REFERENCE_BATCH)

    def perplexity(self, name: str, gate: Gate | None) -> float | None:
        """That of the reference answers as they were read under a name, behind a gate; None if none
        was read. The model has to be the plain one."""
        self.read_references(UNTREATED)
        if name not in self.nats:
            return None
        through = self.let_through(gate)
        rows = zip(self.references, self.nats[name], self.nats[UNTREATED], strict=True)
        nats = sum(new if through[at] else plain for at, new, plain in rows)
        tokens = sum(len(turn.response_ids) for turn in self.references.values())
        return math.exp(min(nats / tokens, MOST_NATS))

    def outcomes(self, name: str, label: str) -> list[Outcome]:
        """What the model says as it is now, judged; kept under this name."""
        folder = self.folder / DEV_FOLDER
        folder.mkdir(exist_ok=True)
        engine = copy.copy(self.engine)
        if name != UNTREATED:
            engine.name = f"{engine.name} with {name}"
        completions = complete(
            folder / f"{name}.jsonl", self.prompts, self.sampling, lambda: engine, label
        )
        verdicts = resumable_verdicts(folder / VERDICTS_FILE, self.judge, self.prompts, completions)
        return paired_outcomes(self.prompts, completions, verdicts)


def reference_turns(template: ChatTemplate, prompts: Sequence[Prompt]) -> dict[int, Turn]:
    """{place: turn} of up to `REFERENCES` harmless and as many ordinary prompts with a reference
    answer, chosen as an evaluation chooses them; without those that are too long."""
    chosen = {prompt.id for prompt in fixed_subset(asked_references(prompts), REFERENCES)}
    turns = {
        at: reference_turn(template, prompt)
        for at, prompt in enumerate(prompts)
        if prompt.id in chosen
    }
    return {
        at: turn
        for at, turn in turns.items()
        if len(turn.prompt_ids) + len(turn.response_ids) <= REFERENCE_TOKENS
    }


def dev_entry(rates: DevRates) -> dict[str, object]:
    """Rates as summary.json and remedy.json hold them."""
    return rates.model_dump(mode="json")
