"""The worker process of a run, recorded in the run's tags so that dead runs can be detected."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import asdict, dataclass

import dagster as dg
import psutil

from fim_assets.resources.deployment import runs_are_processes
from fim_core.parallel import end_with_parent

# Names of Dagster's own tags, which are in none of its public modules.
HIDDEN_TAG_PREFIX = ".dagster/"
GRPC_INFO_TAG = f"{HIDDEN_TAG_PREFIX}grpc_info"

# Dagster's UI hides tags with this prefix.
WORKER_TAG = f"{HIDDEN_TAG_PREFIX}fim_worker"
HOST_TAG = f"{HIDDEN_TAG_PREFIX}fim_launched_on"
# Start times come from the wall clock, which may be adjusted; a process id is unlikely to be reused within this time.
CLOCK_SECONDS = 300.0


@dataclass(frozen=True)
class RunWorker:
    """One process of one run.

    Attributes:
        run_id: id of the run. A retry inherits the tags of the previous run, but not its process.
        started: start time of the process in seconds since the epoch; it distinguishes processes that reuse an id.
    """

    run_id: str
    host: str
    pid: int
    started: float

    @classmethod
    def recorded(cls, run: dg.DagsterRun) -> RunWorker | None:
        """The worker in a run's tags; None before its first asset, or if the tag is inherited from an earlier run."""
        tag = run.tags.get(WORKER_TAG)
        worker = cls(**json.loads(tag)) if tag else None
        return worker if worker and worker.run_id == run.run_id else None

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended. False for a process on another machine, which cannot be checked."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < CLOCK_SECONDS
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def worker_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> RunWorker | None:
    """The worker process of a run: the one recorded by its first asset, else the one in Dagster's event log.

    None if neither is known, or if the code server is reached over a network, so that the process may be on another
    machine than the launcher.
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
    """Record the run's worker process, if runs are processes of this machine, and end this process when it ends.

    Dagster's executor starts a process per step. If the run's process were killed, the step's process would go on
    training, unnoticed, in parallel with the next run.
    """
    end_with_parent()
    if not (runs_are_processes(context.instance) or context.instance.is_ephemeral):
        # The process number of a container means nothing outside it, where its launcher watches it.
        return
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None and parent.pid is not None else os.getpid()
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        raise SystemExit("the process of this run is gone") from None
    worker = RunWorker(context.run_id, socket.gethostname(), pid, started)
    context.instance.add_run_tags(context.run_id, {WORKER_TAG: json.dumps(asdict(worker))})


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of this machine whose process is gone as failed and free their slots. Returns their ids.

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
            print(f"Run {run_id} was dead; it is now marked as failed, and its slot is free.")


if __name__ == "__main__":
    main()
