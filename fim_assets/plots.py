"""Small plots that Dagster's UI shows inline: a picture inside Markdown, under 100 kB each."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#64748b"


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> dg.MetadataValue:
    """Line plots side by side over optimizer steps.

    Args:
        panels: title to lines; a line is its label and (step, value) points. Empty lines are left out.
    """
    shown = {title: {k: v for k, v in lines.items() if v} for title, lines in panels.items()}
    shown = {title: lines for title, lines in shown.items() if lines}
    figure, axes = _figure(len(shown))
    for axis, (title, lines) in zip(axes, shown.items(), strict=True):
        for (label, points), color in zip(lines.items(), (_BLUE, _ORANGE, _GREY), strict=False):
            marker = "o" if len(points) < 12 else None
            axis.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.4, marker=marker, markersize=3)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel("optimizer step", fontsize=8)
        if len(lines) > 1:
            axis.legend(fontsize=7, frameon=False)
    return _markdown(figure, " and ".join(shown))


def histogram(counts: Sequence[int], edges: Sequence[float], *, title: str, unit: str) -> dg.MetadataValue:
    """A histogram from its counts and the len(counts) + 1 edges of its bins."""
    figure, (axis,) = _figure(1)
    widths = [right - left for left, right in pairwise(edges)]
    axis.bar(edges[:-1], counts, width=widths, align="edge", color=_BLUE, edgecolor="white", linewidth=0.4)
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(unit, fontsize=8)
    axis.set_ylabel("rows", fontsize=8)
    return _markdown(figure, title)


def intervals(values: Mapping[str, tuple[float, float, float]], *, title: str) -> dg.MetadataValue:
    """Values with their confidence intervals, one row each; `values` maps a label to (value, low, high)."""
    figure, (axis,) = _figure(1, height=0.9 + 0.28 * len(values))
    for position, (value, low, high) in enumerate(reversed(list(values.values()))):
        axis.plot([low, high], [position, position], color=_BLUE, linewidth=2)
        axis.plot([value], [position], "o", color=_BLUE, markersize=4)
    axis.set_yticks(range(len(values)), list(values)[::-1], fontsize=8)
    axis.set_ylim(-0.6, len(values) - 0.4)
    axis.set_title(title, fontsize=9, loc="left")
    return _markdown(figure, title)


def _figure(panels: int, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.2, 3.4 * panels), height), dpi=110, layout="constrained")
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
