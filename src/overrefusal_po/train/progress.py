"""A training's progress in words, in the place of transformers' bars and dictionaries.

speak_in_words(trainer)      # training: step 20 of 132, loss 0.53, about 3 min left
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from overrefusal_po.run.pace import Pace

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


def speak_in_words(trainer: Trainer) -> None:
    """Adds the callback that says the progress, and removes the one that prints dictionaries. The
    bar goes too, unless the settings ask for it (`disable_tqdm: false`)."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    if trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
    trainer.add_callback(words_callback())


def words_callback() -> TrainerCallback:
    """The callback. Its class is made here, since its base is slow to import."""
    from transformers import TrainerCallback

    class Words(TrainerCallback):
        """Says the step, and the loss that was logged last."""

        pace: Pace | None = None
        loss = ""
        begun = 0.0

        # Any: the arguments of transformers' callbacks, of which these are used
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.pace = Pace("training: step", state.max_steps)
            self.begun = time.monotonic()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            if "loss" in (logs or {}):
                self.loss = f"loss {float(logs['loss']):.4g}"
            if "train_runtime" in (logs or {}):
                correct_speed(state.log_history[-1], time.monotonic() - self.begun)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            assert self.pace is not None
            self.pace.reached(state.global_step, self.loss)

    return Words()


def correct_speed(row: dict[str, float], seconds: float) -> None:
    """Puts the true `seconds` of a training into its last row of the log, and the speeds that
    follow. transformers takes them from a clock that may have been set meanwhile."""
    wrong, row["train_runtime"] = row["train_runtime"], round(seconds, 4)
    for key in ("train_samples_per_second", "train_steps_per_second"):
        if key in row and seconds > 0:
            row[key] = round(row[key] * wrong / seconds, 3)
