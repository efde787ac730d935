"""What a recipe may say: one class for each task. Imports neither torch nor transformers.

    TrainRecipe(task="train", method="dpo", model={"model_name_or_path": "my/model"}).typed_data

A recipe is YAML with one `task`: train, curate, fit, evaluate or pipeline (stages in a row).
`model:` and `trainer:` hold TRL's own keys (ModelConfig and the method's config) and are checked
against TRL's dataclasses. `sections` has the other sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar, Union

from pydantic import Field, model_validator

from overrefusal_po.recipe.bounds import Capability, Gate
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.later_round import LaterRound
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.model_names import own_name
from overrefusal_po.recipe.reading import SEED_MAX
from overrefusal_po.recipe.report import Report
from overrefusal_po.recipe.sections import (
    Chat,
    Chosen,
    CurateData,
    Engine,
    EvaluateData,
    Generation,
    JudgeSpec,
    OpenSection,
    PlugSpec,
    Rejects,
    Section,
    Speed,
)
from overrefusal_po.recipe.shard import ShardText
from overrefusal_po.recipe.tamper import Tamper
from overrefusal_po.recipe.two_sided import DevSets, Hold, Search, Select

HARDWARE_KEYS = ("use_cpu", "bf16", "gradient_checkpointing", "dataloader_pin_memory")
"""Trainer keys that hardware decides when a recipe leaves them open."""

MANAGED_KEYS = {
    "output_dir": "run_dir",
    "resume_from_checkpoint": "run_dir",
    "model_init_kwargs": "the model section",
    "trust_remote_code": "model.trust_remote_code",
    "hub_token": "the environment variable HF_TOKEN, since a recipe is written into the run "
    "folder,",
}
"""Trainer keys that may not stand in a recipe: {key: where to say it instead}."""


Sets = TypeVar("Sets", bound=DevSets)


def with_judge(sets: Sets, judge: JudgeSpec) -> Sets:
    """The section with `judge` if it names none."""
    return sets if sets.judge is not None else sets.model_copy(update={"judge": judge})


class TrainRecipe(Section):
    """One training."""

    task: Literal["train"]
    """What this recipe does."""
    method: str
    """A method of `overrefusal-po list`, or the dotted name of a module of your own."""
    model: OpenSection
    """The start policy: TRL ModelConfig keys, and `trust_remote_code`."""
    data: OpenSection = Field(default_factory=dict)
    """What the method learns from. Each method has its own keys."""
    trainer: OpenSection = Field(default_factory=dict)
    """Keys of the method's TRL config."""
    chat: Chat = Chat()
    """How conversations are rendered."""
    generation: Generation = Generation(max_new_tokens=40)
    """How the student's own words are drawn: harmful responses, and rejects of containment."""
    judge: JudgeSpec = "refusal"
    """The judge that says which texts refuse: the linter's, and that of the student's own words."""
    select: Select | None = None
    """Which step's weights are saved, measured on both sides. null: the last step's."""
    hold: Hold | None = None
    """How safe the model is at the end: a calibrated bias on how refusals open. null: as the
    training leaves it."""
    search: Search | None = None
    """Settings that are tried one after the other; the best that holds is kept. null: none, one
    training."""
    speed: Speed = Speed()
    """What makes a step cheaper without a change of its loss."""
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """Decides what is drawn: rows, their order, sampled tokens, dropout."""
    run_dir: str | None = None
    """The run folder. null: runs/<recipe>-<key>, one for each set of values and inputs."""

    @property
    def typed_data(self) -> Section:
        """`data` as the section of this method."""
        return find_method(self.method).data.model_validate(self.data)

    @property
    def learns_triples(self) -> bool:
        """Whether this method learns from triples, as DeRTa does."""
        return "triples" in find_method(self.method).data.model_fields

    @property
    def looks(self) -> Select | None:
        """`select` with the judge that it uses."""
        return None if self.select is None else with_judge(self.select, self.judge)

    @property
    def held(self) -> Hold | None:
        """`hold` with the judge that it uses."""
        return None if self.hold is None else with_judge(self.hold, self.judge)


