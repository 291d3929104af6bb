"""Folder of raw_completions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RawFolder:
    """Files of raw_completions."""

    path: Path

    @property
    def rows(self) -> Path:
        """Every row of every export, with the columns of `RAW_SCHEMA`."""
        return self.path / "raw_completions.parquet"
