"""Detection of dead runs: runs whose process is alive or on another machine are left alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from fim_assets.resources.run_launcher import LocalRunLauncher
from fim_assets.resources.run_worker import HOST_TAG, WORKER_TAG, RunWorker, end_dead_runs

RUN = "00000000-0000-0000-0000-000000000001"
HERE = RunWorker(RUN, socket.gethostname(), psutil.Process().pid, psutil.Process().create_time())


@pytest.fixture(scope="module")
def dead() -> RunWorker:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    process.wait()
    return replace(HERE, pid=process.pid, started=started)


def tagged(worker: RunWorker, run_id: str = RUN) -> dict[str, str]:
    return {WORKER_TAG: json.dumps(asdict(replace(worker, run_id=run_id)))}


def test_only_a_process_that_has_certainly_ended_is_gone(dead: RunWorker) -> None:
    assert dead.is_gone
    assert replace(HERE, started=HERE.started - 3600).is_gone, "its number is another's now"
    assert not HERE.is_gone
    assert not replace(dead, host="elsewhere").is_gone


@pytest.fixture
def launcher() -> Iterator[LocalRunLauncher]:
    with dg.instance_for_test(
        overrides={"run_launcher": {"module": LocalRunLauncher.__module__, "class": LocalRunLauncher.__name__}}
    ) as instance:
        assert isinstance(instance.run_launcher, LocalRunLauncher)
        yield instance.run_launcher


def test_the_launcher_detects_dead_workers(dead: RunWorker, launcher: LocalRunLauncher) -> None:
    def status(tags: dict[str, str]) -> WorkerStatus:
        return launcher.check_run_worker_health(dg.DagsterRun("train", run_id=RUN, tags=tags)).status

    assert status(tagged(dead)) == WorkerStatus.FAILED
    assert status(tagged(HERE)) == WorkerStatus.RUNNING
    assert status({}) == WorkerStatus.RUNNING
    assert status(tagged(dead, run_id="the run that this one repeats")) == WorkerStatus.RUNNING


def test_a_worker_that_died_before_its_first_asset_is_detected(dead: RunWorker, launcher: LocalRunLauncher) -> None:
    instance = launcher._instance

    def status(number: int, pid: int, host: str | None, server: str = "socket") -> WorkerStatus:
        tags = {GRPC_INFO_TAG: json.dumps({"host": "localhost", server: "x"})} | ({HOST_TAG: host} if host else {})
        run = instance.add_run(dg.DagsterRun("train", run_id=RUN[:-1] + str(number), tags=tags))
        instance.report_engine_event("Something without a process.", run)
        instance.report_engine_event("Started.", run, EngineEventData.in_process(pid))
        instance.report_engine_event("A step.", run, EngineEventData.in_process(0), step_key="raw_completions")
        return launcher.check_run_worker_health(run).status

    assert status(1, dead.pid, HERE.host) == WorkerStatus.FAILED
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as alive:
        assert status(2, alive.pid, HERE.host) == WorkerStatus.RUNNING
    assert status(3, dead.pid, "elsewhere") == WorkerStatus.RUNNING
    assert status(4, dead.pid, None) == WorkerStatus.RUNNING
    assert status(5, dead.pid, HERE.host, server="port") == WorkerStatus.RUNNING


def test_dead_runs_end_and_free_their_slots(dead: RunWorker, tmp_path: Path) -> None:
    pools = {"concurrency": {"pools": {"default_limit": 1, "granularity": "op"}}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(pools | {"telemetry": {"enabled": False}}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("gpu")
        for number, worker in enumerate((HERE, dead), 1):
            run_id = RUN[:-1] + str(number)
            instance.add_run(
                dg.DagsterRun("train", run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tagged(worker, run_id))
            )
        assert storage.claim_concurrency_slot("gpu", RUN[:-1] + "2", "trained_checkpoint").is_claimed
        assert end_dead_runs(instance) == [RUN[:-1] + "2"]
        assert storage.get_concurrency_info("gpu").active_slot_count == 0
        statuses = {run.run_id[-1]: run.status for run in instance.get_runs()}
    assert statuses == {"1": dg.DagsterRunStatus.STARTED, "2": dg.DagsterRunStatus.FAILURE}


def test_dagster_yaml_configures_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(Path("dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, LocalRunLauncher)
