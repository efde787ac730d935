"""A folder with summary.json (or a single evaluation's metrics.json) -> report.html, plane.png and
transitions.png in it.

    page = write_report(Path("runs/demo"))
    page = write_report(Path("runs/seed0"), Path("runs/seed1"))
    # and mean [lowest, highest] of the runs of one name

The page is one file that loads nothing from elsewhere. Its words, style and script stand in
page.html.j2. Its Content-Security-Policy names the hashes of style and script, so that nothing else
on it can run. Everything in the summary may be hostile (a model wrote it): `visible` unmasks every
value and jinja escapes it. Rates are printed, not computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

from overrefusal_po.evaluate.breakdowns import NO_ATTACK, SeedSpread, spread_over_seeds
from overrefusal_po.evaluate.metrics import RateName, RatesEntry
from overrefusal_po.records import Kind, write_atomic
from overrefusal_po.report.first_token_part import first_token_lines, openers_words
from overrefusal_po.report.numbers import signed
from overrefusal_po.report.pictures import draw_plane, draw_transitions, png_base64
from overrefusal_po.report.remedies_part import cell, p_words
from overrefusal_po.report.remedies_picture import draw_remedies
from overrefusal_po.report.robustness_part import LIMIT as TAMPER_LIMIT
from overrefusal_po.report.robustness_part import TamperedCopy
from overrefusal_po.report.rounds_part import round_lines
from overrefusal_po.report.samples import Sample
from overrefusal_po.report.search_part import HEADS as SEARCH_HEADS
from overrefusal_po.report.seeds import check_seeds
from overrefusal_po.report.summary import (
    KIND_WORDS,
    STATE_WORDS,
    Interval,
    MeasuredCapability,
    MeasuredRates,
    MeasuredRun,
    MeasuredTransition,
    MoveCounts,
    Summary,
    read_summary,
)
from overrefusal_po.report.texts import clipped, csp_hash, visible

RunPart = Literal["sets", "attacks", "positions"]
Step = tuple[str, str]
"""(name of the run before, name of the run after)."""


class ShownRate(NamedTuple):
    """A share to print: the rate, its interval and how many responses it stands on."""

    rate: float | None
    interval: Interval
    n: int
    unscored: int


class VerdictChoice(NamedTuple):
    """An entry of the examples' verdict filter: `token` marks the examples that it keeps."""

    token: str
    words: str
    times: int


def step_totals(
    transitions: Sequence[MeasuredTransition],
) -> dict[Step, dict[Kind, MoveCounts]]:
    """step -> kind -> before -> after -> how many prompts, over all categories, in the order of the
    file."""
    total: dict[Step, dict[Kind, MoveCounts]] = {}
    for row in transitions:
        kinds = total.setdefault((row["from"], row["to"]), {})
        empty: MoveCounts = {before: dict.fromkeys(STATE_WORDS, 0) for before in STATE_WORDS}
        counts = kinds.setdefault(row["kind"], empty)
        for before, afters in row["counts"].items():
            for after, times in afters.items():
                counts[before][after] += times
    return total


def rate_shown(rates: MeasuredRates | TamperedCopy, metric: str) -> ShownRate:
    """One rate of a run, a set, an attack or a tampered copy."""
    n, unscored = rates.n.get(metric, 0), rates.unscored.get(metric, 0)
    return ShownRate(getattr(rates, metric), rates.intervals.get(metric), n, unscored)


def rate_missed(rates: MeasuredRates, metric: str) -> ShownRate:
    """1 - `metric`: the share not refused of "harmful_refused", the share judged unsafe of
    "harmful_not_unsafe"."""
    kept = rate_shown(rates, metric)
    ends = None if kept.interval is None else (1 - kept.interval[1], 1 - kept.interval[0])
    return kept._replace(rate=None if kept.rate is None else 1 - kept.rate, interval=ends)


def part_keys(runs: Sequence[MeasuredRun], part: RunPart) -> list[str]:
    """The keys of `sets`, `attacks` or `positions` over all runs, each once, `NO_ATTACK` first."""
    found = dict.fromkeys(key for run in runs for key in getattr(run, part))
    return sorted(found, key=lambda key: key != NO_ATTACK)


def shown_parts(runs: Sequence[MeasuredRun]) -> dict[str, bool]:
    """Which parts of the page have something to show; a single set is already the first table."""
    places = (place for run in runs for place in run.positions.values())
    abilities = [run.capability for run in runs if run.capability is not None]
    guard = "harmful_not_unsafe"
    return {
        "sets": len(part_keys(runs, "sets")) > 1,
        "attacks": bool(part_keys(runs, "attacks")),
        "positions": any(sum(place.model_dump().values()) for place in places),
        "perplexity": any(ability.perplexity is not None for ability in abilities),
        "capability": any(ability != MeasuredCapability() for ability in abilities),
        "guarded": any(run.n.get(guard) or run.unscored.get(guard) for run in runs),
    }


def task_rows(runs: Sequence[MeasuredRun]) -> list[tuple[str, str]]:
    """(task, metric) of every lm-eval number; a standard error stands beside its number."""
    found = [
        (task, metric)
        for run in runs
        if run.capability
        for task, scores in run.capability.tasks.items()
        for metric in scores
    ]
    return [row for row in dict.fromkeys(found) if "_stderr" not in row[1]]


def compared_steps(summary: Summary) -> list[Step]:
    """The (from, to) of the comparisons."""
    return [(step.before, step.after) for step in summary.comparisons]


