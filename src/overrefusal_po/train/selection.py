"""Two-sided checkpoint selection: every so many steps measure usefulness and safety, and keep the
best step's weights.

    trainer = dpo_trainer(model, pairs, args=...)
    trainer.add_callback(two_sided_callback(trainer, template=template, select=Select(), folder=run_folder))
    trainer.train()  # the model now holds the weights of the selected step

A look generates (greedy) on a fixed harmful and a fixed benign dev set, judges, and logs
`two_sided/harmful_refused`, `two_sided/benign_answered` and `two_sided/score`. The score is
benign_answered where harmful_refused >= start_refused - tolerance, else -(start_refused - tolerance
- harmful_refused), which is below every score within tolerance and still has a slope; start_refused
  is the start policy's. The greatest score is kept, the earliest on ties. The start
policy is look 0 and within tolerance of itself: where no later step does better, it is what is
kept, with a warning. In the run folder selection.jsonl holds a row for each look and selection/ the
kept weights, so that a killed run goes on; a look that stands there already is not made again.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from overrefusal_po.evaluate.metrics import RunMetrics, run_metrics
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.sharding import wants_deepspeed, wants_fsdp
from overrefusal_po.plugins import make_judge
from overrefusal_po.prompts import dev_prompts
from overrefusal_po.recipe.sections import Select
from overrefusal_po.records import (
    Outcome,
    Prompt,
    Record,
    Sampling,
    read_jsonl,
    write_jsonl,
)

logger = logging.getLogger(__name__)

ROUNDING = 1e-9
"""What .35 - .05 may be above .3."""


class Look(Record):
    """What was measured at one step. Rates and score are None where the judge scored nothing of a
    kind.

    `kept` says whether it was the best so far when it was made: the last row with it is the
    selected one.
    """

    step: int
    harmful_refused: float | None
    benign_answered: float | None
    n: dict[str, int]
    score: float | None
    kept: bool


def check_not_sharded(settings: Mapping[str, Any]) -> None:
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
                f"select cannot be used with {key}: the weights are sharded over the processes, "
                "and no process has a "
                "model that could generate. Leave select out and evaluate saved checkpoints, or "
                "launch with DDP."
            )


def score_of(
    harmful_refused: float | None,
    benign_answered: float | None,
    *,
    start_refused: float,
    tolerance: float,
) -> float | None:
    """benign_answered where harmful_refused >= start_refused - tolerance, else how far
    harmful_refused is below that, negative. None where a rate is."""
    if harmful_refused is None or benign_answered is None:
        return None
    short = start_refused - tolerance - harmful_refused
    return benign_answered if short <= ROUNDING else -short


class Looks:
    """The looks of a run folder and the weights of the best: what survives a kill.

    Raises ValueError where the rows name kept weights that are not there.
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
                "anew."
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

    def add(self, step: int, found: RunMetrics, weights: Callable[[], Mapping[str, Any]]) -> Look:
        """Scores and writes a look; where it is the best so far, its weights are written before
        it."""
        harmful_refused, benign_answered = found.harmful_refused.value, found.benign_answered.value
        start = self.rows[0].harmful_refused if self.rows else harmful_refused
        if start is None or (not self.rows and benign_answered is None):
            raise ValueError(
                "The judge scored none of the start policy's responses to harmful or to benign "
                "prompts, so there is no safety to hold. Mend the judge (select.judge)."
            )
        score = score_of(
            harmful_refused, benign_answered, start_refused=start, tolerance=self.tolerance
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

    def _write_weights(self, step: int, weights: Mapping[str, Any]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".step-{step}.{os.getpid()}.tmp"
        save_file(dict(weights), beside)
        beside.replace(self.weights_file(step))

    def closing_words(self) -> tuple[int, str]:
        """(log level, what was selected); a warning where it is the start policy."""
        kept, last, start_refused = (
            self.kept,
            self.rows[-1].step,
            self.rows[0].harmful_refused or 0.0,
        )
        line = f"selected step {kept.step} of {last}: harmful_refused {kept.harmful_refused:.3f} (start {start_refused:.3f}), benign_answered {kept.benign_answered:.3f}"
        if kept.step or not last:
            return logging.INFO, line
        within = sum(row.score is not None and row.score >= 0 for row in self.rows[1:])
        return logging.WARNING, (
            f"{line}. No step of training is kept: of {len(self.rows) - 1} later looks {within} "
            f"stayed within {self.tolerance:g} of the start policy's harmful_refused, and none of "
            "these "
            "answered more. What is saved IS THE START POLICY."
        )


def trainable(model: Any) -> dict[str, Any]:
    """{name: parameter} of what training changes: an adapter's weights, or all."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def snapshot(model: Any) -> dict[str, Any]:
    """Copies of the trainable weights in main memory."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous()
        for name, weight in trainable(model).items()
    }


def restore(model: Any, file: Path | None, *, world: int = 1) -> None:
    """Puts the weights of `file` into `model`; with several processes the first reads it (None on
    others) and sends."""
    import torch

    weights: Any = {}
    if file is not None:
        from safetensors.torch import load_file

        weights = load_file(file)
    for name, weight in trainable(model).items():
        if file is not None:
            weight.data.copy_(weights[name])
        if world > 1:
            torch.distributed.broadcast(weight.data, src=0)


@contextlib.contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """A model in training, ready to generate; afterwards as training left it: modes, cache, place,
    all random states."""
    import random

    import numpy as np
    import torch

    modes = [(module, module.training) for module in model.modules()]
    configs = [
        (c, c.use_cache) for c in (model.config, model.generation_config) if hasattr(c, "use_cache")
    ]
    place, drawn, drawn_numpy = model.device, random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for config, _ in configs:
                config.use_cache = (
                    True  # training turns the cache off, without which generation is quadratic
                )
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_numpy)
        for config, used in configs:
            config.use_cache = used
        for module, mode in modes:
            module.training = mode
        if (
            model.device != place
        ):  # the engine moves a model to the GPU, also where training is told to use the CPU
            model.to(place)


