"""Where the ranks of a training run are started: `launcher` in the experiment chooses, the asset does not care."""

from __future__ import annotations

import dagster as dg

from fim_assets.resources import kubernetes  # noqa: F401 - registers its launcher
from fim_core.launchers.base import RunningRanks, start_ranks
from fim_core.training.job import Job


class Launcher:
    """Starts the ranks of a job for a Dagster run; jobs of a cluster carry the run's id.

    Replace it to train somewhere else: `run` is all that the asset needs. Whoever calls it follows the ranks through
    the job's folder, and ends them when the run is cancelled, fails or succeeds.
    """

    def run(self, context: dg.AssetExecutionContext, job: Job, lock: int) -> RunningRanks:
        """Start the ranks.

        Args:
            context: of the step that trains.
            job: what to train; its experiment says where.
            lock: descriptor of the lock of the job's folder, for processes of this machine to inherit.

        Raises:
            FimError: the launcher's package is missing, or its cluster cannot be reached or refuses the job.
        """
        labels = {"dagster/run-id": context.run_id, "dagster/op": context.op_handle.name}
        return start_ranks(job, lock, labels)
