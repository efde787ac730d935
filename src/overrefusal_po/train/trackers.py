"""What a tracker gets of a training beside TRL's numbers: the resolved recipe, a sample of the
pairs, the two-sided looks.

    check_trackers("wandb")
    # ValueError before any weight is loaded
    trainer.add_callback(tracker_callback(run.resolved, run.path))

Numbers go through transformers' own callbacks to whatever `trainer.report_to` names. Tables and
pictures go to wandb alone, once: `pairs` when training begins, `looks` and `plane` (start policy
and kept step) when it ends. The summary's `train/two_sided/score` is then that of the kept step,
whose weights are saved, not that of the last look: it is what a sweep compares. Harmful responses
stay in the run folder: a rejected side is shown of overrefusal pairs alone, and the chosen side of
an imported pair if it does nothing but refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from overrefusal_po.evaluate.intervals import wilson
from overrefusal_po.judges._refusal_text import SENTENCE_END
from overrefusal_po.judges.refusal import judge_text
from overrefusal_po.records import PreferencePair, Prompt, read_jsonl, read_objects
from overrefusal_po.report.pictures import draw_plane, png_base64
from overrefusal_po.report.summary import MeasuredRun
from overrefusal_po.report.texts import clipped, visible
from overrefusal_po.train.selection import Look, Looks

logger = logging.getLogger(__name__)

METRIC = "train/two_sided/score"
"""How `two_sided/score` arrives: transformers' wandb callback writes train/ before what is not
eval_ or test_."""

PAIR_COLUMNS = ("rule", "category", "prompt", "chosen", "rejected")
LOOK_COLUMNS = ("step", "harmful_refused", "benign_answered", "score", "kept")


def check_trackers(report_to: Any) -> None:
    """Raises ValueError where `trainer.report_to` names a tracker that transformers does not know
    or cannot import."""
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    named = report_to[0] if report_to in (["none"], ["all"]) else report_to
    try:
        for callback in get_reporting_integration_callbacks(named):
            callback()  # transformers would do this after the weights are loaded
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"trainer.report_to is {report_to!r}: {error} Or set it to none."
        ) from None


def tracker_callback(resolved: Mapping[str, Any], folder: Path) -> Any:
    """A transformers callback that gives `resolved` and what stands in the run folder to wandb,
    where that is reported to.

    Add it after the two-sided callback: the looks are read when training has ended. Other trackers
    are left alone.
    """
    from transformers import TrainerCallback

    class TrackerCallback(TrainerCallback):
        """Speaks when training begins and when it ends, on the first process alone."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run = wandb_run(args, state)
            if run is not None:
                run.config.update({"recipe": dict(resolved)}, allow_val_change=True)
                if rows := shown_pairs(folder / "data.jsonl"):
                    log_once(run, "pairs", lambda: table(PAIR_COLUMNS, rows))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run = wandb_run(args, state)
            if run is None or not (folder / "selection.jsonl").is_file():
                return
            looks = Looks(folder, tolerance=0.0)
            log_once(run, "looks", lambda: table(LOOK_COLUMNS, look_rows(looks.rows)))
            log_once(run, "plane", lambda: plane(looks, folder))
            run.summary.update({METRIC: looks.kept.score, "selected_step": looks.kept.step})

    return TrackerCallback()


def wandb_run(args: Any, state: Any) -> Any:
    """The wandb run that transformers' callback has begun; None on other processes, or where wandb
    is not reported to."""
    if "wandb" not in args.report_to or not state.is_world_process_zero:
        return None
    import wandb

    return wandb.run


def log_once(run: Any, key: str, make: Callable[[], Any]) -> None:
    """Logs a table or picture unless the run (a resumed one) has it."""
    if run.summary.get(key) is not None:
        return
    try:
        run.log({key: make()})
    # wandb asks its server for each table: one that is out of reach must not cost the training
    except Exception as error:
        logger.warning(
            "wandb did not take %r (%s); the run folder has what it shows",
            key,
            type(error).__name__,
        )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A wandb table; texts in it are shown as text, never as HTML."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def shown_pairs(file: Path, *, per_rule: int = 8, length: int = 600) -> list[tuple[str, ...]]:
    """[PAIR_COLUMNS] of the first pairs of each rule in `file`; none where it holds no pairs
    (DeRTa's triples, prompts).

    Texts are cut after `length` characters, with what hides or turns characters spelt out.
    """
    if "chosen" not in next(iter(read_objects(file)))[1]:
        return []
    pairs = read_jsonl(file, PreferencePair)
    kept = [
        p
        for rule in dict.fromkeys(p.rule for p in pairs)
        for p in islice((q for q in pairs if q.rule == rule), per_rule)
    ]
    return [
        tuple(
            clipped(str(visible(text)), length)
            for text in (str(p.rule), p.prompt.category, p.prompt.text, *sides(p))
        )
        for p in kept
    ]


def sides(pair: PreferencePair) -> tuple[str, str]:
    """(chosen, rejected), without what may be a harmful response: a tracker is somebody else's
    machine.

    Only a refusal is known to be none. Imported pairs without labels count as ordinary, and some
    are on harmful prompts: a chosen side of theirs is shown if it refuses, and does nothing else.
    """
    if pair.rule == "overrefusal" and pair.prompt.kind != "harmful":
        return pair.chosen, pair.rejected
    refuses = pair.rule == "containment" or only_refuses(pair.chosen, pair.prompt)
    return pair.chosen if refuses else kept_words(pair.chosen), kept_words(pair.rejected)


def only_refuses(text: str, prompt: Prompt) -> bool:
    """Whether the built-in judge finds a refusal in each sentence of a response: behind a refusal,
    help may follow."""
    parts = [part for part in SENTENCE_END.split(text) if part.strip()]
    return all(judge_text(part, prompt.asked).refusal == "full" for part in parts)


def kept_words(text: str) -> str:
    """What stands in place of a text that is not shown."""
    return f"[{len(text)} characters, kept in the run folder]"


def look_rows(looks: Sequence[Look]) -> list[tuple[Any, ...]]:
    """[LOOK_COLUMNS] of all looks."""
    return [
        (row.step, row.harmful_refused, row.benign_answered, row.score, row.kept) for row in looks
    ]


def plane(looks: Looks, folder: Path) -> Any:
    """Start policy and kept step on the plane of benign_answered and harmful_refused, as a wandb
    picture and as plane.png in the run folder."""
    import wandb

    shown = {look.step: look for look in (looks.rows[0], looks.kept)}
    figure = draw_plane(
        [point(look, "start" if not look.step else f"step {look.step}") for look in shown.values()]
    )
    png_base64(figure, folder / "plane.png")
    return wandb.Image(str(folder / "plane.png"))


def point(look: Look, name: str) -> MeasuredRun:
    """A look as the picture's run, with Wilson's intervals."""
    rates = {
        "harmful_refused": (look.harmful_refused, look.n["harmful"]),
        "benign_answered": (look.benign_answered, look.n["benign"]),
    }
    found: dict[str, tuple[float, float] | None] = {
        key: wilson(value, n) for key, (value, n) in rates.items() if value is not None and n
    }
    return MeasuredRun(
        name=name,
        model=name,
        harmful_refused=look.harmful_refused,
        benign_answered=look.benign_answered,
        f1=None,
        intervals=found,
        n=look.n,
    )
