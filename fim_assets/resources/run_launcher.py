"""Dagster's default run launcher, made to notice runs that died."""

from __future__ import annotations

import socket

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus

from fim_assets.resources.run_worker import HOST_TAG, worker_of


class LocalRunLauncher(dg.DefaultRunLauncher):
    """Starts each run as a process of the code server; named in `dagster.yaml`.

    With Dagster's own launcher only the code server that started a run notices its death. After a restart of the
    machine, or for a run of the command line, nobody would: the run would stay "started" and keep its slot for ever.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start a run; this machine is recorded with it first, as its process may die at any moment."""
        self._instance.add_run_tags(context.dagster_run.run_id, {HOST_TAG: socket.gethostname()})
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Lets `run_monitoring` ask."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED when the run's process is certainly gone."""
        worker = worker_of(self._instance, run)
        if worker is not None and worker.is_gone:
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {worker.pid} is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
