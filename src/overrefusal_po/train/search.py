"""`search:`: a training for each of several settings; the best that holds its safety is kept.

    train_or_search(recipe, open_run)     # without `search`: one training

Each trial is an ordinary run in search/01, search/02, ... of the run folder, from the same start
policy and with the same random numbers. What the start policy says is measured once. After each
trial search.jsonl has its row, and only the best model so far is kept. At the end that trial's
files move into the run folder. A killed search goes on in the trial that was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.finite import NotFiniteError
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.search import points, settings_words, trained_bodies
from overrefusal_po.recipe.two_sided import Hold, start_of
from overrefusal_po.records import content_id, read_jsonl, read_state, write_atomic, write_jsonl
from overrefusal_po.report.card import card_text, put_card
from overrefusal_po.run.complete import load_template
from overrefusal_po.run.folder import Run
from overrefusal_po.train.data import Prepared, is_saved
from overrefusal_po.train.hold import RESULT_FILE, START_FILE
from overrefusal_po.train.hold_result import HoldEntry
from overrefusal_po.train.memory import config_of
from overrefusal_po.train.model_checks import check_model
from overrefusal_po.train.push import check_push, push_of, push_run, without_push
from overrefusal_po.train.saved import return_freed
from overrefusal_po.train.search_result import (
    Trial,
    brings_nothing,
    failed_trial,
    kept_trial,
    measured_trial,
    table_lines,
    trial_words,
    why_kept,
)
from overrefusal_po.train.settings import method_config
from overrefusal_po.train.stage import check_fit, checked_settings, read_and_prepare, train
from overrefusal_po.train.student import FILE as STUDENT_FILE

logger = logging.getLogger(__name__)

OpenRun = Callable[[bool], Run]
Summary = dict[str, Any]
"""What a training returns. Any: JSON of numbers, texts and mappings."""

FOLDER, FILE = "search", "search.jsonl"

START_POLICY_FILES = (START_FILE, STUDENT_FILE, "verdicts.jsonl")
"""What the start policy said: the same for every trial."""

RUN_FILES = ("recipe.yaml", "status.json", "manifest.json", "log", ".lock")
"""What stays in the folder of the trial that is kept: it says how that trial ran."""

DATA_KEYS = ("max_length", "per_device_train_batch_size", "loss_type", "sync_ref_model")
"""Keys of `trainer` that the preparation of the data reads: trials that differ in none of them, and
not in `data`, have the same data and the same faults."""

LARGE = ("model", "adapter", "checkpoints", "selection", "rows")
"""What the other trials lose."""


def train_or_search(recipe: TrainRecipe, open_run: OpenRun) -> Summary:
    """Runs a training, or the trainings of its search. `open_run(writer)` opens the run folder."""
    if recipe.search is None:
        return train(recipe, open_run)
    run, push = open_run(False), push_of(recipe)
    known = run.status()
    if not (known.get("state") == "done" and known["key"] == run.key):
        check_alone(recipe)
        trials = [without_hub(body) for body in trained_bodies(recipe)]
        check_before(trials, run.path)
        check_push(push)
        with open_run(True) as run:
            run_search(recipe, trials, run)
    push_run(push, run.path)
    stored: Summary = run.status()["summary"]
    return stored


def check_alone(recipe: TrainRecipe) -> None:
    """Raises ValueError for several processes, and for a tracker."""
    world = os.environ.get("WORLD_SIZE", "1")
    if int(world) > 1:
        raise ValueError(
            f"search trains one model after the other in one process; {world} were launched. Run "
            "the recipe without the launcher, or take search out."
        )
    trackers = recipe.trainer.get("report_to") or "none"
    if trackers not in ("none", ["none"]):
        raise ValueError(
            f"trainer.report_to is {trackers!r}, and a tracker would take the trials of a search "
            "for one training. Take report_to out (search.jsonl has all trials), or take search "
            "out and run a sweep."
        )


def without_hub(body: TrainRecipe) -> TrainRecipe:
    """A trial's recipe without a push: what is kept is pushed once, at the end."""
    return body.model_copy(update={"trainer": without_push(body.trainer)})


def check_before(trials: Sequence[TrainRecipe], folder: Path) -> None:
    """Checks settings and data of every trial that has yet to begin, before weights are loaded."""
    done = len(known_trials(folder))
    waiting = [
        (number, body)
        for number, body in enumerate(trials, 1)
        if number > done and not is_saved(trial_folder(folder, number))
    ]
    for number, body in waiting:
        with naming(number):
            method_config(body, {**checked_settings(body), "output_dir": str(folder)})
    if waiting:
        check_trial_data(waiting, load_template(trials[0].model, trials[0].chat))


def check_search(recipe: TrainRecipe, template: ChatTemplate) -> Prepared:
    """What `check --data` reads of a search: the data of the first trial, after those of all were
    checked."""
    check_alone(recipe)
    push_of(recipe)
    return check_trial_data(list(enumerate(trained_bodies(recipe), 1)), template)


def check_trial_data(trials: Sequence[tuple[int, TrainRecipe]], template: ChatTemplate) -> Prepared:
    """The data of the first of these trials, after those of all were prepared, equal ones once.
    ValueError that says which trial has the fault."""
    config = config_of(trials[0][1].model)
    check_model(trials[0][1], config)
    found: dict[str, Prepared] = {}
    for number, body in trials:
        key = content_id(body.data, [body.trainer.get(name) for name in DATA_KEYS])
        if key in found:
            continue
        with naming(number):
            found[key] = read_and_prepare(body, template)[1]
            check_fit(found[key], template, config)
    return next(iter(found.values()))


