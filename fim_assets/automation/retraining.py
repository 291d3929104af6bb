"""The retraining schedule."""

from __future__ import annotations

from typing import Any

import dagster as dg

from fim_assets.instance import PipelineInstance
from fim_core.config.workflow import RetrainingConfig

_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def retraining_schedule(instance: PipelineInstance, retrain: Any, config: RetrainingConfig) -> dg.ScheduleDefinition:
    """Build the schedule of the job `retrain` from the experiment's cron expression and time zone."""
    status = dg.DefaultScheduleStatus.RUNNING if config.enabled else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name=instance.named("retraining"),
        job=retrain,
        cron_schedule=config.cron,
        execution_timezone=config.timezone,
        default_status=status,
        description="Retrains on all exports; a new model replaces the champion only if the gate promotes it. "
        "A tick is skipped while the previous retraining is running.",
    )
    def retraining(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        runs = context.instance.get_runs(dg.RunsFilter(job_name=retrain.name, statuses=_UNDER_WAY), limit=1)
        if runs:
            return dg.SkipReason(f"Run {runs[0].run_id} of {retrain.name} has not ended.")
        return dg.RunRequest()

    return retraining