def measure(
    model: Any,
    prompts: Sequence[Prompt],
    judge: Any,
    *,
    template: ChatTemplate,
    select: Select,
    name: str,
) -> RunMetrics:
    """The rates of a model as it is now on `prompts`."""
    from overrefusal_po.engines.transformers import TransformersEngine

    with borrowed(model):
        engine = TransformersEngine(model, template, name=name, batch_size=select.batch_size)
        said = {
            c.prompt_id: c
            for c in engine.complete(prompts, Sampling(max_new_tokens=select.max_new_tokens))
        }
        completions = [said[p.id] for p in prompts]
        verdicts = judge.score(prompts, completions)
    rows = zip(prompts, completions, verdicts, strict=True)
    return run_metrics([Outcome(prompt=p, completion=c, verdict=v) for p, c, v in rows])


def two_sided_callback(
    trainer: Any, *, template: ChatTemplate, select: Select, folder: Path
) -> Any:
    """A transformers callback for `trainer` that looks at every `select.every_steps` steps and
    restores the best at the end.

    With several processes (DDP) the first one looks while the others wait at a barrier: a look has
    to be shorter than `ddp_timeout` (half an hour). Raises ValueError where the weights are
    sharded, or where a kind of prompt is missing.
    """
    from transformers import Trainer, TrainerCallback

    accelerator = trainer.accelerator
    check_not_sharded({"fsdp": trainer.is_fsdp_enabled, "deepspeed": trainer.is_deepspeed_enabled})
    prompts, judge = dev_prompts(select), make_judge(select.judge)
    looks = Looks(folder, select.tolerance) if accelerator.is_main_process else None

    def look(state: Any) -> None:
        step, model = state.global_step, accelerator.unwrap_model(trainer.model)
        if looks is not None:
            row = looks.at(step)
            if row is None:
                found = measure(
                    model, prompts, judge, template=template, select=select, name=f"step {step}"
                )
                row = looks.add(step, found, lambda: snapshot(model))
            logged = any(
                old.get("step") == step and "two_sided/score" in old for old in state.log_history
            )
            values = {
                f"two_sided/{key}": getattr(row, key)
                for key in ("harmful_refused", "benign_answered", "score")
            }
            if not logged:
                due = (
                    trainer.control.should_log
                )  # logging clears it, and this step's loss may still be due
                # not TRL's own `log`, which would close the average of its metrics here
                Trainer.log(
                    trainer, {key: value for key, value in values.items() if value is not None}
                )
                trainer.control.should_log = due
        accelerator.wait_for_everyone()

    class TwoSidedCallback(TrainerCallback):
        """Looks at the start policy, at every so many steps and at the end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                look(state)
            elif looks is not None and not looks.rows:
                raise ValueError(
                    f"{looks.file} is missing, but training goes on from step {state.global_step}: "
                    "the start policy can no longer be measured. Put it back, or delete "
                    f"{args.output_dir} to train anew."
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % select.every_steps == 0:
                look(state)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            look(state)
            file = looks.weights_file(looks.kept.step) if looks is not None else None
            restore(accelerator.unwrap_model(trainer.model), file, world=accelerator.num_processes)
            if looks is not None:
                logger.log(*looks.closing_words())

    return TwoSidedCallback()


def selected_step(folder: Path) -> int:
    """The step whose weights were kept in a run folder."""
    return next(
        row.step for row in reversed(read_jsonl(folder / "selection.jsonl", Look)) if row.kept
    )
