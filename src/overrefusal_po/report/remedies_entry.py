"""Evaluations of one model and its remedies -> the part `remedies` of summary.json.

    entry = remedies_entry(report, Stages(folder, bodies), runs, outcomes=outcomes, first_tokens=t)
    entry["sentence"], entry["rows"][0]["gain"]

`remedies_made` knows what made each run's model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

from overrefusal_po.evaluate.comparisons import EstimateEntry, estimate_entry
from overrefusal_po.evaluate.first_token_rows import FirstTokens
from overrefusal_po.evaluate.remedy_table import (
    Against,
    HoldRule,
    RemedyRow,
    best,
    changed,
    comparable_runs,
    remedy_rows,
)
from overrefusal_po.recipe.report import Report
from overrefusal_po.records import Outcome, read_state
from overrefusal_po.report.hold_notes import by_itself_words, unheld_words
from overrefusal_po.report.remedies_made import (
    FitEntry,
    Made,
    Served,
    fit_entries,
    fit_seconds,
    served,
    speed,
    speed_ratio,
)
from overrefusal_po.report.remedies_part import no_gain_words, winner_words
from overrefusal_po.report.samples import SampleEntry, sample_entry

CHANGED_SHOWN = 10
"""Changed answers of a run that the page shows."""

# Any: metrics.json of a run, as JSON holds it
Values = Mapping[str, Any]


TamperWays = Mapping[int, set[tuple[Any, ...]]]
"""{tier: learning rate, seed and layer of copies}. Any: numbers of metrics.json, or None."""


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
    unheld: str
    p_holm: float | None
    sets: dict[str, AgainstEntry]
    served: Served
    made_by: list[str]
    fit_seconds: float | None
    speed_ratio: float | None
    speed_note: str
    perplexity_ratio: float | None
    tampered: dict[str, float]
    fits: list[FitEntry]
    changed: list[SampleEntry]


class RemediesEntry(TypedDict):
    """`remedies` in summary.json."""

    baseline: str
    rule: dict[str, object]
    exact_curve: bool
    sentence: str
    best: str | None
    tokens_per_second: float | None
    rows: list[RemedyEntry]
    tampered: dict[str, float]
    left_out: list[str]
    unfitted: list[FitEntry]


def rule_of(report: Report) -> dict[str, object]:
    """What a report's table depends on beside the runs: a finished pipeline compares it."""
    return report.model_dump(mode="json")


class Table(NamedTuple):
    """What the table is made from: the metrics of the untouched model, those of every run by its
    name, the plain outcomes of each, the names of plain rivals, and whether the untouched model's
    curve is one of texts."""

    stages: Made
    base: Values
    runs: Mapping[str, Values]
    outcomes: Mapping[str, Sequence[Outcome]]
    rivals: frozenset[str]
    exact_curve: bool
    unmeasured: int = 0
    """How many remedies could not be measured, because a fit kept none."""
    ways: TamperWays = MappingProxyType({})
    """How the copies of all runs were tampered with; see `tampered_alike`."""

    def sentence(self, rows: Sequence[RemedyRow]) -> str:
        """Which remedy gives answers back at kept refusals; or that none does."""
        found = best(rows)
        if not rows and not self.unmeasured:
            return f"No other run was measured on the prompts of {self.base['name']} by its judge."
        if found is None:
            ran = sum(row.name not in self.rivals for row in rows)
            return no_gain_words(ran, self.unmeasured, self.base)
        both = self.base, self.runs[found.name]
        rival = found.name in self.rivals
        return winner_words(found, both, rival=rival, exact=self.exact_curve)

    def entry(self, row: RemedyRow) -> RemedyEntry:
        """One run of the table."""
        stages, base, run = self.stages, self.base, self.runs[row.name]
        places = base["folder"], run["folder"]
        own = stages.makers(places[0])
        makers = [stage for stage in stages.makers(places[1]) if stage not in own]
        speed_of = speed_ratio(*(speed(stages.folder, place) for place in places))
        return {
            "run": row.name,
            "rival": row.name in self.rivals,
            **against_entry(row.whole),
            "p_holm": row.p_holm,
            "holds": row.holds,
            "surely": row.surely,
            "gives_back": row.gives_back,
            "why_not": row.why_not,
            "unheld": unheld(stages, places[1]),
            "sets": {name: against_entry(one) for name, one in row.sets.items()},
            "served": served(stages.folder, *places),
            "made_by": makers,
            "fit_seconds": fit_seconds(stages.folder, makers),
            "speed_ratio": speed_of[0],
            "speed_note": speed_of[1],
            "perplexity_ratio": perplexity_ratio(base, run),
            "tampered": tampered(run, self.ways),
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
    stages: Made,
    runs: Sequence[Values],
    *,
    outcomes: Mapping[str, Sequence[Outcome]],
    first_tokens: Mapping[str, FirstTokens],
) -> RemediesEntry:
    """The part `remedies`: every run against the untouched one. `outcomes` (plain ones) and
    `first_tokens` have the names of the runs."""
    of_stage = {run["folder"]: run for run in runs}
    base = of_stage[report.baseline]
    name = base["name"]
    # a rival that a fit could not make did not run
    rivals = frozenset(of_stage[stage]["name"] for stage in report.rivals if stage in of_stage)
    missing = stages.measured() - {*of_stage, *report.rivals}
    by_name = {run["name"]: run for run in runs}
    known = first_tokens[name]
    rule = HoldRule(report.hold_drop_max, report.on)
    lost = {
        run["name"]: "; ".join(
            filter(None, (lost_hold(stages, run["folder"]), broken(report, base, run)))
        )
        for run in runs
    }
    rows = remedy_rows(name, outcomes, known, rule, lost=lost)
    ways = tampered_alike([base, *(by_name[row.name] for row in rows)])
    table = Table(stages, base, by_name, outcomes, rivals, known.exact, len(missing), ways)
    fits = [fit for stage in stages.fits() for fit in fit_entries(stages.folder, stage)]
    unfitted = [fit for fit in fits if fit["status"] != "fitted"]
    compared = {name, *comparable_runs(name, outcomes)}
    return {
        "baseline": name,
        "rule": rule_of(report),
        "exact_curve": known.exact,
        "sentence": nothing_words(stages, report.baseline) or table.sentence(rows),
        "best": None if (found := best(rows)) is None else found.name,
        "tokens_per_second": speed(stages.folder, base["folder"]).value,
        "rows": [table.entry(row) for row in rows],
        "tampered": tampered(base, ways),
        "left_out": [other for other in outcomes if other not in compared],
        "unfitted": unfitted,
    }


