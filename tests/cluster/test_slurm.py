"""What only Slurm has: a queue, allocations and counted GPUs."""

from __future__ import annotations

import pytest
from hosts import GPU_WORKER, HEAD, Cluster, wait_for
from trainings import Training, Trainings

pytestmark = pytest.mark.cluster

LATER = {"launcher_args": "--begin=now+1hour"}


def queued(cluster: Cluster, trainings: Trainings, name: str) -> Training:
    """A run whose job waits in the queue."""
    training = trainings.start(trainings.folder(name), "slurm", launcher=LATER)
    wait_for(lambda: any(job.startswith("PENDING fim-tiny-") for job in cluster.slurm_jobs()), 120, "the job is queued")
    return training


def test_a_cancelled_run_leaves_no_job_in_the_queue(cluster: Cluster, trainings: Trainings) -> None:
    training = queued(cluster, trainings, "queued")
    wait_for(lambda: "waits: BeginTime" in training.output, 30, "the reason is shown")
    training.interrupt()
    assert training.wait() == 130, training.output
    assert cluster.slurm_jobs() == []


def test_the_death_of_the_front_door_leaves_no_job_in_the_queue(cluster: Cluster, trainings: Trainings) -> None:
    queued(cluster, trainings, "queued-killed").kill()
    wait_for(lambda: not cluster.slurm_jobs(), 15, "the job is cancelled")


def test_a_job_that_nobody_cancelled_is_cancelled_by_the_next_attempt(cluster: Cluster, trainings: Trainings) -> None:
    """As after the head lost power: the job is still there, and only its record tells of it."""
    first = queued(cluster, trainings, "forgotten")
    first.interrupt()
    assert first.wait() == 130
    assert first.work is not None
    name = "fim-tiny-forgotten"
    cluster.output(HEAD, ["sbatch", "--begin=now+1hour", f"--job-name={name}", "--wrap", "true"])
    (first.work / "slurm-job").write_text(name)
    second = trainings.start(first.folder, "slurm", launcher=LATER)
    wait_for(lambda: "waits: BeginTime" in second.output, 120, "the next attempt is queued")
    assert [job for job in cluster.slurm_jobs() if name in job] == []
    second.interrupt()
    second.wait()


def test_the_nodes_of_an_allocation_are_used(cluster: Cluster, trainings: Trainings) -> None:
    salloc = ["salloc", "-Q", "--nodelist=worker-2,worker-3", "--nodes=2", "--ntasks-per-node=1"]
    training = trainings.start(trainings.folder("allocation"), "slurm", [], steps=5, before=salloc)
    assert training.wait() == 0, training.output
    assert "[launcher] Slurm job" not in training.output, "no other job is submitted"
    assert '"world_size": 2' in training.events()
    wait_for(lambda: not cluster.slurm_jobs() and not cluster.processes(), 10, "nothing is left")


def test_gpus_are_asked_for_where_there_are_some(cluster: Cluster, trainings: Trainings) -> None:
    training = trainings.start(trainings.folder("gpu"), "slurm", [f"{GPU_WORKER} slots=1"], launcher=LATER)
    wait_for(cluster.slurm_jobs, 120, "the job is queued")
    asked = cluster.output(HEAD, ["squeue", "-h", "-o", "%b"])
    training.interrupt()
    training.wait()
    assert "gpu:1" in asked


@pytest.mark.parametrize("backend", ["slurm", "openmpi"])
def test_chosen_ranks_are_shown_with_their_numbers(cluster: Cluster, trainings: Trainings, backend: str) -> None:
    logger = {"level": "INFO", "print_output_ranks": [1]}
    training = trainings.start(trainings.folder(f"ranks-{backend}"), backend, steps=5, logger=logger)
    assert training.wait() == 0, training.output
    assert "[rank 1] " in training.output
    assert "[rank 0] " not in training.output
