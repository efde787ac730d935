"""The model without a remedy on the dev prompts, measured once for all fits of a pipeline.

    shared = Untreated(folder, untreated_key(recipe, run.inputs, prompts, judge), others)
    shared.take(prompts, sampling)     # copies what another fit measured, if it is the same
    shared.keep()                      # notes what this fit measured, for the others

dev/untreated.json holds a hash of all that the measurement depends on. A fit with another hash
measures for itself. What is taken is copied, so each run folder is whole and can be resumed alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.judges import Judge
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.records import Prompt, Sampling, content_id, read_state, write_atomic
from overrefusal_po.run.appender import numbered_rows
from overrefusal_po.run.complete import file_beside
from overrefusal_po.run.drawn import read_drawn
from overrefusal_po.run.environment import environment

logger = logging.getLogger(__name__)

DEV_FOLDER, VERDICTS_FILE = "dev", "verdicts.jsonl"

UNTREATED = "untreated"
"""The name of the model without a remedy."""


def untreated_key(
    recipe: FitRecipe, inputs: Mapping[str, str], prompts: Sequence[Prompt], judge: Judge
) -> str:
    """A hash of what the measurement depends on: model, prompts and their order, generation, judge,
    seed, versions and hardware. `inputs`: content hashes, as a run has them."""
    known = environment()
    given = recipe.model_dump(mode="json", include={"model", "chat", "generation", "judge", "seed"})
    read = {key: found for key, found in inputs.items() if key.startswith(("model.", "chat."))}
    judged = f"{judge.name} {judge.version}"
    ids = [prompt.id for prompt in prompts]
    return content_id(given, read, judged, ids, known["versions"], known["hardware"])


class Untreated(NamedTuple):
    """What a fit knows of the others.

    Attributes:
        folder: its own run folder.
        key: what its measurement depends on.
        others: the run folders of the pipeline's other fits, also those that have not run.
    """

    folder: Path
    key: str
    others: Sequence[Path] = ()

    @property
    def taken_from(self) -> str | None:
        """The stage that measured; None if this fit did it itself, or has not yet."""
        found = noted(self.folder)
        return None if found.get("key") != self.key else found.get("measured_by")

    def take(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Copies the completions of another fit, and what slow judges said of them.

        Nothing happens without such a fit, or if this one has them already.
        """
        if noted(self.folder).get("key") == self.key:
            return
        for other in self.others:
            found = noted(other)
            if found.get("key") == self.key and copied(other, self.folder, prompts, sampling):
                self.keep(found.get("measured_by") or other.name)
                logger.info("without a remedy: taken from stage %s", self.taken_from)
                return

    def keep(self, measured_by: str | None = None) -> None:
        """Notes that the measurement is whole. `measured_by` as in `taken_from`."""
        if noted(self.folder).get("key") != self.key:
            note = {"key": self.key, "measured_by": measured_by}
            write_atomic(note_file(self.folder), json.dumps(note, indent=1) + "\n")


def note_file(folder: Path) -> Path:
    """Where a fit says what it measured."""
    return folder / DEV_FOLDER / f"{UNTREATED}.json"


def noted(folder: Path) -> dict[str, str | None]:
    """What a fit says of its measurement; empty if there is none."""
    file = note_file(folder)
    return read_state(file) if file.is_file() else {}


def copied(source: Path, folder: Path, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
    """Whether the other fit has a completion of every prompt, or why there is none. All of it is
    then in `folder` too.

    Completions come last: a fit that is killed between the files measures again.
    """
    rows = source / DEV_FOLDER / f"{UNTREATED}.jsonl"
    failed = file_beside(rows, "failed.jsonl")
    found = read_drawn((rows, failed), sampling)
    if any((prompt.id, 0) not in found for prompt in prompts):
        return False
    ids = {completion.id for completion in found.values()}
    said = numbered_rows(source / DEV_FOLDER / VERDICTS_FILE)
    verdicts = [json.dumps(row) + "\n" for _, row in said if row.get("completion_id") in ids]
    there = folder / DEV_FOLDER
    there.mkdir(exist_ok=True)
    if verdicts and not (there / VERDICTS_FILE).exists():
        write_atomic(there / VERDICTS_FILE, "".join(verdicts))
    for file in (failed, rows):
        if file.is_file():
            write_atomic(there / file.name, file.read_text(encoding="utf-8"))
    return True
