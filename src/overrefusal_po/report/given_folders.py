"""A folder that a user gives -> the evaluations in it.

folders = [one for folder in given for one in evaluations_in(folder)]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overrefusal_po.records import read_state
from overrefusal_po.run.folder import written_recipe


def evaluations_in(folder: Path) -> list[Path]:
    """The evaluations of a pipeline's folder that have ended, the baseline of its report first;
    any other folder itself."""
    recipe = written_recipe(folder)
    if recipe.get("task") != "pipeline":
        return [folder]
    found = [folder / stage for stage in recipe if is_evaluation(folder / stage)]
    baseline = str(rule_in(folder).get("baseline"))
    return sorted(found, key=lambda one: one.name != baseline)


def is_evaluation(folder: Path) -> bool:
    """Whether an evaluation has ended in a folder."""
    return all((folder / name).is_file() for name in ("outcomes.jsonl", "metrics.json"))


def rule_in(folder: Path) -> dict[str, Any]:  # Any: the recipe's section as JSON holds it
    """The `report` of a pipeline's folder; empty without one."""
    file = folder / "summary.json"
    known = (read_state(file).get("remedies") or {}) if file.is_file() else {}
    return dict(known.get("rule") or {})


def no_evaluation(folder: Path) -> str:
    """Why a folder cannot be compared, and what to give in its place."""
    if not folder.is_dir():
        return "there is no such folder. Give the run folder of an evaluation."
    inner = sorted(str(file.parent) for file in folder.glob("*/outcomes.jsonl"))
    if inner:
        return f"this is a pipeline's folder. Give its evaluations: {' '.join(inner)}"
    return (
        "this folder holds no evaluation that has ended (outcomes.jsonl and metrics.json). Give "
        "the run folder of one."
    )
