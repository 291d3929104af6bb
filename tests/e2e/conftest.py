"""A finished run of the tiny experiment, shared by the tests of a pytest worker."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from tiny_pipeline import TINY, materialize, outcomes, write_experiment


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> dg.DagsterInstance:
    return dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster")))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Path:
    """The experiment file of a run that made every asset."""
    evaluation = {**TINY["evaluation"], "latency_rows": 2}
    path = write_experiment(tmp_path_factory.mktemp("tiny"), evaluation=evaluation)
    result = materialize(path, instance)
    assert set(outcomes(result).values()) == {"made"}, result.all_events[-1].message
    return path


@pytest.fixture(scope="session")
def reused(finished: Path, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """A second run of the finished experiment."""
    return materialize(finished, instance)
