"""Remedies of one model -> a plane of both rates, over the untouched model's threshold curve.

figure = draw_remedies(summary.runs, summary.remedies)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overrefusal_po.report.pictures import (
    ACCENT,
    GROUND,
    INK,
    MUTED,
    Point,
    draw_curve,
    draw_frame,
    draw_run,
    place_labels,
)
from overrefusal_po.report.remedies_part import RemediesPart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from overrefusal_po.report.summary import MeasuredRun


def draw_remedies(runs: Sequence[MeasuredRun], part: RemediesPart) -> Figure:
    """benign_answered to the right, harmful_refused upwards, a point for every compared run.

    The untouched model is hollow, runs that hold are blue, the others grey. The dotted line is the
    least harmful_refused that holds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.9), dpi=200, facecolor=GROUND)
    axes = figure.add_axes((0.115, 0.1, 0.79, 0.83), xlim=(0, 1), ylim=(0, 1))
    draw_frame(axes)
    by_name = {run.name: run for run in runs}
    base = by_name[part.baseline]
    lines = draw_curve(axes, [base])
    draw_least(axes, base, part.drop_max)
    shown = [(by_name[row.run], ACCENT if row.holds else MUTED) for row in part.rows]
    named: list[tuple[str, Point]] = []
    for run, colour in [*shown, (base, INK)]:
        x, y = run.benign_answered, run.harmful_refused
        if x is not None and y is not None:
            lines += draw_run(axes, run, (x, y), colour, hollow=run is base)
            named.append((run.name, (x, y)))
    place_labels(axes, named, lines)
    return figure


def draw_least(axes: Axes, base: MeasuredRun, drop_max: float) -> None:
    """Draws the least harmful_refused that holds as a dotted line."""
    if base.harmful_refused is not None:
        least = max(0.0, base.harmful_refused - drop_max)
        axes.axhline(least, color=MUTED, lw=0.9, ls=(0, (1, 2)), zorder=1)
