"""The experiment files in configs/."""

from __future__ import annotations

from pathlib import Path

import pytest

from fim_core.config import load_experiment

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_loads(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.optimizer.lr is not None
    assert experiment.name == path.stem
