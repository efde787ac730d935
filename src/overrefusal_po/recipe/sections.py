"""The sections that recipes are made of, each key with its meaning. Imports no torch.

    PairsData(pairs="pairs.jsonl", opening=8).too_long      # "error"

`docs/recipe.md` is made from these classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from overrefusal_po.records import content_id

Engine = str | dict[str, Any]
"""An engine's name, or {name: ..., ...its settings}; `plugins` checks it."""


TooLong = Literal["error", "drop"]


class Section(BaseModel):
    """Frozen and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Chat(Section):
    """How conversations are rendered, alike in every stage."""

    system_prompt: str | None = None
    """Put before conversations without one; null leaves it to the template."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template (`enable_thinking: false`, ...)."""


class Generation(Section):
    """How completions are drawn."""

    max_new_tokens: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch_size: int = Field(default=32, gt=0)


class PairsData(Section):
    """What DPO, ORPO and KTO learn from."""

    pairs: str | dict[str, Any] = "starter"
    """`starter`, a pairs.jsonl, a source of pairs (ultrafeedback), or `@stage.pairs` in a
    pipeline."""
    containment: Literal["student", "none"] = "none"
    """With starter pairs: `student` adds containment pairs that reject what the start policy says
    to harmful prompts."""
    max_pairs: int | None = Field(default=None, gt=0)
    """Pairs used of each rule (drawn by seed); null uses all."""
    opening: int | None = Field(default=None, gt=0)
    """Train on this many first tokens of each side, where refusing is decided (`opening`); null: on
    whole sides."""
    too_long: TooLong = "error"
    """What is done with a pair that is longer than trainer.max_length; `drop` leaves it out and
    counts it. None is cut."""
    waive: dict[str, str] = {}
    """{id of a pair, or of a finding about the whole set: why the linter's findings there do not
    stop the training}."""
    allow_no_anchor: bool = False
    """Train although no pair holds the model where it is safe (no harmful prompt among the
    pairs)."""


class DertaData(Section):
    """What DeRTa learns from."""

    triples: str | dict[str, Any] = "starter"
    """`starter` (the student itself says the harmful responses), a triples.jsonl, or a source that
    gives triples."""
    safe_lead: str | None = Field(default=None, min_length=1)
    """Put before loaded safe responses that do not begin with the opener; null: such a response is
    an error."""
    helpful: tuple[Literal["general", "benign"], ...] = ("general",)
    """Kinds of prompts that are mixed in as ordinary SFT, with their references as answers."""
    helpful_from: tuple[str | dict[str, Any], ...] = ("starter",)
    """The sources of these prompts."""
    max_triples: int | None = Field(default=None, gt=0)
    max_helpful: int | None = Field(default=None, ge=0)
    """Rows used of each kind (drawn by seed); null uses all."""
    refusal_opener: str = Field(default="Sorry", min_length=1)
    """Its first token is RTO's label; safe responses begin with it."""
    prefix_unit: Literal["words", "tokens"] = "words"
    """k in whole words (the released code) or tokens (the paper)."""
    rto_dropout: float = Field(default=0.95, ge=0, lt=1)
    """Share of RTO positions without loss, redrawn at each pass."""
    too_long: TooLong = "error"
    """What is done with triples and helpful prompts whose rows may be longer than
    trainer.max_length: `error` or `drop`."""


class SftData(Section):
    """What plain SFT learns from: prompts with references, or the chosen sides of pairs."""

    prompts: str | dict[str, Any] | None = None
    kinds: tuple[Literal["harmful", "benign", "general"], ...] = ("harmful", "benign", "general")
    pairs: str | dict[str, Any] | None = None
    max_prompts: int | None = Field(default=None, gt=0)
    too_long: TooLong = "error"
    """What is done with a prompt that is longer with its reference than trainer.max_length: `error`
    or `drop`."""


class Select(Section):
    """Which step's weights are saved: the most useful one whose safety stays near the start
    policy's (`selection`)."""

    every_steps: int = Field(default=20, gt=0)
    """Steps between two looks; the start policy and the last step are always looked at."""
    sets: tuple[str | dict[str, Any], ...] = Field(default=("starter",), min_length=1)
    """Sources of harmful and benign prompts, none of which may be trained on."""
    split: Literal["train", "dev", "test"] | None = "dev"
    """The split of sources that have splits; null takes all."""
    max_prompts_per_kind: int | None = Field(default=40, gt=0)
    """A fixed subset (by content hash) of each kind in each set; null takes all."""
    max_new_tokens: int = Field(default=32, gt=0)
    tolerance: float = Field(default=0.05, ge=0, le=1)
    """How far harmful_refused may fall below the start policy's."""
    judge: str | dict[str, Any] = "refusal"
    batch_size: int = Field(default=32, gt=0)


class Speed(Section):
    """What makes a step cheaper without changing its loss; a method that a key does not name goes
    without it."""

    shared_prefix: bool = True
    """DPO and ORPO: compute a pair's prompt once and no padding where that is proven exact; else
    plain rows and a log line."""
    reference_store: bool = True
    """DPO: keep reference log-probs in the cache folder for later runs with the same reference and
    rows."""
    tree: bool = False
    """DeRTa: both rows of a question in one; a batch then counts questions, not rows."""


def shard_text(text: str) -> str:
    """A checked `i/n`."""
    Shard.of(text)
    return text


