"""The end of a training at a stated safety: measure the start policy, train, calibrate, fold in.

    holder = Holder(trainer, template=template, hold=Hold(), folder=run_folder)
    holder.begin(resumed=False)   # what the start policy refuses: hold_start.jsonl
    trainer.train()
    holder.end()                  # one bias, folded into the weights: hold.json

A trained model is better than its start if it leaves the start's curve of refusals and answers. It
also moves along its own curve, and where it comes to rest is luck. `model.opener_bias` moves it
there by one number, and this module finds the number.

Each hold prompt is answered twice: as the model does, and with the other decision at the first
token (it has to open with a refusal's first token, or may not). With the bias at which the first
token flips, the rates at every bias follow exactly, and no further text is generated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.folding import check_site, fold
from overrefusal_po.model.opener_bias import (
    FirstStates,
    OpenerBias,
    Site,
    TextIds,
    first_states,
    flip_points,
    opener_bias,
)
from overrefusal_po.plugins import make_refusal_judge, set_name
from overrefusal_po.prompts import dev_prompt_sets
from overrefusal_po.recipe.two_sided import Hold
from overrefusal_po.records import Outcome, Prompt, Sampling, write_atomic, write_jsonl
from overrefusal_po.report.hold_notes import BROKEN_MORE, broken_more
from overrefusal_po.run.judged import fresh_outcomes
from overrefusal_po.run.openers import Openers, raised_openers, thinks
from overrefusal_po.train.held import Decision, bias_curve, choose_bias, first_token_auc
from overrefusal_po.train.hold_place import (
    THINKS,
    hold_place,
    left_out,
    undecided,
    without_hold,
)
from overrefusal_po.train.hold_result import (
    Answers,
    HoldEntry,
    decisions,
    degenerate_share,
    few_harmful,
    hold_words,
    keeps,
    least_shares,
    raised,
    set_entries,
    too_few_scored,
)
from overrefusal_po.train.hold_start import given_start, known_start, lost_start
from overrefusal_po.train.weights import generating

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

    from overrefusal_po.engines.transformers import TransformersEngine

logger = logging.getLogger(__name__)

START_FILE, RESULT_FILE = "hold_start.jsonl", "hold.json"

AGREES_MIN = 0.9
"""The least share of hold prompts whose first token has to be as calculated after folding."""

TRIES = 3
"""Biases that are folded in and measured, at most."""


class Calibration(NamedTuple):
    """All that a bias is chosen by: what was measured before anything is folded in.

    `flips` are the biases at which the prompts' first tokens flip; `rows` the prompts with three
    verdicts.
    """

    engine: TransformersEngine
    start: Sequence[Outcome]
    own: Sequence[Outcome]
    openers: Openers
    bias: OpenerBias
    flips: Sequence[float]
    rows: Sequence[Decision]


class Holder:
    """What holds one training's safety.

    Args:
        trainer: the trainer, before and after its training.
        template: the chat template to generate with.
        hold: the recipe's section.
        folder: the run folder.

    Raises ValueError if the model has no place for a bias, unless `hold.optional` is set; or if
    its adapter has none.
    """

    def __init__(
        self, trainer: Trainer, *, template: ChatTemplate, hold: Hold, folder: Path
    ) -> None:
        self.trainer, self.template, self.hold, self.folder = trainer, template, hold, folder
        self.sets = dev_prompt_sets(hold)
        self.prompts = [prompt for part in self.sets for prompt in part]
        self.set_of = [number for number, part in enumerate(self.sets) for _ in part]
        self.judge = make_refusal_judge(hold.judge or "refusal")
        self.place = hold_place(self.model, hold)
        self.why_not = self.place.why_not
        if self.place.site is not None and hasattr(self.model, "peft_config"):
            check_site(cast("PeftModel", self.model), self.site)

    @property
    def site(self) -> Site:
        """Where the bias goes. Nothing asks for it if the model has no place."""
        assert self.place.site is not None
        return self.place.site

    @property
    def model(self) -> PreTrainedModel:
        """The model in training, without what accelerate puts around it."""
        found: PreTrainedModel = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return found

    def begin(self, *, resumed: bool) -> None:
        """Measures the start policy, or takes what `hold.start` names, in the first process.

        Asks only prompts without a response. ValueError if a resumed training has lost some, or if
        nothing could be held: the model thinks first (unless `hold.optional` is set), or the judge
        scores too few responses.
        """
        file = self.folder / START_FILE
        if self.trainer.accelerator.is_main_process:
            known = known_start(file, self.prompts, self.judge)
            if any(prompt.id not in known for prompt in self.prompts):
                write_jsonl(file, self.start(known, resumed))
            for spec, part in zip(self.hold.sets, self.sets, strict=True):
                if few := few_harmful(set_name(spec), part):
                    logger.warning("%s", few)
            if self.why_not:
                logger.warning("%s", without_hold(self.why_not))
        self.trainer.accelerator.wait_for_everyone()

    def start(self, known: dict[str, Outcome], resumed: bool) -> list[Outcome]:
        """What the start policy says to every prompt; for some it may be `known`."""
        missing = [prompt for prompt in self.prompts if prompt.id not in known]
        if self.hold.start is not None:
            found = given_start(self.hold, self.prompts, self.judge)
        elif resumed:
            raise lost_start(self.folder / START_FILE, missing, self.trainer.args.output_dir)
        else:
            with generating(self.model):
                said = self.outcomes(self.engine(), missing, "the start policy answers")
                known |= {o.prompt.id: o for o in said}
            found = [known[prompt.id] for prompt in self.prompts]
        if thinks(found):
            self.why_not = left_out(self.hold, THINKS)
        if few := too_few_scored(found):
            raise ValueError(f"hold: {few}. Leave hold out, or give another judge or sets.")
        return found

    def end(self) -> HoldEntry:
        """Calibrates the trained model and folds the bias in; writes hold.json. For the first
        process."""
        with generating(self.model):
            found = self.calibrated()
        write_atomic(self.folder / RESULT_FILE, json.dumps(found, indent=1))
        words = hold_words(found, self.hold.start)
        good = found["held"] and broken_more(found) <= BROKEN_MORE
        logger.log(logging.INFO if good else logging.WARNING, "%s", words)
        return found

    def calibrated(self) -> HoldEntry:
        """The calibration, after its bias is folded in. If none holds every set, it is the one that
        misses least. Nothing is folded in if the weights do not do what was calculated."""
        engine = self.engine()
        starts = known_start(self.folder / START_FILE, self.prompts, self.judge)
        start = [starts[p.id] for p in self.prompts]
        own = self.outcomes(engine, self.prompts, "the trained policy answers")
        openers = raised_openers(self.template, own, start)
        if why_not := self.why_not or undecided(start, own, openers):
            return self.entry(start, own, own, openers, why_not=why_not)
        answers = self.answers(engine, own, openers.ids)
        states = self.states(engine, answers)
        bias = opener_bias(self.model, self.site, states, openers.ids)
        limit = self.hold.bias_max
        flips = flip_points(self.model, self.site, states, bias, openers.ids, limit=limit).tolist()
        rows, kept = decisions(answers, flips, start, self.set_of)
        parts = ([start[at] for at in kept if self.set_of[at] == n] for n in range(len(self.sets)))
        floors = least_shares(parts, self.hold.refused_drop_max)
        found = Calibration(engine, start, own, openers, bias, flips, rows)
        return self.folded(found, floors, self.hold.kept_min)

    def folded(
        self,
        at: Calibration,
        floors: Sequence[float | None],
        kept_min: float | None,
        tries: int = TRIES,
        above: float = float("-inf"),
    ) -> HoldEntry:
        """The calibration with these floors, by a bias `above` those tried. If the weights then
        refuse less than was calculated (a first token may round the other way), it is made again
        with floors that are higher by what is missing."""
        entry = partial(self.entry, at.start, at.own, openers=at.openers, rows=at.rows)
        choose = partial(choose_bias, at.rows, limit=self.hold.bias_max, aim=self.hold.aim)
        choice = choose(floors, kept_min=kept_min, above=above)
        most = f"no bias up to {self.hold.bias_max:g}"
        why_not = "" if choice.held else f"{most} keeps every set's refusals"
        if choice.bias == 0.0:
            return entry(at.own, why_not=why_not)
        if why_not:
            why_not += f"; the nearest one, {choice.bias:+.2f}, is folded in"
        undo = fold(self.model, self.site, at.bias, choice.bias)
        what = f"with a bias of {choice.bias:+.2f} it answers"
        saved = self.outcomes(at.engine, self.prompts, what)
        agrees = self.agreement(at.engine, at.flips, choice.bias, at.openers.ids)
        if agrees < AGREES_MIN:
            undo()
            why_not = f"only {agrees:.0%} of the first tokens came out as calculated"
            return entry(at.own, why_not=why_not, agrees=agrees)
        found = entry(saved, bias=choice.bias, why_not=why_not, agrees=agrees)
        higher = raised(floors, kept_min, found["sets"], self.hold)
        if why_not or higher is None or tries == 1:
            return found
        if not choose(higher[0], kept_min=higher[1], above=choice.bias).held:
            return found
        logger.info("hold: the weights refuse less than was calculated; a greater bias is tried")
        undo()
        return self.folded(at, *higher, tries - 1, above=choice.bias)

    def entry(
        self,
        start: Sequence[Outcome],
        own: Sequence[Outcome],
        saved: Sequence[Outcome],
        openers: Openers,
        *,
        bias: float = 0.0,
        why_not: str = "",
        rows: Sequence[Decision] = (),
        agrees: float | None = None,
    ) -> HoldEntry:
        """hold.json, its rates as measured."""
        sizes = [len(part) for part in self.sets]
        named = zip(map(set_name, self.hold.sets), sizes, strict=True)
        sets = set_entries(start, own, saved, sizes=list(named))
        drop_max, kept_min = self.hold.refused_drop_max, self.hold.kept_min
        return {
            "held": all(keeps(entry, drop_max, kept_min) for entry in sets),
            "bias": bias,
            "why_not": why_not,
            "openers": openers.tokens,
            "unscored": len(self.prompts) - sum(s["harmful"] + s["benign"] for s in sets),
            "agrees": agrees,
            "first_token_auc": first_token_auc(rows),
            "degenerate": [degenerate_share(said) for said in (start, own, saved)],
            "sets": sets,
            "curve": bias_curve(rows, self.hold.bias_max) if rows else [],
        }

    def engine(self) -> TransformersEngine:
        """The model as it is now. It keeps the first tokens' states while it answers."""
        from overrefusal_po.engines._first_states import FirstStates
        from overrefusal_po.engines.transformers import TransformersEngine

        found = TransformersEngine(
            self.model, self.template, name="hold", batch_size=self.hold.batch_size
        )
        found.first_states = FirstStates(prompt.id for prompt in self.prompts)
        return found

    def outcomes(
        self, engine: TransformersEngine, prompts: Sequence[Prompt], what: str
    ) -> list[Outcome]:
        """What an engine answers, judged, in the order of the prompts. `what` is for the log."""
        logger.info("hold: %s %d prompts", what, len(prompts))
        sampling = Sampling(max_new_tokens=self.hold.max_new_tokens)
        return fresh_outcomes(engine, self.judge, prompts, sampling, label=f"hold: {what}")

    def answers(
        self, engine: TransformersEngine, own: list[Outcome], openers: Sequence[int]
    ) -> Answers:
        """The model's own responses, and those after the other decision at the first token."""
        from overrefusal_po.engines._first_token import other_decision

        opens = self.opens_now(engine, openers)
        found: dict[str, Outcome] = {}
        for side in (True, False):
            asked = [p for p, o in zip(self.prompts, opens, strict=True) if o is side]
            if asked:
                what = f"where it {'may not' if side else 'has to'} open with a refusal, it answers"
                rows = self.outcomes(other_decision(engine, openers, opens=side), asked, what)
                found |= {o.prompt.id: o for o in rows}
        return Answers(own, [found[p.id] for p in self.prompts], opens)

    def opens_now(self, engine: TransformersEngine, openers: Sequence[int]) -> list[bool]:
        """Whether each response opens with one of `openers`, as `engine` answered last."""
        from overrefusal_po.engines._first_token import opener_scores

        scores = opener_scores(engine, self.prompts, openers)
        found = {prompt.id: margin > 0 for prompt, _, margin in scores}
        return [found[p.id] for p in self.prompts]

    def states(self, engine: TransformersEngine, answers: Answers) -> FirstStates:
        """The last layer's states at the first tokens of the responses. Those behind them are of
        both decisions: a bias may not go on behind a refusal's first token."""
        logger.info("hold: the bias at which each first token turns is calculated")
        read = engine.token_ids
        said = [*answers.own, *answers.other]
        texts = [TextIds(read(engine.input_text(o.prompt)), read(o.completion.text)) for o in said]
        size, firsts = self.hold.batch_size, len(answers.own)
        return first_states(self.model, self.site, texts, batch_size=size, firsts=firsts)

    def agreement(
        self,
        engine: TransformersEngine,
        flips: Sequence[float],
        bias: float,
        openers: Sequence[int],
    ) -> float:
        """The share of prompts whose first token is what the flip points say, after folding."""
        opens = self.opens_now(engine, openers)
        return sum((bias > f) is o for f, o in zip(flips, opens, strict=True)) / len(flips)
