"""A pipeline's folder and its evaluations -> the part `remedies` of summary.json.

    entry = remedies_entry(report, folder, runs, bodies, outcomes)
    entry["sentence"], entry["rows"][0]["gain"]

What a remedy was made by is read from the stages: those that its evaluation refers to, and those
that they refer to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from pydantic import BaseModel

from overrefusal_po.evaluate.comparisons import EstimateEntry, estimate_entry
from overrefusal_po.evaluate.first_token import read_log_odds
from overrefusal_po.evaluate.measured_how import written_recipe
from overrefusal_po.evaluate.remedy_table import (
    Against,
    HoldRule,
    RemedyRow,
    best,
    changed,
    comparable_runs,
    remedy_rows,
)
from overrefusal_po.recipe.overrides import dotted, nested_texts
from overrefusal_po.recipe.report import Report
from overrefusal_po.records import Outcome, read_state
from overrefusal_po.report.remedies_part import no_gain_words, winner_words
from overrefusal_po.report.samples import SampleEntry, sample_entry

CHANGED_SHOWN = 10
"""Changed answers of a run that the page shows."""

SCALAR = (str, int, float, bool)

FIT_KEYS = {"status", "words", "remedy", "candidates"}
"""What summary.json of a stage `fit` has."""

DEV_RATES = ("harmful_refused", "benign_answered", "ordinary_answered", "degenerate")
"""What was measured of each candidate."""

Served = Literal["weights", "hooks", "logits", "streams", "prompt", "same"]
"""How a run's model can be served; `prompt`: a system prompt; `same`: as the untouched model."""

# Any: metrics.json of a run, the recipe of a stage and remedy.json, as JSON holds them
Values = Mapping[str, Any]


class FitEntry(TypedDict):
    """How a stage `fit` ended, from its summary.json. `dev`: the candidates as they were measured
    on the dev prompts; `facts`: numbers and texts that the remedy says of the kept one."""

    stage: str
    name: str
    status: str
    words: str
    strength: float | None
    facts: dict[str, object]
    dev: list[dict[str, object]]


class AgainstEntry(TypedDict):
    """A run against the untouched model; see `remedy_table.Against`."""

    refused_change: EstimateEntry
    gain: EstimateEntry
    p: float | None
    off_curve: EstimateEntry


class RemedyEntry(AgainstEntry):
    """A row of the table, and the panel behind it."""

    run: str
    rival: bool
    holds: bool
    surely: bool
    gives_back: bool
    why_not: str
    p_holm: float | None
    sets: dict[str, AgainstEntry]
    served: Served
    made_by: list[str]
    fit_seconds: float | None
    time_ratio: float | None
    perplexity_ratio: float | None
    tampered: dict[str, float]
    fits: list[FitEntry]
    changed: list[SampleEntry]


class RemediesEntry(TypedDict):
    """`remedies` in summary.json."""

    baseline: str
    rule: dict[str, object]
    sentence: str
    best: str | None
    rows: list[RemedyEntry]
    tampered: dict[str, float]
    left_out: list[str]
    unfitted: list[FitEntry]


class Stages(NamedTuple):
    """A pipeline's folder and the recipes of its stages."""

    folder: Path
    bodies: Mapping[str, BaseModel]

    def makers(self, stage: str) -> list[str]:
        """The stages behind a stage's model, the first one first. Evaluations make no model."""
        found: list[str] = []
        for name in self.named_by(stage):
            found += [*self.makers(name), name]
        return list(dict.fromkeys(found))

    def named_by(self, stage: str) -> Iterator[str]:
        """The stages whose outputs a stage reads, without evaluations. What an evaluation reads
        beside its model (a gate's baseline) makes nothing."""
        values = self.values(stage)
        read = values.get("model") if values.get("task") == "evaluate" else values
        for _, text in nested_texts(read):
            name = text[1:].partition(".")[0]
            known = text.startswith("@") and name in self.bodies
            if known and self.values(name).get("task") != "evaluate":
                yield name

    def measured(self) -> set[str]:
        """The stages that measure, also those that were left out."""
        return {stage for stage in self.bodies if self.values(stage).get("task") == "evaluate"}

    def values(self, stage: str) -> dict[str, Any]:
        """A stage's recipe, "@stage.output" left in place."""
        return self.bodies[stage].model_dump(mode="json") if stage in self.bodies else {}

    def seconds(self, stage: str) -> float | None:
        """How long a stage ran; None if that is not known."""
        file = self.folder / stage / "status.json"
        found = read_state(file).get("seconds") if file.is_file() else None
        return float(found) if isinstance(found, int | float) else None


