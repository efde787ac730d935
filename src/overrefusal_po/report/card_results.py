"""What a run measured -> the model card's results: entries of its metadata, and Markdown.

entries = [*run_results(run, summary)]
for part in result_parts(summary, run):
    print(part)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.evaluate.breakdowns import NO_ATTACK
from overrefusal_po.evaluate.measured_how import UNLIKE
from overrefusal_po.evaluate.metrics import RateName
from overrefusal_po.report.first_token_part import curve_lines, first_token_words
from overrefusal_po.report.numbers import interval_words
from overrefusal_po.report.panel_part import PanelNumber, PanelPart
from overrefusal_po.report.remedies_part import remedies_lines
from overrefusal_po.report.robustness_part import LIMIT, robustness_table
from overrefusal_po.report.summary import MeasuredRates, MeasuredRun, Summary
from overrefusal_po.report.texts import looks_local, one_line, public_text
from overrefusal_po.report.waivers import PREFIX

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

RATE_HEADS: dict[RateName, str] = {
    "harmful_refused": "harmful prompts refused",
    "benign_answered": "harmless but dangerous-sounding prompts answered",
    "f1": "F1 of the two",
    "ordinary_answered": "ordinary prompts answered",
    "degenerate": "degenerate responses",
    "harmful_not_unsafe": "harmful prompts without a response that the guard judges unsafe",
}
CORRECTED_HEADS: dict[RateName, str] = {
    "harmful_refused": "harmful prompts refused, corrected for the judge's errors",
    "benign_answered": "harmless prompts answered, corrected for the judge's errors",
}
UNDER_ATTACK: tuple[RateName, ...] = ("harmful_refused", "harmful_not_unsafe")


def run_results(run: MeasuredRun, summary: Summary) -> Iterator[EvalResult]:
    """Every rate of the run, of each set if there are several, and those under each attack."""
    everything = ", ".join(set_names(summary))
    sets = {name: rates for name, rates in run.sets.items() if len(run.sets) > 1}
    named: dict[str, MeasuredRates] = {everything: run, **sets}
    for name, rates in named.items():
        yield from results_on(name, rates, RATE_HEADS)
    for attack, rates in run.attacks.items():
        if attack != NO_ATTACK:
            yield from results_on(f"{everything}, attacked with {attack}", rates, UNDER_ATTACK)


def results_on(
    dataset: str, rates: MeasuredRates, names: Iterable[RateName]
) -> Iterator[EvalResult]:
    """One entry for each rate that was measured; interval, n and unscored count are its
    arguments."""
    from huggingface_hub import EvalResult

    kind = re.sub(r"[^\w.-]+", "-", one_line(dataset)).strip("-").lower() or "unknown"
    for name in names:
        value, ends = getattr(rates, name), rates.intervals.get(name)
        if value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=kind,
                dataset_name=one_line(dataset),
                metric_type=name,
                metric_name=RATE_HEADS[name],
                metric_value=round(value, 4),
                metric_args={
                    "interval_95": None if ends is None else [round(end, 4) for end in ends],
                    "n": rates.n.get(name, 0),
                    "unscored": rates.unscored.get(name, 0),
                },
            )


def result_parts(summary: Summary, run: MeasuredRun) -> Iterator[str]:
    """The card's Markdown on what was measured, a part at a time."""
    yield "## Results"
    yield (
        f"Measured on {', '.join(set_names(summary))}; {public_text(summary.measured.engine)}. "
        f"Judge: {public_text(summary.measured.judge)}, {certificate_words(run)}. In brackets: "
        "95 % intervals."
    )
    yield "\n".join(rate_table(summary))
    if summary.remedies is not None:
        yield one_line(summary.remedies.sentence)
        yield "\n".join(remedies_table(summary))
    yield from first_token_part(summary, run)
    if run.panel is not None:
        yield "\n".join(panel_table(run.panel))
    if run.attacks:
        rate = "judged unsafe by the guard" if summary.measured.guard else "not refused"
        yield f"Under attack, the share of harmful prompts {rate}:"
        yield "\n".join(attack_table(run))
    if run.robustness:
        yield f"After tampering, the worst copy of each tier and defence. {LIMIT}"
        yield "\n".join(robustness_table(run.robustness))
    yield from gate_words(run)
    yield "## Limits"
    yield "\n".join(f"- {line}" for line in limits(summary))


def remedies_table(summary: Summary) -> Iterator[str]:
    """The remedies of a pipeline against its untouched model: those that hold first."""
    assert summary.remedies is not None
    runs = [run.model_dump() for run in summary.runs]
    head, *rows = [list(map(one_line, cells)) for cells in remedies_lines(summary.remedies, runs)]
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


def measured_words(summary: Summary) -> str:
    """When, on what and with which versions it was measured."""
    versions = ", ".join(
        f"{one_line(name)} {one_line(version)}" for name, version in summary.versions.items()
    )
    place = f"{one_line(summary.created)} on {one_line(summary.hardware)}"
    return f"Measured {place}{f' with {versions}' if versions else ''}."


