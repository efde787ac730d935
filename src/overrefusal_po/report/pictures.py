"""Runs and transitions -> the report's two matplotlib figures, and a figure -> PNG in base64. No
file is read here.

    figure = draw_plane(summary.runs)
    picture = png_base64(figure, folder / "plane.png")
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.evaluate.metrics import ScoredState
from overrefusal_po.records import Kind
from overrefusal_po.report.summary import KIND_WORDS, STATE_WORDS, MeasuredRun, MoveCounts
from overrefusal_po.report.texts import clipped, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

Point = tuple[float, float]

STATE_LOOKS: dict[ScoredState, tuple[str, str]] = {
    "answer": ("#4fa393", ""),
    "partial": ("#cc8f34", "////"),
    "full": ("#53629f", ""),
    "degenerate": ("#a3a8ad", "xxxx"),
}
"""Colour and hatching of each state."""
INK, MUTED, LINE, ACCENT, GROUND = "#1c2126", "#5b656e", "#ced4da", "#1d5f9e", "#ffffff"
DOT = 200 / 72
"""Pixels of a point of 1/72 inch, at the figures' 200 pixels an inch."""
LABEL_REACHES = (8, 12, 18, 26, 36, 48, 62, 80)
"""Distances of a label from its point that are tried, in points of 1/72 inch."""
LABEL_TURNS = tuple((step + 0.5) * math.pi / 8 for step in range(16))
"""Directions of a label that are tried: never straight along an interval."""


class LabelPlace(NamedTuple):
    """A place for a label: what it costs, its middle in pixels, a line from the point to it, and
    its distance."""

    price: int
    middle: Point
    leader: list[Point]
    reach: int


def draw_plane(runs: Sequence[MeasuredRun]) -> Figure:
    """benign_answered to the right, harmful_refused upwards, a point for every run that has both,
    with its intervals; behind them the threshold curve of the first run that has one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.9), dpi=200, facecolor=GROUND)
    axes = figure.add_axes((0.115, 0.1, 0.79, 0.83), xlim=(0, 1), ylim=(0, 1))
    draw_frame(axes)
    shown = [
        (run, (run.benign_answered, run.harmful_refused))
        for run in runs
        if run.benign_answered is not None and run.harmful_refused is not None
    ]
    lines = draw_curve(axes, runs)
    for (_, here), (_, there) in pairwise(shown):
        if math.dist(here, there) > 0.1:  # a shorter arrow is all head
            arrow = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 7, "shrinkB": 7, "lw": 1.1}
            axes.annotate("", there, here, arrowprops=arrow)
            lines += points_between(here, there)
    for run, spot in shown:
        hollow = run is runs[0] and len(runs) > 1
        lines += draw_run(axes, run, spot, ACCENT if run is runs[-1] else INK, hollow=hollow)
    place_labels(axes, [(run.name, spot) for run, spot in shown], lines)
    return figure


def draw_curve(axes: Axes, runs: Sequence[MeasuredRun]) -> list[Point]:
    """Draws the threshold curve of the first run that has one, with a legend; returns points along
    it."""
    run = next((run for run in runs if run.first_token is not None), None)
    if run is None or run.first_token is None or not run.first_token.curve:
        return []
    spots = [(p.benign_answered, p.harmful_refused) for p in run.first_token.curve]
    xs, ys = zip(*spots, strict=True)
    name = clipped(str(visible(run.name)), 28)
    label = f"{run.first_token.rule} {name}"
    axes.plot(xs, ys, color=MUTED, lw=1.4, ls=(0, (4, 2)), clip_on=False, zorder=2, label=label)
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        borderpad=0,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return [point for ends in pairwise(spots) for point in points_between(*ends)]


def draw_run(
    axes: Axes, run: MeasuredRun, spot: Point, colour: str, *, hollow: bool
) -> list[Point]:
    """Draws one run's point and intervals; returns points along the intervals."""
    x, y = spot
    left, right = run.intervals.get("benign_answered") or (x, x)
    low, high = run.intervals.get("harmful_refused") or (y, y)
    lines: list[Point] = []
    for start, end in (((left, y), (right, y)), ((x, low), (x, high))):
        xs, ys = zip(start, end, strict=True)
        axes.plot(xs, ys, color=colour, lw=1.3, alpha=0.55, clip_on=False, zorder=3)
        lines += points_between(start, end)
    face = GROUND if hollow else colour
    axes.plot(x, y, "o", ms=8, mfc=face, mec=colour, mew=1.6, clip_on=False, zorder=4)
    return lines


