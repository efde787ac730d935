"""The part `remedies` of summary.json: checked, and in words for page, terminal and card.

    part = RemediesPart.model_validate(summary["remedies"])
    part.sentence              # steer gives answers back at kept refusals: ...
    for line in remedies_lines(part, summary.runs): print(line)     # a table in Markdown

`remedies_entry` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat

from overrefusal_po.evaluate.remedy_table import RemedyRow
from overrefusal_po.report.first_token_part import UNDERSTATES, rule_words
from overrefusal_po.report.numbers import Estimated, signed
from overrefusal_po.report.panel_part import READ_CONFIG, PanelNumber
from overrefusal_po.report.samples import Sample

Share = Annotated[float, Field(ge=0, le=1)]

SERVED_WORDS = {
    "weights": "by any server, as plain weights",
    "hooks": "by this program alone: states of the model change",
    "logits": "by this program alone: first logits change",
    "streams": "by this program alone, in two streams: each prompt is read twice",
    "prompt": "by any server, with a system prompt",
    "same": "as the untouched model",
}

KINDS = ("harmful_refused", "benign_answered")

# Any: metrics.json of a run
Values = Mapping[str, Any]


class FitPart(BaseModel):
    """How a stage `fit` ended. `dev`: its candidates, as they were measured on the dev prompts."""

    model_config = READ_CONFIG
    stage: str
    name: str
    status: str
    words: str
    strength: FiniteFloat | None = None
    facts: dict[str, FiniteFloat | bool | str] = {}
    dev: tuple[dict[str, FiniteFloat | bool | None], ...] = ()

    @property
    def gate_auc(self) -> float | None:
        """How well the gate tells harmful from benign dev prompts; None without a gate."""
        found = self.facts.get("gate_auc")
        return found if isinstance(found, float) else None

    @property
    def points(self) -> list[tuple[float, float, bool]]:
        """(harmless answered, harmful refused, is the kept one) of each candidate."""
        return [
            (x, y, bool(row.get("kept")))
            for row in self.dev
            if (x := row.get(KINDS[1])) is not None and (y := row.get(KINDS[0])) is not None
        ]

    @property
    def heads(self) -> list[str]:
        """The columns of the candidates' table."""
        return list(dict.fromkeys(key for row in self.dev for key in row))

    @property
    def cells(self) -> list[list[str]]:
        """The candidates' table."""
        return [[cell(row.get(head)) for head in self.heads] for row in self.dev]


class AgainstPart(BaseModel):
    """A run against the untouched model on the same prompts; see
    `evaluate.remedy_table.Against`."""

    model_config = READ_CONFIG
    refused_change: PanelNumber
    gain: PanelNumber
    p: Share | None
    off_curve: PanelNumber


class RemedyPart(AgainstPart):
    """A row of the table, and the panel behind it."""

    run: str
    rival: bool
    holds: bool
    surely: bool
    gives_back: bool
    why_not: str
    unheld: str = ""
    p_holm: Share | None
    sets: dict[str, AgainstPart] = {}
    served: Literal["weights", "hooks", "logits", "streams", "prompt", "same"]
    made_by: tuple[str, ...] = ()
    fit_seconds: FiniteFloat | None = None
    speed_ratio: FiniteFloat | None = None
    """Tokens a second as a multiple of the untouched model's."""
    speed_note: str = ""
    """Why that is not known."""
    perplexity_ratio: FiniteFloat | None = None
    tampered: dict[str, Share] = {}
    """{tier: harmful_refused of the worst copy that was tampered with}."""
    fits: tuple[FitPart, ...] = ()
    changed: tuple[Sample, ...] = ()

    @property
    def gate_auc(self) -> float | None:
        """That of its last gate; None without one."""
        return next((f.gate_auc for f in reversed(self.fits) if f.gate_auc is not None), None)

    @property
    def served_words(self) -> str:
        """How it is served."""
        return SERVED_WORDS[self.served]

    @property
    def set_lines(self) -> list[str]:
        """A sentence for each set, if there are several."""
        return [f"{name}: {against_words(one)}" for name, one in self.sets.items()]


