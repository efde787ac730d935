"""A pipeline's folder that holds fewer rounds -> the same folder, so that it goes on with more.

    make_room(Path("runs/porover-1a2b"), resolved, Repeats(("curate", "dpo"), 2))

The rounds that are there stay. What was measured behind the last of them is moved into `rounds_1/`,
since it will be measured again on another model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overrefusal_po.recipe.overrides import dotted, set_dotted
from overrefusal_po.recipe.rounds import Repeats, in_round, named_outputs
from overrefusal_po.records import read_state, write_atomic
from overrefusal_po.run.keys import run_key
from overrefusal_po.run.lock import FolderLock

logger = logging.getLogger(__name__)

ENDS = (
    "summary.json",
    "report.html",
    "plane.png",
    "transitions.png",
    "to_label.jsonl",
    "to_label.key.jsonl",
    "manifest.json",
    "recipe.yaml",
)
"""What a pipeline's own folder holds at its end, beside its status."""

# Any: the resolved recipes of a pipeline's stages, by name, as its recipe.yaml has them
Resolved = Mapping[str, Any]


def make_room(folder: Path, resolved: Resolved, repeats: Repeats) -> None:
    """Moves what is no longer true in the folder of a run with fewer rounds, and gives the folder
    the new key. Leaves every other folder alone, and one that another process works on."""
    status = folder / "status.json"
    if repeats.rounds == 1 or not status.is_file():
        return
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except ValueError:
        return  # who opens the run says so
    try:
        known = read_state(status, ["state", "key"])
        for number in range(1, repeats.rounds):
            before = with_fewer(resolved, repeats, number)
            if known["key"] == run_key(before, {}):
                move(folder, [*ENDS, *changed_stages(resolved, before)], f"rounds_{number}")
                now = {**known, "state": "running", "key": run_key(resolved, {})}
                # last: a kill before it leaves a folder that is still of the old recipe
                write_atomic(status, json.dumps(now, indent=1))
    finally:
        lock.release()


def with_fewer(resolved: Resolved, repeats: Repeats, number: int) -> dict[str, Any]:
    """The pipeline as it would be with fewer rounds."""
    return {
        name: as_before(body, repeats, number) if repeats.origin(name)[1] == 0 else body
        for name, body in resolved.items()
        if repeats.origin(name)[1] <= number
    }


# Any: one of the resolved recipes, or the pipeline's own run_dir and task
def as_before(body: Any, repeats: Repeats, number: int) -> Any:
    """A stage that is not repeated, with the outputs of an earlier round in place of the last's."""
    if not isinstance(body, Mapping):
        return body
    values = json.loads(json.dumps(body))
    last = {in_round(s, repeats.rounds): in_round(s, number) for s in repeats.stages}
    for key, (stage, output) in named_outputs(values).items():
        if stage in last:
            set_dotted(values, key, f"@{last[stage]}.{output}")
    if values.get("name") in last:  # a run without a name has that of its model's stage
        values["name"] = last[values["name"]]
    return values


def changed_stages(resolved: Resolved, before: Resolved) -> Iterator[str]:
    """The stages that were there before and now read something else, directly or not."""
    found: set[str] = set()
    for name, body in before.items():
        if not isinstance(body, Mapping):
            continue
        reads = {stage for stage, _ in named_outputs(body).values()}
        if dotted(body) != dotted(resolved[name]) or reads & found:
            found.add(name)
            yield name


def move(folder: Path, names: list[str], to: str) -> None:
    """Moves what is there of these into a folder in `folder`."""
    there = [name for name in names if (folder / name).exists()]
    if there:
        (folder / to).mkdir(exist_ok=True)
        logger.info("moved into %s: %s", folder / to, ", ".join(there))
    for name in there:
        (folder / name).replace(folder / to / name)