def lost_hold(stages: Made, stage: str) -> str:
    """What the training lost that made a run's model, by its own `hold:`; "" if nothing. What was
    made from that model since (a gate before its adapter) may hold again, and is measured."""
    makers = stages.makers(stage)
    return unheld_words(stages.folder / makers[-1]) if makers else ""


def unheld(stages: Made, stage: str) -> str:
    """Why the training that made a run's model was not held, though its sets keep their safety; ""
    if it was held, or had no `hold:`."""
    makers = stages.makers(stage)
    return by_itself_words(stages.folder / makers[-1]) if makers else ""


def broken(report: Report, before: Values, after: Values) -> str:
    """What a run's perplexity is, if it is above the limit; else ""."""
    times, most = perplexity_ratio(before, after), report.perplexity_ratio_max
    if times is None or times <= most:
        return ""
    return f"perplexity of reference answers is x {times:.2f}, allowed is {most:g}"


def against_entry(one: Against) -> AgainstEntry:
    """A comparison, as JSON holds it."""
    return {
        "refused_change": estimate_entry(one.refused),
        "gain": estimate_entry(one.gain),
        "p": one.p,
        "off_curve": estimate_entry(one.off_curve),
    }


def nothing_words(stages: Made, baseline: str) -> str:
    """Why nothing was fitted, if the untouched model does not over-refuse; else ""."""
    return next((fit["words"] for fit in stages.healthy(baseline)), "")


def ratio(before: float | None, after: float | None) -> float | None:
    """after / before; None if one is not known."""
    return after / before if before and after is not None else None


def perplexity_ratio(before: Values, after: Values) -> float | None:
    """The perplexity of reference answers as a multiple of that of another run; None if one was not
    measured, or if they were measured on other answers or with another tokenizer."""
    old, new = ((run.get("capability") or {}).get("perplexity") for run in (before, after))
    if not old or not new or any(old[key] != new[key] for key in ("n", "tokens")):
        return None
    return ratio(old["value"], new["value"])


def tampered(run: Values, ways: TamperWays) -> dict[str, float]:
    """{tier: the least harmful_refused of the run's tampered copies without a defence} of the
    copies made in these ways; empty without such a test."""
    found: dict[str, float] = {}
    for tier, way, value in plain_copies(run):
        if way in ways.get(tier, ()):
            found[str(tier)] = min(value, found.get(str(tier), value))
    return found


def tampered_alike(runs: Sequence[Values]) -> TamperWays:
    """How the tampered copies were made that all runs with a tier have of it. The worst of more
    copies is worse, so runs are compared by these alone."""
    found: dict[int, set[tuple[Any, ...]]] = {}
    for run in runs:
        own: dict[int, set[tuple[Any, ...]]] = {}
        for tier, way, _ in plain_copies(run):
            own.setdefault(tier, set()).add(way)
        for tier, ways in own.items():
            found[tier] = found.get(tier, ways) & ways
    return found


def plain_copies(run: Values) -> Iterator[tuple[int, tuple[Any, ...], float]]:
    """(tier, learning rate with seed and layer, harmful_refused) of each measured copy without a
    defence."""
    for attempt in run.get("robustness") or ():
        if attempt["harmful_refused"] is not None and attempt.get("defence", "none") == "none":
            way = tuple(attempt.get(key) for key in ("learning_rate", "seed", "layer"))
            yield attempt["tier"], way, attempt["harmful_refused"]
