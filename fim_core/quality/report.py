"""Checks of an evaluation report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fim_core.files import read_json
from fim_core.quality.result import Check, Evidence, Finding

SHOWN_ROWS = 5


def finite_numbers(evidence: Evidence) -> Finding:
    """Numbers of the report that are NaN or infinite, by their dotted place in it."""
    content = read_json(evidence.tables["report"])
    numbers = list(_numbers(content, ""))
    offending = sorted(place for place, value in numbers if not math.isfinite(value))
    if not numbers:
        return Finding(1, 1, note="The report holds no number at all.")
    return Finding(len(offending), len(numbers), offending[:SHOWN_ROWS])


def enough_rows(evidence: Evidence) -> Finding:
    """Comparisons in which a small gain would not show, for want of held-out rows."""
    power = read_json(evidence.tables["report"])["power"]
    compared = [
        {"compared with": name, "smallest gain": "none" if gain is None else f"{100 * gain:.1f} points"}
        for name, gain in power["smallest_gain"].items()
    ]
    return Finding(int(not power["enough"]), 1, note=power["sentence"], breakdown=compared)


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{place}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


CHECKS = (
    Check(
        "evaluation_report", "finite_numbers", "Every number of the report is finite.", "error", 0, None, finite_numbers
    ),
    Check(
        "evaluation_report",
        "enough_rows",
        "There are enough held-out rows to tell a gain of 5 points in exact match from chance.",
        "warn",
        0,
        None,
        enough_rows,
    ),
)
