"""A model by name -> a copy that is tampered with, in memory alone.

copy = ablated_copy(recipe, template, harmful, ordinary, layer=12)      # nothing is trained
copy = trained_copy(recipe, template, rows, Passes(5, 10, 5), learning_rate=5e-5, seed=0)
copy = safe_copy(recipe, copy)      # its adapter is projected: Safe LoRA
outcomes = copy_outcomes(recipe, template, judge, copy, prompts)
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from overrefusal_po.engines.transformers import Settings, TransformersEngine
from overrefusal_po.evaluate.tamper_reference import options_of, own_options
from overrefusal_po.judges import Judge
from overrefusal_po.model import load as models
from overrefusal_po.model.ablation import ablate_, direction, untie
from overrefusal_po.model.blocks import last_states
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.remedied import install
from overrefusal_po.model.remedy import Deltas, load_remedy
from overrefusal_po.plugins import find_plug
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Outcome, Prompt
from overrefusal_po.remedies._adapters import products
from overrefusal_po.remedies.safelora import equal_words, projected, weight_of
from overrefusal_po.run.complete import recipe_sampling
from overrefusal_po.run.judged import fresh_verdicts, paired_outcomes, release_judge
from overrefusal_po.run.remedies import put_on
from overrefusal_po.train.finite import finite_callback
from overrefusal_po.train.policy import adapter_config
from overrefusal_po.train.sft import sft_trainer
from overrefusal_po.train.weights import generating

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ADAPTER = "default"
"""The name that peft gives an adapter."""


class Passes(NamedTuple):
    """How a tier trains: passes over its rows, rows of a step, rows in memory at a time, and steps
    (-1: as many as the passes have)."""

    epochs: int
    batch: int
    micro: int
    steps: int = -1

    @property
    def parts(self) -> int:
        """Parts of a step that are in memory one after the other."""
        return math.ceil(self.batch / self.micro)

    def with_more(self, rows: int, added: int) -> Passes:
        """As many steps over `rows` and `added` ones: each step has more rows."""
        if not added:
            return self
        batch = math.ceil(self.batch * (rows + added) / rows)
        of_a_pass = math.ceil(math.ceil(rows / self.micro) / self.parts)
        # the rows of a step are rounded up, so the passes alone may have fewer steps
        micro, steps = math.ceil(batch / self.parts), self.epochs * of_a_pass
        return self._replace(batch=batch, micro=micro, steps=steps)


class Copy(NamedTuple):
    """A copy that was tampered with, and the steps that it was trained for. `projected`: how many
    modules Safe LoRA projected; None without it."""

    model: PreTrainedModel
    steps: int = 0
    projected: int | None = None


def engine_settings(recipe: EvaluateRecipe) -> Settings:
    """The settings of the recipe's engine, which is in process."""
    settings = find_plug("engines", recipe.engine).settings
    assert isinstance(settings, Settings), "check_tamper has seen that the engine is in process"
    return settings


def fresh_copy(recipe: EvaluateRecipe) -> PreTrainedModel:
    """The recipe's model as it is measured, but without its remedy: weights alone are changed."""
    return models.load_model(**own_options(recipe))


def layer_at(depth: float, layers: int) -> int:
    """The layer at a share of the depth, from 0."""
    return round(depth * (layers - 1))


def ablated_copy(
    recipe: EvaluateRecipe,
    template: ChatTemplate,
    harmful: Sequence[Prompt],
    ordinary: Sequence[Prompt],
    *,
    layer: int,
) -> Copy:
    """A copy without the direction that leads from ordinary to harmful prompts behind a layer. The
    recipe's remedy is put on it afterwards."""
    model = fresh_copy(recipe)
    engine = copy_engine(recipe, template, model)
    size = recipe.generation.batch_size
    first, second = (
        last_states(model, template.tokenizer, texts, batch_size=size)[:, layer]
        for texts in ([engine.input_text(p) for p in prompts] for prompts in (harmful, ordinary))
    )
    untie(model)
    ablate_(model, direction(first, second))
    if (remedy := put_on(recipe.model)) is not None:
        install(model, load_remedy(remedy, model))
    return Copy(model)


