"""Launcher for Ray: the cluster's job server runs our launcher on one of its machines, or `ray_nodes` for several.

This uses Ray's own client. Dagster's integration of Ray wraps the same client in a call that returns only when the job
has ended, whereas a run here is followed while it trains, and also without Dagster.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fim_core.config.launchers import RayLauncher
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.remote import NoAnswer, RemoteRanks, Status, launcher_command
from fim_core.training.job import Job

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SHOWN_LINES = 30
_MACHINE_LOST = "node has died"


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

    several = options.num_nodes > 1
    # The driver of several machines reserves them itself, and needs next to nothing.
    reserved: dict[str, Any] = (
        {}
        if several
        else {
            "entrypoint_num_cpus": options.num_cpus or None,
            "entrypoint_num_gpus": options.num_gpus or None,
            "entrypoint_resources": dict(options.resources) or None,
        }
    )

    def submit(command: list[str]) -> RayJob:
        client = _connect(options.address)
        try:
            name = client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=f"fim-{job.experiment.name}-{job.attempt}",
                runtime_env=dict(options.runtime_env) or None,
                metadata=dict(labels),
                **reserved,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise FimError(f"Ray refuses the job that `launcher` describes: {error}") from error
        return RayJob(client, name)

    return RemoteRanks(job, submit, _driver_command(options) if several else launcher_command(options.python))


def _driver_command(options: RayLauncher) -> list[str]:
    bundle = {"CPU": options.num_cpus, "GPU": options.num_gpus, **options.resources}
    resources = json.dumps({name: amount for name, amount in bundle.items() if amount})
    driver = [options.python, "-m", "fim_core.launchers.ray_nodes"]
    return [*driver, "--nodes", str(options.num_nodes), "--resources", resources]


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

    def status(self) -> Status:
        """The job's status according to Ray."""
        from ray.job_submission import JobStatus

        with _answering():
            status = self._client.get_job_status(self._id)
        if not status.is_terminal():
            return "running"
        return "succeeded" if status == JobStatus.SUCCEEDED else "failed"

    def output(self) -> str:
        """Ray's message and the last lines of the job's log; one sentence if the machine that held the log is gone."""
        with _answering():
            info = self._client.get_job_info(self._id)
        message = info.message or ""
        if _MACHINE_LOST in message:
            place = urlsplit(info.driver_agent_http_address or "").hostname
            return f"Its machine{f' ({place})' if place else ''} has left the Ray cluster. Training resumes from its newest state."
        try:
            with _answering():
                log = self._client.get_job_logs(self._id).splitlines()[-SHOWN_LINES:]
        except NoAnswer:
            log = ["Its log cannot be read: the machine that holds it does not answer."]
        return "\n".join([message.partition("\n")[0], *log])

    def stop(self) -> None:
        """Have Ray terminate the job's processes, and kill those that do not end."""
        with _answering():
            self._client.stop_job(self._id)


@contextmanager
def _answering() -> Iterator[None]:
    """Turn errors of the connection and of Ray's server into NoAnswer, in one line."""
    import requests

    try:
        yield
    except (requests.RequestException, ConnectionError, RuntimeError) as error:
        # A server that fails answers with its whole traceback.
        raise NoAnswer(str(error).partition("\n")[0]) from error