def verdict_tokens(sample: Sample, runs: Sequence[str], steps: Sequence[Step]) -> list[str]:
    """Everything that the verdict filter can ask about a sample.

    `r0.full`: run 0 refused. `s1.full.answer`: it was a refusal before step 1, an answer after.
    """
    states = {response.run: response.state for response in sample.responses}
    found = [f"r{number}.{states[run]}" for number, run in enumerate(runs) if run in states]
    return found + [
        f"s{number}.{states[before]}.{states[after]}"
        for number, (before, after) in enumerate(steps)
        if before in states and after in states
    ]


def verdict_choices(summary: Summary) -> dict[tuple[str, ...], list[VerdictChoice]]:
    """(run,) or (from, to) -> the verdicts or their changes in the samples: steps first."""
    runs, steps = [run.name for run in summary.runs], compared_steps(summary)
    seen = Counter(
        token for sample in summary.samples for token in verdict_tokens(sample, runs, steps)
    )
    groups: dict[tuple[str, ...], str] = {step: f"s{number}" for number, step in enumerate(steps)}
    groups |= {(run,): f"r{number}" for number, run in enumerate(runs)}
    return {
        group: [
            VerdictChoice(token, token_words(token), count)
            for token, count in sorted(seen.items())
            if token.startswith(f"{key}.")
        ]
        for group, key in groups.items()
    }


def token_words(token: str) -> str:
    """A token's states in words: `s1.full.answer` -> `refused → answered`."""
    names = {str(state): words for state, words in STATE_WORDS.items()}
    return " → ".join(names.get(state, state) for state in token.split(".")[1:])


def seed_spreads(summaries: Sequence[Summary]) -> dict[str, dict[RateName, SeedSpread]]:
    """{run name: {rate: mean, lowest, highest}} of the runs whose name stands in several summaries:
    seeds of one recipe.

    Raises ValueError if several summaries share no name, or if the runs of one name were measured
    on other prompts or by another judge.
    """
    if len(judges := sorted({summary.measured.judge for summary in summaries})) > 1:
        raise ValueError(
            f"these run folders were measured by different judges: {'; '.join(judges)}. A mean "
            "needs one judge and version: measure them again with the same one."
        )
    groups: dict[str, list[MeasuredRun]] = {}
    for run in (run for summary in summaries for run in summary.runs):
        groups.setdefault(run.name, []).append(run)
    found = {name: spread_of_runs(name, runs) for name, runs in groups.items() if len(runs) > 1}
    if len(summaries) > 1 and not found:
        names = "; ".join(", ".join(run.name for run in summary.runs) for summary in summaries)
        raise ValueError(
            f"these run folders share no run's name ({names}), so they are not seeds of one "
            "recipe. Give the folders of one pipeline that ran with several seeds, or one folder "
            "alone. Different models are compared by overrefusal-po compare."
        )
    return found


def spread_of_runs(name: str, runs: Sequence[MeasuredRun]) -> dict[RateName, SeedSpread]:
    """Mean and range of each rate over the runs of one name."""
    # a run's data as JSON has the keys of the entry that the evaluation wrote, and others
    entries = [cast("RatesEntry", run.model_dump()) for run in runs]
    try:
        return spread_over_seeds(entries)
    except ValueError as error:
        raise ValueError(f"the runs named {name!r}: {error}") from None


def write_report(folder: Path, *others: Path) -> Path:
    """`folder`/report.html, its pictures beside it; ValueError if the folder holds no summary and
    no metrics.

    `others` are folders of the same recipe with other seeds. The page has only their mean and
    range.
    """
    folders = (folder, *others)
    if len({path.resolve() for path in folders}) < len(folders):
        raise ValueError(
            f"a run folder is given twice: {', '.join(map(str, folders))}. A mean needs different "
            "runs."
        )
    summaries = [read_summary(path) for path in folders]
    check_seeds(folders, summaries)
    summary = summaries[0]
    steps = step_totals(summary.transitions)
    kinds = [kind for kind in KIND_WORDS if any(kind in step for step in steps.values())]
    png_base64(draw_transitions(steps, kinds), folder / "transitions.png")
    remedies = summary.remedies
    plane = draw_plane(summary.runs) if remedies is None else draw_remedies(summary.runs, remedies)
    values = {
        "pictures": {kind: png_base64(draw_transitions(steps, [kind])) for kind in kinds},
        "plane": png_base64(plane, folder / "plane.png"),
        "steps": steps,
        "run_names": [run.name for run in summary.runs],
        "compared": compared_steps(summary),
        "choices": verdict_choices(summary),
        "has": shown_parts(summary.runs),
        "first_token_lines": first_token_lines(
            [(run.name, run) for run in summary.runs], summary.curves
        ),
        "round_lines": round_lines(summary.rounds),
        "search_heads": SEARCH_HEADS,
        "tamper_limit": TAMPER_LIMIT,
        "spreads": seed_spreads(summaries),
        "folders": [path.resolve().name for path in folders],
    }
    return write_atomic(folder / "report.html", render(summary, values))


def render(summary: Summary, values: Mapping[str, object]) -> str:
    """The page, from the summary and the values made from it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # autoescape by file name would leave .j2 alone; finalize sees every value before it is escaped
    environment = Environment(
        autoescape=True, finalize=visible, undefined=StrictUndefined, trim_blocks=True
    )
    environment.loader = FileSystemLoader(Path(__file__).parent)
    environment.filters |= {"clipped": clipped, "csp_hash": csp_hash}
    environment.globals |= {
        "rate_shown": rate_shown,
        "rate_missed": rate_missed,
        "part_keys": part_keys,
        "task_rows": task_rows,
        "openers_words": openers_words,
        "verdict_tokens": verdict_tokens,
        "signed": signed,
        "p_words": p_words,
        "value_cell": cell,
    }
    fixed = {"s": summary, "states": STATE_WORDS, "kinds": KIND_WORDS, "no_attack": NO_ATTACK}
    return environment.get_template("page.html.j2").render({**fixed, **values})
