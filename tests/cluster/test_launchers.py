"""What happens to runs on several hosts: each launcher trains, and leaves nothing behind however a run ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hosts import WORKERS, Cluster, kill, wait_for
from leftovers import assert_clean, is_clean, limit
from table import Table
from trainings import BACKENDS, Trainings

pytestmark = [pytest.mark.cluster, pytest.mark.parametrize("backend", BACKENDS)]

STEPS = 60


@pytest.fixture(scope="session")
def reference(all_trainings: Trainings) -> str:
    """Digest of the weights that two ranks on one machine train."""
    training = all_trainings.start(all_trainings.folder("reference"), steps=STEPS)
    assert training.wait() == 0, training.output
    return training.weights()


def rank_process(cluster: Cluster, rank: int) -> int:
    """The process id of a rank."""
    for pid, (_, words) in cluster.processes().items():
        if "fim_core.training.worker" in words and f"RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return pid
    raise AssertionError(f"rank {rank} does not run")


def test_trains(cluster: Cluster, trainings: Trainings, table: Table, backend: str, reference: str) -> None:
    training = trainings.start(trainings.folder(f"trains-{backend}"), backend, steps=STEPS)
    assert training.wait() == 0, training.output
    seconds = time.monotonic() - training.began
    assert training.weights() == reference
    assert_clean(cluster, training)
    table.add("trains", backend, seconds)


def test_cancel_and_resume_on_other_hosts(
    cluster: Cluster, trainings: Trainings, table: Table, backend: str, reference: str
) -> None:
    folder = trainings.folder(f"cancel-{backend}")
    training = trainings.start(folder, backend, steps=STEPS)
    training.wait_for_steps()
    began = time.monotonic()
    training.interrupt()
    # When it says so, the ranks are gone; after that, Python takes its time to end.
    cancelled = training.wait_for_output("The next run resumes from step") - began
    assert cluster.processes(WORKERS) == {}
    assert training.wait() == 130, training.output
    assert_clean(cluster, training)
    step = training.newest_state
    assert f"The next run resumes from step {step}." in training.output

    resumed = trainings.start(folder, backend, ["worker-3 slots=1", "worker-2 slots=1"], steps=STEPS)
    assert resumed.wait() == 0, resumed.output
    seconds = time.monotonic() - resumed.began
    assert f"Training resumes from step {step} of {STEPS}." in resumed.output
    assert resumed.weights() == reference
    assert_clean(cluster, resumed)
    table.add("cancel", backend, cancelled)
    table.add("resume", backend, seconds)


def test_the_death_of_the_front_door_ends_the_run(
    cluster: Cluster, trainings: Trainings, table: Table, backend: str
) -> None:
    training = trainings.start(trainings.folder(f"sigkill-{backend}"), backend)
    training.wait_for_steps()
    began = time.monotonic()
    training.kill()
    wait_for(lambda: is_clean(cluster, training), limit(), "nothing is left")
    table.add("sigkill", backend, time.monotonic() - began)


def test_a_killed_rank_is_named(cluster: Cluster, trainings: Trainings, table: Table, backend: str) -> None:
    training = trainings.start(trainings.folder(f"rank-{backend}"), backend)
    training.wait_for_steps()
    began = time.monotonic()
    kill(rank_process(cluster, 1))
    seconds = training.wait_for_output("fim: Rank 1 on worker-2 was ended by SIGKILL.") - began
    assert training.wait() != 0
    assert seconds < limit()
    assert_clean(cluster, training)
    table.add("rank", backend, seconds)


def test_a_host_that_is_gone_is_named(cluster: Cluster, trainings: Trainings, table: Table, backend: str) -> None:
    training = trainings.start(trainings.folder(f"host-{backend}"), backend)
    training.wait_for_steps()
    began = time.monotonic()
    cluster.stop("worker-2")
    try:
        seconds = training.wait_for_output("fim: Lost worker-2 (rank 1): no sign of life") - began
        assert training.wait() != 0
    finally:
        cluster.restart("worker-2")
    assert seconds < limit()
    assert_clean(cluster, training)
    table.add("host", backend, seconds)


def test_an_unreachable_host_is_named(cluster: Cluster, trainings: Trainings, table: Table, backend: str) -> None:
    cluster.stop("worker-3")
    try:
        hosts = ["worker-1 slots=1", "worker-3 slots=1"]
        training = trainings.start(trainings.folder(f"unreachable-{backend}"), backend, hosts)
        training.wait_for_output("fim: ")
        seconds = training.launched
        assert training.wait() != 0
    finally:
        cluster.restart("worker-3")
    message = training.output.partition("fim: ")[2]
    assert message.startswith(("No answer from", "Slurm job"))
    assert "worker-3" in message.splitlines()[0]
    assert seconds < limit()
    assert_clean(cluster, training)
    table.add("unreachable", backend, seconds)


def test_two_runs_on_the_same_hosts(
    cluster: Cluster, trainings: Trainings, table: Table, backend: str, reference: str
) -> None:
    """The second run starts while the first one trains, and goes on when the first one is cancelled."""
    first = trainings.start(trainings.folder(f"first-{backend}"), backend)
    first.wait_for_steps()
    second = trainings.start(trainings.folder(f"second-{backend}"), backend, steps=STEPS)
    second.wait_for_steps(5)
    first.interrupt()
    assert first.wait() == 130, first.output
    assert second.wait() == 0, second.output
    seconds = time.monotonic() - second.began
    assert second.weights() == reference
    assert_clean(cluster, second)
    table.add("two", backend, seconds)
