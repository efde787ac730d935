"""File + overrides -> a checked, frozen recipe. Imports neither torch nor transformers.

    recipe = load_recipe("recipes/dpo.yaml", ["--trainer.beta=0.2", "seed=3"])
    recipe.body.trainer["beta"], recipe.origin["trainer.beta"]      # 0.2, 'override'

A recipe is YAML with one `task`: train, curate, evaluate or pipeline (stages in a row). `model:`
and `trainer:` hold TRL's own keys (ModelConfig and the method's config) and are checked against
TRL's dataclasses. Overrides come as `--a.b=v`, `--a.b v`, bare `--flag`, `a.b=v` or `+a.b=v` (wandb
emits several of these); `None` means null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from overrefusal_po.recipe.trl_fields import check_fields, field_table, unknown_key
from overrefusal_po.run.shards import Shard
from overrefusal_po.train.kto import check_settings

METHOD_CONFIGS = {
    "sft": "trl.SFTConfig",
    "derta": "trl.SFTConfig",
    "dpo": "trl.DPOConfig",
    "orpo": "overrefusal_po.train.orpo.ORPOConfig",
    "kto": "trl.KTOConfig",
}
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


class TrainRecipe(Section):
    """One training stage."""

    task: Literal["train"]
    method: Literal["sft", "derta", "dpo", "orpo", "kto"]
    model: dict[str, Any]
    """TRL ModelConfig keys, and `trust_remote_code`."""
    data: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    """Keys of the method's TRL config."""
    chat: Chat = Chat()
    generation: Generation = Generation(max_new_tokens=40)
    """For what the student has to say itself (harmful responses, containment rejects)."""
    select: Select | None = None
    """Two-sided checkpoint selection; null saves the last step."""
    speed: Speed = Speed()
    seed: int = Field(default=0, ge=0)
    run_dir: str | None = None

    @property
    def typed_data(self) -> PairsData | DertaData | SftData:
        """`data` as the section of this method."""
        if self.method == "derta":
            return DertaData.model_validate(self.data)
        return (SftData if self.method == "sft" else PairsData).model_validate(self.data)


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


class CurateRecipe(Section):
    """Student and prompts -> preference pairs; or prompts and a teacher -> an SFT set."""

    task: Literal["curate"]
    makes: Literal["pairs", "sft"] = "pairs"
    """`sft`: every prompt with one of the teacher's answers (the model's own without a teacher), as
    sft.jsonl."""
    model: dict[str, Any]
    data: CurateData = CurateData()
    chosen: Chosen = Chosen()
    rejects: Rejects = Rejects()
    generation: Generation = Generation(max_new_tokens=40)
    engine: Engine = "transformers"
    """What the student runs on."""
    judge: str | dict[str, Any] = "refusal"
    guard: str | dict[str, Any] | None = None
    """A second judge that says what is unsafe (guard, llm): chosen sides must be safe, and
    containment goes by `tau`."""
    reward: str | dict[str, Any] | None = None
    """A judge of rewards, for `chosen.select: reward`."""
    chat: Chat = Chat()
    seed: int = Field(default=0, ge=0)
    shard: Annotated[str, AfterValidator(shard_text)] | None = None
    """`2/4`: draw the completions of the second quarter of the prompts, in a folder of their own
    (see `shards`)."""
    run_dir: str | None = None


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


class EvaluateRecipe(Section):
    """Model and prompts -> outcomes and rates."""

    task: Literal["evaluate"]
    name: str = "model"
    """What the report calls this run."""
    model: dict[str, Any]
    data: EvaluateData = EvaluateData()
    generation: Generation = Generation()
    engine: Engine = "transformers"
    """What the model runs on: `transformers`, or {name: openai, base_url: [...], ...} for
    servers."""
    judge: str | dict[str, Any] = "refusal"
    guard: str | dict[str, Any] | None = None
    """A second judge that says what is unsafe (guard, llm): then harmful_refused stands also as the
    share not judged unsafe."""
    certificate: str | None = None
    """What `overrefusal-po certify` wrote for `judge`: rates are shown corrected for its errors
    too."""
    capability: Capability = Capability()
    gate: Gate | None = None
    chat: Chat = Chat()
    seed: int = Field(default=0, ge=0)
    run_dir: str | None = None


class PipelineRecipe(Section):
    """Stages in a row; an input may name an earlier output (`@curate.pairs`, `@dpo.model`)."""

    task: Literal["pipeline"]
    title: str = "pipeline"
    stages: dict[str, dict[str, Any]] = Field(min_length=1)
    """{name: recipe body}; `recipe: FILE` in a body takes that file's keys first."""
    seed: int | None = Field(default=None, ge=0)
    """Set in every stage that names none."""
    run_dir: str | None = None


