"""Run launcher that detects runs whose process has died."""

from __future__ import annotations

import socket

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus

from fim_assets.resources.run_worker import HOST_TAG, worker_of


class LocalRunLauncher(dg.DefaultRunLauncher):
    """Starts each run as a process of the code server; configured in `dagster.yaml`.

    With Dagster's default launcher, only the code server that started a run detects its death. After a restart of the
    machine, or for a run from the command line, the run would stay "started" and keep its slot forever.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start a run. Its host is recorded first, since the process may die at any moment."""
        self._instance.add_run_tags(context.dagster_run.run_id, {HOST_TAG: socket.gethostname()})
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True, so that `run_monitoring` calls `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED if the run's process is certainly gone, else RUNNING."""
        worker = worker_of(self._instance, run)
        if worker is not None and worker.is_gone:
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {worker.pid} is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
