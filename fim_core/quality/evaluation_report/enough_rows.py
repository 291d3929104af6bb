"""Check that there are enough held-out rows to detect a small gain."""

from __future__ import annotations

from fim_core.atomic import read_json
from fim_core.quality.check import Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Read the report's statistical power, and the smallest detectable gain over each rival."""
    power = read_json(evidence.tables["report"])["power"]
    compared = [
        {"compared with": name, "smallest gain": "none" if gain is None else f"{100 * gain:.1f} points"}
        for name, gain in power["smallest_gain"].items()
    ]
    return Finding(int(not power["enough"]), 1, note=power["sentence"], breakdown=compared)


CHECK = PythonCheck("There are enough held-out rows to detect a gain of 5 points in exact match.", "warn", find)
