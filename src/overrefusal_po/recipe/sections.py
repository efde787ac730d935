"""The sections that recipes are made of, each key with its meaning. Imports no torch.

    PairsData(pairs="pairs.jsonl", opening=8).too_long      # "error"

`docs/recipe.md`, `overrefusal-po explain` and `overrefusal-po schema` are made from these classes.
A key with several options names each on a line of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from overrefusal_po.recipe.harmful_rows import DERTA_ROWS, HarmfulRows
from overrefusal_po.recipe.panels import panel_spec
from overrefusal_po.recipe.reading import ReadingSection
from overrefusal_po.recipe.reading import Section as Section
from overrefusal_po.recipe.shard import ShardText

# Any: a plug's own settings, whose class checks them
PlugSpec = str | dict[str, Any]
"""A plug as a recipe names it: its name, or {name: ..., ...its settings}."""

# Any: TRL's own keys, which `trl_fields` checks, and a stage's keys, which its own class checks
OpenSection = dict[str, Any]
"""A section whose keys another class checks."""

JUDGE_OR_LIST = BeforeValidator(
    panel_spec,
    json_schema_input_type=PlugSpec | Annotated[list[PlugSpec], Field(min_length=2)],
)
"""Turns a list of judges into the panel that it is short for; the JSON schema allows both."""

JudgeSpec = Annotated[PlugSpec, JUDGE_OR_LIST]
"""A judge as a recipe names it; a list is a panel."""

Engine = PlugSpec
"""An engine's name, or {name: ..., ...its settings}; `plugins` checks it."""

TooLong = Literal["error", "drop"]
"""What happens to a row that is longer than trainer.max_length."""


class Chat(Section):
    """How conversations are rendered. It is the same in every stage."""

    system_prompt: str | None = None
    """Put before conversations without one. null: the template decides. "": none, not even the
    template's own (Qwen's writes one); a server gets an empty system message."""
    template: str | None = None
    """A Jinja file, relative to the recipe, for base models; it is saved with the trained model."""
    # Any: the template's own variables
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example `enable_thinking: false`."""


class Generation(Section):
    """How completions are drawn."""

    max_new_tokens: int = Field(default=256, gt=0)
    """The most tokens of a completion. Longer ones end there."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most likely token each time; above 0 the tokens are drawn by `seed`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the most likely tokens that together have this probability. Used when `temperature`
    is above 0."""
    batch_size: int = Field(default=32, gt=0)
    """Prompts decoded at a time by `transformers`. Servers choose their own batches."""


class PairsData(ReadingSection):
    """What DPO, ORPO, CPO and KTO learn from."""

    sources: ClassVar[tuple[str, ...]] = ("pairs",)
    pairs: PlugSpec = "starter"
    """The preference pairs.

    - `starter`: the set that this package ships.
    - a path: a file of pairs (.jsonl, .json, .csv, .tsv or .parquet).
    - a source that gives pairs: `ultrafeedback`, or `{name: ultrafeedback, max: 3000}`.
    - `@stage.pairs`: what an earlier stage of the pipeline made."""
    containment: Literal["student", "none"] = "none"
    """Whether pairs on harmful prompts are added. Only for starter pairs.

    - `none`: no.
    - `student`: yes. The rejected side is what the start policy says, the chosen one a refusal."""
    max_pairs: int | None = Field(default=None, gt=0)
    """Pairs used of each rule (drawn by `seed`). null: all."""
    harmful_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the used pairs that are on harmful prompts. The side with too many gives up those
    that `seed` draws last. null: as many as there are."""
    shard: ShardText | None = None
    """A part of the pairs, as one client of a federated training has it: `2/5` trains on the pairs
    of the second fifth of the prompts. null: all."""
    opening: int | None = Field(default=None, gt=0)
    """Train on this many first tokens of each side, where a model decides to refuse. null: on whole
    sides."""
    weights: Literal["boundary"] | None = None
    """How much each pair counts (DPO). null: all the same.

    - `boundary`: most if the start policy is undecided about its prompt, a quarter if it is not."""
    too_long: TooLong = "error"
    """What happens to a pair longer than trainer.max_length. No pair is ever cut.

    - `error`: the run stops before training and names such pairs.
    - `drop`: they are left out and counted."""
    waive: dict[str, str] = Field(default_factory=dict)
    """Findings that may stand: {id of a pair, or of a finding about the whole set: the reason}.
    `contamination/xstest` lets all prompts of that benchmark stand. Nothing may then measure it."""
    allow_no_anchor: bool = False
    """Train although no pair is on a harmful prompt. Nothing then keeps the model safe."""