def rule_of(report: Report) -> dict[str, object]:
    """What a report's table depends on beside the runs: a finished pipeline compares it."""
    return report.model_dump(mode="json")


class Table(NamedTuple):
    """What the table is made from: the metrics of the untouched model, those of every run by its
    name, the plain outcomes of each, and the names of plain rivals."""

    stages: Stages
    base: Values
    runs: Mapping[str, Values]
    outcomes: Mapping[str, Sequence[Outcome]]
    rivals: frozenset[str]
    unmeasured: int = 0
    """How many remedies could not be measured, because a fit kept none."""

    def sentence(self, rows: Sequence[RemedyRow]) -> str:
        """Which remedy gives answers back at kept refusals; or that none does."""
        found = best(rows)
        if not rows and not self.unmeasured:
            return f"No other run was measured on the prompts of {self.base['name']} by its judge."
        if found is None:
            ran = sum(row.name not in self.rivals for row in rows)
            return no_gain_words(ran, self.unmeasured, self.base)
        both = self.base, self.runs[found.name]
        return winner_words(found, both, rival=found.name in self.rivals)

    def entry(self, row: RemedyRow) -> RemedyEntry:
        """One run of the table."""
        stages, base, run = self.stages, self.base, self.runs[row.name]
        places = base["folder"], run["folder"]
        own = stages.makers(places[0])
        makers = [stage for stage in stages.makers(places[1]) if stage not in own]
        return {
            "run": row.name,
            "rival": row.name in self.rivals,
            **against_entry(row.whole),
            "p_holm": row.p_holm,
            "holds": row.holds,
            "surely": row.surely,
            "gives_back": row.gives_back,
            "why_not": row.why_not,
            "sets": {name: against_entry(one) for name, one in row.sets.items()},
            "served": served(stages.folder, *places),
            "made_by": makers,
            "fit_seconds": total([stages.seconds(stage) for stage in makers]),
            "time_ratio": ratio(*map(stages.seconds, places)),
            "perplexity_ratio": ratio(perplexity(base), perplexity(run)),
            "tampered": tampered(run),
            "fits": [fit for stage in makers for fit in fit_entries(stages.folder, stage)],
            "changed": self.changed(row.name),
        }

    def changed(self, name: str) -> list[SampleEntry]:
        """Some prompts to which a run says something else than the untouched model."""
        before = self.base["name"]
        moved = changed(self.outcomes[before], self.outcomes[name], CHANGED_SHOWN)
        return [sample_entry(old.prompt, {before: old, name: new}) for old, new in moved]


def is_other_report(report: Report | None, folder: Path) -> bool:
    """Whether a finished pipeline's summary was made with another `report`."""
    file = folder / "summary.json"
    known = (read_state(file).get("remedies") or {}).get("rule") if file.is_file() else None
    return file.is_file() and known != (None if report is None else rule_of(report))


def remedies_entry(
    report: Report,
    stages: Stages,
    runs: Sequence[Values],
    *,
    outcomes: Mapping[str, Sequence[Outcome]],
) -> RemediesEntry:
    """The part `remedies`: every run against the untouched one. `outcomes` are plain ones."""
    of_stage = {run["folder"]: run for run in runs}
    base = of_stage[report.baseline]
    name = base["name"]
    # a rival that a fit could not make did not run
    rivals = frozenset(of_stage[stage]["name"] for stage in report.rivals if stage in of_stage)
    missing = stages.measured() - {*of_stage, *report.rivals}
    by_name = {run["name"]: run for run in runs}
    table = Table(stages, base, by_name, outcomes, rivals, len(missing))
    log_odds = read_log_odds(stages.folder / report.baseline)
    rows = remedy_rows(name, outcomes, log_odds, HoldRule(report.hold_drop_max, report.on))
    fits = [fit for stage in stages.bodies for fit in fit_entries(stages.folder, stage)]
    unfitted = [fit for fit in fits if fit["status"] != "fitted"]
    compared = {name, *comparable_runs(name, outcomes)}
    return {
        "baseline": name,
        "rule": rule_of(report),
        "sentence": nothing_words(unfitted) or table.sentence(rows),
        "best": None if (found := best(rows)) is None else found.name,
        "rows": [table.entry(row) for row in rows],
        "tampered": tampered(base),
        "left_out": [other for other in outcomes if other not in compared],
        "unfitted": unfitted,
    }


