"""Check that the candidate meets the rules of the gate. If not, the champion stays: an ordinary outcome, so a warning."""

from __future__ import annotations

from fim_core.atomic import read_json
from fim_core.quality.check import Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """List the rules that the candidate does not meet, with their reasons."""
    decision = read_json(evidence.tables["decision"])
    results = decision["results"]
    failed = [result for result in results if result["holds"] is False]
    return Finding(
        len(failed),
        len(results),
        note=" ".join(result["reason"] for result in failed),
        breakdown=[{key: result[key] for key in ("metric", "rule", "holds", "reason")} for result in results],
    )


CHECK = PythonCheck("The candidate meets every rule of the gate. If not, the champion stays.", "warn", find)