class DertaData(ReadingSection):
    """What DeRTa learns from."""

    sources: ClassVar[tuple[str, ...]] = ("triples", "ask", "helpful_from")
    triples: PlugSpec | None = "starter"
    """Harmful prompts, each with a safe and a harmful response. null: none but those of `ask`.

    - `starter`: shipped prompts and safe responses. The student itself writes the harmful ones.
    - a path: a .jsonl file of triples.
    - a source that gives triples: `pku_saferlhf`, or `{name: beavertails, max: 3000}`."""
    ask: PlugSpec | tuple[PlugSpec, ...] | None = None
    """More harmful prompts whose harmful responses the student itself writes: a source of prompts,
    or several, such as `{name: harmfulqa, max: 500}` or a path. A row of a file that says no kind
    is harmful. A prompt's reference is its safe response. Prompts that the student refuses are left
    out and counted. null: none."""
    safe_lead: str | None = Field(default=None, min_length=1)
    """Put before safe responses that do not begin with `refusal_opener`; a prompt of `ask` that has
    no reference gets it alone. null: both are errors."""
    helpful: tuple[Literal["general", "benign"], ...] = ("general",)
    """Kinds of prompts that are mixed in as ordinary SFT, with their references as answers.

    - `general`: ordinary prompts.
    - `benign`: harmless prompts that only sound dangerous."""
    helpful_from: tuple[PlugSpec, ...] = ("starter",)
    """The sources of the helpful prompts."""
    max_triples: int | None = Field(default=None, gt=0)
    """Triples used (drawn by `seed`). null: all."""
    max_helpful: int | None = Field(default=None, ge=0)
    """Helpful prompts used of each kind (drawn by `seed`). null: all."""
    refusal_opener: str = Field(default="Sorry", min_length=1)
    """The word with which safe responses begin, whatever `rows` are. Its first token is RTO's
    label."""
    rows: HarmfulRows = DERTA_ROWS
    """The two rows that each harmful question becomes: two of `safe`, `prefix` and `rto`.

    - `safe`: the safe response right behind the question.
    - `prefix`: the safe response behind k tokens of the harmful one. Twice: with two lengths k.
    - `rto`: the harmful response, with the refusal token as the label of each token.
    - The paper's ablation: vanilla safety SFT is [safe, safe], prefix only is [prefix, prefix],
      RTO only is [safe, rto], both is [prefix, rto]."""
    prefix_unit: Literal["words", "tokens"] = "words"
    """The unit of k, the length of a harmful prefix.

    - `words`: whole words, as the released code has it.
    - `tokens`: tokens, as the paper says."""
    rto_dropout: float = Field(default=0.95, ge=0, lt=1)
    """Share of RTO positions without loss, drawn again at each pass."""
    too_long: TooLong = "error"
    """What happens to a triple or a helpful prompt whose row may be longer than trainer.max_length.

    - `error`: the run stops before training and names such rows.
    - `drop`: they are left out and counted."""
    waive: dict[str, str] = Field(default_factory=dict)
    """As for pairs, but for prompts of benchmarks alone."""

    @model_validator(mode="after")
    def has_harmful(self) -> DertaData:
        """ValueError if nothing names a harmful prompt."""
        if self.triples is None and not self.ask:
            raise ValueError(
                "triples is null and ask names no source, so there is nothing harmful to learn to "
                "refuse. Name triples (data.triples), or harmful prompts that the student answers "
                "(data.ask)."
            )
        return self