class CurateRecipe(Section):
    """Student and prompts -> preference pairs; or prompts and a teacher -> an SFT set."""

    task: Literal["curate"]
    """What this recipe does."""
    makes: Literal["pairs", "sft"] = "pairs"
    """What is written.

    - `pairs`: preference pairs, as pairs.jsonl.
    - `sft`: each prompt with one of the teacher's answers, as sft.jsonl. Without a teacher, the
      model itself answers."""
    model: OpenSection
    """The student: TRL ModelConfig keys, `trust_remote_code` and `remedy`."""
    data: CurateData = CurateData()
    """The prompts, and how many pairs are kept."""
    chosen: Chosen = Chosen()
    """Where the chosen sides come from."""
    rejects: Rejects = Rejects()
    """Where the rejected sides of containment pairs come from."""
    generation: Generation = Generation(max_new_tokens=40)
    """How completions are drawn."""
    engine: Engine = "transformers"
    """What the student runs on: `transformers`, or {name: openai, base_url: [...], ...}."""
    judge: JudgeSpec = "refusal"
    """The judge that says which completions refuse."""
    guard: PlugSpec | None = None
    """A second judge that says what is unsafe (guard, llm). Chosen sides must then be safe, and
    containment goes by `tau`. null: none."""
    reward: PlugSpec | None = None
    """A judge of rewards, for `chosen.select: reward`. null: none."""
    unscored_max: float = Field(default=0.5, ge=0, le=1)
    """The greatest share of a judge's completions without a verdict. Above it the run fails with
    exit code 1, and so it does if none has one."""
    chat: Chat = Chat()
    """How conversations are rendered."""
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """Decides what is drawn: sampled tokens, answers, and pairs when only some are kept."""
    later_round: LaterRound | None = None
    """Which pairs are kept in a later round of a pipeline; its `rounds` sets this. null: all."""
    shard: ShardText | None = None
    """A part of the work: `2/4` draws the completions of the second quarter of the prompts, in a
    folder of its own. `auto`: the part of this task of a Slurm job array. `overrefusal-po merge`
    puts the parts together. null: all."""
    run_dir: str | None = None
    """The run folder. null: runs/<recipe>-<key>, one for each set of values and inputs."""


class EvaluateRecipe(Section):
    """Model and prompts -> outcomes and rates."""

    task: Literal["evaluate"]
    """What this recipe does."""
    name: str | None = None
    """What the report calls this run. null: the own name of the model and its remedy."""
    model: OpenSection
    """The measured model: TRL ModelConfig keys, `trust_remote_code` and `remedy`."""
    data: EvaluateData = EvaluateData()
    """The prompts."""
    generation: Generation = Generation()
    """How responses are drawn."""
    engine: Engine = "transformers"
    """What the model runs on: `transformers`, or {name: openai, base_url: [...], ...}."""
    judge: JudgeSpec = "refusal"
    """The judge that says which responses refuse. A list is a panel: the first judge's verdicts
    count, and the report says how often the others agree."""
    guard: PlugSpec | None = None
    """A second judge that says what is unsafe (guard, llm). harmful_not_unsafe is then measured
    too. null: none."""
    certificate: str | None = None
    """What `overrefusal-po certify` wrote for `judge`. Rates are then also shown corrected for the
    judge's errors. null: none."""
    capability: Capability = Capability()
    """What else the model can do."""
    first_token: bool | Literal["texts"] | None = None
    """Measure how well the first token of the response alone separates harmful from benign prompts,
    and what a threshold on it would refuse and answer. It costs one pass over each prompt. null: if
    the model is in process and there are prompts of both kinds. `true`: else it is an error.
    `texts`: the exact curve of a bias on the openers of refusals. These prompts are answered twice,
    the second time with the other decision at the first token."""
    tamper: Tamper | None = None
    """Measure copies of the model whose safety is tampered with: how little undoes it. It trains,
    so it costs minutes for each copy. null: none."""
    unscored_max: float = Field(default=0.25, ge=0, le=1)
    """The greatest share of responses without a verdict (the server gave none, or a judge's reply
    could not be read). Above it the run fails with exit code 1, and so it does if no response to
    a kind of prompts has one."""
    gate: Gate | None = None
    """Bounds that this run must hold. null: none."""
    chat: Chat = Chat()
    """How conversations are rendered."""
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """Decides what is drawn: sampled tokens, and the samples behind the intervals."""
    shard: ShardText | None = None
    """A part of the work: `2/4` answers and judges the second quarter of the prompts, in a folder
    of its own. `auto`: the part of this task of a Slurm job array. `overrefusal-po merge` puts the
    parts together, and the same recipe without `shard` measures. null: all."""
    run_dir: str | None = None
    """The run folder. null: runs/<recipe>-<key>, one for each set of values and inputs."""

    @model_validator(mode="before")
    @classmethod
    def named(cls, values: object) -> object:
        """The values with the own name of the model, and of its remedy, as `name` if they have
        none."""
        if not isinstance(values, Mapping) or values.get("name") is not None:
            return values
        section = values.get("model")
        known = section if isinstance(section, Mapping) else {}
        both = [known.get(key) for key in ("model_name_or_path", "remedy")]
        named = [own_name(given) for given in both if isinstance(given, str)]
        return {**values, "name": " with ".join(named)} if isinstance(both[0], str) else values

    @property
    def run_name(self) -> str:
        """What the report calls this run."""
        return self.name or "model"