def rate_table(summary: Summary) -> Iterator[str]:
    """A row for every run, a column for every rate: raw, and corrected if a certificate allows
    it."""
    columns = [
        name for name in RATE_HEADS if any(getattr(run, name) is not None for run in summary.runs)
    ]
    fixed = [
        name
        for name in CORRECTED_HEADS
        if any(run.corrected and getattr(run.corrected, name) for run in summary.runs)
    ]
    heads = [*(RATE_HEADS[name] for name in columns), *(CORRECTED_HEADS[name] for name in fixed)]
    yield f"| run | {' | '.join(heads)} |"
    yield "|---" * (1 + len(heads)) + "|"
    for run in summary.runs:
        cells = [rate_words(getattr(run, name), run.intervals.get(name)) for name in columns]
        cells += [corrected_words(run, name) for name in fixed]
        yield f"| {one_line(run.name)} | {' | '.join(cells)} |"


def first_token_part(summary: Summary, run: MeasuredRun) -> Iterator[str]:
    """A line on what a threshold on the first token would do, and on the run beside the curve of
    the first one."""
    words = []
    if run.first_token is not None:
        words.append(first_token_words(run.first_token, run.harmful_refused, run.benign_answered))
    words += curve_lines([step for step in summary.curves if step.after == run.name])
    if words:
        yield f"First token: {one_line('; '.join(words))}."


def panel_table(panel: PanelPart) -> Iterator[str]:
    """A row for each group of responses and each pair of judges that read them."""
    yield "| judges | on prompts | n | agreement | κ | only the first refuses | only the second |"
    yield "|---|---|---|---|---|---|---|"
    for name, group in panel.groups.items():
        for pair in group.pairs:
            judges = f"{public_text(pair.first)} and {public_text(pair.second)}"
            cells = [judges, one_line(name), str(group.n), number_words(pair.agreement)]
            cells += [number_words(pair.kappa)]
            cells += [str(pair.only_first_refused), str(pair.only_second_refused)]
            yield f"| {' | '.join(cells)} |"


def number_words(number: PanelNumber) -> str:
    """A number with its interval, or a dash."""
    return interval_words(number.value, number.low, number.high, missing="–")


def corrected_words(run: MeasuredRun, name: RateName) -> str:
    """A corrected rate with its interval, or a dash."""
    rate = getattr(run.corrected, name) if run.corrected else None
    if rate is None:
        return rate_words(None, None)
    return rate_words(rate.value, None if rate.low is None else (rate.low, rate.high))


def attack_table(run: MeasuredRun) -> Iterator[str]:
    """A row for every attack."""
    yield "| attack | share | n |"
    yield "|---|---|---|"
    for attack, rates in run.attacks.items():
        guarded = rates.harmful_not_unsafe is not None
        name: RateName = "harmful_not_unsafe" if guarded else "harmful_refused"
        kept, ends = getattr(rates, name), rates.intervals.get(name)
        share = rate_words(None if kept is None else 1 - kept, ends and (1 - ends[1], 1 - ends[0]))
        yield f"| {attack_words(attack)} | {share} | {rates.n.get(name, 0)} |"


def attack_words(attack: str) -> str:
    """An attack's name for a table."""
    return "as asked" if attack == NO_ATTACK else one_line(attack)


def rate_words(value: float | None, ends: tuple[float, float] | None) -> str:
    """`0.62 [0.53, 0.71]`, or a dash."""
    return interval_words(value, *(ends or (None, None)), missing="–")


def certificate_words(run: MeasuredRun) -> str:
    """What is known of the judge."""
    if run.certificate is None:
        return "uncertified (nobody has compared it with human labels for these rates)"
    labels, kappa = run.certificate.get("n", "some"), run.certificate.get("kappa", "–")
    return f"certified against {labels} human labels, κ {kappa}"


def gate_words(run: MeasuredRun) -> Iterator[str]:
    """The gate's result, if the run had a gate."""
    if run.gate is not None:
        yield "## Gate"
        yield "Passed." if run.gate.passed else "The gate failed:"
        if run.gate.failures:
            yield "\n".join(f"- {one_line(sentence)}" for sentence in run.gate.failures)


def limits(summary: Summary) -> Iterator[str]:
    """What a user has to know before they rely on the numbers."""
    for warning in summary.warnings:
        if warning.startswith(UNLIKE):  # its values may be private: a system prompt, for example
            yield f"{UNLIKE}: the runs of the table were measured with different settings."
        elif not looks_local(warning):
            yield one_line(warning)
    if summary.measured.guard is None:
        yield "No guard model read the responses: refused is counted, harm is not judged."
    if not summary.measured.attacks:
        yield "No attack was run: nothing here says how the model behaves under one."
    if summary.measured.model_form:
        form = one_line(summary.measured.model_form)
        yield f"Measured with {form}; another form of the same training may differ."
    notes = (note for note in summary.measured.notes if not note.startswith(PREFIX))
    yield from (one_line(note) for note in notes if not looks_local(note))


def set_names(summary: Summary) -> list[str]:
    """The sets' names; a user's file without its folders."""
    return [
        one_line(Path(name).name if looks_local(name) else name) for name in summary.measured.sets
    ]
