"""Check for NaN and infinite weights."""

from __future__ import annotations

from fim_core.quality.check import SHOWN_ROWS, Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Find tensors with NaN or infinite values, reading one at a time, and unreadable files."""
    import torch
    from safetensors import SafetensorError, safe_open

    total, offending = 0, []
    for path in sorted(evidence.tables["checkpoint"].glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - the handle is not a mapping
                    total += 1
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        offending.append(name)
        except SafetensorError:
            total += 1
            offending.append(path.name)
    return Finding(len(offending), total, offending[:SHOWN_ROWS])


CHECK = PythonCheck("No weight is NaN or infinite.", "error", find)
