"""Provenance of artifacts: commit of the code and versions of libraries."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

RECORDED_LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "datasets", "duckdb", "pyarrow", "sqlglot")


@cache
def commit() -> str | None:
    """The git commit of this code, with `-dirty` if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def library_versions() -> dict[str, str]:
    """The installed versions of RECORDED_LIBRARIES, by name."""
    versions = {}
    for name in RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
