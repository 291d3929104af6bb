"""Plots for Dagster's UI, as images embedded in Markdown, under 100 kB each."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#64748b"

Points = Sequence[tuple[float, float]]

_FEW_POINTS = 60
"""Lines with more points than this are noisy: they are drawn pale, with their running median on top."""
_DRAWN_POINTS = 1500


def curves(panels: Mapping[str, Mapping[str, Points]]) -> dg.MetadataValue:
    """Line plots side by side over optimizer steps.

    Args:
        panels: title to lines; a line is its label and (step, value) points. Empty lines are left out.
    """
    shown = {title: {k: v for k, v in lines.items() if v} for title, lines in panels.items()}
    shown = {title: lines for title, lines in shown.items() if lines}
    figure, axes = _figure(len(shown))
    for axis, (title, lines) in zip(axes, shown.items(), strict=False):
        for (label, points), color in zip(lines.items(), (_BLUE, _ORANGE, _GREY), strict=False):
            _draw_line(axis, points, label, color)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel("optimizer step", fontsize=8)
        # From 0, with a margin of 5% at the top.
        axis.set_ylim(0, axis.dataLim.ymax * 1.05 or 1)
        axis.yaxis.set_major_formatter("{x:,g}")
        if len(lines) > 1:
            axis.legend(fontsize=7, frameon=False)
    return _markdown(figure, " and ".join(shown))


@dataclass(frozen=True)
class Histogram:
    """Counts per bin. `edges` has one entry more than `counts`; `unit` labels the edges, `counted` the counts."""

    title: str
    counts: Sequence[int]
    edges: Sequence[float]
    unit: str
    counted: str


def histograms(panels: Sequence[Histogram]) -> dg.MetadataValue:
    """Histograms side by side."""
    figure, axes = _figure(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        widths = [right - left for left, right in pairwise(panel.edges)]
        axis.bar(panel.edges[:-1], panel.counts, width=widths, align="edge", color=_BLUE)
        axis.set_title(panel.title, fontsize=9, loc="left")
        axis.set_xlabel(panel.unit, fontsize=8)
        axis.set_ylabel(panel.counted, fontsize=8)
        axis.xaxis.set_major_formatter("{x:,g}")
    return _markdown(figure, "Lengths of " + ", ".join(panel.title for panel in panels))


def intervals(values: Mapping[str, Sequence[float]], *, title: str) -> dg.MetadataValue:
    """Plot shares with confidence intervals, one line each; `values` maps a label to (value, low, high)."""
    from matplotlib.ticker import PercentFormatter

    figure, (axis,) = _figure(1, width=6.4, height=0.9 + 0.28 * len(values))
    for position, (value, low, high) in enumerate(reversed(list(values.values()))):
        axis.plot([low, high], [position, position], color=_BLUE, linewidth=2)
        axis.plot([value], [position], "o", color=_BLUE, markersize=4)
    axis.set_yticks(range(len(values)), list(values)[::-1], fontsize=8)
    axis.set_ylim(-0.6, len(values) - 0.4)
    axis.set_xlim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_title(title, fontsize=9, loc="left")
    return _markdown(figure, title)


def _draw_line(axis: Axes, points: Points, label: str, color: str) -> None:
    if len(points) <= _FEW_POINTS:
        axis.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.4, marker="o", markersize=2.5)
        return
    thinned = points[:: -(-len(points) // _DRAWN_POINTS)]
    axis.plot(*zip(*thinned, strict=True), color=color, alpha=0.3, linewidth=0.7)
    axis.plot(*zip(*_running_median(thinned), strict=True), color=color, label=label, linewidth=1.6)


def _running_median(points: Points) -> Points:
    """Running median over about a fortieth of the line, with a narrower window at the ends."""
    from statistics import median

    reach = max(1, len(points) // 80)
    values = [value for _, value in points]
    smooth = []
    for place, (step, _) in enumerate(points):
        near = min(reach, place, len(points) - 1 - place)
        smooth.append((step, median(values[place - near : place + near + 1])))
    return smooth


def _figure(panels: int, *, width: float = 4.2, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, 3.4 * panels), height), dpi=110, layout="constrained")
    axes = list(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.tick_params(labelsize=8)
    return figure, axes


def _markdown(figure: Figure, alternative: str) -> dg.MetadataValue:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return dg.MetadataValue.md(
        f"![{alternative}](data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()})"
    )