def against_entry(one: Against) -> AgainstEntry:
    """A comparison, as JSON holds it."""
    return {
        "refused_change": estimate_entry(one.refused),
        "gain": estimate_entry(one.gain),
        "p": one.p,
        "off_curve": estimate_entry(one.off_curve),
    }


def nothing_words(unfitted: Sequence[FitEntry]) -> str:
    """Why nothing was fitted, if the model does not over-refuse; else ""."""
    return next((fit["words"] for fit in unfitted if fit["status"] == "nothing to remedy"), "")


def total(seconds: Sequence[float | None]) -> float | None:
    """The sum of what is known; None if nothing is."""
    known = [value for value in seconds if value is not None]
    return round(sum(known), 1) if known else None


def ratio(before: float | None, after: float | None) -> float | None:
    """after / before; None if one is not known."""
    return after / before if before and after is not None else None


def perplexity(run: Values) -> float | None:
    """The run's perplexity of reference answers; None if it was not measured."""
    found = (run.get("capability") or {}).get("perplexity")
    return found["value"] if found else None


def tampered(run: Values) -> dict[str, float]:
    """{tier: the least harmful_refused of the run's tampered copies}; empty without such a test."""
    found: dict[str, float] = {}
    for attempt in run.get("robustness") or ():
        tier, value = str(attempt["tier"]), attempt["harmful_refused"]
        if value is not None:
            found[tier] = min(value, found.get(tier, value))
    return found


def served(folder: Path, before: str, after: str) -> Served:
    """How the model of the stage `after` can be served, from the recipes in both folders."""
    old, new = (written_recipe(folder / stage) for stage in (before, after))
    (base, model), (said, says) = (
        [part if isinstance(part := recipe.get(key), dict) else {} for recipe in (old, new)]
        for key in ("model", "chat")
    )
    if remedy := model.get("remedy"):
        file = Path(str(remedy)) / "remedy.json"
        form = read_state(file).get("form") if file.is_file() else None
        return form if form in ("logits", "streams") else "hooks"
    if model.get("model_name_or_path") != base.get("model_name_or_path"):
        return "weights"
    return "prompt" if said.get("system_prompt") != says.get("system_prompt") else "same"


def fit_entries(folder: Path, stage: str) -> Iterator[FitEntry]:
    """How a stage `fit` ended; nothing for another stage, or one that is not done."""
    file = folder / stage / "summary.json"
    known = read_state(file) if file.is_file() else {}
    if not known.keys() >= FIT_KEYS:
        return
    rows = known["candidates"].values()
    yield {
        "stage": stage,
        "name": str(known["remedy"]),
        "status": str(known["status"]),
        "words": str(known["words"]),
        "strength": known.get("strength"),
        "facts": scalars(known.get("facts") or {}),
        "dev": [candidate(row, chosen=row["number"] == known.get("chosen")) for row in rows],
    }


def candidate(row: Values, *, chosen: bool) -> dict[str, object]:
    """A row of the candidates' table."""
    rates = {name: row["rates"].get(name) for name in DEV_RATES}
    return {"number": row["number"], "strength": row["strength"], **rates, "kept": chosen}


def scalars(values: Values) -> dict[str, object]:
    """The numbers and texts among some values; those of a mapping in it under `key.inner`."""
    return {key: value for key, value in dotted(dict(values)) if isinstance(value, SCALAR)}
