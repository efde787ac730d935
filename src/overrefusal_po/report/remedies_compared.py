"""Run folders of evaluations -> the table of remedies against the first, as a pipeline's page has
it.

    part = compared_part(folders, outcomes, metrics, first_tokens)   # None if no run has a remedy
    part.sentence, part.rows[0].gain

What made a run's model is read from the recipes in the run folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overrefusal_po.evaluate.first_token_rows import FirstTokens
from overrefusal_po.recipe.overrides import nested_texts
from overrefusal_po.recipe.report import Report
from overrefusal_po.records import Outcome
from overrefusal_po.report.given_folders import rule_in
from overrefusal_po.report.remedies_entry import remedies_entry
from overrefusal_po.report.remedies_made import FitEntry, fit_entries
from overrefusal_po.report.remedies_part import RemediesPart
from overrefusal_po.run.folder import written_recipe

MAKERS = ("curate", "train", "fit")
"""The tasks that make a model, or what one is made from."""

RULE_KEYS = ("hold_drop_max", "perplexity_ratio_max", "on")
"""The keys of a pipeline's `report` that decide which runs hold."""


class RunFolders(NamedTuple):
    """Run folders of any places (see `remedies_made.Made`): a stage is the path of a folder."""

    runs: tuple[str, ...]
    folder: Path = Path()

    def makers(self, stage: str) -> list[str]:
        """The run folders behind a run's model, the first one first."""
        return list(dict.fromkeys(made_by(Path(stage), ())))

    def fits(self) -> list[str]:
        """The run folders behind all runs."""
        return list(dict.fromkeys(maker for run in self.runs for maker in self.makers(run)))

    def measured(self) -> set[str]:
        """The runs."""
        return set(self.runs)

    def healthy(self, baseline: str) -> list[FitEntry]:
        """None: what is measured behind a fit had a remedy."""
        return []


def made_by(folder: Path, above: Sequence[Path]) -> Iterator[str]:
    """The run folders behind the model of a run, or behind what a maker reads. `above`: where the
    question comes from, so that recipes which name each other end."""
    recipe = written_recipe(folder)
    read = recipe.get("model") if recipe.get("task") == "evaluate" else recipe
    for _, text in nested_texts(read if isinstance(read, Mapping) else {}):
        maker = maker_of(text, folder)
        if maker is not None and maker not in (folder, *above):
            yield from made_by(maker, (*above, folder))
            yield str(maker)


def maker_of(text: str, reader: Path) -> Path | None:
    """The run folder whose output a recipe names; None if it names none. A pipeline's folder may
    have been moved: then the output lies beside its reader."""
    path = Path(text)
    if path.parent == Path() or "\n" in text:
        return None
    for place in (path.parent, reader.parent / path.parent.name):
        if written_recipe(place).get("task") in MAKERS:
            return place
    return None


def rule_for(folders: Sequence[Path]) -> Report:
    """The first folder as the baseline. If a pipeline's report has it as its own, the other keys
    are that report's."""
    first = folders[0]
    known = rule_in(first.parent)
    if known.get("baseline") != first.name:
        return Report(baseline=str(first))
    kept = {key: known[key] for key in RULE_KEYS if key in known}
    rivals = tuple(str(first.parent / name) for name in known.get("rivals", ()))
    return Report.model_validate({**kept, "baseline": str(first), "rivals": rivals})


def compared_part(
    folders: Mapping[str, Path],
    outcomes: Mapping[str, Sequence[Outcome]],
    metrics: Mapping[str, Mapping[str, Any]],
    first_tokens: Mapping[str, FirstTokens],
) -> RemediesPart | None:
    """The table against the first run; None if no other run has a remedy. All mappings have the
    names of the runs, in one order; `outcomes` are plain ones, `metrics` as metrics.json holds
    them."""
    made = RunFolders(tuple(map(str, folders.values())))
    if not any(has_remedy(made, str(folder)) for folder in list(folders.values())[1:]):
        return None
    runs = [
        {**metrics[name], "name": name, "folder": str(folder)} for name, folder in folders.items()
    ]
    report = rule_for(list(folders.values()))
    entry = remedies_entry(report, made, runs, outcomes=outcomes, first_tokens=first_tokens)
    return RemediesPart.model_validate(entry)


def has_remedy(made: RunFolders, run: str) -> bool:
    """Whether a run's model has a remedy: on it, or in its weights."""
    model = written_recipe(Path(run)).get("model")
    on_it = isinstance(model, Mapping) and model.get("remedy") is not None
    fits = (fit for maker in made.makers(run) for fit in fit_entries(Path(), maker))
    return on_it or next(fits, None) is not None