@contextlib.contextmanager
def naming(number: int) -> Iterator[None]:
    """Within, a ValueError says that it is a trial's."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"search, trial {number}: {error}") from None


def run_search(recipe: TrainRecipe, trials: Sequence[TrainRecipe], run: Run) -> None:
    """Runs the trials that have no row yet, and moves the best one's files into the run folder.

    Raises NotFiniteError if no trial has numbers.
    """
    if run.done:
        return
    hold = recipe.held
    assert hold is not None, "a recipe with search has hold"
    rows = known_trials(run.path)
    for number in range(len(rows) + 1, len(trials) + 1):
        rows.append(run_trial(recipe, number, trials[number - 1], run))
        write_jsonl(run.path / FILE, rows)
        drop_others(run.path, rows)
    drop_others(run.path, rows)  # a kill may have come before
    kept = kept_trial(rows)
    if kept is None:
        raise NotFiniteError(
            f"search: no trial has finite numbers ({rows[0].fault}). Lower trainer.learning_rate."
        )
    say_result(rows, kept, hold)
    move_kept(trial_folder(run.path, kept.number), run.path)
    finish(run, rows, kept, hold)


def run_trial(recipe: TrainRecipe, number: int, body: TrainRecipe, run: Run) -> Trial:
    """One training, and its row."""
    from transformers import set_seed

    hold, search = recipe.held, recipe.search
    assert hold is not None and search is not None, "a recipe with search has hold"
    tried = points(search, recipe.seed)
    settings, of = tried[number - 1], len(tried)
    logger.info("search: trial %d of %d: %s", number, of, settings_words(settings))
    set_seed(recipe.seed)  # an adapter begins with random numbers; all trials get the same
    folder = trial_folder(run.path, number)
    fault = ""
    try:
        train(body, trial_opener(body, run, folder))
    except NotFiniteError as error:
        fault = str(error)
    return_freed()
    copy_missing(folder, run.path)
    seconds = float(read_state(folder / "status.json", ["seconds"])["seconds"])
    if fault:
        row = failed_trial(number, settings, fault, seconds)
    else:
        found = cast("HoldEntry", read_state(folder / RESULT_FILE, ["held", "sets"]))
        row = measured_trial(number, settings, found, of=hold, seconds=seconds)
    logger.info("search: trial %d of %d: %s", number, of, trial_words(row))
    return row


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of a trial in the run folder."""
    return folder / FOLDER / f"{number:02d}"


def trial_opener(body: TrainRecipe, run: Run, folder: Path) -> OpenRun:
    """A function that opens the trial's folder, with what the start policy said before."""
    resolved = body.model_dump(mode="json")

    def open_trial(writer: bool) -> Run:
        opened = Run.open(folder, resolved, run.inputs, writer=writer)
        if writer:
            copy_missing(run.path, folder)
        return opened

    return open_trial


def copy_missing(source: Path, target: Path) -> None:
    """Copies what the start policy said, unless it is there."""
    for name in START_POLICY_FILES:
        if (source / name).is_file() and not (target / name).exists():
            beside = target / f".{name}.tmp"
            shutil.copyfile(source / name, beside)
            beside.replace(target / name)


def known_trials(folder: Path) -> list[Trial]:
    """The rows of search.jsonl: the trials that have ended."""
    file = folder / FILE
    return read_jsonl(file, Trial) if file.is_file() else []


def drop_others(folder: Path, rows: Sequence[Trial]) -> None:
    """Deletes the weights of all trials but the best so far."""
    kept = kept_trial(rows)
    for row in rows:
        if row is not kept:
            for name in LARGE:
                shutil.rmtree(trial_folder(folder, row.number) / name, ignore_errors=True)


def say_result(rows: Sequence[Trial], kept: Trial, hold: Hold) -> None:
    """Logs the table of trials, and which one is kept."""
    for line in table_lines(rows, of=hold):
        logger.info("search: %s", line)
    level = logging.INFO if kept.held else logging.WARNING
    logger.log(level, "search: %s", why_kept(rows, of=hold))
    if brings_nothing(kept):
        logger.warning(
            "search: the start policy%s answers as many benign prompts as this trial",
            start_of(hold.start),
        )


def move_kept(trial: Path, folder: Path) -> None:
    """Moves a trial's files into the run folder. A move that was interrupted goes on."""
    for path in sorted(trial.iterdir()):
        if path.name in RUN_FILES or path.name.startswith("."):
            continue
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)


def finish(run: Run, rows: Sequence[Trial], kept: Trial, hold: Hold) -> None:
    """Writes training.json and the card with the run folder's own paths, and ends the run."""
    file = run.path / "training.json"
    known = read_state(file, ["summary"])
    summary = dict(known["summary"])
    for name in ("model", "adapter"):
        if name in summary:
            summary[name] = str(run.path / name)
    summary["search"] = {
        "trials": len(rows),
        "held": sum(row.held for row in rows),
        "kept": kept.number,
        "settings": kept.settings,
        "why": why_kept(rows, of=hold),
    }
    write_atomic(file, json.dumps({**known, "summary": summary}, indent=1))
    put_card(run.path, card_text(None, None, run.path))
    run.finish(summary)
