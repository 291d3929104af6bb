"""What a run has left on the hosts, and how long it may take to end."""

from __future__ import annotations

import os

from hosts import Cluster, wait_for
from trainings import RunFolder

from fim_core.locks import is_locked

NOTICE_SECONDS = 15.0
"""Time in which a failure has to be noticed and reported, and everything has to be gone, on a machine with cores to spare."""


def limit() -> float:
    """NOTICE_SECONDS, longer if other programs keep the cores busy."""
    return NOTICE_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def is_clean(cluster: Cluster, training: RunFolder) -> bool:
    """Whether no process, Slurm job or lock of a run is left."""
    assert training.work is not None or training.weights()
    locks = [] if training.work is None else [training.work / "lock", *(training.work / "hosts").glob("lock-*")]
    return not cluster.processes() and not cluster.slurm_jobs() and not any(map(is_locked, locks))


def assert_clean(cluster: Cluster, training: RunFolder) -> None:
    """Assert that nothing is left of a run whose front door has just ended."""
    assert cluster.processes() == {}
    assert [job for job in cluster.slurm_jobs() if not job.startswith("COMPLETING")] == []
    wait_for(lambda: is_clean(cluster, training), 10, "nothing is left")
