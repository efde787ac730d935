"""What metrics.json and summary.json say of the first token and its curve: checked, and in words.

    found = FirstTokenPart.model_validate(metrics["first_token"])
    first_token_words(found, 0.81, 0.50)
    # AUC 0.74 [0.69, 0.79]; at its own harmful_refused (0.81) a threshold would answer 0.66, ...
    curve_step_words(step)
    # dpo lies off the curve of base: ...

`evaluate.first_token` makes them; `summary` has the other parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, FiniteFloat

from overrefusal_po.report.numbers import estimate_words, signed
from overrefusal_po.report.panel_part import READ_CONFIG, Count, PanelNumber

Share = Annotated[float, Field(ge=0, le=1)]

UNDERSTATES = "This curve knows first tokens alone, so it understates a real threshold"
"""What a reader has to know of a curve that is not one of texts."""


def rule_words(*, exact: bool) -> str:
    """What the points of a curve do: the words before the model's name."""
    return "bias on the refusal openers of" if exact else "threshold on the first token of"


class OpenersPart(BaseModel):
    """The tokens that open refusals. `left_out` open refusals too, but answers at least as
    often."""

    model_config = READ_CONFIG
    source: Literal["own refusals", "written refusals"]
    tokens: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    refusals_opened: Share | None = None
    answers_opened: Share | None = None


class CurvePointPart(BaseModel):
    """The rule that opens with a refusal from a score on: the share of harmful prompts that it
    refuses, and of benign ones that it answers. Threshold None: no response opens so."""

    model_config = READ_CONFIG
    threshold: FiniteFloat | None
    harmful_refused: Share
    benign_answered: Share


class OwnRates(BaseModel):
    """What the model itself refuses and answers of the prompts of its curve."""

    model_config = READ_CONFIG
    harmful_refused: Share
    benign_answered: Share


class FirstTokenPart(BaseModel):
    """How far the log-odds of a refusing first token separate harmful from benign prompts."""

    model_config = READ_CONFIG
    auc: PanelNumber
    exact: bool = False
    """Whether the curve is that of texts; its thresholds are then margins in logits."""
    n: dict[str, Count]
    """Prompts of each kind that have log-odds: those of the AUC. An unscored response counts too,
    since no verdict is needed."""
    curve_n: dict[str, Count] = {}
    """Prompts of each kind of the curve, of `at_own` and of `own`: the judge scored the response,
    and with texts the other one too. Empty if an older version wrote the file."""
    own: OwnRates | None = None
    """The model's own rates on the prompts of the curve. They are those of the run if all its
    responses are scored. None without a curve, and in older files."""
    openers: OpenersPart
    at_own: CurvePointPart | None = None
    """The point of the curve that refuses as many harmful prompts as the model does."""
    curve: tuple[CurvePointPart, ...]

    @property
    def rule(self) -> str:
        """See `rule_words`."""
        return rule_words(exact=self.exact)


class CurveStep(BaseModel):
    """The run `to` against the threshold curve of the run `from`, on the same prompts.

    `gain` is its benign_answered minus `threshold_answers`: what a threshold on the first token of
    `from` would answer at the harmful_refused of `to`. `exact`: known from texts.
    """

    model_config = READ_CONFIG
    before: str = Field(alias="from")
    after: str = Field(alias="to")
    n: Count
    """Prompts of both kinds together whose place on the curve and whose response in the run `to`
    are known."""
    exact: bool = False
    harmful_refused: Share
    benign_answered: Share
    threshold_answers: Share
    gain: PanelNumber
    auc_difference: PanelNumber | None = None

    @property
    def place(self) -> Literal["off", "on", "below"]:
        """Off the curve on the better side, or below it; on it if the gain's interval includes
        0."""
        low, high = self.gain.low, self.gain.high
        if low is not None and low > 0:
            return "off"
        return "below" if high is not None and high < 0 else "on"


