"""Check that all weights are safetensors files."""

from __future__ import annotations

from fim_core.quality.check import SHOWN_ROWS, Evidence, Finding, PythonCheck

_UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def find(evidence: Evidence) -> Finding:
    """Find weights in formats that can run code when they are loaded; no weights at all count as one."""
    folder = evidence.tables["checkpoint"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    unsafe = [path for path in files if path.suffix in _UNSAFE_SUFFIXES]
    offending = sorted(str(path.relative_to(folder)) for path in unsafe) or ([] if weights else ["no *.safetensors"])
    return Finding(len(offending), len(weights) + len(unsafe), offending[:SHOWN_ROWS])


CHECK = PythonCheck("All weights are in safetensors files.", "error", find)
