"""Training through Ray on this machine: success, cancellation, failure and resumption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_launch import DRIVER, wait_until_dead
from training_helpers import tiny_experiment

from fim_core.errors import FimError
from fim_core.launchers.launch import launch
from fim_core.training.job import TrainingFailed, Work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def launcher() -> Iterator[dict[str, Any]]:
    """The launcher section for two ranks on the Ray cluster of this module."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    context = ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield {
        "type": "ray",
        "address": f"http://{context.dashboard_url}",
        "python": sys.executable,
        "num_processes": 2,
        "num_cpus": 1,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
    }
    ray.shutdown()


def ranks_in(work: Work) -> list[int]:
    """Processes whose command line names the job's file: Ray's shell, our launcher, the ranks."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(work.job) in " ".join(process.info["cmdline"] or []):
            found.append(process.pid)
    return found


class Enough(Exception):
    """Stops a run that has done what the test needs."""


def stop_at_the_first_step(seen: list[dict[str, Any]], work: Work, pids: list[int]) -> Any:
    def watch(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "step":
            pids.extend(ranks_in(work))
            raise Enough

    return watch


LONG = {"epochs": 60, "checkpoint": {"save_every_n_steps": 2}}


def test_trains(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, launcher: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[dict[str, Any]] = []
    experiment = tiny_experiment(launcher=launcher)
    result = launch(experiment, dataset, tokenizer_folder, tmp_path / "work", on_event=events.append)
    assert (result.world_size, result.rows) == (2, 40)
    assert (result.model / "model.safetensors").is_file()
    assert {"start", "step", "end"} <= {event["event"] for event in events}
    assert "[launcher] Ray job fim-tiny-" in capfd.readouterr().err


def test_cancel_in_mid_step_leaves_nothing_and_resumes(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, launcher: Any
) -> None:
    work, experiment = Work(tmp_path / "work"), tiny_experiment(launcher=launcher, **LONG)
    seen: list[dict[str, Any]] = []
    pids: list[int] = []

    def cancel(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "step" and list(work.states.glob("step-*")):
            pids.extend(ranks_in(work))
            raise Enough

    with pytest.raises(Enough):
        launch(experiment, dataset, tokenizer_folder, work.root, on_event=cancel)
    assert len(pids) >= 3
    wait_until_dead(pids, seconds=15.0)

    seen, pids = [], []
    watch = stop_at_the_first_step(seen, work, pids)
    with pytest.raises(Enough):
        launch(experiment, dataset, tokenizer_folder, work.root, on_event=watch)
    assert seen[0]["resumed_from"] == seen[0]["step"] >= 2
    wait_until_dead(pids, seconds=15.0)


def test_the_traceback_of_a_rank_reaches_the_follower(
    tmp_path: Path, tokenizer_folder: Path, launcher: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(TrainingFailed, match=r"(?s)Rank \d failed: .*Traceback") as caught:
        launch(tiny_experiment(launcher=launcher), missing, tokenizer_folder, tmp_path / "work")
    assert "fim_core/training/run.py" in str(caught.value)
    printed = capfd.readouterr().err
    assert "[rank 0] " in printed
    assert "[rank 1] " in printed


def test_death_of_the_follower(tmp_path: Path, dataset: Path, tokenizer_folder: Path, launcher: Any) -> None:
    """After SIGKILL of the follower, the next attempt ends what still runs, and resumes."""
    work, options = Work(tmp_path / "work"), LONG | {"launcher": launcher}
    code = textwrap.dedent(DRIVER).format(
        helpers=str(Path(__file__).parent),
        options=options,
        dataset=str(dataset),
        tokenizer=str(tokenizer_folder),
        work=str(work.root),
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not list(work.states.glob("step-*")):
        assert parent.poll() is None, parent.stderr.read() if parent.stderr else ""
        time.sleep(0.02)
    orphans = ranks_in(work)
    assert len(orphans) >= 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    seen: list[dict[str, Any]] = []
    pids: list[int] = []
    watch = stop_at_the_first_step(seen, work, pids)
    with pytest.raises(Enough):
        launch(tiny_experiment(**options), dataset, tokenizer_folder, work.root, on_event=watch)
    assert not set(orphans) & set(pids)
    assert seen[0]["resumed_from"] >= 2
    wait_until_dead([*orphans, *pids], seconds=15.0)


def test_ray_that_cannot_be_reached(tmp_path: Path, launcher: Any) -> None:
    elsewhere = launcher | {"address": "http://127.0.0.1:9"}
    with pytest.raises(FimError, match=r"launcher\.address"):
        launch(tiny_experiment(launcher=elsewhere), tmp_path, tmp_path, tmp_path / "work")
