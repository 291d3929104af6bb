"""Runs on several hosts that are started and cancelled in Dagster, on the head of the cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_home import cmdline
from head_service import HeadService
from hosts import WORKERS, Cluster, wait_for
from leftovers import is_clean, limit
from table import Table
from trainings import BACKENDS, RunFolder, Trainings

pytestmark = pytest.mark.cluster

ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@pytest.fixture(scope="module")
def service(
    cluster: Cluster, all_trainings: Trainings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HeadService]:
    """`dagster dev` for an experiment that trains on the head; runs choose the file of another launcher."""
    experiment = all_trainings.configure(all_trainings.folder("dagster"))
    with HeadService(cluster, tmp_path_factory.mktemp("dagster") / "home", experiment) as service:
        yield service


def ranks(cluster: Cluster) -> set[str]:
    """The hosts on which a rank runs."""
    return {host for host, words in cluster.processes(WORKERS).values() if "fim_core.training.worker" in words}


def launch(service: HeadService, experiment: Path) -> str:
    """Launch the job `train` for an experiment file; returns the run."""
    options = {"resources": {"experiment": {"config": {"path": str(experiment)}}}}
    with service.network():
        return service.web.submit_job_execution("train", run_config=options)


def terminate(cluster: Cluster, service: HeadService, run_id: str, training: RunFolder) -> float:
    """Cancel a run as the button Terminate does, by the web API; returns the seconds until all of it is gone."""
    began = time.monotonic()
    with service.network():
        service.web.terminate_run(run_id)

    def unfinished() -> list[str]:
        left = [cmdline(process) for process in service.of_runs()]
        left += [] if is_clean(cluster, training) else ["a rank, a Slurm job or a lock"]
        left += [f"slot of {run}" for run in service.on_gpu()]
        status = service.status(run_id)
        return left + ([] if status is dg.DagsterRunStatus.CANCELED else [status.value])

    try:
        wait_for(lambda: not unfinished(), limit(), "the run is cancelled")
    except TimeoutError as error:
        raise AssertionError(f"{error}; left: {unfinished()}\n{service.tail()}") from error
    return time.monotonic() - began


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_is_cancelled(
    cluster: Cluster, all_trainings: Trainings, service: HeadService, table: Table, backend: str
) -> None:
    training = RunFolder(all_trainings.folder(f"dagster-{backend}"))
    run_id = launch(service, all_trainings.configure(training.folder, backend))
    wait_for(lambda: training.steps >= 8 or service.status(run_id) in ENDED, 240, "the run trains")
    assert service.status(run_id) is dg.DagsterRunStatus.STARTED, service.tail()
    assert ranks(cluster) == {"worker-1", "worker-2"}
    assert service.on_gpu() == {run_id}
    seconds = terminate(cluster, service, run_id, training)
    assert training.newest_state >= 5
    table.add("dagster", backend, seconds)


def test_a_run_that_waits_for_slurm_is_cancelled(
    cluster: Cluster, all_trainings: Trainings, service: HeadService
) -> None:
    training = RunFolder(all_trainings.folder("dagster-queued"))
    later = {"launcher_args": "--begin=now+1hour"}
    run_id = launch(service, all_trainings.configure(training.folder, "slurm", launcher=later))
    wait_for(lambda: any(job.startswith("PENDING fim-tiny-") for job in cluster.slurm_jobs()), 120, "the job is queued")
    terminate(cluster, service, run_id, training)
