"""Folder of champion_model: the gate's decision and, if promoted, the model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DecisionFolder:
    """Files of champion_model."""

    path: Path

    @property
    def decision(self) -> Path:
        """The gate's decision, rule by rule."""
        return self.path / "decision.json"

    def weights(self, experiment: str) -> Path:
        """The champion's checkpoint. Tools name a model after its folder, so the folder has the experiment's name."""
        return self.path / "model" / experiment
