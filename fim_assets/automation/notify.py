"""Notification of failed runs."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Collection

import dagster as dg

from fim_assets.instance import PipelineInstance
from fim_core.config.workflow import NotifyConfig
from fim_core.pipeline import STAGES

_TIMEOUT_SECONDS = 10


def failure_sensor(instance: PipelineInstance, jobs: Collection[str], config: NotifyConfig) -> dg.SensorDefinition:
    """Build a sensor that logs every failed run of an instance and posts it to the experiment's webhook.

    Args:
        jobs: names of the instance's jobs.
    """

    @dg.run_failure_sensor(
        name=instance.named("run_failures"),
        description="Logs every failed run of these assets and posts it to the experiment's notify.webhook.",
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def run_failures(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        run = context.dagster_run
        if run.job_name not in jobs and not _has_assets_of(instance, run):
            return dg.SkipReason(f"Run {run.run_id} is of other assets.")
        message = describe_failure(run, context.failure_event.message or "")
        context.log.error(message["text"])
        if config.webhook:
            post(config.webhook, message)
        return None

    return run_failures


def _has_assets_of(instance: PipelineInstance, run: dg.DagsterRun) -> bool:
    """Whether a run that was started without a job of the instance materializes assets of it."""
    keys = {instance.key(stage.asset) for stage in STAGES}
    return not keys.isdisjoint(run.asset_selection or ())


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
