"""Two-sided checkpoint selection: measure usefulness and safety while training, keep the best step.

    trainer = dpo_trainer(model, pairs, args=...)
    callback = two_sided_callback(trainer, template=template, select=Select(), folder=run_folder)
    trainer.add_callback(callback)
    trainer.train()  # the model now holds the weights of the selected step

A look generates greedily on a fixed harmful and a fixed benign dev set, and judges. It logs
`two_sided/harmful_refused`, `two_sided/benign_answered` and `two_sided/score`.

The score is benign_answered if harmful_refused is at least the start policy's minus the tolerance.
Otherwise it is minus the missing part: below every score within tolerance, and still with a slope.
The greatest score is kept, the earliest of equal ones. The start policy is look 0. If no later step
does better, it is kept, with a warning.

In the run folder selection.jsonl holds a row for each look, and selection/ the kept weights. So a
killed run goes on, and no look is made twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overrefusal_po.evaluate.intervals import ROUNDING
from overrefusal_po.evaluate.metrics import RunMetrics, run_metrics, scored_enough
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.sharding import wants_deepspeed, wants_fsdp
from overrefusal_po.plugins import make_refusal_judge
from overrefusal_po.prompts import dev_prompts
from overrefusal_po.recipe.two_sided import Select
from overrefusal_po.records import Record, Sampling, read_jsonl, write_jsonl
from overrefusal_po.run.judged import fresh_outcomes
from overrefusal_po.train.weights import generating, restore, snapshot

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedModel,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

logger = logging.getLogger(__name__)


class Look(Record):
    """What was measured at one step. Rates are None where the judge scored nothing of a kind, and
    so is the score where it scored too little (`scored_enough`).

    `kept` says whether it was the best so far when it was made: the last row with it is the
    selected one.
    """

    step: int
    harmful_refused: float | None
    benign_answered: float | None
    n: dict[str, int]
    score: float | None
    kept: bool


def check_not_sharded(settings: Mapping[str, Any], section: str = "select") -> None:
    """Raises ValueError for FSDP or DeepSpeed, by the trainer's settings or the launcher's
    environment.

    The weights are then in parts on all ranks, and no rank has a model that could generate.
    """
    for key, wanted in {
        "fsdp": wants_fsdp(settings),
        "deepspeed": wants_deepspeed(settings),
    }.items():
        if wanted:
            raise ValueError(
                f"{section} cannot be used with {key}: the weights are sharded over the processes, "
                "and no process has a model that could generate. Leave it out and evaluate "
                "saved checkpoints, or launch with DDP."
            )


def score_of(
    harmful_refused: float | None,
    benign_answered: float | None,
    *,
    start_refused: float,
    tolerance: float,
) -> float | None:
    """benign_answered within tolerance, else how far harmful_refused is below it, negative.

    None if a rate is None.
    """
    if harmful_refused is None or benign_answered is None:
        return None
    short = start_refused - tolerance - harmful_refused
    return benign_answered if short <= ROUNDING else -short


def too_few(found: RunMetrics) -> str:
    """How little the judge scored of a kind, as `3 of 20`; "" if it scored enough of both."""
    for rate in (found.harmful_refused, found.benign_answered):
        if rate.value is None or not scored_enough(rate.n, rate.unscored):
            return f"{rate.n} of {rate.n + rate.unscored}"
    return ""


class Looks:
    """The looks of a run folder and the weights of the best: what survives a kill.

    Raises ValueError if the rows name kept weights that are not there.
    """

    def __init__(self, folder: Path, tolerance: float) -> None:
        self.file = folder / "selection.jsonl"
        self.folder = folder / "selection"
        self.tolerance = tolerance
        self.rows: list[Look] = read_jsonl(self.file, Look) if self.file.is_file() else []
        if self.rows and not self.weights_file(self.kept.step).is_file():
            raise ValueError(
                f"{self.weights_file(self.kept.step)} is missing, which {self.file} names as the "
                f"best so far. Put it back, or delete {self.file} and the checkpoints to train "
                "again from the start."
            )

    @property
    def kept(self) -> Look:
        """The best look so far."""
        return next(row for row in reversed(self.rows) if row.kept)

    def at(self, step: int) -> Look | None:
        """The look of a step, if it was made."""
        return next((row for row in self.rows if row.step == step), None)

    def weights_file(self, step: int) -> Path:
        """Where the weights of a step are kept."""
        return self.folder / f"step-{step}.safetensors"

    def add(
        self, step: int, found: RunMetrics, weights: Callable[[], Mapping[str, Tensor]]
    ) -> Look:
        """Scores and writes a look; the weights of the best so far are written before it."""
        harmful_refused, benign_answered = found.harmful_refused.value, found.benign_answered.value
        start = self.rows[0].harmful_refused if self.rows else harmful_refused
        few = too_few(found)
        if start is None or (not self.rows and few):
            number = "none" if start is None or benign_answered is None else f"only {few}"
            raise ValueError(
                f"The judge scored {number} of the start policy's responses to harmful or to "
                "benign prompts, so there is no safety to hold. Choose another judge "
                "(select.judge)."
            )
        score = score_of(
            None if few else harmful_refused,
            benign_answered,
            start_refused=start,
            tolerance=self.tolerance,
        )
        best = self.kept.score if self.rows else None
        kept = score is not None and (best is None or score > best)
        n = {"harmful": found.harmful_refused.n, "benign": found.benign_answered.n}
        row = Look(
            step=step,
            harmful_refused=harmful_refused,
            benign_answered=benign_answered,
            n=n,
            score=score,
            kept=kept,
        )
        if kept:
            self._write_weights(step, weights())
        self.rows.append(row)
        write_jsonl(self.file, self.rows)
        for file in self.folder.glob("step-*.safetensors"):
            if file != self.weights_file(self.kept.step):
                file.unlink()
        return row

    def _write_weights(self, step: int, weights: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".step-{step}.{os.getpid()}.tmp"
        save_file(dict(weights), beside)
        beside.replace(self.weights_file(step))

    def result(self) -> tuple[int, str]:
        """(log level, what was selected); a warning if it is the start policy."""
        kept, last = self.kept, self.rows[-1].step
        start = self.rows[0].harmful_refused or 0.0
        line = (
            f"selected step {kept.step} of {last}: harmful_refused {kept.harmful_refused:.3f} "
            f"(start {start:.3f}), benign_answered {kept.benign_answered:.3f}"
        )
        if kept.step or not last:
            return logging.INFO, line
        within = sum(row.score is not None and row.score >= 0 for row in self.rows[1:])
        return logging.WARNING, (
            f"{line}. No step of training is kept: of {len(self.rows) - 1} later looks {within} "
            f"stayed within {self.tolerance:g} of the start policy's harmful_refused, and none of "
            "these answered more. What is saved IS THE START POLICY."
        )


class TwoSided:
    """The looks of one training: what they measure, and what becomes of them.

    Args:
        trainer: the trainer whose model is looked at.
        template: the chat template to generate with.
        select: the recipe's section.
        folder: the run folder.

    Raises:
        ValueError: the weights are sharded, a kind of prompt or the judge is missing.
    """

    def __init__(
        self, trainer: Trainer, *, template: ChatTemplate, select: Select, folder: Path
    ) -> None:
        check_not_sharded(
            {"fsdp": trainer.is_fsdp_enabled, "deepspeed": trainer.is_deepspeed_enabled}
        )
        self.trainer, self.template, self.select = trainer, template, select
        self.prompts, self.judge = (
            dev_prompts(select),
            make_refusal_judge(select.judge or "refusal"),
        )
        first = trainer.accelerator.is_main_process
        self.looks = Looks(folder, select.tolerance) if first else None

    @property
    def model(self) -> PreTrainedModel:
        """The model in training, without what accelerate puts around it."""
        found: PreTrainedModel = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return found

    def begin(self, state: TrainerState) -> None:
        """Looks at the start policy; ValueError if a resumed training has lost that look."""
        if state.global_step == 0:
            self.look(state)
        elif self.looks is not None and not self.looks.rows:
            raise ValueError(
                f"{self.looks.file} is missing, but training goes on from step "
                f"{state.global_step}: the start policy can no longer be measured. Put it back, "
                f"or delete {self.trainer.args.output_dir} to train again from the start."
            )

    def look(self, state: TrainerState) -> None:
        """Measures the model in the first process, unless this step stands in the looks."""
        step = state.global_step
        if self.looks is not None:
            row = self.looks.at(step)
            if row is None:
                found = self.measure(f"step {step}")
                row = self.looks.add(step, found, lambda: snapshot(self.model))
            self.log(row, state)
        self.trainer.accelerator.wait_for_everyone()

    def measure(self, name: str) -> RunMetrics:
        """The rates of the model as it is now."""
        from overrefusal_po.engines.transformers import TransformersEngine

        select = self.select
        with generating(self.model):
            engine = TransformersEngine(
                self.model, self.template, name=name, batch_size=select.batch_size
            )
            sampling = Sampling(max_new_tokens=select.max_new_tokens)
            said = fresh_outcomes(
                engine, self.judge, self.prompts, sampling, label=f"select: {name} answers"
            )
            return run_metrics(said)

    def log(self, row: Look, state: TrainerState) -> None:
        """Logs a look once, also in a run that was resumed."""
        from transformers import Trainer

        if any(r.get("step") == row.step and "two_sided/score" in r for r in state.log_history):
            return
        values = {
            f"two_sided/{key}": value
            for key in ("harmful_refused", "benign_answered", "score")
            if (value := getattr(row, key)) is not None
        }
        due = self.trainer.control.should_log  # logging clears it; this step's loss may be due
        # not TRL's own `log`, which would close the average of its metrics here
        Trainer.log(self.trainer, values)
        self.trainer.control.should_log = due

    def end(self, state: TrainerState) -> None:
        """Looks at the last step and puts the weights of the best one into the model."""
        self.look(state)
        looks = self.looks
        file = looks.weights_file(looks.kept.step) if looks is not None else None
        restore(self.model, file, world=self.trainer.accelerator.num_processes)
        if looks is not None:
            logger.log(*looks.result())


def two_sided_callback(
    trainer: Trainer, *, template: ChatTemplate, select: Select, folder: Path
) -> TrainerCallback:
    """A callback that looks at every `select.every_steps` steps and restores the best at the end.

    With several processes (DDP) the first one looks while the others wait at a barrier. So a look
    has to be shorter than `ddp_timeout` (half an hour). Raises what `TwoSided` raises.
    """
    from transformers import TrainerCallback

    two_sided = TwoSided(trainer, template=template, select=select, folder=folder)

    class TwoSidedCallback(TrainerCallback):
        """Looks at the start policy, at every so many steps and at the end."""

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            two_sided.begin(state)

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            if state.global_step % select.every_steps == 0:
                two_sided.look(state)

        def on_train_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            two_sided.end(state)

    return TwoSidedCallback()


def selected_step(folder: Path) -> int:
    """The step whose weights were kept in a run folder."""
    return next(
        row.step for row in reversed(read_jsonl(folder / "selection.jsonl", Look)) if row.kept
    )
