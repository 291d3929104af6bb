"""The process that carries out a run: recorded with the run, so that a run whose process is gone is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import asdict, dataclass

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG, HIDDEN_TAG_PREFIX

from fim_core.parallel import end_with_parent

# Dagster's UI hides tags of this prefix.
WORKER_TAG = f"{HIDDEN_TAG_PREFIX}fim_worker"
HOST_TAG = f"{HIDDEN_TAG_PREFIX}fim_launched_on"
# Start times come from the wall clock, which may be set; a process id is hardly given twice within this time.
CLOCK_SECONDS = 300.0


@dataclass(frozen=True)
class RunWorker:
    """One process of one run.

    Attributes:
        run_id: the run; a retry inherits the tags of the run before it, but not its process.
        started: when the process started, seconds since the epoch: its number may be another's after a restart.
    """

    run_id: str
    host: str
    pid: int
    started: float

    @classmethod
    def recorded(cls, run: dg.DagsterRun) -> RunWorker | None:
        """What a run's tag says; None before its first asset, and where the tag is that of an earlier run."""
        tag = run.tags.get(WORKER_TAG)
        worker = cls(**json.loads(tag)) if tag else None
        return worker if worker and worker.run_id == run.run_id else None

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False for one on another machine, which cannot be seen from here."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < CLOCK_SECONDS
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def worker_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> RunWorker | None:
    """The process that carries out a run: as its first asset recorded it; before that, as Dagster's log names it.

    None where neither says, or the process may be on another machine than the launcher was: its code server is reached
    over a network.
    """
    recorded, host = RunWorker.recorded(run), run.tags.get(HOST_TAG)
    server_is_here = "socket" in json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if recorded is not None or host is None or not server_is_here:
        return recorded
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.get_dagster_event()
        pid = event.engine_event_data.metadata.get("pid")
        if event.step_key is None and pid is not None:
            return RunWorker(run.run_id, host, int(str(pid.value)), entry.timestamp)
    return None


def bind_to_worker(context: dg.AssetExecutionContext) -> None:
    """Record the process that carries out the run, and end this one with it.

    Dagster's executor starts a process for each step. If the run's own process were killed, that of the step would
    train on, unseen, next to the next run.
    """
    end_with_parent()
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None and parent.pid is not None else os.getpid()
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        raise SystemExit("the process of this run is gone") from None
    worker = RunWorker(context.run_id, socket.gethostname(), pid, started)
    context.instance.add_run_tags(context.run_id, {WORKER_TAG: json.dumps(asdict(worker))})


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of this machine as failed whose process is gone, and free their slots; returns their ids.

    The daemon does the same while it runs (see `LocalRunLauncher`).
    """
    under_way = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=under_way)):
        worker = worker_of(instance, run)
        if worker is not None and worker.is_gone:
            instance.report_run_failed(run, f"Process {worker.pid} of this run is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            dead.append(run.run_id)
    return dead


def main() -> None:
    """`python -m fim_assets.resources.run_worker`: end dead runs of the instance in $DAGSTER_HOME."""
    with dg.DagsterInstance.get() as instance:
        for run_id in end_dead_runs(instance):
            print(f"Run {run_id} had died; it is marked as failed and its slot is free.")


if __name__ == "__main__":
    main()
