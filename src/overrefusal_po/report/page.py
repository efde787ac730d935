"""A folder with summary.json (or a single evaluation's metrics.json) -> report.html, plane.png and
transitions.png in it.

    page = write_report(Path("runs/demo"))
    page = write_report(Path("runs/seed0"), Path("runs/seed1"))
    # and mean [lowest, highest] of the runs of one name

The page is one file that loads nothing from elsewhere; its words, style and script stand in
page.html.j2, and its Content-Security-Policy names the hashes of the latter two, so that nothing
else on it can run. Whatever the summary holds may be hostile (a model wrote it): `visible` unmasks
every value and jinja escapes it. Rates are printed, not computed.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overrefusal_po.evaluate.breakdowns import Spread, over_seeds
from overrefusal_po.records import Kind, write_atomic
from overrefusal_po.report.pictures import draw_plane, draw_transitions, encoded
from overrefusal_po.report.summary import (
    KINDS,
    STATES,
    Capability,
    Counts,
    Interval,
    Rates,
    Run,
    Sample,
    Summary,
    Transition,
    clipped,
    read_summary,
    visible,
)

AS_ASKED = "none"
"""The key of `attacks` and `positions` under which the prompts stand as they were asked."""


class Shown(NamedTuple):
    """A share to print: the rate, its interval and how many responses it stands on."""

    rate: float | None
    interval: Interval
    n: int
    unscored: int


class Choice(NamedTuple):
    """An entry of the examples' verdict filter: `token` marks the examples that it keeps."""

    token: str
    words: str
    times: int


def add_up(transitions: Sequence[Transition]) -> dict[tuple[str, str], dict[Kind, Counts]]:
    """(from, to) -> kind -> before -> after -> how many prompts, over all categories, in the order
    of the file."""
    total: dict[tuple[str, str], dict[Kind, Counts]] = {}
    for row in transitions:
        kinds = total.setdefault((row["from"], row["to"]), {})
        counts = kinds.setdefault(
            row["kind"], {before: dict.fromkeys(STATES, 0) for before in STATES}
        )
        for before, after in ((b, a) for b in row["counts"] for a in row["counts"][b]):
            counts[before][after] += row["counts"][before][after]
    return total


def shown(rates: Rates, metric: str) -> Shown:
    """One rate of a run, a set or an attack."""
    n, unscored = rates.n.get(metric, 0), rates.unscored.get(metric, 0)
    return Shown(getattr(rates, metric), rates.intervals.get(metric), n, unscored)


def missed(rates: Rates, metric: str) -> Shown:
    """The share that `metric` leaves: with "harmful_refused" what was not refused, with
    "harmful_not_unsafe" what was judged unsafe."""
    kept = shown(rates, metric)
    ends = None if kept.interval is None else (1 - kept.interval[1], 1 - kept.interval[0])
    return kept._replace(rate=None if kept.rate is None else 1 - kept.rate, interval=ends)


def keys_of(runs: Sequence[Run], part: str) -> list[str]:
    """The keys of `sets`, `attacks` or `positions` over all runs, each once, `AS_ASKED` first."""
    found = dict.fromkeys(key for run in runs for key in getattr(run, part))
    return sorted(found, key=lambda key: key != AS_ASKED)


def parts_of(runs: Sequence[Run]) -> dict[str, bool]:
    """Which parts of the page have something to show; a single set is already the first table."""
    placed = (place for run in runs for place in run.positions.values())
    return {
        "sets": len(keys_of(runs, "sets")) > 1,
        "attacks": bool(keys_of(runs, "attacks")),
        "positions": any(sum(place.model_dump().values()) for place in placed),
        "perplexity": any(
            run.capability is not None and run.capability.perplexity is not None for run in runs
        ),
        "capability": any(
            run.capability is not None and run.capability != Capability() for run in runs
        ),
        "guarded": any(
            run.n.get("harmful_not_unsafe") or run.unscored.get("harmful_not_unsafe")
            for run in runs
        ),
    }


