"""The gate's decision about a candidate, as a check that warns where the champion stays, which is an ordinary outcome."""

from __future__ import annotations

from fim_core.files import read_json
from fim_core.quality.result import Check, Evidence, Finding


def gate(evidence: Evidence) -> Finding:
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


CHECKS = (
    Check(
        asset="champion_model",
        name="gate",
        description="The candidate meets every rule of the gate; if not, the champion stays.",
        severity="warn",
        max_rows=0,
        max_share=None,
        find=gate,
    ),
)