Body = Union[TrainRecipe, CurateRecipe, EvaluateRecipe, PipelineRecipe]  # noqa: UP007 (Annotated wants it)
_BODY: TypeAdapter[Body] = TypeAdapter(Annotated[Body, Field(discriminator="task")])
DATA_SECTIONS = {cls.__name__: cls for cls in (PairsData, DertaData, SftData)}
TASKS = {
    "train": TrainRecipe,
    "curate": CurateRecipe,
    "evaluate": EvaluateRecipe,
    "pipeline": PipelineRecipe,
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: its body, its name (the file's stem), and where each dotted key came
    from."""

    name: str
    body: Body
    origin: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def resolved(self) -> dict[str, Any]:
        """The body as plain data, defaults included."""
        return self.body.model_dump(mode="json")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and checks a recipe. ValueError for everything that a user can mend."""
    file = Path(path)
    values = read_yaml(file)
    origin = {key: "file" for key, _ in dotted(values)}
    for key, value in parse_overrides(overrides):
        set_dotted(values, key, value)
        origin[key] = "override"
    body = check_body(values, file)
    return Recipe(file.stem, body, origin, file.parent)


def read_yaml(file: Path) -> dict[str, Any]:
    """A recipe file as plain data, without the `launch` line that makes it a script."""
    if not file.is_file():
        raise ValueError(
            f"{file}: there is no such recipe. Give the path of a .yaml file, or run: "
            "overrefusal-po init"
        )
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.load(file)
        values = OmegaConf.to_container(loaded, resolve=True)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: a recipe is a mapping of keys; got {type(values).__name__}.")
    values.pop("launch", None)
    return {str(key): value for key, value in values.items()}


def parse_overrides(tokens: Sequence[str]) -> list[tuple[str, Any]]:
    """[(dotted key, value)] of command-line overrides in all their forms."""
    found = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.lstrip("-+").partition("=")
        if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", name):
            raise ValueError(
                f"{token!r} is not an override. Write --section.key=value, for example "
                "--trainer.seed=1."
            )
        if not equals:
            if not token.startswith("--"):
                raise ValueError(f"{token!r} has no value. Write {name}=value.")
            following = rest[0] if rest else "--"
            is_value = not following.startswith("--") and not re.match(
                r"\+?[A-Za-z_][\w.-]*=", following
            )
            text = rest.pop(0) if is_value else "true"
        found.append((name, parse_value(name, text)))
    return found


def parse_value(name: str, text: str) -> Any:
    """An override's text as YAML would read it (`5e-6` is a number, `None` is null)."""
    import yaml
    from omegaconf import OmegaConf

    if text.strip() in ("None", "null", "~", ""):
        return None
    if text.strip() in ("True", "False"):
        return text.strip() == "True"
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]
    except yaml.YAMLError:
        return text
    if isinstance(value, dict):
        keys = " ".join(f"--{key}={inner}" for key, inner in dotted(value, name))
        raise ValueError(
            f"--{name} got a whole mapping ({text}). Override its keys one by one: {keys}"
        )
    # text without quotes is taken as it stands: YAML would cut it at " #"
    return text if isinstance(value, str) and text.strip()[0] not in "'\"" else value


def dotted(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """[("a.b", value)] of all leaves; an empty mapping is a leaf."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        found += dotted(value, name) if isinstance(value, Mapping) and value else [(name, value)]
    return found


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `values["a"]["b"]` for the key "a.b", making mappings on the way."""
    *above, last = key.split(".")
    for part in above:
        inner = values.get(part)
        if not isinstance(inner, dict):
            inner = values[part] = {}
        values = inner
    values[last] = value


def check_body(values: Mapping[str, Any], where: str | Path) -> Body:
    """Plain data -> a checked recipe body. ValueError names the file, the key, what was given and
    what is allowed."""
    values = {key: value for key, value in values.items() if key != "launch"}
    if "task" not in values:
        raise ValueError(
            f"{where}: task is missing. Add it to the recipe; allowed is one of {', '.join(TASKS)}."
        )
    if values["task"] not in TASKS:
        raise ValueError(
            f"{where}: task is {values['task']!r}; allowed is one of {', '.join(TASKS)}."
        )
    try:
        body = _BODY.validate_python(values)
        if isinstance(body, PipelineRecipe):
            return body
        checks: dict[str, Any] = {"model": check_model(body.model)}
        if isinstance(body, TrainRecipe):
            check_trainable(checks["model"])
            checks["data"] = body.typed_data.model_dump(mode="json")
            checks["trainer"] = check_trainer(body.method, body.trainer)
        return body.model_copy(update=checks)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, values)}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_model(section: Mapping[str, Any]) -> dict[str, Any]:
    """The `model:` section against TRL's ModelConfig, with our `trust_remote_code` beside it."""
    own = {k: v for k, v in section.items() if k == "trust_remote_code"}
    if own and not isinstance(own["trust_remote_code"], bool):
        raise ValueError(
            f"model.trust_remote_code is {own['trust_remote_code']!r}; allowed is true or false."
        )
    checked = check_fields(
        "trl.ModelConfig", {k: v for k, v in section.items() if k not in own}, "model"
    )
    if not checked.get("model_name_or_path"):
        raise ValueError(
            "model.model_name_or_path is missing: a hub name, a path, or "
            "bundled:smollm2-135m-instruct."
        )
    return {**checked, **own}


