"""Training by `PipesSubprocessClient`: success, failure and cancellation."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from tiny_pipeline import TINY

from fim_assets.resources.experiment import user_errors
from fim_assets.resources.launcher import Launcher
from fim_assets.resources.pipes import PipesLauncher
from fim_core.config import Experiment
from fim_core.launchers.launch import launch

TRAINING = Path(__file__).parents[1] / "fim_core/training"


def run_light(context: dg.AssetExecutionContext, command: list[str]) -> None:
    """Run the command with ranks that do not import torch."""
    assert command[:3] == ["python", "-m", "fim_core.launchers.remote"]
    script = [sys.executable, str(TRAINING / "light_remote.py"), *command[3:]]
    dg.PipesSubprocessClient().run(context=context, command=script)


def train(folder: Path, on_event: Any = None) -> dg.ExecuteInProcessResult:
    experiment = Experiment.model_validate({**TINY, "launcher": {"num_processes": 2}})

    @dg.asset
    def trained(context: dg.AssetExecutionContext, launcher: dg.ResourceParam[Launcher]) -> dg.MaterializeResult:
        with user_errors():
            start = partial(launcher.run, context)
            result = launch(experiment, folder, folder, folder / "work", on_event=on_event, start=start)
        return dg.MaterializeResult(metadata={"steps": result.steps})

    launcher = PipesLauncher(run_light)
    return dg.materialize([trained], resources={"launcher": launcher}, raise_on_error=False)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    failure = result.failure_data_for_node("trained")
    assert failure is not None
    return str(failure.user_failure_data or failure.error)


def test_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOUR", "ends well")
    result = train(tmp_path)
    assert result.success
    [event] = result.asset_materializations_for_node("trained")
    assert event.metadata["steps"].value == 2


def test_the_failure_of_a_rank_is_that_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOUR", "breaks")
    assert "Rank 1 failed: nothing to divide by" in failure_of(train(tmp_path))


def test_a_command_that_cannot_begin_shows_the_error_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE", "not a number")
    assert "External execution process failed with code 1" in failure_of(train(tmp_path))


def test_the_command_ends_when_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHAVIOUR", "hangs")

    def stop(event: dict[str, Any]) -> None:
        raise ValueError("enough")

    assert "enough" in failure_of(train(tmp_path, stop))
    pids = [int(pid) for pid in (tmp_path / "work/pids").read_text().split()]
    assert len(pids) > 2
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_the_documented_definitions_use_the_client() -> None:
    text = Path("docs/deployment.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    module: dict[str, Any] = {"__name__": "documented"}
    exec(code, module)
    documented = module["defs"]()
    assert isinstance(documented.resources["launcher"], PipesLauncher)
    assert documented.resolve_assets_def("trained_checkpoint") is not None