def task_rows(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(task, metric) of every lm-eval number, its standard errors left to stand beside it."""
    found = [
        (t, m)
        for run in runs
        if run.capability
        for t, made in run.capability.tasks.items()
        for m in made
    ]
    return [row for row in dict.fromkeys(found) if "_stderr" not in row[1]]


def pairs_of(summary: Summary) -> list[tuple[str, str]]:
    """The (from, to) of the comparisons."""
    return [(step.before, step.after) for step in summary.comparisons]


def tokens(sample: Sample, runs: Sequence[str], steps: Sequence[tuple[str, str]]) -> list[str]:
    """What the verdict filter can ask of a sample: `r0.full` run 0 refused, `s1.full.answer` what
    became of it in step 1."""
    states = {response.run: response.state for response in sample.responses}
    found = [f"r{number}.{states[run]}" for number, run in enumerate(runs) if run in states]
    return found + [
        f"s{number}.{states[before]}.{states[after]}"
        for number, (before, after) in enumerate(steps)
        if before in states and after in states
    ]


def choices(summary: Summary) -> dict[tuple[str, ...], list[Choice]]:
    """(run,) or (from, to) -> the verdicts or changes of verdict that occur in the samples: steps
    first."""
    runs, steps = [run.name for run in summary.runs], pairs_of(summary)
    seen = Counter(token for sample in summary.samples for token in tokens(sample, runs, steps))
    groups: dict[tuple[str, ...], str] = {step: f"s{number}" for number, step in enumerate(steps)}
    groups |= {(run,): f"r{number}" for number, run in enumerate(runs)}
    names: dict[str, str] = {
        **{str(state): word for state, word in STATES.items()},
        "unscored": "unscored",
    }
    return {
        group: [
            Choice(token, " → ".join(names[state] for state in token.split(".")[1:]), count)
            for token, count in sorted(seen.items())
            if token.startswith(f"{key}.")
        ]
        for group, key in groups.items()
    }


def repeats(summaries: Sequence[Summary]) -> dict[str, dict[str, Spread]]:
    """{run name: {rate: mean, lowest, highest}} of the runs whose name stands in several summaries:
    seeds of one recipe.

    Raises ValueError where several summaries share no name, or where the runs of one name were
    measured on other prompts.
    """
    groups: dict[str, list[Run]] = {}
    for run in (run for summary in summaries for run in summary.runs):
        groups.setdefault(run.name, []).append(run)
    found = {}
    for name, runs in groups.items():
        if len(runs) > 1:
            try:
                found[name] = over_seeds([run.model_dump() for run in runs])
            except ValueError as error:
                raise ValueError(f"the runs named {name!r}: {error}") from None
    if len(summaries) > 1 and not found:
        names = "; ".join(", ".join(run.name for run in summary.runs) for summary in summaries)
        raise ValueError(
            f"these run folders share no run's name ({names}), so nothing is the same with another "
            "seed. Give the folders of "
            "one pipeline run with several seeds, or one folder alone."
        )
    return found


def digest(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this inline style or
    script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_report(folder: Path, *others: Path) -> Path:
    """`folder`/report.html, its pictures beside it; ValueError if the folder holds no summary and
    no metrics.

    `others` are folders of the same with other seeds: of them the page has the mean and the range
    alone.
    """
    folders = (folder, *others)
    if len({path.resolve() for path in folders}) < len(folders):
        raise ValueError(
            f"a run folder is given twice: {', '.join(map(str, folders))}. A mean needs different "
            "runs."
        )
    summaries = [read_summary(path) for path in folders]
    summary = summaries[0]
    steps = add_up(summary.transitions)
    kinds = [kind for kind in KINDS if any(kind in step for step in steps.values())]
    encoded(draw_transitions(steps, kinds), folder / "transitions.png")
    words = {
        "pictures": {kind: encoded(draw_transitions(steps, [kind])) for kind in kinds},
        "plane": encoded(draw_plane(summary.runs), folder / "plane.png"),
        "steps": steps,
        "names": [run.name for run in summary.runs],
        "pairs": pairs_of(summary),
        "choices": choices(summary),
        "has": parts_of(summary.runs),
        "repeats": repeats(summaries),
        "folders": [path.resolve().name for path in folders],
    }
    return write_atomic(folder / "report.html", render(summary, words))


def render(summary: Summary, words: Mapping[str, Any]) -> str:
    """The page, from the summary and what was made of it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # autoescape by file name would leave .j2 alone; finalize sees every value before it is escaped
    room = Environment(
        autoescape=True, finalize=visible, undefined=StrictUndefined, trim_blocks=True
    )
    room.loader = FileSystemLoader(Path(__file__).parent)
    room.filters |= {"clipped": clipped, "digest": digest}
    room.globals |= {
        "shown": shown,
        "missed": missed,
        "keys_of": keys_of,
        "task_rows": task_rows,
        "tokens": tokens,
    }
    fixed = {"s": summary, "states": STATES, "kinds": KINDS, "as_asked": AS_ASKED}
    return room.get_template("page.html.j2").render({**fixed, **words})
