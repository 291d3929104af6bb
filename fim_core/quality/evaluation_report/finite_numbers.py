"""Check for NaN and infinite numbers in the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fim_core.atomic import read_json
from fim_core.quality.check import SHOWN_ROWS, Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Find numbers that are NaN or infinite, by their dotted path in the report."""
    content = read_json(evidence.tables["report"])
    numbers = list(_numbers(content, ""))
    offending = sorted(place for place, value in numbers if not math.isfinite(value))
    if not numbers:
        return Finding(1, 1, note="The report contains no numbers.")
    return Finding(len(offending), len(numbers), offending[:SHOWN_ROWS])


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{place}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


CHECK = PythonCheck("Every number in the report is finite.", "error", find)