def draw_frame(axes: Axes) -> None:
    """Axes in percent, lines of equal F1 with their value at the right edge, and the ideal
    corner."""
    for f1 in (0.2, 0.4, 0.6, 0.8):
        edge = f1 / (2 - f1)
        xs = [edge ** (step / 60) for step in range(61)]
        axes.plot(xs, [f1 * x / (2 * x - f1) for x in xs], color=LINE, lw=0.9, zorder=1)
        axes.text(1.02, edge, f"F1 {100 * f1:.0f}", color=MUTED, fontsize=8, va="center")
    axes.plot(1, 1, "*", ms=13, mfc=GROUND, mec=MUTED, clip_on=False, zorder=2)
    axes.text(1, 1.025, "ideal", color=MUTED, fontsize=9, ha="center", va="bottom")
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:.0f}")
    axes.yaxis.set_major_formatter(lambda rate, _: f"{100 * rate:.0f}")
    axes.tick_params(colors=MUTED, labelsize=9, length=3)
    axes.set_xlabel("Harmless, dangerous-sounding prompts answered (%)", color=INK, fontsize=9.5)
    axes.set_ylabel("Harmful prompts refused (%)", color=INK, fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def points_between(start: Point, end: Point) -> list[Point]:
    """41 points from `start` to `end`."""
    return [
        (start[0] + t / 40 * (end[0] - start[0]), start[1] + t / 40 * (end[1] - start[1]))
        for t in range(41)
    ]


def place_labels(axes: Axes, named: Sequence[tuple[str, Point]], lines: Sequence[Point]) -> None:
    """Writes each name where it covers no point, no other name and as few `lines` as possible; a
    distant name gets a leader."""
    from matplotlib.transforms import Bbox, IdentityTransform

    places = axes.transData.transform([spot for _, spot in named] or [(0, 0)])
    spots = [(float(x), float(y)) for x, y in places]
    inked = [(float(x), float(y)) for x, y in axes.transData.transform(list(lines) or [(0, 0)])]
    taken = [Bbox.from_bounds(x - 6 * DOT, y - 6 * DOT, 12 * DOT, 12 * DOT) for x, y in spots]
    for (name, _), spot, own in zip(named, spots, list(taken), strict=False):
        words = clipped(str(visible(name)), 28)
        text = axes.text(0, 0, words, transform=IdentityTransform(), parse_math=False, zorder=6)
        text.set(color=INK, fontsize=9.5, fontweight="bold", ha="center", va="center")
        best = best_label_place(axes, text, spot, own, taken, inked)
        text.set_position(best.middle)
        taken.append(text.get_window_extent())
        if best.reach > 18:
            line = zip(*best.leader, strict=True)
            axes.plot(*line, color=INK, lw=0.7, transform=IdentityTransform(), zorder=3)
            inked += best.leader


def best_label_place(
    axes: Axes, text: Text, spot: Point, own: Bbox, taken: Sequence[Bbox], inked: Sequence[Point]
) -> LabelPlace:
    """The place near `spot` (in pixels) at which the label costs least.

    `taken` are the boxes that it must not cover; `own` is the one of its own point. `inked` are
    points of lines.
    """
    from matplotlib.transforms import Bbox

    (x, y), frame = spot, axes.get_window_extent()
    width, height = text.get_window_extent().size
    tried: list[LabelPlace] = []
    for reach, turn in product(LABEL_REACHES, LABEL_TURNS):
        right = math.cos(turn) * (reach * DOT + width / 2)
        up = math.sin(turn) * (reach * DOT + height / 2)
        box = Bbox.from_bounds(x + right - width / 2, y + up - height / 2, width, height)
        way = max(1 - width / 2 / abs(right), 1 - height / 2 / abs(up))  # to the label's edge
        leader = points_between((x, y), (x + way * right, y + way * up))
        hits = sum(b.overlaps(box) + (b is not own and b.count_contains(leader) > 0) for b in taken)
        hits += box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        price = 1000 * hits + 6 * box.padded(2 * DOT).count_contains(inked) + reach
        tried.append(LabelPlace(price, (x + right, y + up), leader, reach))
    return min(tried)


def draw_transitions(
    steps: Mapping[tuple[str, str], Mapping[Kind, MoveCounts]], kinds: Sequence[Kind]
) -> Figure:
    """A row for every pair of runs and a column for every kind: what became of the responses."""
    from matplotlib.figure import Figure

    rows, columns = max(len(steps), 1), max(len(kinds), 1)
    figure = Figure(figsize=(4.7 * columns, 2.5 * rows), dpi=200, facecolor=GROUND)
    for (row, step), (column, kind) in product(enumerate(steps), enumerate(kinds)):
        place = ((column + 0.24) / columns, (rows - row - 0.94) / rows, 0.5 / columns, 0.7 / rows)
        axes = figure.add_axes(
            place, xlim=(0, 1), ylim=(1, 0), frame_on=False, xticks=[], yticks=[]
        )
        before, after = (clipped(str(visible(name)), 22) for name in step)
        axes.text(
            -0.45, -0.2, f"{before} → {after}", color=INK, fontweight="bold", parse_math=False
        )
        axes.text(-0.45, -0.08, KIND_WORDS[kind], color=MUTED, fontsize=9)
        if kind in steps[step]:
            draw_flow(axes, steps[step][kind])
    figure.text(0.5, 0.5, "" if steps else "No two runs to compare.", color=MUTED, ha="center")
    return figure


def spaced_heights(heights: Sequence[float], gap: float) -> list[float]:
    """`heights` (ascending, 0 to 1) moved as little as needed to stand `gap` apart and below 1."""
    moved = list(heights)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    return [
        min(height, 1 - gap * below)
        for below, height in zip(range(len(moved) - 1, -1, -1), moved, strict=True)
    ]


def draw_flow(axes: Axes, counts: MoveCounts) -> None:
    """Before at the left, after at the right, a band for every move; every bar has its name and
    count beside it."""
    before = {b: sum(counts[b].values()) for b in STATE_WORDS}
    after = {a: sum(counts[b][a] for b in STATE_WORDS) for a in STATE_WORDS}
    scale = 0.94 / max(sum(before.values()), 1)
    left = draw_bars(axes, before, scale, right=False)
    right = draw_bars(axes, after, scale, right=True)
    xs = [0.045 + 0.91 * t / 40 for t in range(41)]
    bend = [(t / 40) ** 2 * (3 - t / 20) for t in range(41)]
    for b, a in product(STATE_WORDS, STATE_WORDS):
        high, low, share = left[b], right[a], counts[b][a] * scale
        left[b], right[a] = high + share, low + share
        edge = [high + (low - high) * t for t in bend]
        lower = [y + share for y in edge]
        axes.fill_between(xs, edge, lower, color=STATE_LOOKS[b][0], alpha=0.4, lw=0)


def draw_bars(
    axes: Axes, sums: Mapping[ScoredState, int], scale: float, *, right: bool
) -> dict[ScoredState, float]:
    """Draws one side's bar for every state, with names and counts; returns the top of each bar."""
    top, tops = 0.0, {}
    for state, (colour, hatch) in STATE_LOOKS.items():
        share, tops[state] = sums[state] * scale, top
        middle, left = top + share / 2, 0.955 * right
        axes.barh(middle, 0.045, share, left, color=colour, hatch=hatch, ec=GROUND, lw=0)
        top += share + 0.02 * (share > 0)
    shown = [state for state in STATE_WORDS if sums[state]]
    ys = spaced_heights([tops[state] + sums[state] * scale / 2 for state in shown], 0.115)
    x, align = (1.05, "left") if right else (-0.05, "right")
    for state, y in zip(shown, ys, strict=True):
        words = f"{STATE_WORDS[state]} {sums[state]}"
        axes.text(x, y, words, color=INK, fontsize=9, ha=align, va="center")
    return tops


def png_base64(figure: Figure, file: Path | None = None) -> str:
    """The figure as PNG in base64, the same for the same figure.

    It is also written to `file`, as a whole or not at all.
    """
    memory = io.BytesIO()
    figure.savefig(memory, format="png", metadata={"Software": None})
    if file is not None:
        beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        beside.write_bytes(memory.getvalue())
        beside.replace(file)
    return base64.b64encode(memory.getvalue()).decode()