class FirstTokenRun(Protocol):
    """A run as far as a sentence on its first token needs it: a `summary.MeasuredRun`."""

    @property
    def first_token(self) -> FirstTokenPart | None:
        """None if it was not measured."""

    @property
    def harmful_refused(self) -> float | None:
        """The model's own rate."""

    @property
    def benign_answered(self) -> float | None:
        """The model's own rate."""


def first_token_lines(
    runs: Iterable[tuple[str, FirstTokenRun]], steps: Sequence[CurveStep]
) -> list[str]:
    """A sentence for each named run whose first token was measured, then those of the steps."""
    found = []
    for name, run in runs:
        if run.first_token is not None:
            own = run.harmful_refused, run.benign_answered
            found.append(f"{name}: first token: {first_token_words(run.first_token, *own)}")
    return found + curve_lines(steps)


def curve_lines(steps: Sequence[CurveStep]) -> list[str]:
    """A sentence for each step; behind them what to know of a curve that is not one of texts."""
    lines = [curve_step_words(step) for step in steps]
    if all(step.exact for step in steps):
        return lines
    return [*lines, f"{UNDERSTATES}; first_token: texts measures that"]


def first_token_words(
    found: FirstTokenPart, harmful_refused: float | None, benign_answered: float | None
) -> str:
    """`AUC 0.74 [0.69, 0.79]; at its own harmful_refused (0.81) a threshold would answer 0.66, the
    model answers 0.50`. The shares given are the model's own; those on the prompts of the curve
    take their place, and if the prompts of the AUC are others, their number is said."""
    words = f"AUC {estimate_words(found.auc)}"
    if found.own is not None:
        harmful_refused, benign_answered = found.own.harmful_refused, found.own.benign_answered
    if found.at_own is None or harmful_refused is None:
        return words
    own = "" if benign_answered is None else f", the model answers {benign_answered:.2f}"
    rule = "bias on its refusal openers" if found.exact else "threshold"
    return (
        f"{words}; at its own harmful_refused ({harmful_refused:.2f}) a {rule} would answer "
        f"{found.at_own.benign_answered:.2f}{own}{fewer_words(found)}"
    )


def fewer_words(found: FirstTokenPart) -> str:
    """` (on the 18 harmful and 20 benign prompts with all verdicts)`; "" if these are the prompts
    of the AUC, or if an older version did not count them."""
    if not found.curve_n or found.curve_n == found.n:
        return ""
    counts = " and ".join(f"{count} {kind}" for kind, count in found.curve_n.items())
    return f" (on the {counts} prompts with all verdicts)"


def openers_words(found: OpenersPart) -> str:
    """The tokens, where they come from, and how many responses begin with one."""
    words = f"{', '.join(map(repr, found.tokens))} (first tokens of {found.source}"
    if found.refusals_opened is not None:
        words += f"; they open {found.refusals_opened:.0%} of these"
    if found.answers_opened is not None:
        words += f"; they open {found.answers_opened:.0%} of the answers"
    left = f"; left out: {', '.join(map(repr, found.left_out))}" if found.left_out else ""
    return f"{words}{left})"


def curve_step_words(step: CurveStep) -> str:
    """A sentence: whether the run lies off, on or below the other's curve, by how much, and how its
    AUC differs."""
    place = step.place
    end = {
        "off": f"gain {signed(step.gain)}",
        "below": f"loss {signed(step.gain)}: a threshold does better",
        "on": f"difference {signed(step.gain)}: a threshold may do as well",
    }[place]
    share = f"{step.threshold_answers:.2f}"
    rule = f"a {rule_words(exact=step.exact)} {step.before}"
    words = (
        f"{step.after} lies {place} the curve of {step.before}: at its harmful_refused "
        f"({step.harmful_refused:.2f}) it answers {step.benign_answered:.2f}, {rule} "
        f"{f'would answer {share} there' if step.exact else share} ({end})"
    )
    if step.auc_difference is None:
        return words
    return f"{words}; the AUC differs by {signed(step.auc_difference)}"