class PipelineRecipe(Section):
    """Stages in a row. An input may name an earlier output (`@curate.pairs`, `@dpo.model`)."""

    task: Literal["pipeline"]
    """What this recipe does."""
    title: str = "pipeline"
    """The title of the report."""
    model: OpenSection = Field(default_factory=dict)
    """The start model: its keys are those of `model:` in every stage that does not say them itself.
    A stage whose model is another stage's output (`@dpo.model`) keeps it, and takes the keys that
    say how a model is loaded. Those of adapters and of 4 or 8 bits go to trainings alone; another
    stage takes such bits if it says so itself. `@model` names the start model in any other key of a
    stage."""
    judge: JudgeSpec | None = None
    """The judge of every stage that does not name one itself. null: each stage has its own."""
    stages: dict[str, OpenSection] = Field(min_length=1)
    """{name: the keys of a train, curate, fit or evaluate recipe}. `recipe: FILE` takes that file's
    keys first; the path is relative to this recipe."""
    rounds: int = Field(default=1, ge=1)
    """How often pairs are made and trained on. What is repeated begins with the first curate stage
    of pairs and ends with the last training that reads it, directly or not: `curate`, `dpo`,
    `curate_2`, `dpo_2`. A later round asks the model of the round before, keeps what is still wrong
    (`later_round`) and trains that model on; its `hold` compares with the first round's start. In
    the stages behind, `@dpo.model` is the last round's model, and `@dpo_1.model` round 1's. Keys of
    one round stand under its own name (`stages.dpo_2.trainer.learning_rate`)."""
    report: Report | None = None
    """What the report compares if the runs are remedies of one model. null: each run with the one
    before it."""
    seed: int | None = Field(default=None, ge=0, le=SEED_MAX)
    """Set in every stage that names none. null: each stage has its own."""
    run_dir: str | None = None
    """The run folder. null: runs/<recipe>-<key>, one for each set of values."""


Body = Union[  # noqa: UP007 (Annotated wants it)
    TrainRecipe, CurateRecipe, FitRecipe, EvaluateRecipe, PipelineRecipe
]

TASKS: dict[str, type[Section]] = {
    "train": TrainRecipe,
    "curate": CurateRecipe,
    "fit": FitRecipe,
    "evaluate": EvaluateRecipe,
    "pipeline": PipelineRecipe,
}
"""The class of each task."""
