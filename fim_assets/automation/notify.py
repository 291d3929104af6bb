"""Notification of failed runs."""

from __future__ import annotations

import json
import urllib.request

import dagster as dg

from fim_core.config.workflow import NotifyConfig

_TIMEOUT_SECONDS = 10


def failure_sensor(config: NotifyConfig) -> dg.SensorDefinition:
    """Build a sensor that logs every failed run and posts it to the experiment's webhook."""

    @dg.run_failure_sensor(
        name="run_failures",
        description="Logs every failed run and posts it to the experiment's notify.webhook.",
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def run_failures(context: dg.RunFailureSensorContext) -> None:
        message = describe_failure(context.dagster_run, context.failure_event.message or "")
        context.log.error(message["text"])
        if config.webhook:
            post(config.webhook, message)

    return run_failures


def describe_failure(run: dg.DagsterRun, reason: str) -> dict[str, str]:
    """Build the message about a failed run; `text` is the field that Slack and similar tools show."""
    return {
        "text": f"Run {run.run_id} of {run.job_name} failed: {reason}",
        "run_id": run.run_id,
        "job": run.job_name,
    }


def post(url: str, message: dict[str, str]) -> None:
    """Send a message as JSON.

    Raises:
        OSError: the receiver cannot be reached or refuses. Dagster shows the error; the next failure is posted as usual.
    """
    request = urllib.request.Request(
        url, data=json.dumps(message).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
        pass
