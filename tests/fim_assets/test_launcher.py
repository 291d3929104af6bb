"""The launcher resource in a Dagster run: output and errors of ranks in the run's log."""

import sys
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
from tiny_pipeline import TINY

from fim_assets.resources.experiment import user_errors
from fim_assets.resources.launcher import Launcher
from fim_core.config import Experiment
from fim_core.launchers import local
from fim_core.launchers.launch import launch

LIGHT_RANK = Path(__file__).parents[1] / "fim_core/training/light_rank.py"


@pytest.mark.parametrize("behaviour", ["ends well", "breaks"])
def test_the_run_shows_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str) -> None:
    monkeypatch.setattr(local, "rank_command", lambda job: [sys.executable, str(LIGHT_RANK), str(job)])
    monkeypatch.setenv("BEHAVIOUR", behaviour)
    experiment = Experiment.model_validate({**TINY, "launcher": {"num_processes": 2}})

    @dg.asset
    def trained(context: dg.AssetExecutionContext, launcher: dg.ResourceParam[Launcher]) -> None:
        with user_errors():
            launch(experiment, tmp_path, tmp_path, tmp_path / "work", start=partial(launcher.run, context))

    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        result = dg.materialize([trained], instance=instance, resources={"launcher": Launcher()}, raise_on_error=False)
    assert result.success == (behaviour == "ends well")
    written = "".join(path.read_text() for path in home.rglob("*.err"))
    # Rank 1 may break, and take rank 0 with it, before rank 0 has said anything.
    for rank in (0, 1) if result.success else (1,):
        assert f"[rank {rank}] rank {rank} speaks" in written
    if not result.success:
        failure = result.failure_data_for_node("trained")
        assert failure is not None
        assert failure.user_failure_data is not None
        assert "Rank 1 failed: nothing to divide by" in (failure.user_failure_data.description or "")
        assert "light_rank.py" in (failure.user_failure_data.description or "")
