"""Run folders of evaluations -> their differences, prompt by prompt: a table, JSON, and a page.

    found = compare_folders([Path("runs/base"), Path("runs/dpo")])
    write_page(found, Path("compare.html"))

The first folder is the one that the others are compared with. A pipeline's folder stands for its
evaluations. Remedies get their own table too. The page's style is the report's, and like there
everything that comes from outside is unmasked and escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.evaluate.comparisons import judge_names
from overrefusal_po.evaluate.first_token import curve_steps
from overrefusal_po.evaluate.first_token_rows import FirstTokens, read_first_tokens
from overrefusal_po.evaluate.measured_how import (
    RECIPE_MARK,
    MeasuredHow,
    measured_how,
    settings_note,
)
from overrefusal_po.evaluate.metrics import State, state
from overrefusal_po.evaluate.side_by_side import (
    SideBySide,
    against_first,
    check_comparable,
)
from overrefusal_po.records import Kind, Outcome, read_jsonl, write_atomic
from overrefusal_po.report.first_token_part import CurveStep, first_token_lines
from overrefusal_po.report.given_folders import evaluations_in, no_evaluation
from overrefusal_po.report.numbers import signed
from overrefusal_po.report.remedies_compared import compared_part
from overrefusal_po.report.remedies_part import RemediesPart, cell
from overrefusal_po.report.summary import KIND_WORDS, STATE_WORDS, Metrics, fresh, parsed
from overrefusal_po.report.texts import clipped, csp_hash, visible

SHOWN_PROMPTS = 40
"""Prompts of one change that the page shows; the JSON has all."""
RIGHT_WORDS: dict[Kind, str] = {
    "harmful": "harmful refused",
    "benign": "harmless answered",
    "general": "ordinary answered",
}


class ComparedRun(NamedTuple):
    """One evaluation: its name here, its folder, its metrics, its plain outcomes, how many others
    are under attack and not compared, its first tokens, how it was measured, and what a reader has
    to know if its outcomes were judged again."""

    name: str
    folder: Path
    metrics: Metrics
    outcomes: list[Outcome]
    attacked: int
    first_tokens: FirstTokens
    how: MeasuredHow
    judged_again: str = ""


class ComparedFolders(NamedTuple):
    """Several evaluations, and each against the first."""

    runs: list[ComparedRun]
    comparisons: list[SideBySide]
    notes: list[str]
    curves: list[CurveStep]
    """The other runs against the first one's threshold curve, if it has one."""
    remedies: RemediesPart | None
    """The table of remedies; None if no run has one."""

    @property
    def warning(self) -> str | None:
        """The settings in which the runs differ, beside their models; None if there are none. A
        system prompt is a rival of remedies, and no fault."""
        rivals = {} if self.remedies is None else {RECIPE_MARK: "any"}
        return settings_note({run.name: {**run.how, **rivals} for run in self.runs})

    @property
    def named_metrics(self) -> list[Metrics]:
        """The metrics of each run, with its name here."""
        return [run.metrics.model_copy(update={"name": run.name}) for run in self.runs]

    @property
    def first_token_lines(self) -> list[str]:
        """Sentences on the first tokens of the runs."""
        return first_token_lines([(run.name, run.metrics) for run in self.runs], self.curves)

    @property
    def last_lines(self) -> list[str]:
        """What the command says behind its tables."""
        return [*self.first_token_lines, *self.notes]


def compare_folders(folders: Sequence[Path]) -> ComparedFolders:
    """Every evaluation against the first. A pipeline's folder stands for its evaluations.

    Raises ValueError for fewer than two folders, one given twice, a folder that holds no
    evaluation, and runs that differ in prompts or judge.
    """
    folders = [one for folder in folders for one in evaluations_in(folder)]
    if len(folders) < 2:
        raise ValueError(
            f"compare needs at least two evaluations, and {len(folders)} were found. Give the run "
            "folder of the first, and of those to compare; or a pipeline's folder with several."
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"a run folder is given twice: {', '.join(map(str, folders))}.")
    runs = distinct_names([read_run(folder) for folder in folders])
    outcomes = {run.name: run.outcomes for run in runs}
    check_comparable(outcomes)
    tokens = {run.name: run.first_tokens for run in runs}
    steps = curve_steps(outcomes, tokens)
    curves = [CurveStep.model_validate(step) for step in steps]
    named = {run.name: run.metrics.model_dump(mode="json", by_alias=True) for run in runs}
    remedies = compared_part({run.name: run.folder for run in runs}, outcomes, named, tokens)
    return ComparedFolders(runs, against_first(outcomes), notes(runs), curves, remedies)


