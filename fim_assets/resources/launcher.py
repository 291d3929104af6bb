"""Launcher resource: starts the ranks of a training run as the experiment's `launcher` section says."""

from __future__ import annotations

import dagster as dg

from fim_assets.resources import kubernetes  # noqa: F401 - registers its launcher
from fim_core.launchers.base import RunningRanks, start_ranks
from fim_core.training.job import Job


class Launcher:
    """Starts the ranks of a job for a Dagster run; cluster jobs are labelled with the run's id.

    Replace this resource to train elsewhere: the asset calls only `run`. The caller follows the ranks through the job's
    folder and ends them when the run is cancelled, fails or succeeds.
    """

    def run(self, context: dg.AssetExecutionContext, job: Job, lock: int) -> RunningRanks:
        """Start the ranks.

        Args:
            context: context of the training step.
            job: the job; its experiment selects the launcher.
            lock: descriptor of the job folder's lock, to be inherited by local processes.

        Raises:
            FimError: the launcher's package is missing, or its cluster cannot be reached or refuses the job.
        """
        labels = {"dagster/run-id": context.run_id, "dagster/op": context.op_handle.name}
        return start_ranks(job, lock, labels)
