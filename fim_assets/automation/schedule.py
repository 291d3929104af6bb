"""Retraining on schedule."""

from __future__ import annotations

import dagster as dg

from fim_assets.automation.jobs import retrain
from fim_core.config.workflow import ScheduleConfig


def retraining_schedule(config: ScheduleConfig) -> dg.ScheduleDefinition:
    """The schedule of the `retrain` job, with cron and time zone of the experiment."""
    status = dg.DefaultScheduleStatus.RUNNING if config.enabled else dg.DefaultScheduleStatus.STOPPED
    return dg.ScheduleDefinition(
        name="retraining",
        job=retrain,
        cron_schedule=config.cron,
        execution_timezone=config.timezone,
        default_status=status,
        description="Retrains on all exports and replaces the champion only by a better model.",
    )