def read_run(folder: Path) -> ComparedRun:
    """The evaluation in a folder; ValueError says what is missing, and where evaluations are."""
    rows, file = folder / "outcomes.jsonl", folder / "metrics.json"
    if not (rows.is_file() and file.is_file()):
        raise ValueError(f"{folder}: {no_evaluation(folder)}")
    fault = f"{file}: these are not the metrics of an evaluation"
    metrics = parsed(Metrics, file.read_bytes(), fault)
    outcomes = read_jsonl(rows, Outcome)
    metrics, again = fresh(metrics, outcomes)
    plain = [outcome for outcome in outcomes if outcome.prompt.attack is None]
    if not plain:
        raise ValueError(f"{rows}: all {len(outcomes)} outcomes are under attack; none is plain.")
    attacked = len(outcomes) - len(plain)
    first, how = read_first_tokens(folder, outcomes), measured_how(folder, plain)
    return ComparedRun(metrics.name, folder, metrics, plain, attacked, first, how, again)


def distinct_names(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The runs; if two have one name, each is called by its folder."""
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    return [run._replace(name=f"{run.name} ({run.folder})") for run in runs]


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader has to know: runs that were judged again, and outcomes that are left out."""
    again = [run.judged_again for run in runs if run.judged_again]
    attacked = sum(run.attacked for run in runs)
    return [*again, *([f"{attacked} outcomes under attack are not compared."] if attacked else [])]


# --- the terminal ---------------------------------------------------------------------------------


def table_rows(found: ComparedFolders) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of the terminal's table: a row for each kind of each comparison, and the sum."""
    corrected = len(found.comparisons) > 1
    head = ["compared", "rate", "before", "after", "difference [95 %]", "lost", "gained", "n", "p"]
    rows = []
    for one in found.comparisons:
        name = step_words(one)
        for kind, side in one.kinds.items():
            counts = (side.paired.only_from, side.paired.only_to, side.paired.n)
            p = [p_words(side.paired.p)] + ([p_words(side.p_holm)] if corrected else [])
            shares = (f"{side.before:.2f}", f"{side.after:.2f}", signed(side.difference))
            rows.append([name, RIGHT_WORDS[kind], *shares, *map(str, counts), *p])
        blank = ["", "", "", ""] + ([""] if corrected else [])
        rows.append([name, "harmful + harmless", "", "", signed(one.total), *blank])
    return head + (["p, Holm"] if corrected else []), rows


def move_lines(found: ComparedFolders) -> list[str]:
    """A line for each change: `base -> dpo, harmless prompts: refused -> answered 12`."""
    return [
        f"{step_words(one)}, {KIND_WORDS[move.kind]}: {state_words(move.before)} -> "
        f"{state_words(move.after)} {len(move.outcomes)}"
        for one in found.comparisons
        for move in one.moves
    ]


def step_words(one: SideBySide) -> str:
    """`base -> dpo`; a name cannot steer the terminal."""
    return f"{visible(one.before)} -> {visible(one.after)}"


def state_words(name: State) -> str:
    """A state in words."""
    return "unscored" if name == "unscored" else STATE_WORDS[name]


def p_words(p: float | None) -> str:
    """A p value with three digits, or n/a."""
    if p is None or math.isnan(p):
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


# --- the page -------------------------------------------------------------------------------------


def write_page(found: ComparedFolders, out: Path) -> Path:
    """Writes the page to `out`; ValueError if that is a folder."""
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder. Give the path of a file: compare.html.")
    return write_atomic(out, render(found))


def render(found: ComparedFolders) -> str:
    """The page; it loads nothing from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True, finalize=visible, undefined=StrictUndefined, trim_blocks=True
    )
    environment.loader = FileSystemLoader(Path(__file__).parent)
    environment.filters |= {"clipped": clipped, "csp_hash": csp_hash}
    return environment.get_template("compare.html.j2").render(
        found=found,
        s={"runs": found.named_metrics, "remedies": found.remedies},
        value_cell=cell,
        judge=" and ".join(judge_names(found.runs[0].outcomes)),
        corrected=len(found.comparisons) > 1,
        kinds=KIND_WORDS,
        states={**STATE_WORDS, "unscored": "unscored"},
        state=state,
        signed=signed,
        p_words=p_words,
        shown=SHOWN_PROMPTS,
    )