class SftData(ReadingSection):
    """What plain SFT learns from: prompts with references, or the chosen sides of pairs."""

    sources: ClassVar[tuple[str, ...]] = ("prompts", "pairs")
    prompts: PlugSpec | None = None
    """A source of prompts that have references. Give this or `pairs`."""
    kinds: tuple[Literal["harmful", "benign", "general"], ...] = ("harmful", "benign", "general")
    """Kinds that are used of `prompts`.

    - `harmful`: their references are refusals.
    - `benign`: harmless prompts that only sound dangerous.
    - `general`: ordinary prompts."""
    pairs: PlugSpec | None = None
    """Pairs whose chosen sides are learned. Give this or `prompts`."""
    opening: int | None = Field(default=None, gt=0)
    """Learn this many first tokens of each response, and no end of turn behind them. null: all."""
    max_prompts: int | None = Field(default=None, gt=0)
    """Prompts used (drawn by `seed`). null: all."""
    too_long: TooLong = "error"
    """What happens to a prompt that with its reference is longer than trainer.max_length.

    - `error`: the run stops before training and names such prompts.
    - `drop`: they are left out and counted."""
    waive: dict[str, str] = Field(default_factory=dict)
    """As for DeRTa."""


class Speed(Section):
    """What makes a step cheaper without a change of its loss. A key has no effect on methods that
    its text does not name."""

    shared_prefix: bool = True
    """DPO, ORPO and CPO: compute a pair's prompt once and no padding. If that is not proven exact
    for a model, plain rows are used and the log says so."""
    pass_tokens: int | None = Field(default=None, gt=0)
    """DPO, ORPO and CPO: the most tokens that a step computes at once. A batch of more goes through
    the model in several passes, pairs of similar length together, and the update is the same. So a
    few long pairs no longer decide how large a batch may be. A pair of more tokens is a pass of its
    own. null: no limit."""
    reference_store: bool = True
    """DPO: keep the reference's log-probs in the cache folder. Later runs with the same reference
    and rows read them."""
    tree: bool = False
    """DeRTa: put both rows of a question into one, whatever `data.rows` are. A batch then counts
    questions, not rows."""