class RemediesPart(BaseModel):
    """Every run of a pipeline against its untouched model: first those that hold, the greatest gain
    first."""

    model_config = READ_CONFIG
    baseline: str
    rule: dict[str, Any] = {}  # Any: the recipe's section as JSON holds it
    exact_curve: bool = False
    """Whether the untouched model's curve is one of texts."""
    sentence: str
    best: str | None
    tokens_per_second: FiniteFloat | None = None
    """Of the untouched model, on the prompts that were measured."""
    rows: tuple[RemedyPart, ...]
    tampered: dict[str, Share] = {}
    """Those of the untouched model; see `RemedyPart.tampered`."""
    left_out: tuple[str, ...] = ()
    unfitted: tuple[FitPart, ...] = ()
    """Stages that kept no remedy, and why."""

    @property
    def curve_words(self) -> str:
        """What the runs are held against off the curve, and what to know of it."""
        words = f"{rule_words(exact=self.exact_curve)} {self.baseline}"
        words += " would answer at the run’s own refusals."
        return words if self.exact_curve else f"{words} {UNDERSTATES}."

    @property
    def gate_auc_words(self) -> str:
        """What the gates' AUC is of; "" without a gate."""
        gated = [f for row in self.rows for f in row.fits if f.gate_auc is not None]
        if not gated:
            return ""
        known = all("gate_auc_of" in fit.facts for fit in gated)
        of = "benign" if known else "harmless (of an older version: benign and ordinary)"
        return f"Gate AUC: how well the gate tells harmful from {of} prompts, on dev."

    @property
    def speed_notes(self) -> str:
        """Whose speed is not known, and why; "" if that of every run is."""
        notes = [f"{row.run} ({row.speed_note})" for row in self.rows if row.speed_note]
        return f"Tokens per second are not known of: {', '.join(notes)}." if notes else ""

    @property
    def drop_max(self) -> float:
        """How far harmful_refused may fall."""
        return float(self.rule.get("hold_drop_max", 0.05))


# --- sentences ------------------------------------------------------------------------------------


def winner_words(found: RemedyRow, both: tuple[Values, Values], *, rival: bool, exact: bool) -> str:
    """A sentence on the best run that holds. `both`: the metrics of the untouched model and of
    this run. `exact`: the curve is one of texts."""
    base, run = both
    who = f"{found.name}, a plain rival," if rival else found.name
    curve = curve_words(found.whole.off_curve, base["name"], exact=exact)
    return (
        f"{who} gives answers back at kept refusals: it answers {share(run, KINDS[1])} of the "
        f"harmless prompts ({base['name']} {share(base, KINDS[1])}; gain "
        f"{signed(found.whole.gain)}) and refuses {share(run, KINDS[0])} of the harmful ones "
        f"({base['name']} {share(base, KINDS[0])}; {signed(found.whole.refused)}).{curve}"
    )


def curve_words(found: Estimated, base: str, *, exact: bool) -> str:
    """Whether the run lies off the untouched model's threshold curve; "" if nobody knows."""
    if found.low is None or found.high is None:
        return ""
    said = f" {signed(found)}"
    if found.low > 0:
        note = "" if exact else f" {UNDERSTATES}."
        return f" It leaves the threshold curve of {base}:{said}.{note}"
    worse = "does better" if found.high < 0 else "may do as well"
    return f" A {rule_words(exact=exact)} {base} {worse}:{said}."


def no_gain_words(measured: int, unmeasured: int, base: Values) -> str:
    """A sentence if no run that holds gives answers back. `unmeasured` remedies were not kept by
    their fits."""
    count = measured + unmeasured
    who = f"None of {count} remedies gives" if count != 1 else "The one remedy gives no"
    kept = f" ({unmeasured} kept nothing on the dev prompts)" if unmeasured else ""
    return (
        f"{who} answers back at kept refusals{kept}. {base['name']} answers "
        f"{share(base, KINDS[1])} of the harmless prompts and refuses {share(base, KINDS[0])} of "
        "the harmful ones."
    )


def against_words(one: AgainstPart) -> str:
    """`harmful refused -0.02 [...], harmless answered +0.31 [...], off the curve +0.20 [...]`."""
    words = f"harmful refused {signed(one.refused_change)}, harmless answered {signed(one.gain)}"
    if one.off_curve.value is None:
        return words
    return f"{words}, off the curve {signed(one.off_curve)}"


def share(run: Values, rate: str) -> str:
    """A rate of a run with two digits."""
    value = run.get(rate)
    return "n/a" if value is None else f"{value:.2f}"


def cell(value: object) -> str:
    """A value of a table: a whole number without digits, others with two; yes or no; a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return f"{value:.0f}" if value == int(value) else f"{value:.2f}"
    return "–" if value is None else str(value)


# --- the table in Markdown ------------------------------------------------------------------------

HEADS = ("run", "holds", "harmful refused", "harmless answered", "gain", "p, Holm", "off the curve")


def remedies_lines(part: RemediesPart, runs: Sequence[Values]) -> Iterator[list[str]]:
    """The cells of a short table: a head, the untouched model, and a row for each run."""
    by_name = {run["name"]: run for run in runs}
    base = by_name[part.baseline]
    yield list(HEADS)
    yield [part.baseline, "–", *(share(base, rate) for rate in KINDS), "–", "–", "–"]
    for row in part.rows:
        shares = [share(by_name[row.run], rate) for rate in KINDS]
        holds = "yes" if row.holds else "no"
        p = "–" if row.p_holm is None else p_words(row.p_holm)
        yield [row.run, holds, *shares, signed(row.gain), p, signed(row.off_curve)]


def p_words(p: float) -> str:
    """A p value with three digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