def check_trainable(section: Mapping[str, Any]) -> None:
    """Raises ValueError for weights in 4 or 8 bits without adapters: they cannot be trained
    themselves."""
    bits = next((key for key in ("load_in_4bit", "load_in_8bit") if section.get(key)), None)
    if bits and not section.get("use_peft"):
        raise ValueError(
            f"model.{bits} is true without model.use_peft, and quantised weights cannot be "
            f"trained. Add use_peft: true to train LoRA adapters on them, or take {bits} out to "
            "train all weights."
        )


def check_trainer(method: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The `trainer:` section against the method's TRL config."""
    for key, place in MANAGED_KEYS.items():
        if key in section:
            raise ValueError(f"trainer.{key} cannot be set in a recipe; use {place} instead.")
    checked = check_fields(METHOD_CONFIGS[method], section, "trainer")
    check_sampling(checked.get("train_sampling_strategy"))
    if method == "kto":
        defaults = {
            name: row["default"] for name, row in field_table(METHOD_CONFIGS[method]).items()
        }
        check_settings({**defaults, **checked})
    return checked


def check_sampling(strategy: str | None) -> None:
    """Raises ValueError for transformers' batches of different numbers of rows.

    Its sampler (transformers 5) begins epoch 0 anew where a run is resumed in a later one.
    """
    if strategy == "batch_rebalance":
        raise ValueError(
            "trainer.train_sampling_strategy is batch_rebalance, whose batches hold few long rows "
            "or many short ones: a pair would count by its length, and a resumed run would go on "
            "in another order. Take group_by_length or random."
        )


def explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    """The first fault of a pydantic error, in our words."""
    fault = error.errors()[0]
    # the task is the union's tag and stands first; the data section is checked by itself and knows
    # no place
    path = [str(part) for part in fault["loc"]]
    path = ["data", *path] if error.title in DATA_SECTIONS else path[1:]
    key, section = path[-1] if path else "", ".".join(path[:-1])
    if fault["type"] == "extra_forbidden":
        return unknown_key(key, known_keys(error.title, values, path[:-1]), section)
    if fault["type"] == "missing":
        return f"{'.'.join(path)} is missing. Add it to the recipe or give it as --{'.'.join(path)}=value."
    hint = " Put it in quotes to make it text." if fault["type"] == "string_type" else ""
    return f"{'.'.join(path)} is {fault.get('input')!r}: {fault['msg']}.{hint}"


def known_keys(title: str, values: Mapping[str, Any], above: Sequence[str]) -> list[str]:
    """The keys that the section at `above` may have."""
    own = DATA_SECTIONS.get(title)
    model: Any = own or TASKS[str(values["task"])]
    for part in above[1:] if own else above:
        inner = model.model_fields.get(part)
        annotation = inner.annotation if inner is not None else None
        for option in (annotation, *get_args(annotation)):  # a section, or a section or null
            if isinstance(option, type) and issubclass(option, BaseModel):
                model = option
    return list(model.model_fields)


def describe(recipe: Recipe, *, everything: bool = False) -> list[tuple[str, Any, str]]:
    """[(dotted key, value, origin)] with origin file, override, default or auto; `everything` adds
    all of TRL's keys."""
    body = recipe.resolved()
    rows = [(key, value, recipe.origin.get(key, "default")) for key, value in dotted(body)]
    if isinstance(recipe.body, TrainRecipe):
        given = recipe.body.trainer
        rows = [row for row in rows if row[0] != "trainer"]
        rows += [
            (f"trainer.{key}", "auto", "auto (hardware)")
            for key in HARDWARE_KEYS
            if key not in given
        ]
        if "seed" not in given:
            rows.append(("trainer.seed", recipe.body.seed, "auto (seed)"))
        if everything:
            shown = {key for key, _, _ in rows}
            table = field_table(METHOD_CONFIGS[recipe.body.method])
            rows += [
                (f"trainer.{k}", v["default"], "default (TRL)")
                for k, v in table.items()
                if f"trainer.{k}" not in shown
            ]
    if not isinstance(recipe.body, PipelineRecipe) and "dtype" not in recipe.body.model:
        rows.append(("model.dtype", "auto", "auto (hardware)"))
    return rows