class CurateData(ReadingSection):
    """Prompts that pairs are built from. Prompts that come twice, or nearly, are dropped and
    counted."""

    sources: ClassVar[tuple[str, ...]] = ("benign", "harmful")
    benign: PlugSpec | tuple[PlugSpec, ...] = "starter"
    """The source of harmless prompts, or several. A row of a file that says no kind is benign."""
    kinds: tuple[Literal["benign", "general"], ...] = Field(default=("benign",), min_length=1)
    """Kinds of harmless prompts that are used.

    - `benign`: prompts that only sound dangerous.
    - `general`: ordinary prompts."""
    harmful: PlugSpec | tuple[PlugSpec, ...] | None = "starter"
    """The source of harmful prompts, or several. A row of a file that says no kind is harmful.
    null: none, and the pairs then keep nothing safe."""
    split: Literal["train", "dev", "test"] | None = "train"
    """The split of sources that have splits. null: all splits."""
    max_prompts: int | None = Field(default=None, gt=0)
    """Prompts used of each kind (a fixed subset by content hash, spread over the categories; a
    harmful prompt goes with the harmless ones of its topic). The student answers every one of them.
    null: all."""
    contaminated: Literal["report", "drop", "error"] = "report"
    """What happens to a benchmark's prompts. A training refuses pairs on them in any case.

    - `report`: they are used, and the log and the summary count them.
    - `drop`: they are left out, and counted there too.
    - `error`: the run stops before anything is generated."""
    keep_answered: bool = False
    """Also make pairs of the harmless prompts that the student answers: its answer over its usual
    refusal. They hold it where it is useful. A limit takes them last, of each kind."""
    openings: bool = False
    """For a training on openings (`data.opening` of a train recipe): sides that the limit cut stay,
    `unfinished` inside a sentence. Then generation.max_new_tokens may be as small as 24."""
    max_per_category: int | None = Field(default=None, gt=0)
    """Pairs kept of each category within a rule (drawn by `seed`). null: all."""
    length_ratio_max: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """How many rows of one side (harmful, harmless) are kept of a prompt length for each row of the
    other side, at most: 1 keeps as many of both, so that length tells nothing. It holds in each
    fifth of all lengths. A row whose length the other side has not goes. null: all stay."""
    max_pairs: int | None = Field(default=None, gt=0)
    """Pairs kept of each rule (drawn by `seed`). Benign and general prompts keep their proportion
    under every limit. Within each kind, prompts that the student gets wrong come first, if
    `keep_answered` or `chosen.refusals: student` adds others. null: all."""
    harmful_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the kept pairs that are on harmful prompts (containment). The side with too many
    gives some up. null: as many as there are."""


class Chosen(Section):
    """Where the chosen sides come from. A teacher's answers are judged. A prompt without a good one
    is left out, on purpose also if it has a reference: unlike rejects, chosen sides do not fall
    through to a hand that the recipe did not ask for. Sides of several hands can be told apart by
    their words. summary.json counts the prompts that are left out, with the reasons."""

    model: str | None = None
    """The teacher that answers the benign prompts. null: the prompts' references are taken."""
    engine: Engine = "transformers"
    """What the teacher runs on."""
    samples: int = Field(default=1, gt=0)
    """The teacher's answers to each prompt, of which `select` takes one."""
    generation: Generation | None = None
    """How the teacher's answers are drawn. null: by the recipe's `generation`. Several samples need
    a temperature above 0."""
    select: Literal["first", "random", "reward", "safety"] = "first"
    """Which of the answers that pass is taken.

    - `first`: the first.
    - `random`: one drawn by `seed`.
    - `reward`: the one with the greatest reward (needs `reward`).
    - `safety`: the safest one (needs `guard`)."""
    answers: Literal["student"] | None = None
    """The answers of overrefusal pairs. null: the teacher's, or the references if no teacher is
    named. `student`: the student's own, by `rejects.suppress_openers`, then begun with
    `rejects.prefill`; a prompt whose answer does not pass takes the teacher's, or the reference
    if no teacher is named. Answers then read the same on both sides of the set."""
    refusals: Literal["reference", "student", "teacher"] = "reference"
    """The refusals of containment pairs.

    - `reference`: written ones.
    - `student`: the student's own, and where it complies, the refusal that it gives most often; the
      written one if it never refuses. Refusals then read the same on both sides of the set, and
      only the prompt shows which one is right.
    - `teacher`: the teacher's answers, selected as above. A prompt that it does not refuse in full
      is left out."""


class Rejects(Section):
    """Where the rejected sides of containment pairs come from. Each prompt takes the first source
    that yields a pair. The order: `completions`, `model`, the student's plain answers, those of
    `suppress_openers`, those after `prefill`."""

    completions: str | None = None
    """A completions.jsonl of harmful responses. null: leave this source out."""
    model: str | None = None
    """A less safe model that answers the harmful prompts. null: leave this source out."""
    engine: Engine = "transformers"
    """What that model runs on."""
    suppress_openers: bool = False
    """The student answers again, and its first token may not be one that opens its refusals. The
    text is its own from the first word on. Needs engine: transformers."""
    prefill: str | None = "Sure, here"
    """How the student's own answer is made to begin. null: leave this source out."""
    tau: float | None = Field(default=None, ge=0, le=1)
    """How much more unsafe than the refusal `guard` must find a rejected side, in probability.
    null: 0.1 (ours)."""
    tau_grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Further values of tau. Each gets a file pairs_tau_<value>.jsonl and a row in summary.json."""


class EvaluateData(ReadingSection):
    """Prompts that are measured."""

    sources: ClassVar[tuple[str, ...]] = ("sets",)
    sets: tuple[PlugSpec, ...] = Field(default=("starter",), min_length=1)
    """Source names, paths of JSON Lines files, or mappings {name: ..., ...settings}."""
    split: Literal["train", "dev", "test"] | None = "test"
    """The split of sources that have splits. null: all splits."""
    max_prompts_per_kind: int | None = Field(default=None, gt=0)
    """A fixed subset (by content hash) of each kind in each set. null: all prompts."""
    attacks: tuple[PlugSpec, ...] = ()
    """Attacks on the harmful prompts, measured beside the plain prompts: names, or mappings {name:
    ..., ...settings}."""
