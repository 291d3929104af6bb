"""The retraining schedule."""

from __future__ import annotations

import dagster as dg

from fim_assets.automation.jobs import retrain
from fim_core.config.workflow import RetrainingConfig

_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def retraining_schedule(config: RetrainingConfig) -> dg.ScheduleDefinition:
    """Build the schedule of the `retrain` job from the experiment's cron expression and time zone."""
    status = dg.DefaultScheduleStatus.RUNNING if config.enabled else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="retraining",
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
