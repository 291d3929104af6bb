"""Launcher for Ray: the cluster's job server runs our launcher on one of its machines.

This uses Ray's own client. Dagster's integration of Ray wraps the same client in a call that returns only when the job
has ended, whereas a run here is followed while it trains, and also without Dagster.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fim_core.config.launchers import RayLauncher
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.remote import RemoteRanks, Status
from fim_core.training.job import Job, TrainingFailed

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SILENCE_SECONDS = 60.0
SHOWN_LINES = 30


@register("ray")
def start_ray(job: Job, lock: int, labels: Mapping[str, str]) -> RemoteRanks:
    """Submit the job to Ray.

    Args:
        labels: metadata of the Ray job, shown in its dashboard.

    Raises:
        FimError: Ray is not installed, cannot be reached, or refuses the job.
    """
    options = job.experiment.launcher
    assert isinstance(options, RayLauncher)

    def submit(command: list[str]) -> RayJob:
        client = _connect(options.address)
        try:
            name = client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=f"fim-{job.experiment.name}-{job.attempt}",
                runtime_env=dict(options.runtime_env) or None,
                metadata=dict(labels),
                entrypoint_num_cpus=options.num_cpus or None,
                entrypoint_num_gpus=options.num_gpus or None,
                entrypoint_resources=dict(options.resources) or None,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise FimError(f"Ray refuses the job that `launcher` describes: {error}") from error
        return RayJob(client, name)

    return RemoteRanks(job, submit, options.python)


def _connect(address: str | None) -> JobSubmissionClient:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise FimError("`launcher.type: ray` needs Ray: pip install -c constraints.txt -e '.[ray]'") from error
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FimError(
            f"Ray cannot be reached at {address or '$RAY_ADDRESS or this machine'}. Start it, or set launcher.address "
            "to its dashboard, such as http://head:8265."
        ) from error


class RayJob:
    """A job of a Ray cluster."""

    def __init__(self, client: JobSubmissionClient, submission_id: str) -> None:
        self.name = f"Ray job {submission_id}"
        self._client = client
        self._id = submission_id
        self._answered = time.monotonic()

    def status(self) -> Status:
        """The job's status according to Ray; `running` while its server does not answer.

        Raises:
            TrainingFailed: the server has not answered for a minute.
        """
        import requests
        from ray.job_submission import JobStatus

        try:
            status = self._client.get_job_status(self._id)
        except (requests.RequestException, ConnectionError, RuntimeError) as error:
            if time.monotonic() - self._answered > SILENCE_SECONDS:
                raise TrainingFailed(f"Ray has not answered about {self.name} for a minute: {error}") from error
            return "running"
        self._answered = time.monotonic()
        if not status.is_terminal():
            return "running"
        return "succeeded" if status == JobStatus.SUCCEEDED else "failed"

    def output(self) -> str:
        """Ray's message, and the last lines of the job's log."""
        info = self._client.get_job_info(self._id)
        log = self._client.get_job_logs(self._id).splitlines()[-SHOWN_LINES:]
        return "\n".join([(info.message or "").partition("\n")[0], *log])

    def stop(self) -> None:
        """Have Ray terminate the job's processes, and kill those that do not end."""
        self._client.stop_job(self._id)
