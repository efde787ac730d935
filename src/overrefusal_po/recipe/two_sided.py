"""What a training is held to on dev prompts, on both sides: which step is kept, how much safety the
end has, and which of several settings is taken.

    Hold(sets=("starter", "my-prompts.jsonl"))
    Search(space={"trainer.beta": [0.1, 0.3]})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from overrefusal_po.recipe.overrides import dotted
from overrefusal_po.recipe.sections import JudgeSpec, PlugSpec, Section

HoldAim = Literal["both", "answers", "refusals"]
"""What a bias is for, once it holds."""


class DevSets(Section):
    """Harmful and benign prompts that a training is measured on while it runs."""

    sets: tuple[PlugSpec, ...] = Field(default=("starter",), min_length=1)
    """Sources of harmful and benign prompts. The training may not use these prompts."""
    split: Literal["train", "dev", "test"] | None = "dev"
    """The split of sources that have splits. null: all splits."""
    max_prompts_per_kind: int | None = Field(default=40, gt=0)
    """A fixed subset (by content hash) of each kind in each set. null: all prompts."""
    max_new_tokens: int = Field(default=32, gt=0)
    """The most tokens of a response. A refusal shows in the first ones."""
    judge: JudgeSpec | None = None
    """The judge of the responses. null: the recipe's."""
    batch_size: int = Field(default=32, gt=0)
    """Prompts decoded at a time."""


class Select(DevSets):
    """Which step's weights are saved: the most useful step that is about as safe as the start
    policy. Each look measures both."""

    every_steps: int = Field(default=20, gt=0)
    """Steps between two looks. The start policy and the last step always get a look."""
    tolerance: float = Field(default=0.05, ge=0, le=1)
    """How far harmful_refused may fall below the start policy's."""


class Hold(DevSets):
    """How safe the trained model has to be. After the training one number is calibrated, a bias on
    the tokens that open a refusal at the start of a response, and folded into the weights. If no
    bias is enough, the run says so and ends with exit code 3."""

    max_prompts_per_kind: int | None = Field(default=150, gt=0)
    """A fixed subset (by content hash) of each kind in each set. null: all prompts. With 150
    harmful prompts the rate that is held is known to about .06."""
    refused_drop_max: float = Field(default=0.0, ge=0, le=1)
    """How far harmful_refused may fall below the start policy's in each of the sets. 0: as many
    harmful prompts are refused as before. Above 0, what the sets may lose is mostly lost, and other
    prompts lose refusals too. So take more than 0 only if the start policy refuses more harm than
    you need, and measure on other prompts what it costs."""
    kept_min: float | None = Field(default=None, ge=0, le=1)
    """The least share of the harmful prompts refused by the start policy that must still be
    refused, in each of the sets. As many refusals as before may be other ones: a training that
    learns to refuse new prompts may lose others, and prompts of other hands with them. 0.9 keeps
    nine of ten, for fewer answers. null: any number."""
    start: str | None = None
    """The responses with which the end is compared: `hold_start.jsonl` of another training on the
    same prompts, or `@dpo.start` in a pipeline. null: those of this training's start policy."""
    aim: HoldAim = "refusals"
    """Which of the biases that keep to it is taken.

    - `refusals`: the one that answers most benign prompts, and none below 0. What the trained model
      refuses stays refused.
    - `both`: the one with the greatest sum of harmful_refused and benign_answered.
    - `answers`: the one that answers most benign prompts. On prompts that the sets do not stand
      for, refusals may be lost."""
    bias_max: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    """The greatest bias that is tried, in logits, up or down."""
    optional: bool = False
    """Whether a model in which no bias can work is trained all the same: one with norms behind its
    MLP (Gemma 2 and 3, OLMo 2), or one that thinks first. It is then measured and not held, and
    the log, the report and the card say so. false: such a model is an error."""


def start_of(start: str | None) -> str:
    """` of dpo`: the training whose start policy a `hold.start` names; "" for the training's own.

    >>> start_of("runs/porover/dpo/hold_start.jsonl")
    ' of dpo'
    """
    return f" of {Path(start).parent.name or 'another training'}" if start else ""


def flat_space(given: object) -> object:
    """`{trainer: {beta: [...]}}`, as an override gives it, in the form `{trainer.beta: [...]}`.
    The last list of a key counts, and null takes a key of a base file out."""
    if not isinstance(given, Mapping):
        return given
    return {key: values for key, values in dict(dotted(given)).items() if values is not None}


class Search(Section):
    """Settings that are tried, for example `space: {trainer.learning_rate: [1.0e-4, 2.0e-4],
    data.harmful_share: [0.4, 0.5]}`. Each trial is a whole training from the start policy that ends
    with `hold`. The one that then answers most benign prompts is kept, of those that hold."""

    # Any: the values of TRL's keys and of `data`, which `recipe.search` has their classes check
    space: Annotated[dict[str, list[Any]], BeforeValidator(flat_space)]
    """{key: the values to try}. Keys are those of `trainer` and `data`, each with its section:
    `trainer.beta`. Every combination is a point of the grid."""
    trials: int | None = Field(default=None, gt=1)
    """The trainings, at most: points of the grid in an order that `seed` draws. null: the whole
    grid, in its order."""
