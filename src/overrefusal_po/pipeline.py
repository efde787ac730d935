"""Stages in a row: `task: pipeline`. An input may name an earlier output, and the whole ends in a
summary and a report.

    stages:
      derta:  {recipe: derta.yaml}
      tuned:  {recipe: evaluate.yaml, name: DeRTa, model: {model_name_or_path: "@derta.model"}}

Outputs that a later stage may name: `@curate.pairs`, `@train.model`, `@train.harmful` (what the
student said to harmful prompts). Each stage has a folder of its own in the pipeline's run folder,
is skipped when it is done, and goes on where it stopped when it was killed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from overrefusal_po.evaluate import metrics
from overrefusal_po.evaluate.labels import blinded_sample
from overrefusal_po.plugins import FILE_ENDINGS, built_judge
from overrefusal_po.recipe.load import Recipe, check_body, read_yaml
from overrefusal_po.recipe.overrides import dotted, set_dotted
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, PipelineRecipe, TrainRecipe
from overrefusal_po.records import Outcome, content_id, read_jsonl, write_atomic
from overrefusal_po.report.summary import samples
from overrefusal_po.run.environment import environment
from overrefusal_po.run.folder import Run
from overrefusal_po.run.keys import file_hash, run_folder

logger = logging.getLogger(__name__)

OUTPUTS = {
    "pairs": ("curate", "pairs.jsonl"),
    "sft": ("curate", "sft.jsonl"),
    "model": ("train", "model"),
    "harmful": ("train", "student_harmful.jsonl"),
    "outcomes": ("evaluate", "outcomes.jsonl"),
}
"""What a later stage may name: {output: (task that makes it, its place in the stage's folder)}."""

Stage = TrainRecipe | CurateRecipe | EvaluateRecipe


def stage_bodies(recipe: Recipe) -> dict[str, Stage]:
    """The checked recipe of every stage, `@stage.output` left in place.

    Raises ValueError for a fault in a stage, and for a reference to what no earlier stage makes.
    """
    body = recipe.body
    assert isinstance(body, PipelineRecipe)
    stages: dict[str, Stage] = {}
    for name, given in body.stages.items():
        values = stage_values(recipe, name, given)
        checked = check_body(values, f"{recipe.name}, stage {name}")
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(
                f"{recipe.name}: stage {name!r} needs a name of letters, digits, _ and - (it is a "
                "folder)."
            )
        if isinstance(checked, PipelineRecipe):
            raise ValueError(f"{recipe.name}, stage {name}: a stage cannot be a pipeline.")
        for key, value in references(checked):
            check_reference(value, stages, f"{recipe.name}, stage {name}: {key}")
        stages[name] = checked
    called = Counter(body.name for body in stages.values() if isinstance(body, EvaluateRecipe))
    if twice := [name for name, count in called.items() if count > 1]:
        raise ValueError(
            f"{recipe.name}: {called[twice[0]]} evaluate stages have the name {twice[0]!r}, so "
            "that the report could not "
            "tell them apart. Give each its own `name`."
        )
    return stages


def stage_values(recipe: Recipe, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's plain values: its `recipe:` file first, then its own keys over it, then the
    pipeline's seed."""
    assert isinstance(recipe.body, PipelineRecipe)
    values: dict[str, Any] = {}
    if "recipe" in given:
        values = read_yaml(recipe.folder / str(given["recipe"]))
    for key, value in dotted(given):
        if key != "recipe":
            set_dotted(values, key, value)
    if recipe.body.seed is not None and "seed" not in given:
        values["seed"] = recipe.body.seed
    if values.pop("run_dir", None) is not None:
        raise ValueError(
            f"{recipe.name}, stage {name}: run_dir belongs to the pipeline; a stage has a folder "
            "in it."
        )
    return values


def references(body: Stage) -> Iterator[tuple[str, str]]:
    """(dotted key, "@stage.output") of every reference in a stage."""
    for key, value in dotted(body.model_dump(mode="json")):
        if isinstance(value, str) and value.startswith("@"):
            yield key, value


def check_reference(value: str, earlier: Mapping[str, Stage], where: str) -> None:
    """Raises ValueError where `value` does not name an output of an earlier stage."""
    stage, _, output = value[1:].partition(".")
    makes = {
        f"@{name}.{out}"
        for name, body in earlier.items()
        for out, (task, _) in OUTPUTS.items()
        if body.task == task
    }
    if value not in makes:
        allowed = ", ".join(sorted(makes)) or "nothing (no earlier stage makes anything)"
        raise ValueError(
            f"{where} is {value!r}, but there is no output {output!r} of a stage {stage!r}: "
            f"{allowed}."
        )


def run_pipeline(recipe: Recipe, report: Callable[[Path], Path]) -> Path:
    """Runs all stages; where some measured, writes summary.json and calls `report` on the folder.
    Returns the folder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{recipe.name} is a pipeline, which runs in one process; {os.environ['WORLD_SIZE']} "
            "were launched. Run its "
            "train stages one by one with the launcher, or the pipeline without it."
        )
    stages = stage_bodies(recipe)
    assert isinstance(recipe.body, PipelineRecipe)
    with open_pipeline(recipe, stages, writer=True) as run:
        folder = run.path
        runs: list[dict[str, Any]] = []
        for number, (name, body) in enumerate(stages.items(), 1):
            logger.info("stage %d of %d: %s", number, len(stages), name)
            found = run_stage(link(body, folder), f"stage {name}", folder / name)
            if isinstance(body, EvaluateRecipe):
                runs.append({**found, "folder": name})
        if not run.done:
            if runs:
                outcomes = {
                    r["name"]: read_jsonl(folder / r["folder"] / "outcomes.jsonl", Outcome)
                    for r in runs
                }
                summary = summarise(recipe.body.title, folder, runs, stages, outcomes)
                write_atomic(folder / "summary.json", json.dumps(summary, indent=1))
                write_sample(folder, outcomes)
                report(folder)
            run.finish({"runs": len(runs)})
    return folder


def open_pipeline(recipe: Recipe, stages: Mapping[str, Stage], *, writer: bool) -> Run:
    """The run of the whole pipeline; without `writer` it is only read."""
    assert isinstance(recipe.body, PipelineRecipe)
    bodies = {name: body.model_dump(mode="json") for name, body in stages.items()}
    resolved = {"task": "pipeline", **bodies, "run_dir": recipe.body.run_dir}
    return Run.open(run_folder(recipe.name, resolved, {}), resolved, {}, writer=writer)


def is_finished(recipe: Recipe) -> bool:
    """Whether this very pipeline is done, all its stages with the inputs that they would read
    now."""
    stages = stage_bodies(recipe)
    whole = open_pipeline(recipe, stages, writer=False)
    if not whole.done:
        return False
    runs = [whole]
    for name, body in stages.items():
        linked = link(body, whole.path)
        resolved = linked.model_dump(mode="json")
        runs.append(Run.open(whole.path / name, resolved, inputs_of(linked), writer=False))
    return all(run.done and run.status()["key"] == run.key for run in runs)


def link(body: Stage, folder: Path) -> Stage:
    """The stage with every "@stage.output" replaced by the path in the pipeline's folder."""
    values = body.model_dump(mode="json")
    for key, value in references(body):
        stage, _, output = value[1:].partition(".")
        set_dotted(values, key, str(folder / stage / OUTPUTS[output][1]))
    return type(body).model_validate(values)


def inputs_of(body: Stage) -> dict[str, str]:
    """{dotted key: content hash} of the files and folders that a stage reads, and its judge's
    version."""
    found = {}
    for key, value in texts(body.model_dump(mode="json", exclude={"run_dir"})):
        named = key in (
            "model.model_name_or_path",
            "chosen.model",
            "rejects.model",
        ) or value.endswith(FILE_ENDINGS)
        # os.path.exists says no to what cannot be a path (a long system prompt with a slash in it)
        if (named or "/" in value) and os.path.exists(value):  # noqa: PTH110
            path = Path(value)
            status = path.parent / "status.json"
            # the output of a stage is named by that stage's key
            known = (
                json.loads(status.read_text()).get("key")
                if path.is_dir() and status.is_file()
                else None
            )
            found[key] = known or file_hash(path)
        elif value == "starter" and key.startswith(("data.", "select.")):
            found[key] = file_hash(Path(__file__).parent / "data" / "starter.jsonl")
    judging = body.select if isinstance(body, TrainRecipe) else body
    for key in ("judge", "guard", "reward"):
        if (spec := getattr(judging, key, None)) is not None:
            judge = built_judge(spec)
            found[key] = f"{judge.name} {judge.version}"
    # what an attack makes follows from its files and its code
    if isinstance(body, EvaluateRecipe) and body.data.attacks:
        from overrefusal_po.prompts import measured_prompts

        found["attacks"] = content_id(sorted(p.id for p in measured_prompts(body.data)))
    return found


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of all texts in plain data, also of those in lists ("data.sets.0")."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from texts(inner, f"{key}.{name}" if key else str(name))


def run_stage(body: Stage, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Runs one stage in `folder` (None: the recipe's own run folder); returns its summary."""
    inputs = inputs_of(body)
    resolved = body.model_dump(mode="json")
    path = folder or run_folder(name, resolved, inputs)
    if isinstance(body, TrainRecipe):
        from overrefusal_po.train.stage import train

        return {
            **train(body, lambda writer: Run.open(path, resolved, inputs, writer=writer)),
            "folder": str(path),
        }
    if os.environ.get("RANK", "0") != "0":
        return {"folder": str(path)}  # one process generates and judges
    with Run.open(path, resolved, inputs) as run:
        if isinstance(body, CurateRecipe):
            from overrefusal_po.curate.stage import curate

            return {**curate(body, run), "folder": str(path)}
        from overrefusal_po.evaluate.stage import evaluate

        return {**evaluate(body, run), "folder": str(path)}


def summarise(
    title: str,
    folder: Path,
    runs: list[dict[str, Any]],
    stages: Mapping[str, Stage],
    outcomes: Mapping[str, list[Outcome]],
) -> dict[str, Any]:
    """summary.json: the runs, the comparisons of neighbours (and of first and last), transitions
    and the samples.

    `outcomes` are all of each run, by its name; the samples are some 50 prompts and a few of each
    attack.
    """
    plain = {name: [o for o in rows if o.prompt.attack is None] for name, rows in outcomes.items()}
    steps = comparable(plain)
    comparisons, transitions = [], []
    for before, after in steps:
        comparisons.append(metrics.compare(plain[before], plain[after]).as_dict(before, after))
        rows = metrics.transitions(plain[before], plain[after])
        transitions += [
            {"from": before, "to": after, **row, "counts": scored(row["counts"])} for row in rows
        ]
    return {
        "title": title,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runs": [
            {
                **{k: v for k, v in run.items() if k != "measured"},
                "model_form": run["measured"]["model_form"],
            }
            for run in runs
        ],
        "comparisons": comparisons,
        "transitions": transitions,
        "samples": samples(outcomes),
        "measured": {**runs[-1]["measured"], "notes": notes(runs, stages)} if runs else {},
        "seconds": sum(
            json.loads(p.read_text()).get("seconds", 0) for p in folder.glob("*/status.json")
        ),
        **{k: v for k, v in environment().items() if k in ("versions", "hardware")},
    }


def notes(runs: list[dict[str, Any]], stages: Mapping[str, Stage]) -> list[str]:
    """What a reader of the numbers has to know: every run's notes, and a judge that also chose the
    training data."""
    found = dict.fromkeys(note for run in runs for note in run["measured"]["notes"])
    judges = {
        task: {str(b.judge) for b in stages.values() if isinstance(b, task)}
        for task in (CurateRecipe, EvaluateRecipe)
    }
    if both := sorted(judges[CurateRecipe] & judges[EvaluateRecipe]):
        found[
            f"The judge that measured ({', '.join(both)}) also chose the training pairs: its blind "
            "spots are in both."
        ] = None
    return list(found)


def write_sample(folder: Path, outcomes: Mapping[str, list[Outcome]]) -> None:
    """to_label.jsonl and its key: 50 responses without run, model or verdict, for a person to label
    and `certify` to read.

    A file that is there stays as it is: somebody may have labelled it.
    """
    sample = blinded_sample(outcomes)
    for name, lines in (("to_label.jsonl", sample.rows), ("to_label.key.jsonl", sample.key)):
        if not (folder / name).exists():
            write_atomic(
                folder / name,
                "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
            )


def comparable(outcomes: Mapping[str, list[Outcome]]) -> list[tuple[str, str]]:
    """Neighbouring runs on the same prompts, and the first and last of them where there are more
    than two."""
    groups: dict[frozenset[str], list[str]] = {}
    for name, rows in outcomes.items():
        groups.setdefault(frozenset(o.prompt.id for o in rows), []).append(name)
    steps = []
    for names in groups.values():
        steps += list(itertools.pairwise(names))
        if len(names) > 2:
            steps.append((names[0], names[-1]))
    return steps


def scored(counts: Mapping[Any, Mapping[Any, int]]) -> dict[str, dict[str, int]]:
    """A transition's counts without unscored outcomes, which the runs' own table counts."""
    kept = {before: row for before, row in counts.items() if before != "unscored"}
    return {
        before: {s: n for s, n in row.items() if s != "unscored"} for before, row in kept.items()
    }
