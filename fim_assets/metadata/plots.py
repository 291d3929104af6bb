"""Pictures for Dagster's UI, as SVG embedded in Markdown.

The UI shows Markdown of fewer than 1,000 characters in place; longer texts are behind "[Show Markdown]". Pictures are
therefore drawn with as much detail as fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from fim_core import charts
from fim_core.markdown import picture

SHOWN_CHARACTERS = 999


def curves(lines: Mapping[str, Sequence[charts.Point]]) -> dg.MetadataValue:
    """Lines over optimizer steps, by label."""
    shown = {label: charts.Line(points) for label, points in lines.items()}

    def draw(points: int) -> str:
        return charts.line_chart(shown, below="optimizer step", most_points=points)

    return _fitting(draw, 80, 4)


def lengths(counts: Sequence[int], edges: Sequence[float]) -> dg.MetadataValue:
    """Histogram of lengths in tokens; `edges` has one entry more than `counts`."""

    def draw(bins: int) -> str:
        together = -(-len(counts) // bins)
        merged = [sum(counts[place : place + together]) for place in range(0, len(counts), together)]
        return charts.histogram(merged, [*edges[:-1:together], edges[-1]], below="tokens")

    return _fitting(draw, len(counts), 5)


def shares(values: Mapping[str, tuple[float, float, float]]) -> dg.MetadataValue:
    """The first shares with their intervals, as many as fit; `values` maps labels to (value, low, high)."""
    return _fitting(lambda most: charts.interval_chart(dict(list(values.items())[:most])), len(values), 1)


def versions(lines: Mapping[str, charts.Line]) -> dg.MetadataValue:
    """A metric by version, one line per experiment: as many of the newest versions as fit."""

    def draw(most: int) -> str:
        newest = sorted((x for line in lines.values() for x, _ in line.points), reverse=True)[:most]
        return charts.line_chart(
            {label: _after(line, newest[-1] if newest else 0) for label, line in lines.items()},
            below="version",
            whole=True,
            percent=True,
        )

    return _fitting(draw, max(1, sum(len(line.points) for line in lines.values())), 1)


def _after(line: charts.Line, first: float) -> charts.Line:
    kept = [place for place, (x, _) in enumerate(line.points) if x >= first]
    return charts.Line([line.points[place] for place in kept], [line.intervals[place] for place in kept])


def _fitting(draw: Callable[[int], str], most: int, least: int) -> dg.MetadataValue:
    """The picture with the most detail that the UI shows in place; with the least detail if none is short enough."""
    details = range(least, max(most, least) + 1)
    fitting = bisect_right(details, SHOWN_CHARACTERS, key=lambda detail: len(picture(draw(detail))))
    return dg.MetadataValue.md(picture(draw(details[max(fitting - 1, 0)])))
