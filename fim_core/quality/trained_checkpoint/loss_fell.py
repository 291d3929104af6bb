"""Check that training lowered the held-out loss."""

from __future__ import annotations

import math

from fim_core.quality.check import Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Compare the held-out loss after training with that before it."""
    before, after = evidence.fact("counts.loss_before"), evidence.fact("counts.loss_after")
    if before is None or after is None:
        return Finding(0, 1, note="Not checked: there are no held-out rows.")
    fell = math.isfinite(before) and math.isfinite(after) and after < before
    return Finding(int(not fell), 1, note=f"The held-out loss went from {before:.4f} to {after:.4f}.")


CHECK = PythonCheck("The held-out loss is lower after training than before.", "error", find)