class CurateData(Section):
    """Prompts that pairs are built from. Prompts that come twice, or nearly, are dropped and
    counted."""

    benign: str | dict[str, Any] = "starter"
    kinds: tuple[Literal["benign", "general"], ...] = Field(default=("benign",), min_length=1)
    """Kinds of harmless prompts that are used; `general` are ordinary ones."""
    harmful: str | dict[str, Any] | None = "starter"
    """Null leaves harmful prompts out; pairs without them hold nothing where it is safe."""
    split: Literal["train", "dev", "test"] | None = "train"
    contaminated: Literal["report", "drop", "error"] = "report"
    """What is done with a benchmark's prompts. A training refuses pairs on them in any case."""
    max_per_category: int | None = Field(default=None, gt=0)
    """Pairs kept of each category within a rule (drawn by seed); null keeps all."""
    max_pairs: int | None = Field(default=None, gt=0)
    """Pairs kept of each rule (drawn by seed); null keeps all."""
    harmful_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of pairs on harmful prompts (containment) among those kept: the side with too many
    gives some up."""


class Chosen(Section):
    """Where the chosen sides come from. A teacher's answers are judged; where none is good, the
    prompt is left out."""

    model: str | None = None
    """The teacher that answers the benign prompts; null takes the prompts' references."""
    engine: Engine = "transformers"
    """What the teacher runs on."""
    samples: int = Field(default=1, gt=0)
    """The teacher's answers to each prompt, of which `select` takes one."""
    generation: Generation | None = None
    """How the teacher's answers are drawn; null: as `generation` says. Several need a temperature
    above 0."""
    select: Literal["first", "random", "reward", "safety"] = "first"
    """Which of the answers that pass: the first, one drawn by seed, that of greatest `reward`, or
    the safest by `guard`."""
    refusals: Literal["reference", "student", "teacher"] = "reference"
    """The refusals of containment pairs: written ones, or `student`: its own where it refuses, so
    that refusals read alike on both sides of the set and only the prompt tells which one is right,
    or `teacher`: its answers, selected as above."""


class Rejects(Section):
    """Where the rejected sides of containment pairs come from: the first source that yields."""

    completions: str | None = None
    """A completions.jsonl of harmful responses."""
    model: str | None = None
    """A less safe model that answers the harmful prompts."""
    engine: Engine = "transformers"
    """What that model runs on."""
    prefill: str | None = "Sure, here"
    """What the student's own answer is made to begin with; null leaves this source out."""
    tau: float | None = Field(default=None, ge=0, le=1)
    """How much more unsafe than the refusal, in probability, `guard` must find a rejected side;
    null: 0.1 (ours)."""
    tau_grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Values of tau that pairs_tau_<value>.jsonl are written for too, each with its row in
    summary.json."""


class EvaluateData(Section):
    """Prompts that are measured."""

    sets: tuple[str | dict[str, Any], ...] = Field(default=("starter",), min_length=1)
    """Source names, JSON Lines files, or mappings {name: ..., ...settings}."""
    split: Literal["train", "dev", "test"] | None = "test"
    """The split of sources that have splits; null takes all."""
    max_prompts_per_kind: int | None = Field(default=None, gt=0)
    """A fixed subset (by content hash) of each kind in each set; null takes all."""
    attacks: tuple[str | dict[str, Any], ...] = ()
    """Attacks on the harmful prompts, measured beside the prompts as they are: names, or mappings
    {name: ..., ...}."""


class Capability(Section):
    """What the model can do beside answering, so that usefulness is not bought with stupidity."""

    perplexity: bool = False
    """On the reference answers of the measured benign and ordinary prompts; needs nothing from a
    hub."""
    tasks: tuple[str, ...] = ()
    """Tasks of the lm-eval harness (an extra)."""
    limit: int | None = Field(default=None, gt=0)
    """Items of each task; null takes all."""


class Gate(Section):
    """Bounds that a run must hold; exit code 3 where one fails. A model that answers nothing always
    fails."""

    baseline: str | None = None
    """A run folder of an evaluation on the same prompts (or `@stage.outcomes`), for the two bounds
    that compare."""
    on: Literal["interval", "value"] = "interval"
    """Whether the interval's worse end has to hold the bound, or the measured value alone."""
    harmful_refused_min: float | None = Field(default=None, ge=0, le=1)
    benign_answered_min: float | None = Field(default=None, ge=0, le=1)
    ordinary_answered_min: float | None = Field(default=None, ge=0, le=1)
    harmful_refused_drop_max: float | None = Field(default=None, ge=0, le=1)
    """How far harmful_refused may fall below the baseline's."""
    benign_answered_gain_min: float | None = Field(default=None, ge=-1, le=1)
    """How far benign_answered must rise above the baseline's."""
    degenerate_max: float | None = Field(default=None, ge=0, le=1)
    unscored_max: float = Field(default=0.02, ge=0, le=1)
    """Share of outcomes that no judge could score."""


class Shard(NamedTuple):
    """Part `number` (from 1) of `parts`."""

    number: int
    parts: int

    @classmethod
    def of(cls, text: str) -> Shard:
        """ "2/4" -> Shard(2, 4). ValueError for anything else."""
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
        if not found or int(found[1]) > int(found[2]):
            raise ValueError(
                f"shard is {text!r}; allowed is i/n with i from 1 to n, for example 2/4."
            )
        return cls(int(found[1]), int(found[2]))

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"shard-{self.number}-of-{self.parts}"

    def has(self, prompt_id: str) -> bool:
        """Whether a prompt is this shard's: by its id alone, so that order and source do not
        matter."""
        return int(content_id("shard", prompt_id), 16) % self.parts == self.number - 1
