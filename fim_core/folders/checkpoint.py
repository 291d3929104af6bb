"""The folder of trained_checkpoint, which is also what transformers loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CheckpointFolder:
    """Files of a checkpoint next to those of transformers and the recipe of its prompts."""

    path: Path

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def events(self) -> Path:
        """Events of the training run, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def packs(self) -> Path:
        """Pack plans, one Parquet file an epoch."""
        return self.path / "packs"

    @property
    def trackers(self) -> Path:
        """What trackers wrote; not there if none was asked for."""
        return self.path / "trackers"
