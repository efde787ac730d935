"""A trained model -> adapter/ (LoRA), model/ (merged) and training.json in the run folder.

save(trainer, recipe, template, run)
"""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.finite import check_finite
from overrefusal_po.model.zero import check_not_empty, loading_whole
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.report.card import card_text, put_card
from overrefusal_po.run.folder import Run
from overrefusal_po.train.data import ALIKE_FILE
from overrefusal_po.train.hold import RESULT_FILE
from overrefusal_po.train.saved import (
    Probe,
    check_saved,
    live_probe,
    release_training,
    release_weights,
)
from overrefusal_po.train.selection import selected_step
from overrefusal_po.train.weights import cache_on

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

UNLIKE = "model_unlike_trained"
"""The folder of a saved model that is not the trained one, if there is no adapter beside it."""


def save(trainer: Trainer, recipe: TrainRecipe, template: ChatTemplate, run: Run) -> None:
    """Writes adapter/ (LoRA), model/ (merged) and training.json.

    All processes gather what is sharded, and the first one writes. Raises NotFiniteError for
    weights that are not finite, and ValueError if the saved model is not the trained one.
    """
    weights = models.gathered_weights(trainer)
    if run.writer and weights is not None:
        check_not_empty(weights, "the trained model")
    check_finite(trainer.accelerator.unwrap_model(trainer.model), "the trained model")
    probe = live_probe(trainer)
    if run.writer:
        with loading_whole():
            write(trainer, weights, probe, recipe, template, run)


def write(
    trainer: Trainer,
    weights: dict[str, Tensor] | None,
    probe: Probe | None,
    recipe: TrainRecipe,
    template: ChatTemplate,
    run: Run,
) -> None:
    """`save` in the first process; `weights` and `probe` are None if there are none."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    summary = training_summary(trainer, run)
    logger.info("saving %s, and comparing it with the trained model", run.path / "model")
    if hasattr(model, "peft_config"):
        summary["adapter"] = str(run.path / "adapter")
    if probe is not None:
        release_training(trainer)
    write_model(model, weights, recipe, template, run)
    if probe is not None:
        release_weights(model)
        compare_saved(probe, recipe, run)
    history = trainer.state.log_history
    write_atomic(
        run.path / "training.json", json.dumps({"summary": summary, "history": history}, indent=1)
    )
    # in the place of peft's README, which names folders of this machine
    put_card(run.path, card_text(None, None, run.path))
    run.finish(summary)


def write_model(
    model: PreTrainedModel | PeftModel,
    weights: dict[str, Tensor] | None,
    recipe: TrainRecipe,
    template: ChatTemplate,
    run: Run,
) -> None:
    """Writes adapter/ (LoRA) and model/ (merged). `weights` are those of a sharded model."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(run.path / "adapter"), state_dict=weights)
        if weights is not None:
            from peft import PeftModel

            base = models.load_model(**models.model_options(recipe.model))
            model, weights = PeftModel.from_pretrained(base, run.path / "adapter"), None
    with cache_on(model):  # the saved config would say that it generates without one
        models.save_merged(model, template.tokenizer, run.path / "model", weights)


def compare_saved(probe: Probe, recipe: TrainRecipe, run: Run) -> None:
    """`check_saved` on model/. Another model than the trained one is not shipped: model/ is removed
    beside an adapter, and otherwise, as the only copy, renamed to `UNLIKE`."""
    folder, unlike = run.path / "model", run.path / UNLIKE
    try:
        check_saved(
            probe, folder, trust_remote_code=bool(recipe.model.get("trust_remote_code", False))
        )
    except ValueError as error:
        shutil.rmtree(unlike, ignore_errors=True)
        if (run.path / "adapter").is_dir():
            shutil.rmtree(folder)
            raise ValueError(f"{error} The adapter in adapter/ is as it was trained.") from error
        folder.rename(unlike)
        raise ValueError(f"{error} What was saved stands in {unlike}, to look at.") from error


def training_summary(trainer: Trainer, run: Run) -> dict[str, Any]:
    """What the run's summary says: steps, last loss, folders, rows left out, the selected step."""
    history = trainer.state.log_history
    losses = [row[key] for key in ("train_loss", "loss") for row in history if key in row]
    summary: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "loss": losses[-1] if losses else None,
        "model": str(run.path / "model"),
    }
    if (run.path / "too_long.json").is_file():
        left_out = read_state(run.path / "too_long.json")
        summary["too_long"] = {
            f"{name}s": f"{row['left_out']} of {row['of']}" for name, row in left_out.items()
        }
    if (run.path / ALIKE_FILE).is_file():
        alike = read_state(run.path / ALIKE_FILE)
        summary["equal_openings"] = f"{alike['left_out']} of {alike['of']}"
    if (run.path / RESULT_FILE).is_file():
        hold = read_state(run.path / RESULT_FILE, ["held", "bias"])
        summary["hold"] = {key: hold[key] for key in ("held", "bias", "why_not", "sets")}
    if (run.path / "selection.jsonl").is_file():
        summary["selected_step"] = selected_step(run.path)
    return summary
