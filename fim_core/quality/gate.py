"""The gate's decision about a candidate, as a check that fails where the champion stays."""

from __future__ import annotations

import json

from fim_core.quality.result import Check, Evidence, Finding


def gate(evidence: Evidence) -> Finding:
    """Rules that the candidate does not meet, with the reasons that were recorded."""
    decision = json.loads(evidence.tables["decision"].read_text(encoding="utf-8"))
    failed = [result for result in decision["results"] if not result["passed"]]
    return Finding(
        len(failed),
        len(decision["results"]),
        note=" ".join(result["reason"] for result in failed),
        breakdown=[{key: result[key] for key in ("metric", "rule", "passed", "reason")} for result in decision["results"]],
    )


CHECKS = (
    Check("champion_model", "gate", "The candidate meets every rule of the gate; if not, the champion stays.", "error", 0, None, gate),
)
