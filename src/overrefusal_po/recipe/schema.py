"""What a recipe may say: one class a task. Imports neither torch nor transformers.

    TrainRecipe(task="train", method="dpo", model={"model_name_or_path": "my/model"}).typed_data

A recipe is YAML with one `task`: train, curate, evaluate or pipeline (stages in a row). `model:`
and `trainer:` hold TRL's own keys (ModelConfig and the method's config) and are checked against
TRL's dataclasses. `sections` has the other sections.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field

from overrefusal_po.recipe.methods import find_method
from overrefusal_po.recipe.sections import (
    Capability,
    Chat,
    Chosen,
    CurateData,
    Engine,
    EvaluateData,
    Gate,
    Generation,
    Rejects,
    Section,
    Select,
    Speed,
    shard_text,
)


class TrainRecipe(Section):
    """One training stage."""

    task: Literal["train"]
    method: str
    """A name of the table of methods, or the dotted name of a module of your own."""
    model: dict[str, Any]
    """TRL ModelConfig keys, and `trust_remote_code`."""
    data: dict[str, Any] = Field(default_factory=dict)
    trainer: dict[str, Any] = Field(default_factory=dict)
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
    def typed_data(self) -> Section:
        """`data` as the section of this method."""
        return find_method(self.method).data.model_validate(self.data)


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
