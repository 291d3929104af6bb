"""Folder of trained_checkpoint, which transformers can load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckpointFolder:
    """Files of a checkpoint in addition to those of transformers and the recipe of its prompts."""

    path: Path

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def events(self) -> Path:
        """Events of the training run, as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def packs(self) -> Path:
        """Pack plans, one Parquet file for each epoch."""
        return self.path / "packs"

    @property
    def trackers(self) -> Path:
        """Files of local trackers; missing if none is configured."""
        return self.path / "trackers"
