"""Rules of the gate that a candidate does not meet. The champion stays then, which is an ordinary outcome: a warning."""

from __future__ import annotations

from fim_core.atomic import read_json
from fim_core.quality.check import Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Rules that the candidate does not meet, with the reasons that were recorded."""
    decision = read_json(evidence.tables["decision"])
    results = decision["results"]
    failed = [result for result in results if result["holds"] is False]
    return Finding(
        len(failed),
        len(results),
        note=" ".join(result["reason"] for result in failed),
        breakdown=[{key: result[key] for key in ("metric", "rule", "holds", "reason")} for result in results],
    )


CHECK = PythonCheck("The candidate meets every rule of the gate; if not, the champion stays.", "warn", find)
