"""What a fit recipe may say: a model, the prompts that a remedy is fitted on, and those that choose
its strength. Imports no torch.

    FitRecipe(task="fit", remedy="threshold", model={"model_name_or_path": "my/model"})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from overrefusal_po.recipe.reading import SEED_MAX, ReadingSection
from overrefusal_po.recipe.report import PERPLEXITY_RATIO
from overrefusal_po.recipe.sections import (
    Chat,
    Generation,
    JudgeSpec,
    OpenSection,
    PlugSpec,
    Section,
)

HOLD_OUT: PlugSpec = {"name": "contrasts", "hands": [10]}
"""The prompts of a hand that nothing is fitted on."""


def model_keys(given: object) -> object:
    """A model's name as a section; other values unchanged."""
    return {"model_name_or_path": given} if isinstance(given, str) else given


class Choose(ReadingSection):
    """Prompts on which every strength of a remedy is measured. They are never fitted on."""

    sources: ClassVar[tuple[str, ...]] = ("sets",)
    sets: tuple[PlugSpec, ...] = Field(default=("starter", HOLD_OUT), min_length=1)
    """Sources of harmful and benign prompts. Ordinary ones in them are measured too."""
    split: Literal["train", "dev"] = "dev"
    """The split of sources that have splits. Test prompts choose nothing."""
    max_prompts_per_kind: int | None = Field(default=60, gt=0)
    """A fixed subset (by content hash) of each kind in each set. null: all prompts."""


class FitData(ReadingSection):
    """Prompts that a remedy is fitted on, and those that choose its strength. The benchmark
    firewall reads both."""

    sources: ClassVar[tuple[str, ...]] = ("harmful", "benign", "ordinary")
    harmful: PlugSpec | tuple[PlugSpec, ...] = ("starter", "contrasts")
    """The source of harmful prompts, or several. A row of a file that says no kind is harmful."""
    benign: PlugSpec | tuple[PlugSpec, ...] = ("starter", "contrasts")
    """The source of harmless prompts that sound dangerous, or several. A row of a file that says
    no kind is benign."""
    ordinary: PlugSpec | tuple[PlugSpec, ...] = "starter"
    """The source of ordinary prompts, or several. A row of a file that says no kind is general."""
    split: Literal["train", "dev"] = "train"
    """The split of sources that have splits. Nothing is fitted on test prompts."""
    max_prompts_per_kind: int | None = Field(default=256, gt=0)
    """A fixed subset (by content hash) of each kind. null: all prompts."""
    choose: Choose = Choose()
    """Which prompts choose the strength."""


class FitRecipe(Section):
    """A model and prompts -> a remedy for its over-refusal. Of the remedy's strengths the one is
    kept that answers most harmless prompts, of those that refuse about as much harm as before."""

    task: Literal["fit"]
    """What this recipe does."""
    remedy: PlugSpec
    """A remedy of `overrefusal-po list`, or {name: ..., ...its settings}."""
    model: OpenSection
    """The model that over-refuses: TRL ModelConfig keys, and `trust_remote_code`."""
    reference: Annotated[
        OpenSection | None,
        BeforeValidator(model_keys, json_schema_input_type=str | OpenSection | None),
    ] = None
    """The model before its safety training, for remedies that compare with it: a name, or the keys
    of `model`. null: none."""
    data: FitData = FitData()
    """The prompts."""
    tolerance: float = Field(default=0.05, ge=0, le=1)
    """How far harmful_refused may fall on the prompts of `data.choose`: on all of them, and on each
    source that has 20 harmful ones or more."""
    perplexity_ratio_max: float = Field(default=PERPLEXITY_RATIO, ge=1)
    """What multiple of the model's own the perplexity of reference answers may be, on up to 40
    harmless and ordinary prompts of `data.choose` that have one. A remedy that is too strong breaks
    the language, and broken text is no refusal."""
    generation: Generation = Generation(max_new_tokens=20)
    """How responses are drawn. A fit measures greedily, so `temperature` stays 0."""
    judge: JudgeSpec = "refusal"
    """The judge that says which responses refuse."""
    chat: Chat = Chat()
    """How conversations are rendered."""
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """Decides what a remedy draws."""
    run_dir: str | None = None
    """The run folder. null: runs/<recipe>-<key>, one for each set of values and inputs."""

    @property
    def models(self) -> Mapping[str, OpenSection]:
        """{key: section} of the models that it loads."""
        both = {"model": self.model, "reference": self.reference}
        return {key: section for key, section in both.items() if section is not None}
