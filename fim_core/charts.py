"""Charts as small standalone SVG pictures, for the report's page and for Dagster's UI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from xml.sax.saxutils import escape

Point = tuple[float, float]

# Three digits keep pictures short.
COLOURS = ("#26e", "#e60", "#077", "#93e")
_INK, _GRID = "#678", "#ddd"
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 18, 20


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        points: (x, y), in the order of x.
        intervals: (low, high) of each point; empty: no intervals are drawn.
    """

    points: Sequence[Point]
    intervals: Sequence[tuple[float, float]] = field(default=())


def line_chart(
    lines: Mapping[str, Line],
    *,
    below: str = "",
    most_points: int = 200,
    whole: bool = False,
    percent: bool = False,
    size: tuple[int, int] = (420, 130),
) -> str:
    """Draw lines over a common axis; the vertical axis begins at 0. Lines without points are left out.

    Args:
        lines: by label; the labels form the legend.
        below: label of the horizontal axis.
        most_points: longer lines are thinned to the medians of as many stretches, which also smooths noise.
        whole: number the horizontal axis in whole numbers only.
        percent: show values as percentages.
        size: width and height in pixels.
    """
    shown = {label: line for label, line in lines.items() if line.points}
    if not shown:
        return _picture(size, _text((size[0] // 2, size[1] // 2, "middle", "no data")))
    points = [point for line in shown.values() for point in line.points]
    bounds = [high for line in shown.values() for _, high in line.intervals]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    axes = _Axes(size, left, right, max([*bounds, *(y for _, y in points)]))
    drawn = [axes.frame(percent=percent, below=below, whole=whole)]
    if len(shown) > 1:
        drawn.append(_legend(list(shown), size[0]))
    for line, colour in zip(shown.values(), _cycle(len(shown)), strict=True):
        pixels = [axes.pixel(x, y) for x, y in thin(line.points, most_points)]
        path = _polyline(pixels)
        if line.intervals:
            bounds_of = zip(pixels, line.intervals, strict=True)
            path += "".join(f"M{x} {axes.y(low)}V{axes.y(high)}M{x - 4} {y}h8" for (x, y), (low, high) in bounds_of)
        elif len(pixels) == 1:
            path += f"M{pixels[0][0] - 4} {pixels[0][1]}h8"
        drawn.append(f"<path d='{path}' stroke='{colour}'/>")
    return _picture(size, *drawn)


def histogram(
    counts: Sequence[int], edges: Sequence[float], *, below: str = "", size: tuple[int, int] = (420, 130)
) -> str:
    """Draw a histogram.

    Args:
        counts: one for each bin.
        edges: of the bins, one more than `counts`.
        below: label of the horizontal axis.
        size: width and height in pixels.
    """
    axes = _Axes(size, edges[0], edges[-1], max(counts, default=0))
    path, (last, base) = [f"M{axes.x(edges[0])} {axes.y(0)}"], (axes.x(edges[0]), axes.y(0))
    for count, right in zip(counts, edges[1:], strict=True):
        path.append(f"V{axes.y(count)}h{axes.x(right) - last}")
        last = axes.x(right)
    bars = f"<path d='{''.join(path)}V{base}z' fill='{COLOURS[0]}'/>"
    return _picture(size, axes.frame(below=below, whole=True), bars)


def interval_chart(shares: Mapping[str, tuple[float, float, float]], *, size: tuple[int, int] = (420, 0)) -> str:
    """Draw shares with their intervals, one line each.

    Args:
        shares: (value, low, high) by label.
        size: width, and height (0: as needed) in pixels.
    """
    left, row = 150, 18
    width, height = size[0], size[1] or row * len(shares) + _BOTTOM

    def x(share: float) -> int:
        return round(left + share * (width - left - 20))

    grid = "".join(f"M{x(tick)} 0V{height - _BOTTOM}" for tick in (0, 0.5, 1))
    middles = [row * place + row // 2 for place in range(len(shares))]
    rows = list(zip(shares.values(), middles, strict=True))
    whiskers = "".join(f"M{x(low)} {y}H{x(high)}" for (_, low, high), y in rows)
    marks = "".join(f"M{x(value)} {y}h0" for (value, _, _), y in rows)
    labels = [(0, y + 4, "", label) for label, y in zip(shares, middles, strict=True)]
    ticks = [(x(tick), height - 6, "middle", f"{tick:.0%}") for tick in (0, 0.5, 1)]
    return _picture(
        (width, height),
        f"<path d='{grid}' stroke='{_GRID}'/>",
        _text(*labels, *ticks),
        f"<path d='{whiskers}' stroke='{COLOURS[0]}'/>",
        f"<path d='{marks}' stroke='{COLOURS[0]}' stroke-width='7' stroke-linecap='round'/>",
    )


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Reduce a line to at most `most` points: the first, the last, and the medians of equal stretches between them."""
    if len(points) <= max(most, 2):
        return list(points)
    inner, parts = points[1:-1], max(most - 2, 0)
    stretches = [list(found) for _, found in groupby(enumerate(inner), lambda item: item[0] * parts // len(inner))]
    middle = [
        (median(x for _, (x, _) in stretch), median(y for _, (_, y) in stretch)) for stretch in stretches if parts
    ]
    return [points[0], *middle, points[-1]]


class _Axes:
    """Scales from values to whole pixels, from 0 upwards."""

    def __init__(self, size: tuple[int, int], left: float, right: float, top: float) -> None:
        self._width, self._height = size
        self._left, self._span = left, right - left
        self._step = nice_step((top if top > 0 else 1.0) / 2)
        self._top = max(top * 1.04, 1e-12) if top > 0 else 1.0

    def x(self, value: float) -> int:
        share = (value - self._left) / self._span if self._span else 0.5
        return round(_LEFT + share * (self._width - _LEFT - _RIGHT))

    def y(self, value: float) -> int:
        return round(self._height - _BOTTOM - value / self._top * (self._height - _BOTTOM - _TOP))

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        return self.x(x), self.y(y)

    def frame(self, *, percent: bool = False, below: str = "", whole: bool = False) -> str:
        """Horizontal lines and the labels of both axes."""
        levels = [self._step * place for place in range(int(self._top / self._step) + 1)]
        grid = "".join(f"M{_LEFT} {self.y(level)}H{self._width - _RIGHT}" for level in levels)
        names = [f"{level:.0%}" if percent else _short(level) for level in levels]
        labels = [(_LEFT - 5, self.y(level) + 3, "end", name) for level, name in zip(levels, names, strict=True)]
        last = self._left + self._span
        ends = {self._left: "", last: "end"} if self._span else {self._left: "middle"}
        places = [(self.x(x), self._height - 7, anchor, _short(round(x) if whole else x)) for x, anchor in ends.items()]
        name = [((self._width + _LEFT) // 2, self._height - 7, "middle", below)] if below and self._span else []
        return f"<path d='{grid}' stroke='{_GRID}'/>{_text(*labels, *places, *name)}"


def nice_step(most: float) -> float:
    """The largest of 1, 2, 2.5 or 5 times a power of ten that is at most `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(factor * power for factor in (1, 2, 2.5, 5) if factor * power <= most * (1 + 1e-9))


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _cycle(number: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(number)]


def _polyline(pixels: Sequence[tuple[int, int]]) -> str:
    """A path in relative coordinates, which are shorter."""
    (x, y), steps = pixels[0], []
    for right, down in pixels[1:]:
        steps.append(f"{right - x} {down - y}" if down >= y else f"{right - x}{down - y}")
        x, y = right, down
    return f"M{pixels[0][0]} {pixels[0][1]}" + (f"l{' '.join(steps)}" if steps else "")


def _legend(labels: Sequence[str], width: int) -> str:
    step = min(150, (width - _LEFT) // len(labels))
    parts = [
        f"<text x='{_LEFT + step * place}' y='11' fill='{colour}'>{escape(label)}</text>"
        for place, (label, colour) in enumerate(zip(labels, _cycle(len(labels)), strict=True))
    ]
    return "".join(parts)


def _text(*labels: tuple[int, int, str, str]) -> str:
    """Texts at (x, y), anchored at "middle", "end", or by default at their start."""
    parts = []
    for anchor, group in groupby(sorted(labels, key=lambda label: label[2]), lambda label: label[2]):
        spans = "".join(f"<tspan x='{x}' y='{y}'>{escape(text)}</tspan>" for x, y, _, text in group)
        placed = f" text-anchor='{anchor}'" if anchor else ""
        parts.append(f"<text fill='{_INK}'{placed}>{spans}</text>")
    return "".join(parts)


def _picture(size: tuple[int, int], *parts: str) -> str:
    width, height = size
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"style='font:10px sans-serif' stroke-width='1.5' fill='none'>{''.join(parts)}</svg>"
    )