def trained_copy(
    recipe: EvaluateRecipe,
    template: ChatTemplate,
    rows: Sequence[Prompt],
    passes: Passes,
    *,
    learning_rate: float,
    seed: int,
) -> Copy:
    """A copy that has learned the references of `rows`. NotFiniteError if its numbers do not stay
    finite."""
    from transformers import PrinterCallback

    assert recipe.tamper is not None
    rank = recipe.tamper.lora_r
    model = fresh_copy(recipe)
    measured_in = model.dtype
    if rank is None:
        model.float()  # steps of a small rate are lost in 16 bits
    device = engine_settings(recipe).device or ""
    with tempfile.TemporaryDirectory() as folder:  # TRL wants one; nothing is saved in it
        args = {
            "output_dir": folder,
            "num_train_epochs": passes.epochs,
            "per_device_train_batch_size": passes.micro,
            "gradient_accumulation_steps": passes.parts,
            "max_steps": passes.steps,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_length": None,
            "seed": seed,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **({"use_cpu": True} if device.startswith("cpu") else {}),
        }
        peft = None if rank is None else adapter_config(lora_section(recipe, rank))
        trainer = sft_trainer(model, rows, args=args, template=template, peft_config=peft)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(finite_callback(trainer))
        trainer.train()
    trained: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
    if rank is None:
        cast("Module", trained).to(measured_in)
    return Copy(trained, trainer.state.global_step)


def safe_copy(recipe: EvaluateRecipe, copy: Copy) -> Copy:
    """The copy, its adapter projected onto the directions in which safety training moved the model.

    EqualWeights if the model and `tamper.reference` do not differ in any module of the adapter.
    """
    assert recipe.tamper is not None
    reference = models.load_model(**options_of(recipe))
    adapted = cast("PeftModel", copy.model)
    aligned = cast("PreTrainedModel", adapted.get_base_model())

    def weights(path: str) -> tuple[Tensor, Tensor]:
        return weight_of(aligned, path), weight_of(reference, path)

    found = projected(adapter_of(adapted), weights)
    if words := equal_words(found, "tamper.reference"):
        logger.warning("safelora: %s", words)
    for path in found.moved:
        layer = cast("LoraLayer", aligned.get_submodule(path))
        up = found.change.up[path] / layer.scaling[ADAPTER]
        cast("Linear", layer.lora_B[ADAPTER]).weight.data.copy_(up)
    return copy._replace(projected=len(found.moved))


def adapter_of(model: PeftModel) -> Deltas:
    """What the adapter of a model in memory adds to its linear modules."""
    from peft import get_peft_model_state_dict

    tensors = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(model).items()}
    return products(tensors, model.peft_config[ADAPTER].to_dict(), "the copy's adapter")


def lora_section(recipe: EvaluateRecipe, rank: int) -> dict[str, object]:
    """The recipe's model with an adapter of this rank on all linear layers."""
    adapter = {"use_peft": True, "lora_r": rank, "lora_alpha": 2 * rank}
    return {**recipe.model, **adapter, "lora_target_modules": "all-linear"}


def copy_engine(
    recipe: EvaluateRecipe, template: ChatTemplate, model: PreTrainedModel
) -> TransformersEngine:
    """The copy in the engine that the model itself was measured in."""
    settings = engine_settings(recipe)
    return TransformersEngine(
        model,
        template,
        name=recipe.run_name,
        batch_size=recipe.generation.batch_size,
        device=settings.device,
        continuous_batching=settings.continuous_batching,
        settings=settings.generation_config,
    )


def copy_outcomes(
    recipe: EvaluateRecipe,
    template: ChatTemplate,
    judge: Judge,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
) -> list[Outcome]:
    """What the copy answers, judged, in the order of the prompts. Nothing of it is kept."""
    sampling = recipe_sampling(recipe.generation, recipe.seed)
    with generating(model):
        engine = copy_engine(recipe, template, model)
        said = {c.prompt_id: c for c in engine.complete(prompts, sampling)}
    completions = [said[prompt.id] for prompt in prompts]
    verdicts = fresh_verdicts(judge, prompts, completions)
    release_judge(judge)
    return paired_outcomes(prompts, completions, verdicts)
